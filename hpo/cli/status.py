"""`hpo status`: show the progress of a study."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.cli.options import JsonOption, StorageOption, StudyOption
from hpo.cli.output import print_json, show
from hpo.settings import DEFAULT_STORAGE

if TYPE_CHECKING:
    from hpo.study import Study

WATCH_EVERY_S = 1.0


def status(
    study_name: StudyOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Update until the study is done.")] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    json_output: JsonOption = False,
) -> None:
    """Show a study's progress."""
    from hpo import study as studies
    from hpo.database.storage import open_storage
    from hpo.results import confirmation

    study = studies.load(open_storage(storage, "read"), study_name)
    if watch and not json_output:
        _watch(study)
    elif json_output:
        print_json(confirmation.status(study))
    else:
        from hpo.cli import view

        show(view.status(confirmation.status(study)))


def _watch(study: Study) -> None:
    from hpo.cli.progress import Progress
    from hpo.database import overview, study_state

    with Progress(study) as progress:
        while True:
            counts = overview.count(study.storage, study.study_id)
            state = study_state.find_state(study.storage, study.study_id)
            progress.update(counts, study_state.shown_state(state, counts))
            if counts.waiting + counts.running == 0 or state == "ended":
                return
            time.sleep(WATCH_EVERY_S)
