"""Test the counts of a study, and which trial is its best."""

import optuna
import pytest

from hpo.database import overview, queue, studies
from hpo.database.attempt import Outcome, Progress, WorkerId
from hpo.database.overview import Counts
from hpo.database.storage import open_storage

WORKER = WorkerId(name="host:1", host="host", device="cpu")
NOTHING = Progress(iteration=0, trained_iterations=0, val_accuracy=None)


def test_finished_trials_are_those_that_will_not_change_any_more():
    counts = Counts(complete=3, pruned=5, failed=1, running=2, waiting=4)

    assert (counts.finished, counts.total) == (9, 15)


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([], None),
        ([None, None], None),
        ([(0.25, None), (0.75, 2.0), (0.5, 0.1)], (1, 0.75)),
        ([(0.5, 0.1), None, (0.75, 1e-05), (0.75, 0.5), (0.75, 1e-05)], (2, 0.75)),
        ([(0.75, None), (0.75, 10.0), (0.75, 9.0)], (2, 0.75)),
        ([(0.75, 0.5), (0.75, 0.5)], (0, 0.75)),
    ],
    ids=["no trial", "none that is complete", "the highest", "of equals one", "the lowest loss", "the oldest"],
)
def test_the_best_trial_has_the_highest_value_then_the_lowest_loss(tmp_path, values, best):
    storage = open_storage(f"sqlite:///{tmp_path}/hpo.db", "create")
    study_id = optuna.create_study(storage=storage.optuna, direction="maximize", study_name="small")._study_id
    studies.describe_study(storage, study_id, {})
    studies.set_target(storage, study_id, len(values), first={})
    for measured in values:
        attempt = queue.claim(storage, study_id, WORKER)
        value, loss = measured or (None, None)
        attrs = {} if loss is None else {"validation loss": loss}
        outcome = Outcome(state="complete" if measured else "failed", value=value, attrs=attrs)
        queue.finish(storage, attempt, NOTHING, outcome)
    assert overview.find_best(storage, study_id) == best
    failed = values.count(None)
    assert overview.count(storage, study_id) == Counts(complete=len(values) - failed, failed=failed)
    storage.close()
