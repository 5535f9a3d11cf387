"""Confirm small searches on further seeds, with real workers where training matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import optuna
import optuna_dashboard
import pytest
import torch

from hpo import cli, study
from hpo.artifacts import open_artifacts
from hpo.cli.run import _begin_confirmation
from hpo.database import overview, queue, removal
from hpo.database.attempt import Outcome
from hpo.database.overview import Counts
from hpo.database.storage import Storage
from hpo.database.study_note import add_note
from hpo.errors import BadInput, StudyMismatch, StudyNotFound
from hpo.recipes.comparison import Comparison
from hpo.results import benchmark, confirmation, test_split
from hpo.results.notes import not_confirmed, study_note
from hpo.trial.checkpoints import Checkpoints
from hpo.worker.stop import StopSignal
from hpo.worker.work import work
from tests.integration.support import NOTHING, SETTINGS, claim, complete, dump, make_study, suggest

DATA = Path("/nonexistent")
SPACE = {
    "name": "rates",
    "base": SETTINGS.space["base"],
    "search": {"values": [[0.05, 0.1, 0.2], [0.02, 0.01], [0.005, 0.001]]},
}
SEARCH = replace(SETTINGS, space=SPACE)

sqlite_only = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)


def search_with(storage: Storage, *values: float) -> study.Study:
    """Make the study `small` with trials that ended with such values, untrained; trial 0 is the base recipe."""
    made = make_study(storage, len(values), SEARCH)
    for value in values[overview.count(storage, made.study_id).finished :]:
        attempt = claim(made)
        suggest(made, attempt)
        complete(made, attempt, value)
    return made


def confirm(search: study.Study, accuracies: Mapping[str, float], seeds: int = 2, top: int = 2) -> study.Study:
    """Confirm a search without training: each recipe gets its accuracy, and a part of it more from seed to seed."""
    companion = confirmation.begin(search, top, seeds)
    assert companion is not None
    for _ in range(overview.count(companion.storage, companion.study_id).waiting):
        attempt = claim(companion)
        run = suggest(companion, attempt)["run"]
        complete(companion, attempt, accuracies[run] * (1 + attempt.trial_number**2 / 10_000))
    return companion


def run_of(companion: study.Study, trial_number: int) -> str:
    """Return the name of the recipe that a trial of a confirmation trains."""
    assert isinstance(companion.space, Comparison)
    return str(companion.space.params_of(trial_number)["run"])


def train(made: study.Study, checkpoints: Checkpoints | None = None) -> int:
    device = torch.device("cpu")
    return work(made, device=device, data_dir=DATA, stop=StopSignal(), checkpoints=checkpoints)


def test_the_best_recipes_and_the_base_recipe_are_trained_on_further_seeds_without_the_test_split(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a confirmation opens no test split")

    monkeypatch.setattr(test_split, "load_test_split", refuse)
    checkpoints = Checkpoints(storage, open_artifacts(str(tmp_path / "artifacts")))
    search = search_with(storage, 0.5, 0.9, 0.6, 0.8)

    companion = confirmation.begin(search, 2, 1)
    assert companion is not None
    assert test_split.end_of_run(companion, DATA) is None
    assert train(companion, checkpoints) == 3

    result = confirmation.find(search)
    assert result is not None
    assert (result.study, len(result.seeds), result.waiting) == ("small.confirm", 1, 0)
    assert {each.name: (each.trial, each.recipe) for each in result.contenders} == {
        "baseline": (0, search.base),
        "trial 1": (1, search.recipe_of(search.trials()[1])),
        "trial 3": (3, search.recipe_of(search.trials()[3])),
    }
    values = {run_of(companion, trial.number): trial.value for trial in companion.trials()}
    assert {each.name: each.accuracy for each in result.contenders} == {run: (value,) for run, value in values.items()}
    assert result.seeds[0] not in {search.settings.seed, *benchmark_seeds(search)}
    assert result.winner is not None
    assert result.winner.mean == max(value for value in values.values() if value is not None)


def benchmark_seeds(search: study.Study) -> list[int]:
    plain = Comparison.of({"baseline": search.base}, name="rates", searched_seed=search.settings.seed)
    return [plain.seed(index) for index in range(10)]


@sqlite_only
def test_a_recipe_that_is_clearly_behind_is_not_trained_on_a_further_seed(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.9, 0.8)
    confirm(search, {"baseline": 0.6, "trial 1": 0.1, "trial 2": 0.7})

    companion = confirmation.begin(search, 2, 3)
    assert companion is not None
    train(companion)

    assert overview.count(storage, companion.study_id) == Counts(complete=8, pruned=1)
    dropped = next(trial for trial in companion.trials() if trial.state == optuna.trial.TrialState.PRUNED)
    assert (dropped.params["run"], dropped.user_attrs["iterations"]) == ("trial 1", 0)
    assert dropped.user_attrs["outcome"] == "dropped: trial 1 was clearly behind after 2 seeds"
    result = confirmation.result(companion)
    assert [(each.name, len(each.accuracy), each.dropped_after) for each in result.contenders][-1] == ("trial 1", 2, 2)
    assert len(result.seeds) == 3


@sqlite_only
def test_the_confirmed_recipe_is_the_best_one_from_then_on(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.9, 0.6, 0.8)
    before = confirmation.status(search)
    assert (before["best"]["trial"], before["confirmation"]) == (1, None)
    assert confirmation.explain(search) == (
        "Not confirmed: the trial was picked on one seed, where luck may decide. "
        "`hpo confirm --study small` trains the best recipes on further seeds."
    )

    confirm(search, {"baseline": 0.5, "trial 1": 0.6, "trial 3": 0.7}, seeds=3)

    best, after = confirmation.load_best(search), confirmation.status(search)
    assert (best.trial, best.value) == (3, 0.8)
    assert after["best"] == {"trial": 3, "value": 0.8, "recipe": best.recipe.to_dict()}
    assert after["confirmation"]["winner"] == 3
    assert after["confirmation"]["verdict"] == confirmation.explain(search)
    assert confirmation.explain(search).startswith(
        "Trial 3 has the highest mean validation accuracy on 3 seeds that the search did not use. "
        "It is better than the base recipe: its accuracy differs by +0.2"
    )
    space = benchmark.begin(search, 1, DATA).space
    assert isinstance(space, Comparison)
    assert space.trial == 3
    assert study.best(search).trial == 1, "the search's own best trial stays what it was"


def test_the_note_in_optuna_dashboard_says_how_far_the_best_trial_is_confirmed(storage: Storage) -> None:
    def best_of(name: str) -> list[str]:
        note = optuna_dashboard.get_note(optuna.load_study(study_name=name, storage=storage.optuna))
        return [line for line in note.splitlines() if line.startswith("**Best trial.** ")]

    search = search_with(storage, 0.5, 0.9, 0.6)
    add_note(storage, search.study_id, study_note(search.name, search.settings, "rates"))
    attrs = storage.optuna.get_study_system_attrs(search.study_id)
    assert best_of("small") == [f"**Best trial.** {confirmation.explain(search)}"]
    confirmation.publish(search)
    assert storage.optuna.get_study_system_attrs(search.study_id) == attrs, "nothing has changed"

    companion = confirm(search, {"baseline": 0.5, "trial 1": 0.6, "trial 2": 0.7}, seeds=3)
    confirmation.publish(search)

    verdict = confirmation.verdict(confirmation.result(companion))
    assert verdict.startswith("Trial 2 has the highest mean validation accuracy on 3 seeds")
    assert best_of("small") == [f"**Best trial.** {verdict}"]
    extended = search_with(storage, 0.5, 0.9, 0.6, 0.95)
    confirmation.publish(extended)
    assert best_of("small") == [f"**Best trial.** {not_confirmed('small')}"]
    assert storage.optuna.get_study_system_attrs(search.study_id)["dashboard:note_ver"] == 3


@sqlite_only
def test_where_no_other_recipe_is_better_the_base_recipe_is_confirmed(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.9, 0.8)
    confirm(search, {"baseline": 0.7, "trial 1": 0.6, "trial 2": 0.5})

    assert confirmation.load_best(search).trial == 0
    assert confirmation.explain(search) == (
        "The base recipe (trial 0) is confirmed: on 2 seeds that the search did not use, none of 2 others has a higher "
        "mean validation accuracy."
    )


@sqlite_only
def test_a_confirmation_counts_only_once_it_is_finished(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.9)
    companion = confirmation.begin(search, 2, 2)
    assert companion is not None

    assert confirmation.find(search) is None
    assert confirmation.load_best(search).trial == 1
    assert confirmation.verdict(confirmation.result(companion)) == "The confirmation is not finished: 4 runs to go."


@sqlite_only
def test_the_same_command_continues_and_more_seeds_are_added(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.9)
    first = confirm(search, {"baseline": 0.5, "trial 1": 0.6}, seeds=1)
    seeds = confirmation.result(first).seeds

    again = confirmation.begin(search, 2, 1)
    assert again is not None
    assert (again.study_id, overview.count(storage, again.study_id)) == (first.study_id, Counts(complete=2))

    confirm(search, {"baseline": 0.5, "trial 1": 0.6}, seeds=2)
    more = confirmation.find(search)
    assert more is not None
    assert (more.study, len(more.seeds), more.seeds[:1]) == ("small.confirm", 2, seeds)


@sqlite_only
def test_a_search_that_finds_a_better_recipe_later_is_confirmed_anew(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.9)
    confirm(search, {"baseline": 0.5, "trial 1": 0.6})
    extended = search_with(storage, 0.5, 0.9, 0.95)

    assert confirmation.find(extended) is None
    companion = confirm(extended, {"baseline": 0.5, "trial 1": 0.7, "trial 2": 0.6})

    assert companion.name == "small.confirm.2"
    assert confirmation.load_best(extended).trial == 1
    extended = search_with(storage, 0.5, 0.9, 0.95, 0.4)
    assert confirmation.load_best(extended).trial == 1, "a trial that is not among the best changes nothing"


@sqlite_only
def test_a_confirmation_is_found_whichever_others_were_deleted(storage: Storage, tmp_path: Path) -> None:
    def delete(companion: study.Study) -> None:
        removal.delete_study(storage, companion.study_id, companion.name, open_artifacts(str(tmp_path)))

    search = search_with(storage, 0.5, 0.9)
    first = confirm(search, {"baseline": 0.5, "trial 1": 0.6})
    extended = search_with(storage, 0.5, 0.9, 0.95)
    accuracies = {"baseline": 0.5, "trial 1": 0.7, "trial 2": 0.6}
    second = confirm(extended, accuracies)
    other = study.continue_or_create(storage, "Small.confirm.2", SEARCH, 1)

    delete(first)
    assert confirmation.load_best(extended).trial == 1
    more = confirmation.begin(extended, 2, 3)
    assert more is not None
    assert (more.name, more.study_id) == ("small.confirm.2", second.study_id), "it is continued, not begun again"
    confirm(extended, accuracies, seeds=3)

    longer = search_with(storage, 0.5, 0.9, 0.95, 0.97)
    third = confirm(longer, {"baseline": 0.5, "trial 2": 0.6, "trial 3": 0.7})
    assert third.name == "small.confirm", "the name is free again"
    assert confirmation.load_best(longer).trial == 3
    delete(second)
    assert confirmation.load_best(longer).trial == 3
    delete(third)
    assert confirmation.find(longer) is None
    assert study.load(storage, other.name).study_id == other.study_id


@sqlite_only
def test_the_confirmation_of_a_search_that_was_deleted_is_not_that_of_its_successor(
    storage: Storage, tmp_path: Path
) -> None:
    search = search_with(storage, 0.5, 0.9)
    confirm(search, {"baseline": 0.7, "trial 1": 0.6})
    assert confirmation.load_best(search).trial == 0
    removal.delete_study(storage, search.study_id, search.name, open_artifacts(str(tmp_path)))

    other = make_study(storage, 2, replace(SEARCH, seed=5))
    for value in (0.5, 0.9):
        attempt = claim(other)
        suggest(other, attempt)
        complete(other, attempt, value)

    assert confirmation.find(other) is None
    assert confirmation.load_best(other).trial == 1
    begun = confirmation.begin(other, 2, 1)
    assert begun is not None
    assert begun.name == "small.confirm.2"


@sqlite_only
def test_a_run_that_ends_without_a_result_drops_its_recipe(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.9)
    companion = confirmation.begin(search, 1, 1)
    assert companion is not None
    for _ in range(2):
        attempt = claim(companion)
        if suggest(companion, attempt)["run"] == "baseline":
            complete(companion, attempt, 0.5)
        else:
            lost = Outcome(state="pruned", value=None, attrs={"outcome": "diverged", "iterations": 8})
            queue.finish(storage, attempt, NOTHING, lost)

    assert confirmation.load_best(search).trial == 0


@sqlite_only
def test_what_cannot_be_confirmed_is_refused(storage: Storage) -> None:
    empty = make_study(storage, 1, SEARCH)
    with pytest.raises(StudyNotFound, match="study small has no completed trial yet"):
        confirmation.begin(empty, 2, 1)
    search = search_with(storage, 0.5)
    assert confirmation.begin(search, 2, 1) is None, "the base recipe alone"
    with pytest.raises(BadInput, match=r"^study small: its base recipe is the only recipe that completed, "):
        cli.app(["confirm", "--storage", storage.url, "--workers", "1"], standalone_mode=False)
    search = search_with(storage, 0.5, 0.9)
    companion = confirmation.begin(search, 2, 1)
    assert companion is not None
    with pytest.raises(
        BadInput, match=r"^--study small\.confirm: this is a confirmation; give the study that it belongs to"
    ):
        confirmation.begin(companion, 2, 1)
    with pytest.raises(
        BadInput, match=r"^--study small\.confirm: this is a confirmation; give the study that it belongs to"
    ):
        benchmark.begin(companion, 1, DATA)


@sqlite_only
def test_at_the_end_of_a_run_only_a_finished_search_with_a_choice_is_confirmed(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    search = make_study(storage, 1, SEARCH)
    assert _begin_confirmation(search, wanted=True) is None, "it is not finished"
    lost = Outcome(state="pruned", value=None, attrs={"outcome": "diverged", "iterations": 8})
    attempt = claim(search)
    suggest(search, attempt)
    queue.finish(storage, attempt, NOTHING, lost)
    assert _begin_confirmation(search, wanted=True) is None, "it completed no trial"
    assert capsys.readouterr().err == ""

    other = study.continue_or_create(storage, "other", SEARCH, 1)
    attempt = claim(other)
    suggest(other, attempt)
    complete(other, attempt, 0.5)
    assert [_begin_confirmation(other, wanted=wanted) for wanted in (False, None)] == [None, None]
    assert capsys.readouterr().err == ""
    assert _begin_confirmation(other, wanted=True) is None
    assert capsys.readouterr().err == (
        "study other: its base recipe is the only recipe that completed, so there is nothing to confirm\n"
    )

    made = study.continue_or_create(storage, "other", SEARCH, 2)
    attempt = claim(made)
    suggest(made, attempt)
    complete(made, attempt, 0.6)
    begun = _begin_confirmation(made, wanted=True)
    assert begun is not None
    assert overview.count(storage, begun.study_id) == Counts(waiting=6)


@sqlite_only
def test_what_another_client_told_takes_no_part(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.9)
    told = optuna.load_study(study_name=search.name, storage=storage.optuna)
    params = search.trials()[1].params
    told.add_trial(optuna.trial.create_trial(params=params, distributions=search.space.distributions(), value=1.0))

    companion = confirmation.begin(search, 3, 1)

    assert companion is not None
    assert isinstance(companion.space, Comparison)
    assert companion.space.trials == {"baseline": 0, "trial 1": 1}


@sqlite_only
def test_a_study_of_another_tool_with_the_name_of_the_confirmation_is_left_alone(storage: Storage) -> None:
    search = search_with(storage, 0.5, 0.9)
    foreign = optuna.create_study(storage=storage.url, study_name="small.confirm")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    before = dump(storage)

    assert confirmation.find(search) is None
    with pytest.raises(StudyMismatch, match=r"study small\.confirm has trials that hpo did not create"):
        confirmation.begin(search, 2, 1)

    assert dump(storage) == before
