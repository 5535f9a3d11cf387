"""Commands on running studies: list their workers, pause, resume, stop and delete."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.cli.help import STUDY
from hpo.cli.options import LONGEST_S, ArtifactsOption, JsonOption, StorageOption, StudyOption, require_number
from hpo.cli.output import print_json, say, show
from hpo.errors import BadInput
from hpo.settings import DEFAULT_ARTIFACTS, DEFAULT_STORAGE
from hpo.wording import counted

if TYPE_CHECKING:
    from hpo.study import Study


def list_studies(storage: StorageOption = DEFAULT_STORAGE, json_output: JsonOption = False) -> None:
    """List all studies of a storage."""
    from dataclasses import asdict

    from hpo.cli import view
    from hpo.database.storage import open_storage
    from hpo.database.study_list import list_studies

    listed = list_studies(open_storage(storage, "read"))
    if json_output:
        print_json([asdict(study) for study in listed])
    elif listed:
        show(view.studies(listed))
    else:
        print("there is no study yet; `hpo run` makes one")


def workers(storage: StorageOption = DEFAULT_STORAGE, json_output: JsonOption = False) -> None:
    """List the live workers of all studies."""
    from dataclasses import asdict

    from hpo.cli import view
    from hpo.database import workers
    from hpo.database.storage import open_storage

    live_workers = workers.list_workers(open_storage(storage, "read"))
    if json_output:
        print_json([asdict(worker) for worker in live_workers])
    elif live_workers:
        show(view.workers(live_workers))
    else:
        print("no live workers")


def pause(study_name: StudyOption = None, storage: StorageOption = DEFAULT_STORAGE) -> None:
    """Pause a study. Running trials finish; workers wait."""
    from hpo.database import overview, study_state

    study = _load(storage, study_name)
    counts = overview.count(study.storage, study.study_id)
    if counts.waiting + counts.running == 0:
        print(f"study {study.name} is done; there is nothing to pause")
        return
    study_state.set_state(study.storage, study.study_id, "paused")
    print(
        f"study {study.name} is paused: {counted(counts.running, 'running trial')} to finish, "
        f"{counts.waiting} waiting; continue it with `hpo resume --study {study.name}`"
    )


def resume(study_name: StudyOption = None, storage: StorageOption = DEFAULT_STORAGE) -> None:
    """Resume a paused or stopped study.

    Workers that gave it up try it again.
    """
    from hpo.database import overview, study_state
    from hpo.database.ends import find_ends

    study = _load(storage, study_name)
    if reason := find_ends(study.storage, study.study_id)[1]:
        raise BadInput(
            f"study {study.name} has ended: {reason}; `hpo run` with more, or with 0 for no end, continues it"
        )
    before = study_state.set_state(study.storage, study.study_id, "running")
    counts = overview.count(study.storage, study.study_id)
    was = {"running": "was running", "paused": "was paused"}.get(before, "was stopped")
    trials = f"{counted(counts.running, 'trial')} running, {counts.waiting} waiting"
    print(f"study {study.name} {was} and continues: {trials}")


def stop(
    study_name: StudyOption = None,
    finish: Annotated[bool, typer.Option("--finish", help="Let running trials finish first.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=LONGEST_S,
            callback=require_number,
            metavar="SECONDS",
            help="Wait at most this long, then exit with 1.",
            show_default="no limit",
        ),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Stop a study and hand back its running trials.

    Its driver and workers exit. Returns when nothing is running.
    """
    from hpo.cli import view
    from hpo.database import study_state, workers

    study = _load(storage, study_name)
    if left := workers.list_workers_on(study.storage, study.study_id):
        say(f"study {study.name}: waiting for {', '.join(left)}")
    stopped = study_state.stop(study.storage, study.study_id, study.name, finish=finish, timeout_s=timeout)
    print(view.stopped(study.name, stopped))


def reclaim(study_name: StudyOption = None, storage: StorageOption = DEFAULT_STORAGE) -> None:
    """Take back trials lent to other Optuna clients."""
    from hpo.database import losses

    study = _load(storage, study_name)
    numbers = losses.reclaim(study.storage, study.study_id)
    if numbers:
        print(f"study {study.name}: took back {', '.join(f'trial {number}' for number in numbers)}")
    else:
        print(f"study {study.name}: no other client has a trial of it")


def delete(
    study_name: Annotated[
        str, typer.Option("--study", metavar="NAME", help="Name of the study.", rich_help_panel=STUDY)
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
) -> None:
    """Delete a study, but keep its checkpoints.

    Trials and their figures are deleted. Other studies may start from the checkpoints.
    """
    from hpo.artifacts import open_artifacts
    from hpo.database import removal

    study = _load(storage, study_name)
    store = open_artifacts(artifacts, create=False)
    removal.require_unused(study.storage, study.study_id, study.name)
    if not yes:
        _confirm(study)
    deleted = removal.delete_study(study.storage, study.study_id, study.name, store)
    trials, files = counted(deleted.trials, "trial"), counted(deleted.files, "file")
    print(f"deleted study {study.name}: {trials} with their curves and notes, {files}")
    if deleted.missing_files:
        missing = counted(deleted.missing_files, "file")
        say(f"not deleted: {missing} of its trials, not found in --artifacts {artifacts}")
    print("kept: all checkpoints, because other studies may start from them; `hpo gc` limits their size")


def _load(storage: str, name: str | None) -> Study:
    from hpo import study as studies
    from hpo.database.storage import open_storage

    return studies.load(open_storage(storage), name)


def _confirm(study: Study) -> None:
    """Ask the user to type the name of the study that is to be deleted.

    Raises:
        BadInput: Something else was typed, or nothing.
    """
    from hpo.database import overview

    counts = overview.count(study.storage, study.study_id)
    trials = f"{counted(counts.total, 'trial')}, {counts.finished} of them finished"
    say(f"study {study.name} has {trials}; deleting cannot be undone")
    print("type its name to delete it: ", end="", file=sys.stderr, flush=True)
    typed = sys.stdin.readline().strip()
    if typed != study.name:
        raise BadInput(f"typed {typed!r}: only {study.name!r}, or --yes, deletes the study; nothing was deleted")
