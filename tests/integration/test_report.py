"""Report on studies whose trials were written without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo.database import queue, studies
from hpo.database.attempt import Outcome, Progress
from hpo.database.storage import Storage
from hpo.errors import BadInput, StudyNotFound
from hpo.recipes.comparison import Comparison
from hpo.recipes.recipe import documented_runs
from hpo.recipes.schedule import CurvePoint, distinct_iterations
from hpo.recipes.space_file import load_space
from hpo.results import benchmark, confirmation
from hpo.results.figures import to_svg
from hpo.results.report import charts, write_report
from hpo.results.report.document import Block, Grid, Heading, Paragraph, Plate
from hpo.results.report.facts import Benchmarked, Facts, find_test_results, load_facts
from hpo.results.report.pages import network_counts, write_blocks
from hpo.settings import StudySettings
from hpo.study import Study, continue_or_create
from tests.integration.support import NOTHING, SETTINGS, claim, complete, make_study, suggest

SMOOTH_LR = replace(
    SETTINGS, space=load_space("smooth_lr").model_dump(mode="json", exclude_none=True), sampler="random"
)
ENDS = (32, 32, 8, 32, 32, 16, 32, 32)


def curve(end: int, luck: float) -> list[CurvePoint]:
    return [
        CurvePoint(iteration=i, train_loss=2 / i, val_loss=3 / i + luck, val_accuracy=0.9 - 1 / (i + 1) - luck)
        for i in range(1, end + 1)
    ]


def write_trial(made: Study, end: int, luck: float) -> None:
    """Finish the oldest waiting trial, pruned where it does not reach its end."""
    attempt = claim(made)
    suggest(made, attempt)
    points = curve(end, luck)
    progress = Progress(iteration=end, trained_iterations=end, val_accuracy=points[-1].val_accuracy)
    queue.record(made.storage, attempt, progress, points, {i: points[i - 1].val_accuracy for i in range(1, end + 1)})
    attrs: dict[str, Any] = {"outcome": "complete", "validation loss": points[-1].val_loss, "standard error": 0.01}
    if end < 32:
        attrs = {"outcome": f"pruned at iteration {end}"}
    outcome = Outcome(
        state="complete" if end == 32 else "pruned",
        value=points[-1].val_accuracy,
        attrs=attrs | {"iterations": end},
    )
    queue.finish(made.storage, attempt, progress, outcome)


def write_study(storage: Storage, ends: Sequence[int] = ENDS, settings: StudySettings = SMOOTH_LR) -> Study:
    made = make_study(storage, len(ends), settings)
    for number, end in enumerate(ends):
        write_trial(made, end, luck=0.01 * (number % 5))
    return made


def begin_benchmark(made: Study) -> Study:
    """Begin the final benchmark of a study, and end its runs on two of three seeds."""
    companion = benchmark.begin(made, 3, Path("/nonexistent"))
    assert isinstance(companion.space, Comparison)
    runs = len(companion.space.runs)
    for number in range(2 * runs):
        attempt = claim(companion)
        suggest(companion, attempt)
        figures = {"test accuracy": 0.9 - number / 100, "test loss": 0.5}
        queue.finish(companion.storage, attempt, NOTHING, Outcome(state="complete", value=0.5, attrs=figures))
    return companion


def test_the_facts_of_a_study_are_those_in_its_storage(storage: Storage) -> None:
    made = write_study(storage)

    facts = load_facts(made)

    assert [(t.number, t.state, t.end, t.curve) for t in facts.trials] == [
        (n, "complete" if end == 32 else "pruned", end, tuple(curve(end, 0.01 * (n % 5)))) for n, end in enumerate(ENDS)
    ]
    assert facts.best is not None and facts.best.number == 0
    assert [(run.trial.number, run.documented and run.documented.name, run.test) for run in facts.shown] == [
        (0, "smooth_lr", ())
    ]
    assert sum(facts.importances.values()) == pytest.approx(1)
    assert facts.documented == ()
    assert facts.status["iterations_spent"] == {"naive": 256, "requested": 216, "trained": 216}
    distinct = distinct_iterations((trial.recipe, trial.end) for trial in facts.trials)
    assert 32 <= distinct < 216
    assert sum(branch.end - branch.start for branch in facts.branches) == distinct


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_benchmark_beside_the_study_gives_the_test_results_of_its_recipes(storage: Storage) -> None:
    made = write_study(storage, (32,))
    assert find_test_results(made, made.base) == ()
    comparison = begin_benchmark(made).space
    assert isinstance(comparison, Comparison)
    first, second = comparison.seed(0), comparison.seed(1)

    results = find_test_results(made, made.base)

    assert results == (
        Benchmarked(seed=first, loss=0.5, accuracy=0.9),
        Benchmarked(seed=second, loss=0.5, accuracy=0.89),
    )
    assert find_test_results(made, replace(made.base, head="dense", dropout=0.1)) == ()
    assert ("test accuracy", "0.8950 ± 0.0071 (standard deviation) over 2 seeds") in cells_of(load_facts(made))


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_report_describes_the_confirmed_recipe(storage: Storage) -> None:
    made = write_study(storage)
    assert load_facts(made).confirmed.startswith("Not confirmed: ")
    companion = confirmation.begin(made, 2, 1)
    assert companion is not None
    assert isinstance(companion.space, Comparison)
    numbers = [trial for run, trial in companion.space.trials.items() if run != "baseline"]
    for value in (0.5, *(0.6 + number / 100 for number in numbers)):
        attempt = claim(companion)
        suggest(companion, attempt)
        complete(companion, attempt, value)

    facts = load_facts(made)

    assert facts.best is not None and facts.best.number == facts.shown[0].trial.number == max(numbers)
    assert facts.confirmed.startswith(f"Trial {max(numbers)} has the highest mean validation accuracy on 1 seed ")
    assert Paragraph(facts.confirmed) in write_blocks(facts)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_candidate_and_baseline_have_each_their_own_test_results(storage: Storage) -> None:
    made = make_study(storage, 2, SMOOTH_LR)
    write_trial(made, 32, luck=0.01)
    write_trial(made, 32, luck=0.0)
    begin_benchmark(made)

    facts = load_facts(made)

    assert [(run.trial.number, [result.accuracy for result in run.test]) for run in facts.shown] == [
        (1, [0.9, 0.88]),
        (0, [0.89, 0.87]),
    ]


def said(blocks: Sequence[Block]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, Paragraph)]


def write_runs(companion: Study, runs: int) -> None:
    """End the first runs of a study that compares recipes, each worse than the one before."""
    for number in range(runs):
        attempt = claim(companion)
        suggest(companion, attempt)
        points = curve(32, luck=number / 100)
        queue.record(companion.storage, attempt, NOTHING, points, {})
        attrs = {"outcome": "complete", "iterations": 32, "validation loss": 0.25, "standard error": 0.01}
        assert isinstance(companion.space, Comparison)
        figures = {"test accuracy": 0.9 - number / 100, "test loss": 0.5}
        tests = {} if companion.space.is_confirmation else figures
        ended = Outcome(state="complete", value=points[-1].val_accuracy, attrs=attrs | tests)
        queue.finish(companion.storage, attempt, NOTHING, ended)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_report_on_the_documented_runs_compares_them_with_what_is_documented(storage: Storage) -> None:
    companion = benchmark.begin_documented(storage, 2, SMOOTH_LR, Path("/nonexistent"))
    write_runs(companion, 6)

    facts = load_facts(companion)
    blocks, cells = write_blocks(facts), cells_of(facts)

    assert ("recipes", "baseline, dense_early_stopping, dense, dropout, smooth_lr") in cells
    assert ("runs", "6 complete, 4 waiting") in cells
    assert ("baseline", "0, 5", "0.8447 ± 0.0354", "0.2500 ± 0.0000", "0.8750 ± 0.0354", "0.5000 ± 0.0000") in cells
    assert ("smooth_lr", "4", "0.8297", "0.2500", "0.8600", "0.5000") in cells
    assert ("smooth_lr", "0.8935", "0.6009") in cells and ("dense_early_stopping", *["not documented"] * 2) in cells
    assert any(text.endswith(" Not comparable: this study has another data set or budget.") for text in said(blocks))
    assert [block.text for block in blocks if isinstance(block, Heading) and block.level == 2] == [
        "Results",
        "Curves",
        "Training cost",
        "baseline; Documented run 1: ResNet-20",
        "dense_early_stopping; Documented run 2: A dense block with dropout, and early stopping",
        *(f"{run.name}; Documented run {run.section}: {run.title}" for run in list(documented_runs().values())[2:]),
    ]
    assert ("test accuracy", "0.8750 ± 0.0354 (standard deviation) over 2 seeds") in cells
    assert all(to_svg(block.figure) for block in blocks if isinstance(block, Plate) and block.name == "learning_curves")


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_report_on_a_benchmark_says_what_follows_from_it_and_calls_nothing_the_best(storage: Storage) -> None:
    made = make_study(storage, 2, SMOOTH_LR)
    write_trial(made, 32, luck=0.01)
    write_trial(made, 32, luck=0.0)
    companion = benchmark.begin(made, 2, Path("/nonexistent"))
    write_runs(companion, 4)

    facts = load_facts(companion)
    blocks = write_blocks(facts)

    assert facts.best is None
    assert benchmark.verdict(benchmark.result(companion)) in said(blocks)
    assert [run.name for run in facts.shown] == ["candidate", "baseline"]
    assert not any("Best trial" in block.text for block in blocks if isinstance(block, Heading))


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_report_on_a_confirmation_has_no_test_results(storage: Storage) -> None:
    made = write_study(storage)
    companion = confirmation.begin(made, 2, 1)
    assert companion is not None
    assert isinstance(companion.space, Comparison)
    write_runs(companion, len(companion.space.runs))

    facts = load_facts(companion)
    cells = cells_of(facts)

    assert confirmation.verdict(confirmation.result(companion)) in said(write_blocks(facts))
    assert ("baseline", "0", "0.8697", "0.2500", "-", "-") in cells
    assert not [row for row in cells if row[0].startswith("test ")]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_search_with_the_name_of_a_benchmark_is_none(storage: Storage) -> None:
    made = write_study(storage, (32,))
    other = continue_or_create(storage, "small.benchmark", SMOOTH_LR, 1)
    write_trial(other, 32, luck=0.1)

    for study in (made, other):
        assert benchmark.find_result(study) is None
        assert ("test accuracy", "not benchmarked yet") in cells_of(load_facts(study))


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_study_of_another_tool_with_the_name_of_a_benchmark_is_none(storage: Storage) -> None:
    made = write_study(storage, (32,))
    foreign = optuna.create_study(storage=storage.url, study_name="small.benchmark")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)

    assert benchmark.find_result(made) is None
    assert ("test accuracy", "not benchmarked yet") in cells_of(load_facts(made))


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    from hpo.database.storage import open_storage

    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('facts')}/hpo.db", "create")
    found = load_facts(write_study(storage))
    storage.close()
    return found


def cells_of(facts: Facts) -> list[tuple[str, ...]]:
    return [tuple(row) for block in write_blocks(facts) if isinstance(block, Grid) for row in block.rows]


def test_a_report_has_the_users_form_for_each_run_and_calls_nothing_comparable_that_is_not(facts: Facts) -> None:
    cells = cells_of(facts)

    for row in (
        ("learning rate, boundaries", "10, 16, 28 (20,000, 32,000, 56,000 of 64,000)"),
        ("learning rate, values", "0.1, 0.02, 0.005, 0.001"),
        ("dropout rate", "0.5"),
        ("total parameters", "271,882"),
        ("test accuracy", "not benchmarked yet"),
        ("documented test loss", "0.6009; not comparable: CIFAR-10 at 64,000 iterations"),
        ("full trials", "256", "100%", "all finished trials, each with the full budget"),
        ("without reuse", "216", "84%", "after pruning and early stopping"),
    ):
        assert row in cells


def test_a_report_on_cifar10_shows_the_documented_runs_that_it_did_not_train(facts: Facts) -> None:
    runs = tuple(run for name, run in documented_runs().items() if name != "smooth_lr")
    short = replace(facts, settings=replace(facts.settings, dataset="cifar10"), documented=runs)
    full = replace(short, settings=replace(short.settings, iterations=64_000))

    assert [stated.comparable for stated in (facts, short, full)] == [False, False, True]
    blocks = write_blocks(short)
    at = blocks.index(Heading(2, "Documented runs not trained in this study"))
    explained, table = blocks[at + 1 :]
    assert isinstance(explained, Paragraph) and "Not comparable: this study has another budget." in explained.text
    assert isinstance(table, Grid)
    assert [tuple(row) for row in table.rows][:2] == [
        ("1. ResNet-20", "0.5765", "0.8963", "271,786", "linear; rates 0.1, 0.01, 0.001 from 0, 32,000, 48,000"),
        (
            "2. A dense block with dropout, and early stopping",
            "not documented",
            "not documented",
            "311,978",
            "dense 0.5; rates 0.1, 0.01, 0.001 from 0, 32,000, 48,000, patience 3,510 iterations",
        ),
    ]


@pytest.mark.parametrize("run", documented_runs().values(), ids=documented_runs())
def test_the_parameters_are_counted_as_documented(run: Any) -> None:
    assert network_counts(run.recipe, 3, 10) == run.params


DRAWN = (charts.history, charts.learning_curves, charts.schedules, charts.slices, charts.importances, charts.tree)


@pytest.mark.parametrize("draw", DRAWN, ids=lambda draw: draw.__name__)
def test_every_figure_names_its_axes(facts: Facts, draw: Callable[[Facts], Any]) -> None:
    element = to_svg(draw(facts))

    labels = ("iteration (optimizer steps)", "trial", "validation accuracy", "importance (fractions of their sum)")
    assert any(f">{label}</text>" in element for label in labels)


@pytest.mark.parametrize("ends", [(32,), (32, 32), (8,), (8, 16, 4)], ids=str)
@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_study_that_has_hardly_begun_can_be_reported_on(storage: Storage, ends: tuple[int, ...]) -> None:
    blocks = write_blocks(load_facts(write_study(storage, ends)))

    said = [block.text for block in blocks if isinstance(block, Paragraph)]
    if ends == (8,):  # drawing takes seconds, and this is the emptiest
        assert all(to_svg(block.figure) for block in blocks if isinstance(block, Plate))
    if 32 in ends:
        few = f"Importances need 4 completed trials with different accuracies; this study has {len(ends)}."
        assert few in said
    else:
        assert "No trial is complete yet, so the parameters cannot be judged." in said


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_trial_that_failed_at_once_is_counted_and_nothing_else(storage: Storage) -> None:
    made = make_study(storage, 2, SMOOTH_LR)
    failed = Outcome(state="failed", value=None, attrs={"outcome": "failed: no", "iterations": 0})
    queue.finish(made.storage, claim(made), Progress(iteration=0, trained_iterations=0, val_accuracy=None), failed)
    with pytest.raises(StudyNotFound, match="study small has no finished trial yet"):
        load_facts(made)
    write_trial(made, 32, luck=0.0)

    facts = load_facts(made)

    assert [trial.number for trial in facts.trials] == [1]
    assert ("trials", "1 complete, 1 failed") in cells_of(facts)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_report_is_written_over_an_earlier_one(storage: Storage, tmp_path: Path) -> None:
    made = write_study(storage, (32,))
    folder = tmp_path / "deep" / "report"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("of yesterday")

    page, markdown = write_report(made, folder)

    assert (page, markdown) == (folder / "report.html", folder / "report.md")
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert markdown.read_text().startswith("# Study small\n")
    figures = ["history.png", "learning_curves.png", "schedules.png", "slices.png", "tree.png", "trial_0.png"]
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == sorted([f"figures/{name}" for name in figures] + ["report.html", "report.md"])


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_report_never_replaces_a_file_by_a_folder(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.results.report.write_blocks", lambda _facts: [])
    made = write_study(storage, (32,))
    (tmp_path / "file").write_text("mine")

    with pytest.raises(BadInput, match=r"--out .*file: cannot write the report: (File exists|Not a directory)"):
        write_report(made, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_states_that_are_not_finished_are_left_out(storage: Storage) -> None:
    made = write_study(storage, (32, 8))
    studies.set_target(made.storage, made.study_id, 4, first={})
    claim(made)

    facts = load_facts(made)

    assert [trial.number for trial in facts.trials] == [0, 1]
    states = [trial.state for trial in made.trials()]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING]
    said = [block.text for block in write_blocks(facts)[:2] if isinstance(block, Paragraph)]
    assert said == ["The study is not finished; this report shows its state when the report was written."]
