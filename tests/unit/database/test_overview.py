"""Test the counts of a study, and which trial is its best."""

import optuna
import pytest

from hpo.database import overview
from hpo.database.overview import Counts
from hpo.database.storage import open_storage


def test_finished_trials_are_those_that_will_not_change_any_more():
    counts = Counts(complete=3, pruned=5, failed=1, running=2, waiting=4)

    assert (counts.finished, counts.total) == (9, 15)


@pytest.mark.parametrize(
    ("values", "best"),
    [([], None), ([None, None], None), ([0.25, 0.75, 0.5], (1, 0.75)), ([0.5, None, 0.75, 0.75], (2, 0.75))],
    ids=["no trial", "none that is complete", "the highest", "the oldest of equals"],
)
def test_the_best_trial_is_the_oldest_complete_one_of_the_highest_value(tmp_path, values, best):
    storage = open_storage(f"sqlite:///{tmp_path}/hpo.db", "create")
    study = optuna.create_study(storage=storage.optuna, direction="maximize", study_name="small")
    for value in values:
        study.tell(study.ask(), value, state=None if value is not None else optuna.trial.TrialState.FAIL)
    study_id = storage.optuna.get_study_id_from_name("small")

    assert overview.find_best(storage, study_id) == best
    failed = values.count(None)
    assert overview.count(storage, study_id) == Counts(complete=len(values) - failed, failed=failed)
    storage.close()
