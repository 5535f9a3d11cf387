"""`hpo retry`: put failed trials back in the queue."""

from __future__ import annotations

from typing import Annotated

import typer

from hpo.cli.options import MAX_NUMBER, JsonOption, StorageOption, StudyOption
from hpo.cli.output import print_json, say_who_trains
from hpo.settings import DEFAULT_STORAGE


def retry(
    trial: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            max=MAX_NUMBER,
            metavar="N",
            help="Number of a failed trial; repeatable.",
            show_default="all that failed",
        ),
    ] = None,
    study_name: StudyOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    json_output: JsonOption = False,
) -> None:
    """Put failed trials back in the queue.

    Use it when the cause is gone; they continue from their checkpoints. `hpo resume` leaves failed trials as they
    are: it continues a paused or stopped study.
    """
    from hpo import study as studies
    from hpo.database import enqueueing
    from hpo.database.storage import open_storage

    study = studies.load(open_storage(storage), study_name)
    numbers = enqueueing.retry_failed(study.storage, study.study_id, trial or ())
    if json_output:
        print_json({"study": study.name, "trials": numbers})
    elif numbers:
        noun, verb = ("trial", "is") if len(numbers) == 1 else ("trials", "are")
        print(f"study {study.name}: {noun} {', '.join(map(str, numbers))} {verb} back in the queue")
    else:
        print(f"study {study.name}: no trial has failed; there is nothing to retry")
    if numbers:
        say_who_trains(study)
