"""`hpo plan`: what a study will take, before it is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hpo.cli.data import choose_data
from hpo.cli.driving import check_launcher
from hpo.cli.output import print_json, say, show
from hpo.cli.run import choose_precision, run
from hpo.settings import (
    DEFAULT_CONFIRM,
    DEFAULT_CONFIRM_SEEDS,
    DEFAULT_CONFIRM_TOP,
    Precision,
    SamplerName,
    check_study_name,
    default_data_dir,
    default_iterations,
)

if TYPE_CHECKING:
    from hpo.results.proposals import Search
    from hpo.training.data import Dataset
    from hpo.trial.speed import Speed


def plan(**options: Any) -> None:
    """Estimate what a study will take.

    It takes the options of `hpo run`: type `plan` in place of `run`. It measures a few seconds of training on this
    machine, and replays the search on imagined learning curves. It writes nothing.
    """
    from dataclasses import asdict

    from hpo.cli import view
    from hpo.launch.cores import count_cores
    from hpo.launch.devices import choose_devices, find_gpus
    from hpo.recipes.space_file import load_space
    from hpo.results.plan import count_replays, make_plan
    from hpo.results.proposals import Search

    if options["study_name"] is not None:
        check_study_name(options["study_name"])
    check_launcher(options["launcher"], options["address"], options["gpus_per_worker"])
    space = load_space(options["space_name"])
    augment = None if options["augment"] is None else options["augment"].value
    data = choose_data(options["dataset"], options["data_dir"] or default_data_dir(), options["image_size"], augment)
    precision = choose_precision(options["precision"].value)
    gpus, cores = find_gpus(), count_cores()
    devices = choose_devices(options["workers"], gpus, cores)
    confirms = DEFAULT_CONFIRM if options["confirm"] is None else options["confirm"]
    search = Search(
        space=space,
        iterations=options["iterations"] or default_iterations(data.name),
        seed=options["seed"],
        sampler=options["sampler"].value,
        pruner=options["pruner"].value,
        align=options["align"].value,
        trials=options["trials"],
        workers=len(devices),
        images=len(data.validation),
        reuse=options["reuse"],
        budget=options["budget"] or None,
        confirmed=DEFAULT_CONFIRM_TOP if confirms else 0,
        confirmation_seeds=DEFAULT_CONFIRM_SEEDS if confirms else 0,
    )
    for line in left_out(options["sampler"].value, options["stop_after"], options["target"]):
        say(line)
    device, speed = _measure(search, data, precision)
    with _progress(3 * count_replays(search.trials)) as report:
        made = make_plan(search, speed, devices=len(gpus) or cores, training_images=len(data.train), report=report)
    if options["json_output"]:
        print_json({"space": space.name, "dataset": data.name, "device": device, "precision": precision} | asdict(made))
    else:
        show(view.plan(made, space.name, data.name, f"{device}, {precision}"))


def left_out(sampler: SamplerName, stop_after: int | None, target: float | None) -> Iterator[str]:
    """Yield a line on each option that the forecast cannot take into account."""
    from hpo.results.proposals import REPLAYED_AS

    if instead := REPLAYED_AS.get(sampler):
        yield f"--sampler {sampler}: the forecast replays {instead} in its place, which is quicker"
    for option, value in (("--stop-after", stop_after), ("--target", target)):
        if value:
            yield (
                f"{option} {value:g}: is not part of the forecast, as the accuracies are imagined; "
                "the study may end earlier"
            )


plan.__signature__ = inspect.signature(run, eval_str=True)  # type: ignore[attr-defined]


def _measure(search: Search, data: Dataset, precision: Precision) -> tuple[str, Speed]:
    """Measure the training of the base recipe on the device that a worker of this machine would pick."""
    from hpo.trial.speed import measure_speed
    from hpo.worker.device import open_device

    device = open_device("auto")
    return str(device), measure_speed(search.base, data.to(device), precision)


@contextmanager
def _progress(replays: int) -> Iterator[Callable[[], object]]:
    """Show a bar on stderr while the search is replayed, if somebody watches it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("replaying the search", total=replays)
        yield lambda: bar.advance(task)
