"""The confirmation of a search: train its best recipes and its base recipe on further seeds, and find the best by mean.

The runs are trials of a companion study, measured on the validation split alone. Which seeds count and who drops out is
decided in `hpo.results.race`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo import study as studies
from hpo.database import overview, study_note
from hpo.database.study_list import list_names
from hpo.errors import BadInput, StudyNotFound
from hpo.recipes.comparison import BASELINE, Comparison
from hpo.recipes.distinct import recipe_key
from hpo.recipes.recipe import Recipe
from hpo.results.notes import not_confirmed, with_best
from hpo.results.race import Entry, Score, race
from hpo.results.significance import Difference, judge, paired_difference, show_difference
from hpo.settings import VALIDATION_LOSS, StudySettings
from hpo.study import Best, Study
from hpo.wording import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A recipe with its results on further seeds.

    Attributes:
        trial: Number of the search's trial with this recipe; None for a base recipe whose trial is not complete.
        accuracy: Validation accuracies in [0, 1] on the seeds that count, up to where it dropped out.
        dropped_after: How many seeds had been run when it dropped out; None if it did not.
    """

    name: str
    trial: int | None
    recipe: Recipe
    accuracy: tuple[float, ...]
    dropped_after: int | None

    @property
    def mean(self) -> float | None:
        """Return the mean accuracy."""
        return fmean(self.accuracy) if self.accuracy else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """The results of a search's confirmation so far.

    Attributes:
        seeds: The seeds that count.
        contenders: All recipes, those that did not drop out first, the best at the top.
        waiting: How many runs have not ended.
    """

    study: str
    seeds: tuple[int, ...]
    contenders: tuple[Contender, ...]
    waiting: int

    @property
    def base(self) -> Contender:
        """Return the base recipe."""
        return next(each for each in self.contenders if each.name == BASELINE)

    @property
    def winner(self) -> Contender | None:
        """Return the best recipe of a trial that the search completed; None while runs are waiting or no seed counts.

        The base recipe wins if no other is left.
        """
        left = (each for each in self.contenders if each.dropped_after is None and each.trial is not None)
        return None if self.waiting or not self.seeds else next(left, None)

    @property
    def difference(self) -> Difference | None:
        """Return the winner's accuracy minus the base recipe's, over the seeds; None if there is nothing to compare."""
        winner = self.winner
        if winner is None or winner.name == BASELINE:
            return None
        pairs = zip(winner.accuracy, self.base.accuracy, strict=True)
        return paired_difference([ours - other for ours, other in pairs])


def begin(search: Study, top: int, seeds: int) -> Study | None:
    """Create or continue the study that confirms a search.

    A search that was extended since may have other best recipes; these are confirmed in another study.

    Args:
        top: How many of the best distinct recipes take part; the base recipe always does.

    Returns:
        None if the base recipe is the only one that the search completed.

    Raises:
        BadInput: The study is not a search.
        StudyMismatch: The name is taken by a study of another tool.
        StudyNotFound: No trial is complete yet.
    """
    require_search(search)
    numbers = [trial.number for trial in _contending(search, top)]
    if not numbers:
        raise StudyNotFound(f"study {search.name} has no completed trial yet")
    comparison = _compare(search, numbers)
    if comparison.runs.keys() == {BASELINE}:
        return None
    settings = _settings(search, comparison)
    begun = {companion.name: companion.settings for companion in _companions(search)}
    fitting = (name for name in begun if begun[name] == settings)
    name = next(fitting, None) or next(name for name in _names(search) if name not in begun)
    return studies.continue_or_create(search.storage, name, settings, seeds * len(comparison.runs), note=_note(search))


def nothing_to_confirm(search: Study) -> str:
    """State why a search has no confirmation."""
    return f"study {search.name}: its base recipe is the only recipe that completed, so there is nothing to confirm"


def require_search(study: Study) -> None:
    """Refuse a study that compares recipes.

    Raises:
        BadInput: The study is a benchmark or a confirmation.
    """
    if isinstance(study.space, Comparison):
        kind = "confirmation" if study.space.is_confirmation else "benchmark"
        raise BadInput(f"--study {study.name}: this is a {kind}; give the study that it belongs to")


def find(search: Study) -> Confirmation | None:
    """Find the finished confirmation of a search's present best recipes; None if there is none."""
    if isinstance(search.space, Comparison):
        return None
    ranking = _ranking(search)
    complete = {trial.number for trial in ranking}
    latest = None
    for companion in _companions(search):
        numbers = companion.space.trials.values() if isinstance(companion.space, Comparison) else ()
        if not ranking or ranking[0].number not in numbers or not complete.issuperset(numbers):
            continue
        if companion.settings == _settings(search, _compare(search, numbers)):
            latest = result(companion)
    return latest if latest is not None and latest.winner is not None else None


def result(companion: Study) -> Confirmation:
    """Collect the results of a confirmation so far."""
    comparison = companion.space
    assert isinstance(comparison, Comparison), "a companion study has no search space"
    counts = overview.count(companion.storage, companion.study_id)
    entries = _entries(companion, comparison)
    ended = race(entries, BASELINE)
    order = (*ended.ranking, *sorted(ended.dropped, key=lambda name: -ended.dropped[name]))
    return Confirmation(
        study=companion.name,
        seeds=tuple(comparison.seed(index) for index in ended.seeds),
        contenders=tuple(
            Contender(
                name=name,
                trial=comparison.trials.get(name),
                recipe=comparison.recipe(
                    {"run": name, "seed": companion.settings.seed},
                    iterations=companion.settings.iterations,
                    seed=companion.settings.seed,
                ),
                accuracy=tuple(_accuracies(entries[name], ended.seeds, ended.dropped.get(name))),
                dropped_after=ended.dropped.get(name),
            )
            for name in order
        ),
        waiting=counts.waiting + counts.running,
    )


def find_dropped(companion: Study, comparison: Comparison, trial_number: int) -> str | None:
    """Explain why a trial of a confirmation is not trained; None if it must be."""
    run = str(comparison.params_of(trial_number)["run"])
    after = race(_entries(companion, comparison), BASELINE).dropped.get(run)
    return None if after is None else f"dropped: {run} was clearly behind after {counted(after, 'seed')}"


def load_best(search: Study) -> Best:
    """Load the trial with the confirmed recipe, or the best one of a search that is not confirmed.

    Raises:
        StudyNotFound: No trial is complete yet.
    """
    confirmation = find(search)
    return studies.best(search, None if confirmation is None else _trial_of(confirmation))


def status(study: Study) -> dict[str, Any]:
    """Summarise a study and, if it is a search, its confirmation, in the form of `hpo status --json`."""
    summary = studies.status(study)
    if isinstance(study.space, Comparison):
        return summary
    confirmation = find(study)
    if confirmation is None:
        return summary | {"confirmation": None}
    winner = studies.best(study, _trial_of(confirmation))
    best = {"trial": winner.trial, "value": winner.value, "recipe": winner.recipe.to_dict()}
    return summary | {"best": best, "confirmation": to_dict(confirmation)}


def to_dict(confirmation: Confirmation) -> dict[str, Any]:
    """Convert a confirmation to the form of `hpo confirm --json`."""
    winner, difference = confirmation.winner, confirmation.difference
    return {
        "study": confirmation.study,
        "seeds": list(confirmation.seeds),
        "waiting": confirmation.waiting,
        "winner": winner and winner.trial,
        "difference": None if difference is None else asdict(difference),
        "verdict": verdict(confirmation),
        "recipes": [
            asdict(each) | {"recipe": each.recipe.to_dict(), "accuracy": list(each.accuracy), "mean": each.mean}
            for each in confirmation.contenders
        ],
    }


def verdict(confirmation: Confirmation) -> str:
    """State which recipe is best over the further seeds, and whether it is better than the base recipe."""
    if confirmation.waiting:
        return f"The confirmation is not finished: {counted(confirmation.waiting, 'run')} to go."
    winner, seeds = confirmation.winner, len(confirmation.seeds)
    if winner is None:
        return "Nothing is confirmed: too many runs ended without a result."
    if confirmation.difference is None:
        others = counted(len(confirmation.contenders) - 1, "other")
        return (
            f"The base recipe (trial {winner.trial}) is confirmed: on {counted(seeds, 'seed')} that the search did "
            f"not use, none of {others} has a higher mean validation accuracy."
        )
    return (
        f"Trial {winner.trial} has the highest mean validation accuracy on {counted(seeds, 'seed')} that the search "
        f"did not use. It is {judge(confirmation.difference)} than the base recipe: its accuracy differs by "
        f"{show_difference(confirmation.difference, seeds)}."
    )


def explain(study: Study) -> str:
    """State how far the best recipe of a study is confirmed."""
    if isinstance(study.space, Comparison):
        return "The study compares recipes: there is nothing to confirm."
    confirmation = find(study)
    if confirmation is not None:
        return verdict(confirmation)
    return not_confirmed(study.name)


def publish(search: Study) -> None:
    """State in a search's note, which optuna-dashboard shows, how far its best recipe is confirmed."""
    explanation = explain(search)
    study_note.change_note(search.storage, search.study_id, lambda note: with_best(note, explanation))


def companion_name(study: str) -> str:
    """Return the usual name of the study that confirms a search."""
    return f"{study}.confirm"


def _trial_of(confirmation: Confirmation) -> int:
    winner = confirmation.winner
    assert winner is not None and winner.trial is not None, "the confirmation is finished"
    return winner.trial


def _names(search: Study) -> Iterator[str]:
    """Yield the names that studies which confirm a search may have, in the order in which free ones are taken."""
    name = companion_name(search.name)
    yield name
    for number in count(2):
        yield f"{name}.{number}"


def _companions(search: Study) -> Iterator[Study]:
    """Yield the studies that were begun to confirm a search, the oldest first; people may have deleted some."""
    usual = re.compile(rf"{re.escape(companion_name(search.name))}(\.[0-9]+)?")
    for name in filter(usual.fullmatch, list_names(search.storage)):
        try:
            yield studies.load(search.storage, name)
        except StudyNotFound:  # of another tool, or deleted since it was listed
            continue


def _contending(search: Study, top: int) -> list[FrozenTrial]:
    """List the best completed trial of each of the best distinct recipes, and of the base recipe."""
    base = recipe_key(search.base)
    distinct: dict[str, FrozenTrial] = {}
    for trial in _ranking(search):
        distinct.setdefault(search.key_of(trial.params), trial)
    best = list(distinct)[:top]
    return [trial for key, trial in distinct.items() if key in best or key == base]


def _ranking(search: Study) -> list[FrozenTrial]:
    """Sort the trials that were completed here, the best first."""
    return [trial for trial in studies.ranking(search.trained_trials()) if search.find_recipe(trial) is not None]


def _compare(search: Study, numbers: Iterable[int]) -> Comparison:
    """Create the comparison of the recipes of a search's trials and its base recipe, which has the first turn."""
    trials, base = {trial.number: trial for trial in _ranking(search)}, recipe_key(search.base)
    keys = {number: search.key_of(trials[number].params) for number in numbers}
    names = {BASELINE if key == base else f"trial {number}": number for number, key in keys.items()}
    recipes = {name: search.recipe_of(trials[number]) for name, number in names.items()}
    return Comparison.of(
        {BASELINE: search.base} | recipes,
        name=search.settings.space["name"],
        searched_seed=search.settings.seed,
        trials=names,
    )


def _settings(search: Study, comparison: Comparison) -> StudySettings:
    return studies.companion_settings(search.settings, comparison, search.settings.iterations)


def _note(search: Study) -> str:
    return (
        f"# Confirmation of {search.name}\n\n"
        f"The best recipes of study **{search.name}** and its base recipe, trained on seeds that the search did not "
        "use and measured on the validation split. All recipes take turns on one seed, then on the next. Recipes that "
        "are clearly behind drop out: their later trials are pruned without training."
    )


def _entries(companion: Study, comparison: Comparison) -> dict[str, list[Entry]]:
    """Return the results of each recipe, seed by seed; what other clients have ended counts as lost."""
    scores = {trial.number: _score(trial) for trial in companion.trained_trials() if trial.state == TrialState.COMPLETE}
    size = len(comparison.runs)
    entries: list[Entry] = [
        scores.get(trial.number, "lost" if trial.state.is_finished() else None) for trial in companion.trials()
    ]
    return {name: entries[index::size] for index, name in enumerate(comparison.runs)}


def _score(trial: FrozenTrial) -> Score:
    assert trial.value is not None, "the trial is complete"
    return Score(accuracy=trial.value, loss=trial.user_attrs[VALIDATION_LOSS])


def _accuracies(entries: Sequence[Entry], seeds: Sequence[int], dropped_after: int | None) -> Iterator[float]:
    """Yield a recipe's accuracies on the seeds that count, up to where it dropped out."""
    for index in seeds:
        if (dropped_after is None or index < dropped_after) and isinstance(entry := entries[index], Score):
            yield entry.accuracy
