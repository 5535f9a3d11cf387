"""List the studies of a storage."""

from __future__ import annotations

from dataclasses import asdict, replace

from optuna.study import StudyDirection

from hpo import study
from hpo.database import queue, workers
from hpo.database.storage import Storage
from hpo.database.study_list import list_studies
from hpo.recipes.comparison import Comparison
from hpo.study import companion_settings
from tests.integration.support import NOTHING, WORKER, claim, complete, make_study


def test_all_studies_are_listed_with_their_progress_best_trial_steps_and_workers(storage: Storage) -> None:
    made = make_study(storage, 3)
    for value, loss in ((0.5, 0.1), (0.75, 0.9), (0.75, 0.2)):
        complete(made, claim(made), value, loss)
    recipes = {"baseline": made.base}
    benchmark = Comparison.of(recipes, name="small", searched_seed=0)
    confirmation = Comparison.of(recipes, name="small", searched_seed=0, trials={"trial 1": 1})
    for name, comparison in (("small-benchmark", benchmark), ("small-confirm", confirmation)):
        study.continue_or_create(storage, name, companion_settings(made.settings, comparison, 32), 2)
    other = study.load(storage, "small-confirm")
    workers.heartbeat(storage, WORKER, other.study_id, lease_s=60)
    queue.renew(storage, claim(other), replace(NOTHING, iteration=7, trained_iterations=7))

    listed = list_studies(storage)

    assert [asdict(each) | {"idle_s": None} for each in listed] == [
        {
            "study": name,
            "kind": kind,
            "state": state,
            "finished": finished,
            "target": target,
            "best": best,
            "trained_iterations": steps,
            "idle_s": None,
            "workers": names,
        }
        for name, kind, state, finished, target, best, steps, names in (
            ("small", "search", "done", 3, 3, {"trial": 2, "value": 0.75, "standard_error": 0.01}, 0, ()),
            ("small-benchmark", "benchmark", "running", 0, 2, None, 0, ()),
            ("small-confirm", "confirmation", "running", 0, 2, None, 7, (WORKER.name,)),
        )
    ]
    assert [each.idle_s is not None and 0 <= each.idle_s < 60 for each in listed] == [True] * 3


def test_a_storage_without_studies_lists_none_and_those_of_other_tools_are_left_out(storage: Storage) -> None:
    with storage.translated():
        storage.optuna.create_new_study([StudyDirection.MAXIMIZE], "theirs")

    assert list_studies(storage) == []
