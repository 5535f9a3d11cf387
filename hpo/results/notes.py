"""Write the notes that optuna-dashboard shows of studies and trials, in Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from hpo.recipes.recipe import Recipe
from hpo.settings import DEFAULT_ITERATIONS, StudySettings

_DEFAULTS: Mapping[str, Any] = {"sampler": "tpe", "pruner": "median", "align": "phase", "seed": 0}
_WHY_PRUNED = {
    "median": "its best accuracy so far was under the median of the earlier trials",
    "asha": "it was not in the best third of the trials",
    "hyperband": "it was not in the best third of the trials of its bracket",
    "wilcoxon": "a signed-rank test found it worse than the best trial",
}


def study_note(name: str, settings: StudySettings, space_name: str) -> str:
    """Write what a study searches and on what, how to read its charts, and how to continue it.

    Args:
        space_name: Of the shipped space, or its file.
    """
    space = settings.space
    budget = f"{settings.iterations:,} iterations"
    compared = {
        "phase": "in the same phase of their schedules, past the same fraction of it",
        "iteration": "at equal iterations",
    }
    return "\n".join(
        (
            f"# {name}",
            "",
            f"Search space **{space['name']}** ({space.get('description') or 'no description'}) around "
            f"{space['base'] if isinstance(space['base'], str) else 'a recipe of its own'}, which is trial 0.",
            "",
            "| | |",
            "| --- | --- |",
            f"| data set | {settings.dataset}; accuracy is that on its validation split |",
            f"| budget of a trial | {budget}, {settings.precision} |",
            f"| recipes chosen by | {settings.sampler}, seed {settings.seed} |",
            f"| poor trials ended by | {settings.pruner} |",
            "",
            f"**Intermediate values** are validation accuracies. Trials are compared {compared[settings.align]}; "
            "a step is that point on the schedule of trial 0.",
            "",
            "A trial's page has its note and its curves. To continue, or to extend with more trials:",
            "",
            "```",
            continue_command(name, settings, space_name),
            "```",
            "",
            "From another machine that reaches the storage and the artifacts:",
            "",
            "```",
            f"hpo worker --study {name}",
            "```",
        )
    )


def continue_command(name: str, settings: StudySettings, space_name: str) -> str:
    """Write the command that continues a study; its number of trials is left open."""
    words = ["hpo", "run", "--space", space_name, "--trials", "N", "--study", name]
    words += ["--dataset", settings.dataset, "--precision", settings.precision]
    if settings.iterations != DEFAULT_ITERATIONS[settings.dataset]:
        words += ["--iterations", str(settings.iterations)]
    for option, default in _DEFAULTS.items():
        if (chosen := getattr(settings, option)) != default:
            words += [f"--{option}", str(chosen)]
    return shlex.join(words + (["--compile"] if settings.compiled else []))


def trial_note(
    recipe: Recipe | None, base: Recipe, attrs: Mapping[str, Any], pruner: str, figure_path: str | None = None
) -> str:
    """Write how a trial ended and why, and its recipe beside the base recipe.

    Args:
        recipe: None where the trial failed before it had one.
        attrs: The trial's user attributes.
        figure_path: Of the figure of its curve on the dashboard, or None where there is none.
    """
    lines = [f"**{_sentence(attrs['outcome'])}**{_reason(attrs['outcome'], pruner)}", ""]
    if "standard error" in attrs:
        loss, error = attrs["validation loss"], attrs["standard error"]
        lines += [f"Validation loss {loss:.4f}, standard error of the accuracy {error:.4f}.", ""]
    if figure_path is not None:
        lines += [f"![Loss and accuracy over the iterations]({figure_path})", ""]
    if recipe is not None:
        lines += ["| recipe | this trial | trial 0 |", "| --- | --- | --- |"]
        own, other = recipe.to_dict(), base.to_dict()
        lines += [f"| {_title(key)} | {_emphasized(own[key], other[key])} | {_shown(other[key])} |" for key in own]
        lines += ["", "Boundaries and patience are in reference iterations (of 64,000)."]
    return "\n".join(lines)


def _sentence(outcome: str) -> str:
    return f"{outcome[:1].upper()}{outcome[1:]}."


def _reason(outcome: str, pruner: str) -> str:
    if outcome.startswith("pruned"):
        return f" The {pruner} pruner ended it: {_WHY_PRUNED[pruner]}, compared at the same point."
    if outcome.startswith("stopped early"):
        return " The validation loss had not fallen for as long as the recipe's patience."
    return ""


def _title(key: str) -> str:
    return {"values": "learning rates", "early_stopping": "patience of early stopping"}.get(key, key.replace("_", " "))


def _emphasized(own: object, other: object) -> str:
    return _shown(own) if own == other else f"**{_shown(own)}**"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
