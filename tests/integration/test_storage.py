"""Open databases of both kinds: the ways in which that succeeds, and those in which it is refused."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import alembic.command
import optuna
import pytest
from optuna.storages import RDBStorage
from sqlalchemy import select, text

from hpo import study
from hpo.database import overview, queue, schema, studies
from hpo.database.attempt import WorkerId
from hpo.database.retry import RetryPolicy
from hpo.database.schema import NEWER, UPGRADE, VERSION_TABLE
from hpo.database.storage import ESCAPES, Storage, open_storage, upgrade_storage
from hpo.database.tables import now_s
from hpo.errors import BadInput, HpoError, StorageUnavailable
from hpo.recipes.schedule import CurvePoint
from tests.conftest import PASSWORD, PostgreSQL, free_port
from tests.integration.support import NOTHING, SETTINGS, claim, dump, in_processes, make_study, wait_until

Open = Callable[..., Storage]
ALLOWED = "allowed: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
PROCESSES = 8
OUR_MIGRATIONS = schema.MIGRATIONS
HEAD = str(schema._scripts().get_current_head())
NEXT = f"{int(HEAD) + 1:04}"


def test_what_one_storage_writes_another_reads(storage_url: str, opened: Open) -> None:
    made = make_study(opened(storage_url), 3)

    for access in ("write", "read"):
        storage = opened(storage_url, access)
        assert study.load(storage, None).settings == SETTINGS
        assert overview.count(storage, made.study_id) == overview.Counts(waiting=3)


def test_opening_again_changes_nothing(storage_url: str, opened: Open) -> None:
    storage = opened(storage_url)
    make_study(storage, 3)
    before = dump(storage)

    for access in ("create", "write", "read"):
        opened(storage_url, access)

    assert dump(storage) == before


def test_several_processes_create_one_database_at_once(storage_url: str, opened: Open) -> None:
    assert in_processes(_create_study, [(storage_url,)] * PROCESSES) == [1] * PROCESSES

    assert overview.count(opened(storage_url, "read"), 1) == overview.Counts(waiting=2)


def _create_study(url: str) -> int:
    storage = open_storage(url, "create")
    try:
        return make_study(storage, 2).study_id
    finally:
        storage.close()


def test_read_access_cannot_write(storage_url: str, opened: Open) -> None:
    writer = opened(storage_url)
    made = make_study(writer, 2)
    attempt = queue.claim(writer, made.study_id, WorkerId(name="w", host="h", device="cpu"))
    assert attempt is not None
    before = dump(writer)

    reader = opened(storage_url, "read")
    for write in (
        lambda: studies.set_target(reader, made.study_id, 5, first={}),
        lambda: queue.claim(reader, made.study_id, WorkerId(name="w", host="h", device="cpu")),
        lambda: queue.renew(reader, attempt, NOTHING),
        lambda: studies.describe_study(reader, made.study_id, {"new": 1}),
        lambda: make_study(reader, 5),
    ):
        with pytest.raises(StorageUnavailable, match=r"read-?only"):
            write()

    assert dump(writer) == before


def test_a_missing_file_is_refused_and_not_made(tmp_path: Path) -> None:
    for access in ("write", "read"):
        with pytest.raises(BadInput) as refused:
            open_storage(f"sqlite:///{tmp_path}/none.db", access)
        assert str(refused.value) == (
            f"storage: the database {tmp_path}/none.db does not exist; "
            "create it with `hpo run`, or choose another with --storage"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        open_storage(f"sqlite:///{tmp_path}/none/hpo.db", "create")
    assert str(refused.value) == (
        f"storage: {tmp_path}/none/hpo.db is not a usable database path: it is a directory, "
        "or its parent directory does not exist"
    )


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Not a database, but a text that is long enough to be taken for one." * 40)
    before = file.read_bytes()

    for access in ("create", "write", "read"):
        with pytest.raises(HpoError) as refused:
            open_storage(f"sqlite:///{file}", access)
        assert str(refused.value) == f"storage sqlite:///{file}: file is not a database"

    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", f"storage: not a database URL; {ALLOWED}"),
        ("hpo.db", f"storage: not a database URL; {ALLOWED}"),
        (f"postgresql//hpo:{PASSWORD}@host/hpo", f"storage: not a database URL ({ESCAPES}); {ALLOWED}"),
        (f"postgresql://hpo:{PASSWORD}@host:port/hpo", f"storage: not a database URL ({ESCAPES}); {ALLOWED}"),
        (f"hpo:{PASSWORD}@tail@host", f"storage: not a database URL ({ESCAPES}); {ALLOWED}"),
        (f"host=h user=hpo password={PASSWORD}", f"storage: not a database URL; {ALLOWED}"),
        (
            f"postgresql://hpo:{PASSWORD}@tail@host/hpo",
            f"storage postgresql://hpo:***@host/hpo: more than one @, or a / before it; {ESCAPES}",
        ),
        (
            f"postgresql://h/po:{PASSWORD}@host/hpo",
            f"storage postgresql://h/po:***@host/hpo: more than one @, or a / before it; {ESCAPES}",
        ),
        (
            f"mysql://host/hpo?sslpassword={PASSWORD}&x=y",
            f"storage mysql://host/hpo?sslpassword=***&x=y: 'mysql' is not supported; {ALLOWED}",
        ),
        (
            f"mysql://hpo:{PASSWORD}@host/hpo",
            f"storage mysql://hpo:***@host/hpo: 'mysql' is not supported; {ALLOWED}",
        ),
        (
            f"postgresql+psycopg2://hpo:{PASSWORD}@host/hpo",
            f"storage postgresql+psycopg2://hpo:***@host/hpo: 'postgresql+psycopg2' is not supported; {ALLOWED}",
        ),
        (
            f"postgresql://hpo:{PASSWORD}@host",
            f"storage postgresql://hpo:***@host: not a database that processes can share; {ALLOWED}",
        ),
        ("sqlite://", f"storage sqlite://: not a database that processes can share; {ALLOWED}"),
        (
            "sqlite:///:memory:",
            f"storage sqlite:///%3Amemory%3A: not a database that processes can share; {ALLOWED}",
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        open_storage(url, "create")
    assert str(refused.value) == message


@pytest.mark.parametrize("access", ["create", "write", "read"])
@pytest.mark.parametrize(
    "form", ["hpo:{password}@127.0.0.1:{port}/hpo", "127.0.0.1:{port}/hpo?user=hpo&password={password}"]
)
def test_a_closed_port_is_named_without_the_password(form: str, access: Literal["create", "write", "read"]) -> None:
    port = free_port()
    with pytest.raises(StorageUnavailable) as failed:
        open_storage("postgresql://" + form.format(port=port, password=PASSWORD), access)
    message = str(failed.value)
    assert f"127.0.0.1:{port}/hpo" in message
    assert "\n" not in message
    assert PASSWORD not in message


@pytest.mark.parametrize("access", ["create", "write", "read"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("hpo:battery-staple@SERVER/postgres", 'password authentication failed for user "hpo"'),
        ("hpo:battery%zstaple@SERVER/postgres", f'password authentication failed for user "hpo" ({ESCAPES})'),
        ("nobody:battery-staple@SERVER/postgres", 'password authentication failed for user "nobody"'),
        ("hpo@SERVER/postgres", "no password supplied"),
        (f"hpo:{PASSWORD}@SERVER/none", 'database "none" does not exist'),
    ],
)
def test_what_the_server_refuses_is_not_tried_again(
    postgresql: PostgreSQL, wrong: str, message: str, access: Literal["create", "write", "read"]
) -> None:
    policy, url = RetryPolicy(600.0), f"postgresql://{wrong.replace('SERVER', f'127.0.0.1:{postgresql.port}')}"
    with pytest.raises(BadInput) as refused:
        policy.call(lambda: open_storage(url, access, policy))
    assert str(refused.value).endswith(message)
    assert "\n" not in str(refused.value)
    assert "battery" not in str(refused.value) and PASSWORD not in str(refused.value)


def test_a_database_that_optuna_alone_uses_holds_no_studies_of_ours(
    storage_url: str, shown_url: str, opened: Open
) -> None:
    _make_study_with_optuna_alone(storage_url)

    for access in ("write", "read"):
        with pytest.raises(BadInput) as refused:
            open_storage(storage_url, access)
        assert str(refused.value) == f"storage {shown_url}: has no hpo studies; create one with `hpo run`"


def test_a_study_of_ours_fits_beside_one_that_optuna_made(storage_url: str, opened: Open) -> None:
    _make_study_with_optuna_alone(storage_url)

    storage = opened(storage_url)
    made = make_study(storage, 2)

    assert study.load(storage, None).name == made.name == "small"
    assert [s.study_name for s in storage.optuna.get_all_studies()] == ["theirs", "small"]


def test_an_empty_database_holds_no_studies_of_ours(kind: str, storage_url: str, shown_url: str) -> None:
    if kind == "sqlite":
        sqlite3.connect(storage_url.removeprefix("sqlite:///")).close()
        Path(storage_url.removeprefix("sqlite:///")).touch()

    for access in ("write", "read"):
        with pytest.raises(BadInput) as refused:
            open_storage(storage_url, access)
        assert str(refused.value) == f"storage {shown_url}: has no hpo studies; create one with `hpo run`"


def test_tables_of_another_revision_of_ours_are_refused(storage_url: str, shown_url: str, opened: Open) -> None:
    storage = opened(storage_url)
    make_study(storage, 1)
    with storage.transaction() as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    before = dump(storage)

    for access in ("create", "write", "read"):
        with pytest.raises(BadInput) as refused:
            open_storage(storage_url, access)
        assert str(refused.value) == (
            f"storage {shown_url}: its tables are of revision 9999, this release needs {HEAD}; {NEWER}"
        )

    assert dump(storage) == before


@pytest.mark.parametrize("access", ["create", "write"])
def test_the_threads_of_a_worker_take_turns_at_one_connection(
    postgresql: PostgreSQL, opened: Open, access: Literal["create", "write"]
) -> None:
    url = postgresql.make_database()
    if access == "write":
        opened(url).close()
    storage = open_storage(url, access, one_connection=True)
    second = threading.Thread(target=make_study, args=[storage, 1])
    try:
        with storage.transaction() as session:
            session.execute(text("SELECT 1"))
            second.start()
            second.join(0.5)
            assert second.is_alive(), "waits for the connection"
            assert postgresql.count_connections(url) == 1
        second.join(10.0)
        assert not second.is_alive()
        assert len(optuna.get_all_study_names(storage.optuna)) == 1
        assert postgresql.count_connections(url) == 1
    finally:
        storage.close()


def test_a_database_that_is_refused_is_left_without_connections(postgresql: PostgreSQL, opened: Open) -> None:
    url = postgresql.make_database()
    storage = opened(url)
    with storage.transaction() as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    storage.close()

    with pytest.raises(BadInput) as refused:
        open_storage(url)

    wait_until(lambda: postgresql.count_connections(url) == 0, 5.0, f"no connection is left after: {refused.value}")


def test_tables_of_an_older_release_of_optuna_are_refused_until_they_are_upgraded(
    storage_url: str, shown_url: str, opened: Open
) -> None:
    storage = opened(storage_url)
    made = make_study(storage, 1)
    _stamp_optuna(storage, "v3.0.0.d")
    before = dump(storage)

    for access in ("create", "write", "read"):
        with pytest.raises(BadInput) as refused:
            open_storage(storage_url, access)
        assert str(refused.value) == f"storage {shown_url}: its tables belong to another release of Optuna; {UPGRADE}"
    assert dump(storage) == before

    assert upgrade_storage(storage_url) == [
        "Optuna's tables are of revision v3.2.0.a, and were of v3.0.0.d",
        f"the tables of hpo are of revision {HEAD}",
    ]
    assert dump(opened(storage_url)) == before | {"alembic_version": [{"version_num": "v3.2.0.a"}]}
    assert overview.count(opened(storage_url, "read"), made.study_id) == overview.Counts(waiting=1)


def test_tables_of_an_older_release_of_ours_are_refused_until_they_are_upgraded(
    storage_url: str, shown_url: str, opened: Open, next_release: None
) -> None:
    del next_release
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", OUR_MIGRATIONS)
        storage = opened(storage_url)
        make_study(storage, 1)
    before = dump(storage)

    for access in ("create", "write", "read"):
        with pytest.raises(BadInput) as refused:
            open_storage(storage_url, access)
        assert str(refused.value) == (
            f"storage {shown_url}: its tables are of revision {HEAD}, this release needs {NEXT}; {UPGRADE}"
        )
    assert dump(storage) == before

    wanted = [
        "Optuna's tables are of revision v3.2.0.a",
        f"the tables of hpo are of revision {NEXT}, and were of {HEAD}",
    ]
    assert upgrade_storage(storage_url) == wanted
    assert dump(opened(storage_url)) == before | {VERSION_TABLE: [{"version_num": NEXT}], "hpo_next": []}
    assert upgrade_storage(storage_url) == [wanted[0], f"the tables of hpo are of revision {NEXT}"], (
        "nothing is left to do"
    )


def test_the_studies_of_the_first_release_run_on_after_the_upgrade(storage_url: str, opened: Open) -> None:
    storage = opened(storage_url)
    made = make_study(storage, 2)
    assert queue.claim(storage, made.study_id, WorkerId(name="w", host="h", device="cpu")) is not None
    optuna.create_study(study_name="theirs", storage=storage.optuna)
    now = dump(storage)
    _downgrade(storage, "0001")
    old = dump(storage)
    assert old == {
        name: rows
        for name, rows in now.items()
        if name not in ("hpo_studies", "hpo_workers", "hpo_rungs", "hpo_secrets", "hpo_lent")
    } | {VERSION_TABLE: [{"version_num": "0001"}]}
    with pytest.raises(BadInput, match=f"revision 0001, this release needs {HEAD}; {UPGRADE}"):
        open_storage(storage_url)

    assert upgrade_storage(storage_url)[1] == f"the tables of hpo are of revision {HEAD}, and were of 0001"

    after = dump(opened(storage_url))
    [row] = after["hpo_studies"]
    assert (row["study_id"], row["state"]) == (made.study_id, "running")
    assert abs(row["changed_s"] - time.time()) < 60
    assert [row["name"] for row in after["hpo_secrets"]] == ["notes"]
    assert after == now | {"hpo_studies": after["hpo_studies"], "hpo_secrets": after["hpo_secrets"]}


def test_a_study_of_the_pruner_asha_keeps_the_pruner_that_only_stops(storage_url: str, opened: Open) -> None:
    storage = opened(storage_url)
    stopping = replace(SETTINGS, pruner="asha-stop")
    make_study(storage, 1, stopping)
    optuna.create_study(study_name="theirs", storage=storage.optuna).set_user_attr("pruner", "asha")
    now = dump(storage)
    _downgrade(storage, "0002")
    pruners = [row["value_json"] for row in dump(storage)["study_user_attributes"] if row["key"] == "pruner"]
    assert pruners == ['"asha"'] * 2

    upgrade_storage(storage_url)

    after = dump(opened(storage_url))
    kept = {name: after[name] for name in ("hpo_secrets", "hpo_studies")}
    assert after == now | kept
    assert make_study(opened(storage_url), 2, stopping).settings == stopping


def test_curves_of_the_release_before_are_kept_without_training_accuracies(storage_url: str, opened: Open) -> None:
    storage = opened(storage_url)
    made = make_study(storage, 2)
    attempt = claim(made)
    measured = CurvePoint(iteration=8, train_loss=2.0, train_accuracy=0.125, val_loss=1.9, val_accuracy=0.25)
    queue.record(storage, attempt, NOTHING, [measured], {})
    _downgrade(storage, "0003")

    upgrade_storage(storage_url)

    storage = opened(storage_url)
    later = replace(measured, iteration=16)
    queue.record(storage, attempt, NOTHING, [later], {})
    assert overview.load_curve(storage, attempt.trial_id) == [replace(measured, train_accuracy=None), later]


def _downgrade(storage: Storage, revision: str) -> None:
    config = schema._config()
    with storage.engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, revision)


def test_tables_of_a_newer_release_are_not_upgraded(storage_url: str, shown_url: str, opened: Open) -> None:
    storage = opened(storage_url)
    make_study(storage, 1)
    with storage.transaction() as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    before = dump(storage)
    with pytest.raises(BadInput) as refused:
        upgrade_storage(storage_url)
    assert str(refused.value) == f"storage {shown_url}: its tables are of revision 9999; {NEWER}"
    assert dump(storage) == before

    _stamp_optuna(storage, "v99")
    before = dump(storage)
    with pytest.raises(BadInput) as refused:
        upgrade_storage(storage_url)
    assert str(refused.value) == f"storage {shown_url}: its tables are of Optuna's revision v99; {NEWER}"
    with pytest.raises(BadInput) as refused:
        open_storage(storage_url, "create")
    assert str(refused.value) == (
        f"storage {shown_url}: its tables belong to another release of Optuna; a newer Optuna made them: "
        "`pip install --upgrade hpo-trajectories optuna`"
    )
    assert dump(storage) == before


def test_only_databases_of_ours_are_upgraded(tmp_path: Path, postgresql: PostgreSQL) -> None:
    _make_study_with_optuna_alone(f"sqlite:///{tmp_path}/theirs.db")
    sqlite3.connect(tmp_path / "empty.db").close()
    for url in (f"sqlite:///{tmp_path}/theirs.db", f"sqlite:///{tmp_path}/empty.db", postgresql.make_database()):
        with pytest.raises(BadInput) as refused:
            upgrade_storage(url)
        shown = _with_driver(url).replace(PASSWORD, "***")
        assert str(refused.value) == f"storage {shown}: has no hpo studies; create one with `hpo run`"
    assert (tmp_path / "empty.db").stat().st_size == 0
    with pytest.raises(BadInput, match=r"none\.db does not exist"):
        upgrade_storage(f"sqlite:///{tmp_path}/none.db")


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of hpo that has one table more."""
    folder = tmp_path / "migrations"
    shutil.copytree(OUR_MIGRATIONS, folder)
    (folder / "versions" / f"{NEXT}_next.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision, down_revision, branch_labels, depends_on = '{NEXT}', '{HEAD}', None, None\n"
        "def upgrade():\n    op.create_table('hpo_next', sa.Column('note_id', sa.Integer, primary_key=True))\n"
    )
    monkeypatch.setattr(schema, "MIGRATIONS", folder)


def _stamp_optuna(storage: Storage, revision: str) -> None:
    with storage.transaction() as session:
        session.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))


def test_the_clock_is_the_databases_and_counts_from_the_epoch(storage: Storage) -> None:
    before = time.time()
    with storage.transaction() as session:
        found = session.scalar(select(now_s()))
    assert found is not None
    assert before - 1 <= found <= time.time() + 1


@pytest.fixture
def shown_url(storage_url: str) -> str:
    """Give the URL as messages show it."""
    return _with_driver(storage_url).replace(PASSWORD, "***")


def _make_study_with_optuna_alone(url: str) -> None:
    backend = RDBStorage(_with_driver(url))
    optuna.create_study(study_name="theirs", storage=backend)
    backend.engine.dispose()


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")
