"""The blocks of a report: a study in words, tables and figures."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean, stdev

import torch

import hpo.results.report.charts as charts
from hpo.recipes.recipe import ParameterCounts, Recipe
from hpo.recipes.schedule import distinct_iterations, scale
from hpo.results.figures import training_figure
from hpo.results.formatting import show_measured, show_value
from hpo.results.report.compared import NOT_FINISHED, show_documented, write_comparison
from hpo.results.report.document import Block, Grid, Heading, Paragraph, Plate
from hpo.results.report.facts import MIN_COMPLETE, Facts, Shown, Trial
from hpo.settings import STANDARD_ERROR, VALIDATION_LOSS, StudySettings
from hpo.training.model import ResNet, count_parameters, network_fields


def write_blocks(facts: Facts) -> list[Block]:
    """Write the whole report."""
    begun = write_comparison(facts) if facts.compared else (*_overview(facts), *_search(facts))
    return [*begun, *_cost(facts), *_runs(facts), *_documented(facts)]


def _overview(facts: Facts) -> Iterator[Block]:
    settings, counts = facts.settings, facts.status["trials"]
    states = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    yield Heading(1, f"Study {facts.name}")
    if counts["running"] + counts["waiting"]:
        yield NOT_FINISHED
    yield Grid(
        rows=[
            ("search space", f"{settings.space['name']}: {settings.space.get('description', '')}"),
            ("data set", f"{settings.dataset}; split checksum {settings.split[:12]}"),
            ("budget of a trial", f"{show_value(settings.iterations)} iterations, {settings.precision}"),
            ("sampler", f"{settings.sampler}, seed {settings.seed}"),
            ("pruner", f"{settings.pruner}, compared at equal {_alignment(facts)}"),
            ("trials", states),
            ("best", _best_line(facts.best)),
        ]
    )
    if facts.best:
        yield Paragraph(
            "The best trial was picked from many, on images that the search used; expect less on new images. "
            "The final benchmark measures that."
        )
        yield Paragraph(facts.confirmed)


def _search(facts: Facts) -> Iterator[Block]:
    yield Heading(2, "Search")
    yield Plate(
        name="history",
        figure=charts.history(facts),
        caption="Validation accuracy of each trial, by number.",
    )
    yield Plate(
        name="learning_curves",
        figure=charts.learning_curves(facts),
        caption="Validation accuracy of all trials during training; pruned trials are faint. Right: the top, enlarged.",
    )
    yield Plate(
        name="schedules",
        figure=charts.schedules(facts),
        caption="The learning-rate schedules, coloured by validation accuracy, in fifths of the "
        f"completed trials. Equal rates are drawn up to {charts.BESIDE:.0%} apart, so that each can be seen.",
    )
    if not facts.complete:
        yield Paragraph("No trial is complete yet, so the parameters cannot be judged.")
        return
    yield Heading(2, "Parameters")
    if facts.importances:
        yield Plate(
            name="importances",
            figure=charts.importances(facts),
            caption="How much each parameter matters for ranking among the best of the "
            f"{len(facts.complete)} completed trials (PED-ANOVA, as computed by Optuna). "
            "With few trials this is only a hint.",
        )
    else:
        yield Paragraph(
            f"Importances need {MIN_COMPLETE} completed trials with different accuracies; "
            f"this study has {len(facts.complete)}."
        )
    if any(trial.params for trial in facts.complete):
        yield Plate(
            name="slices",
            figure=charts.slices(facts),
            caption="Validation accuracy of the completed trials by value of each parameter; the line is the median. "
            "Boundaries and patience are in reference iterations (of 64,000).",
        )


def _cost(facts: Facts) -> Iterator[Block]:
    spent = facts.status["iterations_spent"]
    distinct = distinct_iterations((trial.recipe, trial.end) for trial in facts.trials)
    yield Heading(2, "Training cost")
    yield Grid(
        header=("optimizer steps", "number", "share", ""),
        rows=[
            _cost_row("full trials", spent["naive"], spent, "all finished trials, each with the full budget"),
            _cost_row("without reuse", spent["requested"], spent, "after pruning and early stopping"),
            _cost_row("distinct", distinct, spent, "each shared part counted once: the tree below"),
            _cost_row("trained", spent["trained"], spent, "what workers executed, including repeated steps"),
        ],
    )
    if facts.branches:
        yield Plate(
            name="tree",
            figure=charts.tree(facts),
            caption="The trials as a tree. Recipes that agree up to an iteration have the same state there, so each "
            "segment is drawn once, on the row of the first trial that trained it; the thicker, the more trials "
            "share it. Numbers are trials, with the accuracy of the completed ones.",
        )


def _runs(facts: Facts) -> Iterator[Block]:
    for run in facts.shown:
        trial = run.trial
        best = f"Best trial: {trial.number}" if trial == facts.best else ""
        documented = f"Documented run {run.documented.section}: {run.documented.title}" if run.documented else ""
        yield Heading(2, "; ".join(filter(None, (run.name, best, documented))))
        yield Heading(3, "Configuration")
        yield Grid(rows=_configuration(trial.recipe, facts.settings))
        yield Heading(3, "Training & Validation Loss and Accuracy")
        yield Plate(
            name=f"trial_{trial.number}",
            figure=training_figure(trial.curve, trial.recipe),
            caption=f"Trial {trial.number}. Loss (logarithmic) and accuracy; dotted: changes of the learning rate. The "
            "training curves are means over augmented batches, with dropout where the head has it.",
        )
        yield Heading(3, "Results")
        yield Grid(rows=list(_results(run, facts)))


def _documented(facts: Facts) -> Iterator[Block]:
    if not facts.documented:
        return
    yield Heading(2, "Documented runs not trained in this study")
    yield Paragraph(
        "Documented results on the test split of CIFAR-10 with 64,000 iterations, one run each. "
        + (
            "This study has the same data set and budget."
            if facts.comparable
            else "Not comparable: this study has another budget."
        )
    )
    yield Grid(
        header=("run", "test loss", "test accuracy", "parameters", "recipe"),
        rows=[
            (
                f"{run.section}. {run.title}",
                *show_documented(run),
                show_value(run.params.total),
                _recipe_line(run.recipe),
            )
            for run in facts.documented
        ],
    )


def _configuration(recipe: Recipe, settings: StudySettings) -> list[tuple[str, str]]:
    counts = network_counts(recipe, settings.image_shape[2], settings.classes)
    return [
        ("learning rate, boundaries", _boundaries(recipe)),
        ("learning rate, values", show_value(recipe.values)),
        ("head", recipe.head),
        ("dropout rate", show_value(recipe.dropout or None)),
        ("early stopping", _patience(recipe)),
        ("BatchNorm on shortcuts", show_value(recipe.shortcut_norm)),
        ("layers", show_value(recipe.depth)),
        ("optimizer", _optimizer(recipe)),
        ("label smoothing", show_value(recipe.label_smoothing or None)),
        ("batch size, seed", f"{recipe.batch_size}, {recipe.seed}"),
        ("total parameters", show_value(counts.total)),
        ("trainable parameters", show_value(counts.trainable)),
        ("non-trainable parameters", show_value(counts.non_trainable)),
    ]


def _results(run: Shown, facts: Facts) -> Iterator[tuple[str, str]]:
    attrs = run.trial.attrs
    yield ("outcome", str(attrs.get("outcome", "unknown")))
    if run.trial.state == "complete":
        assert run.trial.value is not None
        yield ("validation accuracy", show_measured(run.trial.value, attrs[STANDARD_ERROR]))
        yield ("validation loss", f"{attrs[VALIDATION_LOSS]:.4f}")
    if run.test or facts.compared is None:
        yield ("test loss", _across_seeds([result.loss for result in run.test]))
        yield ("test accuracy", _across_seeds([result.accuracy for result in run.test]))
    if run.documented:
        comparable = "" if facts.comparable else "; not comparable: CIFAR-10 at 64,000 iterations"
        loss, accuracy = show_documented(run.documented)
        yield ("documented test loss", f"{loss}{comparable if run.documented.test_loss else ''}")
        yield ("documented test accuracy", f"{accuracy}{comparable if run.documented.test_accuracy else ''}")


def network_counts(recipe: Recipe, channels: int, classes: int) -> ParameterCounts:
    """Count the parameters of a recipe's network for images with given channels and classes."""
    network = ResNet(
        channels=channels,
        classes=classes,
        **network_fields(recipe),
        generator=torch.Generator(),
    )
    return count_parameters(network)


def _across_seeds(values: list[float]) -> str:
    if not values:
        return "not benchmarked yet"
    spread = f" ± {stdev(values):.4f} (standard deviation)" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread} over {len(values)} seed{'s' if len(values) > 1 else ''}"


def _recipe_line(recipe: Recipe) -> str:
    stop = f", {_patience(recipe)}" if recipe.early_stopping else ""
    return (
        f"{charts.head_line(recipe)}; rates {show_value(recipe.values)} from 0, {show_value(recipe.boundaries)}{stop}"
    )


def _boundaries(recipe: Recipe) -> str:
    own = tuple(scale(boundary, recipe.iterations) for boundary in recipe.boundaries)
    reference = "" if own == recipe.boundaries else f" ({show_value(recipe.boundaries)} of 64,000)"
    return f"{show_value(own)}{reference}"


def _optimizer(recipe: Recipe) -> str:
    nesterov = " (Nesterov)" if recipe.nesterov else ""
    return f"SGD, momentum {show_value(recipe.momentum)}{nesterov}, weight decay {show_value(recipe.weight_decay)}"


def _patience(recipe: Recipe) -> str:
    if recipe.early_stopping is None:
        return show_value(None)
    return f"patience {show_value(scale(recipe.early_stopping, recipe.iterations))} iterations"


def _alignment(facts: Facts) -> str:
    return {"phase": "phase time", "iteration": "iterations"}[facts.settings.align]


def _best_line(best: Trial | None) -> str:
    if best is None:
        return "no trial is complete yet"
    assert best.value is not None
    return f"trial {best.number}, validation accuracy {show_measured(best.value, best.attrs['standard error'])}"


def _cost_row(name: str, number: int, spent: dict[str, int], meaning: str) -> tuple[str, str, str, str]:
    return name, show_value(number), f"{number / spent['naive']:.0%}", meaning
