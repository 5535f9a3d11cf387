"""Pause, resume, stop and delete finished and waiting studies with the installed program."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import SMALL
from tests.acceptance.support import Shell, check_document

STUDY = "smooth_lr-digits"


def files_of(shell: Shell) -> dict[str, int]:
    """Count the stored files by what they are: figures are PNG, checkpoints safetensors."""
    heads = [path.read_bytes()[:8] for path in (shell.folder / "hpo-artifacts").iterdir()]
    figures = sum(head.startswith(b"\x89PNG") for head in heads)
    return {"figures": figures, "others": len(heads) - figures}


def test_a_study_is_deleted_when_its_name_is_typed_and_checkpoints_stay(copied: Shell) -> None:
    before = files_of(copied)
    assert before["figures"] == 6
    assert before["others"] > 0
    for typed in ("", "smooth_lr\n"):
        refused = copied.hpo("delete", "--study", STUDY, typed=typed)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err == (
            f"study {STUDY} has 6 trials, 6 of them finished; deleting cannot be undone\n"
            f"type its name to delete it: error: typed {typed.strip()!r}: only {STUDY!r}, or --yes, deletes the study; "
            "nothing was deleted\n"
        )
    assert files_of(copied) == before
    assert copied.hpo("status", "--json").json["trials"]["waiting"] == 0

    done = copied.hpo("delete", "--study", STUDY, typed=f"{STUDY}\n")

    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        f"deleted study {STUDY}: 6 trials with their curves and notes, 6 files",
        "kept: all checkpoints, because other studies may start from them; `hpo gc` limits their size",
    ]
    assert files_of(copied) == before | {"figures": 0}
    gone = copied.hpo("status")
    assert (gone.code, gone.err) == (2, "error: storage sqlite:///hpo.db holds 0 studies; `hpo run` makes one\n")


def test_a_waiting_study_is_paused_stopped_resumed_and_deleted_without_asking(shell: Shell) -> None:
    assert shell.hpo("run", *SMALL, "--trials", "2", "--submit").code == 0
    assert shell.hpo("pause").out == (
        f"study {STUDY} is paused: 0 running trials to finish, 2 waiting; "
        f"continue it with `hpo resume --study {STUDY}`\n"
    )
    assert shell.hpo("status", "--json").json["state"] == "paused"
    assert shell.hpo("stop").out == (
        f"study {STUDY} is stopped: 0 running trials handed back, 0 finished; 0 finished in all, 2 "
        f"waiting. Continue it with `hpo resume --study {STUDY}` or the command that created it\n"
    )
    assert shell.hpo("worker").err.endswith(
        f"study {STUDY} was stopped; continue it with `hpo resume --study {STUDY}`\n"
    )
    assert shell.hpo("resume").out == f"study {STUDY} was stopped and continues: 0 trials running, 2 waiting\n"
    done = shell.hpo("delete", "--study", STUDY, "--yes")
    assert (done.code, done.err) == (0, "")


def test_a_study_ends_with_its_budget_and_continues_with_more(shell: Shell) -> None:
    run = ("run", *SMALL, "--trials", "4", "--workers", "1", "--json")
    ended = shell.hpo(*run, "--budget", "40", "--confirm")
    assert ended.code == 0, ended.err
    found = ended.json
    assert (found["state"], found["ends"]["budget"]) == ("ended", 40)
    assert 40 <= found["iterations_spent"]["trained"] < 64
    assert f"study {STUDY} has ended: {found['ended_because']}; the same command with more continues it" in ended.err
    assert found["ended_because"].endswith("optimizer steps of 40")

    refused = shell.hpo("resume")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "`hpo run` with more, or with 0 for no end" in refused.err
    assert shell.hpo("worker").err.endswith(f"study {STUDY} has ended: {found['ended_because']}\n")
    assert found["ended_because"] in " ".join(shell.hpo("status").out.split())

    done = shell.hpo(*run, "--budget", "0", "--stop-after", "100", "--target", "1")
    assert done.code == 0, done.err
    assert (done.json["state"], done.json["trials"]["waiting"], done.json["ended_because"]) == ("done", 0, None)


@pytest.mark.parametrize("command", ["pause", "resume", "stop", "delete"])
def test_a_study_that_is_not_there_is_named(finished: Shell, command: str) -> None:
    refused = finished.hpo(command, "--study", "nope")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"error: storage sqlite:///hpo.db has no hpo study 'nope'; it has: {STUDY}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["delete"], "Missing option '--study'"),
        (["stop", "--timeout", "0"], "Invalid value for '--timeout'"),
        (["worker", "--forever", "--study", "../x"], "study name '../x': allowed: 1 to 100 letters"),
        (["worker", "--forever", "--device", "gpu"], "device 'gpu': allowed: auto, cpu, cuda and cuda:N"),
        (["worker", "--forever", "--storage", "nonsense"], "storage: not a database URL"),
        (["workers", "--storage", "sqlite:///none.db"], "the database none.db does not exist"),
    ],
)
def test_bad_input_gets_one_line(finished: Shell, arguments: list[str], message: str) -> None:
    refused = finished.hpo(*arguments)
    assert (refused.code, refused.out) == (2, "")
    assert message in refused.err
    assert refused.err.count("\n") == 1


def test_a_worker_that_was_asked_for_a_gpu_ends_where_cuda_does_not_start(finished: Shell) -> None:
    refused = finished.hpo("worker", "--forever", "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert refused.err.startswith("error: device 'cuda': CUDA does not start: ")


def test_studies_are_listed_and_a_command_that_needs_one_names_them(copied: Shell) -> None:
    assert copied.hpo("run", *SMALL, "--trials", "2", "--submit", "--study", "second").code == 0

    listed = copied.hpo("studies", "--json").json
    check_document(listed, "studies")
    assert [(row["study"], row["state"], row["finished"], row["target"]) for row in listed] == [
        (STUDY, "done", 6, 6),
        ("second", "running", 0, 2),
    ]
    lines = copied.hpo("studies").out.splitlines()
    assert lines[0].split() == ["study", "state", "finished", "best", "steps", "last", "active", "workers"]
    assert [line.split()[0] for line in lines[1:]] == [STUDY, "second"]
    refused = copied.hpo("status")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == (
        f"error: storage sqlite:///hpo.db holds 2 studies: second, {STUDY}; "
        "name one with --study (`hpo studies` shows them)\n"
    )
