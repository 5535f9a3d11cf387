"""Look after studies that run: see who works, pause, resume, stop and delete them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.cli.options import ArtifactsOption, JsonOption, StorageOption, StudyOption
from hpo.cli.output import print_json, say, show
from hpo.errors import BadInput
from hpo.settings import DEFAULT_ARTIFACTS, DEFAULT_STORAGE

if TYPE_CHECKING:
    from hpo.study import Study


def workers(storage: StorageOption = DEFAULT_STORAGE, json_output: JsonOption = False) -> None:
    """List the live workers of all studies: where they are, what they train, and when they were last heard of."""
    from dataclasses import asdict

    from hpo.cli import view
    from hpo.database import workers
    from hpo.database.storage import open_storage

    found = workers.list_workers(open_storage(storage, "read"))
    if json_output:
        print_json([asdict(worker) for worker in found])
    elif found:
        show(view.workers(found))
    else:
        print("no worker is alive")


def pause(study: StudyOption = None, storage: StorageOption = DEFAULT_STORAGE) -> None:
    """Give out no more trials of a study; those that run go on to their ends, and workers wait."""
    from hpo.database import overview, study_state

    found = _load(storage, study)
    counts = overview.count(found.storage, found.study_id)
    if counts.waiting + counts.running == 0:
        print(f"study {found.name} is done: there is nothing to pause")
        return
    study_state.set_state(found.storage, found.study_id, "paused")
    print(
        f"study {found.name} is paused: {counts.running} running trials go on to their ends, "
        f"{counts.waiting} wait. `hpo resume --study {found.name}` lets it go on"
    )


def resume(study: StudyOption = None, storage: StorageOption = DEFAULT_STORAGE) -> None:
    """Let a paused or stopped study go on, and workers that gave it up try it again."""
    from hpo.database import overview, study_state

    found = _load(storage, study)
    before = study_state.set_state(found.storage, found.study_id, "running")
    counts = overview.count(found.storage, found.study_id)
    was = {"running": "ran", "paused": "was paused"}.get(before, "was stopped")
    print(f"study {found.name} {was} and goes on: {counts.running} trials run, {counts.waiting} wait for workers")


def stop(
    study: StudyOption = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Let running trials come to their ends, instead of handing them back.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Wait at most so many seconds, then exit 1. [as long as it takes]")
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Stop a study: hand back its running trials, end its driver and workers, and wait until nothing runs."""
    from hpo.cli import view
    from hpo.database import study_state, workers

    found = _load(storage, study)
    if left := workers.list_workers_on(found.storage, found.study_id):
        say(f"study {found.name}: waiting for {', '.join(left)}")
    done = study_state.stop(found.storage, found.study_id, found.name, finish=finish, timeout_s=timeout)
    print(view.stopped(found.name, done))


def delete(
    study: Annotated[str, typer.Option("--study", help="Name of the study.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the study's name to be typed.")] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
) -> None:
    """Delete a study with its trials and their figures; checkpoints stay, as other studies may start from them."""
    from hpo.artifacts import open_artifacts
    from hpo.database import removal

    found = _load(storage, study)
    store = open_artifacts(artifacts, create=False)
    removal.require_unused(found.storage, found.study_id, found.name)
    if not yes:
        _confirm(found)
    gone = removal.delete_study(found.storage, found.study_id, found.name, store)
    print(f"deleted study {found.name}: {gone.trials} trials with their curves and notes, {gone.files} files")
    if gone.missing_files:
        say(f"{gone.missing_files} files of its trials are not deleted: --artifacts {artifacts} does not hold them")
    print("kept: all checkpoints, which other studies may start from; `hpo gc` bounds what they take")


def _load(storage: str, name: str | None) -> Study:
    from hpo import study as studies
    from hpo.database.storage import open_storage

    return studies.load(open_storage(storage), name)


def _confirm(study: Study) -> None:
    """Ask for the name of what is about to be deleted.

    Raises:
        BadInput: Something else was typed, or nothing.
    """
    from hpo.database import overview

    counts = overview.count(study.storage, study.study_id)
    say(f"study {study.name} has {counts.total} trials, {counts.finished} of them finished; deleting cannot be undone")
    print("type its name to delete it: ", end="", file=sys.stderr, flush=True)
    typed = sys.stdin.readline().strip()
    if typed != study.name:
        raise BadInput(f"typed {typed!r}: only {study.name!r}, or --yes, deletes the study; nothing was deleted")
