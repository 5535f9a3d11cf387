"""The part of a report that is about recipes side by side: a benchmark, a confirmation, or the documented runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean, stdev

import hpo.results.report.charts as charts
from hpo.recipes.recipe import DocumentedRun
from hpo.results.formatting import show_value
from hpo.results.report.document import Block, Grid, Heading, Paragraph, Plate
from hpo.results.report.facts import Facts, Shown, Trial
from hpo.results.test_split import TEST_ACCURACY, TEST_LOSS
from hpo.settings import VALIDATION_LOSS

NOT_FINISHED = Paragraph("The study is not finished; this report shows its state when the report was written.")


def write_comparison(facts: Facts) -> Iterator[Block]:
    """Write what was compared, the table of results, and the curves of each recipe."""
    assert facts.compared is not None
    settings, counts = facts.settings, facts.status["trials"]
    yield Heading(1, f"Study {facts.name}")
    if counts["running"] + counts["waiting"]:
        yield NOT_FINISHED
    yield Grid(
        rows=[
            ("recipes", ", ".join(facts.compared.runs)),
            ("data set", f"{settings.dataset}; split checksum {settings.split[:12]}"),
            ("budget of a run", f"{show_value(settings.iterations)} iterations, {settings.precision}"),
            ("runs", ", ".join(f"{number} {state}" for state, number in counts.items() if number)),
        ]
    )
    if facts.compared.verdict:
        yield Paragraph(facts.compared.verdict)
    yield Heading(2, "Results")
    yield Paragraph(
        "Means over the fresh seeds on which a recipe has been trained to its end, each in a trial of its own, with "
        "the standard deviation where there are several."
    )
    yield Grid(
        header=("recipe", "trials", "validation accuracy", "validation loss", "test accuracy", "test loss"),
        rows=[_result(name, facts.compared.runs[name]) for name in facts.compared.runs],
    )
    documented = [run for run in facts.shown if run.documented]
    if documented:
        yield Paragraph(
            "What is documented of these recipes, on the test split of CIFAR-10 with 64,000 iterations, one run each."
            + ("" if facts.comparable else " Not comparable: this study has another data set or budget.")
        )
        yield Grid(header=("recipe", "test accuracy", "test loss"), rows=[_documented_row(run) for run in documented])
    yield Heading(2, "Curves")
    yield Plate(
        name="learning_curves",
        figure=charts.compared_curves(facts),
        caption="Validation accuracy of each recipe during training, one line for each seed; the others are faint.",
    )


def show_spread(values: Sequence[float]) -> str:
    """Write the mean of a result over seeds, with the standard deviation where there are several."""
    if not values:
        return "-"
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _result(name: str, runs: Sequence[Trial]) -> tuple[str, ...]:
    ended = [run for run in runs if run.state == "complete"]
    measured = (
        [run.value for run in ended if run.value is not None],
        *([run.attrs[key] for run in ended if key in run.attrs] for key in (VALIDATION_LOSS, TEST_ACCURACY, TEST_LOSS)),
    )
    return (name, ", ".join(str(run.number) for run in ended) or "-", *map(show_spread, measured))


def _documented_row(run: Shown) -> tuple[str, str, str]:
    assert run.documented is not None
    loss, accuracy = show_documented(run.documented)
    return run.name, accuracy, loss


def show_documented(run: DocumentedRun) -> tuple[str, str]:
    """Write the documented test loss and accuracy of a run, where there are any."""
    if run.test_loss is None or run.test_accuracy is None:
        return "not documented", "not documented"
    return f"{run.test_loss:.4f}", f"{run.test_accuracy:.4f}"
