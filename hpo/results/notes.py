"""The notes on studies and trials that optuna-dashboard shows, in Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from hpo.recipes.recipe import Recipe
from hpo.results.formatting import in_markdown, show_value
from hpo.settings import (
    DEFAULT_ALIGN,
    DEFAULT_PRUNER,
    DEFAULT_SAMPLER,
    DEFAULT_SEED,
    STANDARD_ERROR,
    VALIDATION_LOSS,
    StudySettings,
    default_augment,
    default_iterations,
)

_DEFAULTS: Mapping[str, Any] = {
    "sampler": DEFAULT_SAMPLER,
    "pruner": DEFAULT_PRUNER,
    "align": DEFAULT_ALIGN,
    "seed": DEFAULT_SEED,
}
"""Defaults of options of `hpo run`: a command leaves out those that have them."""

_WHY_PRUNED = {
    "median": "its best accuracy so far was below the median of the earlier trials",
    "asha": "it was not in the best third of the trials at its rung",
    "asha-stop": "it was not in the best third of the trials",
    "hyperband": "it was not in the best third of the trials of its bracket",
    "wilcoxon": "a signed-rank test found it worse than the best trial",
}


_BEST = "**Best trial.** "
"""How the line of a study's note begins that says how far its best trial is confirmed."""


def study_note(name: str, settings: StudySettings, space_name: str) -> str:
    """Describe a new study: what it searches, on which data, how to read its charts, and how to continue it.

    Args:
        space_name: Name of a shipped space, or path of a space file.
    """
    space = settings.space
    budget = f"{settings.iterations:,} iterations"
    compared = {
        "phase": "in the same phase of their schedules, past the same fraction of it",
        "iteration": "at equal iterations",
    }
    return "\n".join(
        (
            f"# {in_markdown(name)}",
            "",
            f"Search space **{in_markdown(space['name'])}** "
            f"({in_markdown(space.get('description') or 'no description')}) around "
            f"{in_markdown(space['base']) if isinstance(space['base'], str) else 'a recipe of its own'}, "
            "which is trial 0.",
            "",
            "| | |",
            "| --- | --- |",
            f"| data set | {in_markdown(settings.dataset)}; accuracies are measured on its validation split |",
            f"| budget of a trial | {budget}, {settings.precision} |",
            f"| sampler | {settings.sampler}, seed {settings.seed} |",
            f"| pruner | {settings.pruner} |",
            "",
            f"**Intermediate values** are validation accuracies. Trials are compared {compared[settings.align]}; "
            "a step is that point on the schedule of trial 0.",
            "",
            f"{_BEST}{not_confirmed(name)}",
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


def with_best(note: str, explanation: str) -> str:
    """Return a study's note with another explanation of its best trial; where a person has removed that, as it was."""
    lines = note.split("\n")
    return "\n".join(f"{_BEST}{explanation}" if line.startswith(_BEST) else line for line in lines)


def not_confirmed(name: str) -> str:
    """State that the best trial of a study is not confirmed."""
    return (
        "Not confirmed: the trial was picked on one seed, where luck may decide. "
        f"`hpo confirm --study {name}` trains the best recipes on further seeds."
    )


def continue_command(name: str, settings: StudySettings, space_name: str) -> str:
    """Write the command that continues a study, with N for its number of trials."""
    words = ["hpo", "run", "--space", space_name, "--trials", "N", "--study", name]
    words += ["--dataset", settings.dataset, "--precision", settings.precision]
    if settings.iterations != default_iterations(settings.dataset):
        words += ["--iterations", str(settings.iterations)]
    if settings.augment != default_augment(settings.dataset, settings.image_shape[2]):
        words += ["--augment", settings.augment]
    for option, default in _DEFAULTS.items():
        if (chosen := getattr(settings, option)) != default:
            words += [f"--{option}", str(chosen)]
    return shlex.join(words)


def trial_note(
    recipe: Recipe | None, base: Recipe, attrs: Mapping[str, Any], pruner: str, figure_path: str | None = None
) -> str:
    """Describe a trial: how it ended and why, and its recipe next to the base recipe.

    Args:
        recipe: None if the trial failed before it had one.
        attrs: The trial's user attributes.
        figure_path: URL path on the dashboard of the figure of its curve, or None if it has no figure.
    """
    lines = [f"**{_sentence(attrs['outcome'])}**{_reason(attrs['outcome'], pruner)}", ""]
    if STANDARD_ERROR in attrs:
        loss, error = attrs[VALIDATION_LOSS], attrs[STANDARD_ERROR]
        lines += [f"Validation loss {loss:.4f}, standard error of the accuracy {error:.4f}.", ""]
    if figure_path is not None:
        lines += [f"![Loss and accuracy over the iterations]({figure_path})", ""]
    if recipe is not None:
        lines += ["| recipe | this trial | trial 0 |", "| --- | --- | --- |"]
        own, other = recipe.to_dict(), base.to_dict()
        lines += [f"| {_title(key)} | {_emphasized(own[key], other[key])} | {show_value(other[key])} |" for key in own]
        lines += ["", "Boundaries and patience are in reference iterations (of 64,000)."]
    return "\n".join(lines)


def _sentence(outcome: str) -> str:
    text = in_markdown(outcome)
    return f"{text[:1].upper()}{text[1:]}."


def _reason(outcome: str, pruner: str) -> str:
    if outcome.startswith("waiting at rung"):
        return " It continues once it is in the best third of the trials there, and is pruned if the study ends first."
    if outcome.startswith("pruned"):
        return f" The {pruner} pruner ended it: {_WHY_PRUNED[pruner]}, compared at the same point."
    if outcome.startswith("stopped early"):
        return " The validation loss had not improved for the recipe's patience."
    return ""


def _title(key: str) -> str:
    return {"values": "learning rates", "early_stopping": "patience of early stopping"}.get(key, key.replace("_", " "))


def _emphasized(own: object, other: object) -> str:
    return show_value(own) if own == other else f"**{show_value(own)}**"
