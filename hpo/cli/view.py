"""Text and tables for a terminal, of studies, trials and models.

Everything here is a pure function from records to something that rich can print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hpo.wording import counted

if TYPE_CHECKING:
    from hpo.database.overview import Counts, Running
    from hpo.database.study_list import BestValue, ListedStudy
    from hpo.database.study_state import Stopped
    from hpo.database.workers import LiveWorker
    from hpo.recipes.recipe import ParameterCounts
    from hpo.results.benchmark import Result, Run
    from hpo.results.confirmation import Confirmation
    from hpo.results.plan import Forecast, Plan, Range
    from hpo.results.significance import Estimate
    from hpo.study import Best
    from hpo.training.model import LayerRow

BUSY = 0.3
"""By which share a step takes longer than on its own where that is said."""


def accuracy(value: float | None) -> str:
    """Write an accuracy with four places, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def duration(seconds: float | None) -> str:
    """Write a duration for people."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def time_left(elapsed_s: float, finished: int, remaining: int) -> float | None:
    """Estimate the seconds to the end from the trials that finished since the start; None while none has."""
    return elapsed_s / finished * remaining if finished else None


def counts_line(counts: Counts, target: int) -> str:
    """Write how many trials are in each state that has any."""
    states = {
        "complete": counts.complete,
        "pruned": counts.pruned,
        "failed": counts.failed,
        "running": counts.running,
        f"waiting{_at_rungs(counts.at_rungs)}": counts.waiting,
    }
    parts = [f"{counts.finished} / {target} finished", *(f"{n} {state}" for state, n in states.items() if n)]
    return ", ".join(parts)


def _at_rungs(at_rungs: Mapping[int, int]) -> str:
    """Write how many of the waiting trials wait at which rung; nothing if none does."""
    return f" ({', '.join(f'{number} at rung {rung}' for rung, number in at_rungs.items())})" if at_rungs else ""


def progress(
    name: str,
    counts: Counts,
    target: int,
    best: tuple[int, float] | None,
    running: Sequence[Running],
    budget: int,
    left_s: float | None,
    state: str = "running",
    note: str = "",
) -> RenderableType:
    """Draw the live view of a study: its counts, the best trial so far, and the trial of each worker."""
    headline = Text(f"{name}  ", style="bold")
    headline.append(_state_prefix(state) + counts_line(counts, target), style="default")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("worker", "device", "trial", "iteration", "accuracy"):
        table.add_column(title, justify="left" if title in ("worker", "device") else "right")
    for row in running:
        at = f"{row.iteration:,} / {budget:,}"
        table.add_row(row.worker, row.device, str(row.trial_number), at, accuracy(row.val_accuracy))
    told = f"{_best_so_far(best)}, time left {duration(left_s)}"
    return Group(headline, told, *([note] if note else []), *([table] if running else []))


def progress_line(
    counts: Counts,
    target: int,
    steps: int,
    best: tuple[int, float] | None,
    left_s: float | None,
    state: str = "running",
) -> str:
    """Write the live view in one line, for a log, with the optimizer steps that have been trained."""
    said = f"{counts_line(counts, target)}; {steps:,} steps; {_best_so_far(best)}; time left {duration(left_s)}"
    return _state_prefix(state) + said


def _best_so_far(best: tuple[int, float] | None) -> str:
    return f"best {accuracy(best[1])} (trial {best[0]})" if best else "no result yet"


def _state_prefix(state: str) -> str:
    """Write a study's state unless it is running or done."""
    return "" if state in ("running", "done") else f"{state}: "


def studies(listed: Sequence[ListedStudy]) -> RenderableType:
    """Draw the table of `hpo studies`; what confirms or tests a search says so behind its state."""
    table = _table()
    table.add_column("study", no_wrap=True, overflow="fold")
    table.add_column("state", overflow="fold")
    for title in ("finished", "best", "steps", "last active", "workers"):
        table.add_column(title, justify="right")
    for row in listed:
        state = row.state if row.kind == "search" else f"{row.state} ({row.kind})"
        idle = "-" if row.idle_s is None else f"{duration(row.idle_s)} ago"
        counts = (f"{row.finished} of {row.target}", _best_value(row.best), f"{row.trained_iterations:,}")
        table.add_row(row.study, state, *counts, idle, str(len(row.workers)))
    return table


def _best_value(best: BestValue | None) -> str:
    """Write the value of a study's best trial with its standard error."""
    if best is None:
        return "-"
    return accuracy(best.value) + ("" if best.standard_error is None else f" ± {best.standard_error:.4f}")


def workers(live_workers: Sequence[LiveWorker]) -> RenderableType:
    """Draw the table of `hpo workers`."""
    table = _table("worker", "host", "device", "study")
    for title in ("trial", "iteration", "last heartbeat"):
        table.add_column(title, justify="right")
    for row in live_workers:
        at = ("-", "-") if row.trial is None else (str(row.trial), f"{row.iteration:,}")
        age = f"{row.heartbeat_age_s:.0f} s ago"
        study = "-" if row.study is None else row.study + ("" if row.state == "running" else f" ({row.state})")
        table.add_row(row.worker, row.host, row.device, study, *at, age)
    return table


def stopped(name: str, stop: Stopped) -> str:
    """Write what `hpo stop` did."""
    trials = f"{counted(stop.handed_back, 'running trial')} handed back, {stop.finished} finished"
    counts = stop.counts
    if not counts.waiting:
        return f"study {name} has no trials left: {trials}; {counts.finished} finished in all"
    return (
        f"study {name} is stopped: {trials}; {counts.finished} finished in all, {counts.waiting} waiting. "
        f"Continue it with `hpo resume --study {name}` or the command that created it"
    )


def status(summary: Mapping[str, Any]) -> RenderableType:
    """Draw the table of `hpo status`."""
    trials = summary["trials"]
    finished = trials["complete"] + trials["pruned"] + trials["failed"]
    states = ", ".join(f"{number} {state}" for state, number in trials.items() if number)
    best = summary["best"]
    table = _pairs()
    table.add_row("study", summary["study"])
    table.add_row(
        "space", f"{summary['space']} on {summary['dataset']}, {summary['iterations']:,} iterations per trial"
    )
    why = f": {reason}" if (reason := summary["ended_because"]) else ""
    table.add_row("state", summary["state"] + why)
    rungs = _at_rungs(summary["waiting_at_rungs"])
    table.add_row("trials", f"{finished} of {summary['target']} finished: {states}{rungs}")
    if others := _of_other_clients(summary["study"], summary["of_other_clients"]):
        table.add_row("other clients", others)
    if (recipes := summary["recipes"]) is not None:
        table.add_row("recipes", _tried(recipes))
    table.add_row("best", f"{accuracy(best['value'])} (trial {best['trial']})" if best else "none yet")
    if best and "confirmation" in summary:
        confirmed = summary["confirmation"]
        table.add_row(
            "confirmed", confirmed["verdict"] if confirmed else "no; `hpo confirm` trains it on further seeds"
        )
    table.add_row("steps", spent_line(summary["iterations_spent"]))
    return table


def _of_other_clients(study: str, number: Mapping[str, int]) -> str:
    """Write how many trials other clients have, have ended, and have made invalid; nothing if there are none."""
    said = {
        "lent": f"{number['lent']} lent (take back with `hpo reclaim --study {study}`)",
        "told": f"{number['told']} with results that they reported, which do not compete with trained ones",
        "refused": f"{number['refused']} that they failed, or whose parameters are outside the search space",
    }
    return "; ".join(text for key, text in said.items() if number[key])


def _tried(recipes: Mapping[str, int]) -> str:
    used_up = ": the search space is used up" if recipes["tried"] >= recipes["possible"] else ""
    return f"{recipes['tried']:,} of {recipes['possible']:,} tried{used_up}"


def spent_line(spent: Mapping[str, int]) -> str:
    """Write the optimizer steps of a study, what full trials would have taken, and what they would without reuse."""
    naive = spent["naive"]
    share = (
        f", {spent['trained'] / naive:.0%} of the {naive:,} of full trials; {spent['requested']:,} without reuse"
        if naive
        else ""
    )
    return f"{spent['trained']:,} trained{share}"


def best(winner: Best, base: Mapping[str, Any], confirmed: str | None) -> RenderableType:
    """Draw the table of `hpo best`: the value, and the recipe with the base recipe's value where it differs.

    Args:
        confirmed: How far the trial is confirmed on further seeds; None where that is said beside it.
    """
    table = _pairs()
    table.add_row("trial", str(winner.trial))
    table.add_row(
        "validation accuracy",
        f"{winner.value:.4f} ± {winner.standard_error:.4f} (standard error). Optimistic, as the best of many; "
        "`hpo benchmark` measures it on new images.",
    )
    if confirmed is not None:
        table.add_row("confirmed", confirmed)
    for name, value in winner.recipe.to_dict().items():
        changed = "" if base[name] == value else f"   (base recipe: {_field(name, base[name])})"
        title = "learning rates" if name == "values" else name.replace("_", " ")
        table.add_row(title, f"{_field(name, value)}{changed}")
    return table


def _field(name: str, value: object) -> str:
    """Write a field of a recipe: boundaries as `20,000 / 32,000`, learning rates as `0.1 → 0.02`."""
    match value:
        case list():
            joined = (" → " if name == "values" else " / ").join(_field(name, each) for each in value)
            return f"{joined} of 64,000" if name == "boundaries" else joined
        case bool():
            return "yes" if value else "no"
        case int() if name != "seed":
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case None:
            return "none"
        case _:
            return str(value)


def benchmark(result: Result, verdict: str) -> RenderableType:
    """Draw the table of `hpo benchmark`: accuracy and loss on the test split for each seed, and the verdict."""
    runs = [run for run in result.runs if run in (result.candidate, result.baseline)]
    columns: list[tuple[str, tuple[float, ...], Estimate]]
    columns = [(f"accuracy\n{run.name}", run.test_accuracy, run.accuracy) for run in runs]
    if len(runs) == 2:
        columns.append(("accuracy\ndifference", result.differences, result.difference))
    columns += [(f"loss\n{run.name}", run.test_loss, run.loss) for run in runs]
    table = _figures("seed", *(title for title, _, _ in columns))
    for seed, *row in zip(result.seeds, *(values for _, values, _ in columns), strict=True):
        table.add_row(str(seed), *map(accuracy, row))
    table.add_row("mean", *(accuracy(summary.mean) for *_, summary in columns), style="bold")
    for title, end in (("95% interval from", 0), ("to", 1)):
        table.add_row(title, *(accuracy(summary.ci95 and summary.ci95[end]) for *_, summary in columns))
    table.add_row("documented", *_documented_cells(runs))
    return Group(*_benchmark_head(result), table, "", *_benchmark_notes(result), Text(verdict, style="bold"))


def confirmation(result: Confirmation, verdict: str) -> RenderableType:
    """Draw the table of `hpo confirm`: each recipe's validation accuracy on each further seed, and the verdict."""
    table = _figures("seed", *(each.name for each in result.contenders))
    for index, seed in enumerate(result.seeds):
        cells = (each.accuracy[index : index + 1] for each in result.contenders)
        table.add_row(str(seed), *(accuracy(cell[0]) if cell else "-" for cell in cells))
    table.add_row("mean", *(accuracy(each.mean) for each in result.contenders), style="bold")
    dropped = [each.dropped_after for each in result.contenders]
    if any(dropped):
        table.add_row("dropped after seeds", *("-" if after is None else str(after) for after in dropped))
    return Group(table, "", Text(verdict, style="bold"))


def documented_runs(result: Result) -> RenderableType:
    """Draw the documented figures next to those that the documented recipes reach here."""
    documented_titles = ("documented\naccuracy", "documented\nloss")
    table = _figures("run", *documented_titles, "accuracy here\nmean ± 95%", "loss here\nmean ± 95%")
    for run in result.runs:
        table.add_row(run.name, *map(accuracy, documented(run)), mean(run.accuracy), mean(run.loss))
    return Group(*_benchmark_head(result), table, "", *_benchmark_notes(result))


def documented(run: Run) -> tuple[float | None, float | None]:
    """Return the documented test accuracy and loss of a run's recipe; None where none is documented."""
    return (run.documented.test_accuracy, run.documented.test_loss) if run.documented else (None, None)


def mean(estimate: Estimate) -> str:
    """Write a mean with half the width of its interval."""
    return accuracy(estimate.mean) + (f" ± {(estimate.ci95[1] - estimate.ci95[0]) / 2:.4f}" if estimate.ci95 else "")


def _figures(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    for title in others:
        table.add_column(title, justify="right")
    return table


def _documented_cells(runs: Sequence[Run]) -> list[str]:
    accuracies, losses = zip(*map(documented, runs), strict=True)
    between = [""] if len(runs) == 2 else []
    return [*map(accuracy, accuracies), *between, *map(accuracy, losses)]


def _benchmark_head(result: Result) -> tuple[str, str]:
    budget = f"{result.iterations:,} iterations, {counted(len(result.seeds), 'seed')}"
    return f"{result.study}: test split of {result.dataset}, {budget}", ""


def _benchmark_notes(result: Result) -> list[str]:
    notes = [f"no result: {line}" for line in result.missing]
    if result.waiting:
        notes.append(f"Not finished yet: {counted(result.waiting, 'run')}; the same command continues.")
    if not result.comparable and any(run.documented for run in result.runs):
        notes.append("The documented figures are not comparable: they are of CIFAR-10 at 64,000 iterations.")
    return notes


def layers(rows: Sequence[LayerRow], counts: ParameterCounts) -> RenderableType:
    """Draw the layer table of a model, with its three totals."""
    table = Table(box=None, pad_edge=False)
    table.add_column("Layer (type)")
    table.add_column("Output Shape")
    table.add_column("Param", justify="right")
    for row in rows:
        shape = f"(None, {', '.join(map(str, row.shape))})"
        table.add_row(f"{row.name} ({row.kind})", f"[{shape}]" if row.kind == "InputLayer" else shape, str(row.params))
    totals = (
        f"Total params: {counts.total}\nTrainable params: {counts.trainable}\n"
        f"Non-trainable params: {counts.non_trainable}"
    )
    return Group(table, "", totals)


def spaces(entries: Sequence[tuple[str, str, int, str]]) -> RenderableType:
    """Draw the list of shipped spaces: name, base recipe, number of searched parameters, description."""
    table = _table("name", "base recipe", "parameters", "description")
    for name, base_name, parameters, description in entries:
        table.add_row(name, base_name, str(parameters), description)
    return table


def plan(made: Plan, space: str, dataset: str, device: str) -> RenderableType:
    """Draw the plan of a study: the space, the measured speed, and what the study and its alternatives would take."""
    asked, speed = made.asked, made.speed
    facts = _pairs()
    facts.add_row("space", f"{space}: {made.recipes:,} distinct recipes{_settings_of(made)}")
    for line in made.review:
        facts.add_row("", line)
    facts.add_row("data set", dataset)
    facts.add_row("speed", f"{speed.step_s * 1000:,.1f} ms per optimizer step of the base recipe ({device})")
    if speed.delay > BUSY:
        facts.add_row("", f"the machine is busy: now a step takes {1 + speed.delay:.1f} times as long")
    facts.add_row("checkpoint", f"{speed.checkpoint_bytes / 1e6:.2f} MB each")
    facts.add_row("reuse", f"{_share(asked)} of the steps of the trials are trained; the others are shared")
    table = _table("")
    for title in ("median", "lowest", "highest"):
        table.add_column(title, justify="right")
    for name, figure, form in _figures_of(asked):
        table.add_row(name, *(form.format(value) for value in (figure.median, figure.low, figure.high)))
    title = f"{counted(made.trials, 'trial')} of {asked.iterations:,} iterations, {counted(asked.workers, 'worker')}"
    note = f"Over {made.replays} replays of the search on imagined learning curves."
    others = [_alternative(each, asked) for each in made.alternatives]
    return Group(Text(title, style="bold"), facts, "", table, "", *others, "", note)


def _settings_of(made: Plan) -> str:
    """Write how many settings of parameters a space has where several give one recipe."""
    return "" if made.settings == made.recipes else f" ({made.settings:,} settings: some train alike)"


def _share(forecast: Forecast) -> str:
    return f"{forecast.steps.median / forecast.requested.median:.0%}"


def _figures_of(asked: Forecast) -> list[tuple[str, Range, str]]:
    """List what a search takes: a title, the figure, and how it is written."""
    name, unit_s = _time_unit(asked.seconds.median)
    confirmation = [("steps to confirm, at most", asked.confirmation, "{:,.0f}")] if asked.confirmation.high else []
    return [
        ("optimizer steps", asked.steps, "{:,.0f}"),
        *confirmation,
        (f"time, {name}", _divided(asked.seconds, unit_s), "{:,.1f}"),
        ("checkpoints, GB", asked.checkpoint_gb, "{:,.2f}"),
        ("database reads", asked.reads, "{:,.0f}"),
    ]


def _alternative(forecast: Forecast, asked: Forecast) -> str:
    """Write what else might be asked for, and what it would take, in one line."""
    halved = forecast.iterations != asked.iterations
    change = f"{forecast.iterations:,} iterations" if halved else counted(forecast.workers, "worker")
    name, unit_s = _time_unit(forecast.seconds.median)
    time = _span(_divided(forecast.seconds, unit_s), "{:,.1f}")
    return f"With {change}: {_span(forecast.steps, '{:,.0f}')} steps, {time} {name}."


def _span(figure: Range, form: str) -> str:
    low, middle, high = (form.format(value) for value in (figure.low, figure.median, figure.high))
    return f"{middle} ({low} to {high})"


def _time_unit(seconds: float) -> tuple[str, int]:
    """Choose the unit in which a duration is written, and return it with its length in seconds."""
    return ("seconds", 1) if seconds < 120 else ("minutes", 60) if seconds < 7_200 else ("hours", 3_600)


def _divided(figure: Range, divisor: float) -> Range:
    return type(figure)(low=figure.low / divisor, median=figure.median / divisor, high=figure.high / divisor)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title)
    return table


def _pairs() -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table
