"""Run the same search with hpo, with Optuna and with Ray Tune as people write them, and compare what each takes.

    python benchmarks/live_comparison.py --seeds 3 --json live_comparison.json
    python benchmarks/live_comparison.py --dataset build/cifar --iterations 1280 --trials 30 --seeds 2

All search the space `smooth_lr` with the same number of trials and iterations on all cores, in turn, each in a process
of its own and on the CPU. `plain_searches.py` has the plain ones. Measured are the seconds until a search has ended and
until it first had the lowest of the searches' best validation accuracies, and the optimizer steps that it trained. The
recipe that each names is then trained to its end with `hpo` on fresh seeds and measured on the test split.

hpo has two rows, of one run: the search alone, and with the confirmation that follows it by default. It begins with the
documented recipe, as it always does; `--enqueue` lets the plain searches begin with it as well.

Each search and each training on a fresh seed that has ended is a file in the work folder. The same command goes on with
those that are missing; a search that was interrupted starts again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import NoReturn

import fresh_seeds
from live_searches import ALONE, HPO, TITLES, Search, as_json, run_once, run_search, to_dict
from plain_searches import add_search_options

from hpo.artifacts import write_whole
from hpo.cli.data import choose_data
from hpo.errors import BadInput, HpoError
from hpo.recipes.recipe import MIN_ITERATIONS
from hpo.settings import DEFAULT_ITERATIONS_DIGITS, default_data_dir
from hpo.training.data import Dataset
from hpo.training.datasets import is_known


def run_all(arguments: argparse.Namespace) -> list[Search]:
    """Run all searches in turn, one seed after the other."""
    searches = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name in arguments.searches:
            file = arguments.work_dir / "searches" / f"{seed}-{name}.json"
            ran = run_once(file, lambda folder, name=name, seed=seed: run_search(name, arguments, seed, folder))
            say(f"seed {seed}, {TITLES[name]}: {ran[-1].seconds:.0f} s, {ran[-1].steps:,} steps")
            searches += ran
    return searches


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def lines(searches: list[Search], accuracies: dict[str, list[float]]) -> Iterator[str]:
    """Yield a table of all searches, and how long others take in comparison with hpo."""
    lowest = {seed: min(s.best for s in searches if s.seed == seed) for seed in dict.fromkeys(s.seed for s in searches)}
    count = len(next(iter(accuracies.values())))
    yield f"| seed | search | s | s to the lowest best | steps | complete, ended early | best | test, {count} seeds |"
    yield f"| {' | '.join(['---'] * 8)} |"
    for s in searches:
        yield (
            f"| {s.seed} | {s.title} | {s.seconds:.0f} | {s.seconds_to(lowest[s.seed]):.0f} (to {lowest[s.seed]:.4f}) "
            f"| {s.steps:,} | {s.complete}, {s.ended_early} | {s.best:.4f} | {show_mean(accuracies[s.key])} |"
        )
    yield from ratios(searches, lowest)


def ratios(searches: list[Search], lowest: dict[int, float]) -> Iterator[str]:
    """Yield for each plain search how many times as long as hpo it takes."""
    of = {(search.title, search.seed): search for search in searches}
    for other in (title for title in TITLES.values() if title != HPO):
        pairs = [
            (of[HPO, seed], of[ALONE, seed], of[other, seed])
            for seed in lowest
            if {(HPO, seed), (other, seed)} <= of.keys()
        ]
        if pairs:
            whole = show_median([plain.seconds / ours.seconds for ours, _, plain in pairs])
            search = show_median([plain.seconds / alone.seconds for _, alone, plain in pairs])
            reach = show_median([p.seconds_to(lowest[p.seed]) / o.seconds_to(lowest[p.seed]) for o, _, p in pairs])
            yield f"{other} takes {whole} times as long as {HPO}, {search} times as long as {ALONE}"
            yield f"{other} takes {reach} times as long as {HPO} to the lowest best"


def show_mean(values: Sequence[float]) -> str:
    """Show a mean with its standard error, if there is one."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{error}"


def show_median(ratios: Sequence[float]) -> str:
    each = f" (median of {', '.join(f'{ratio:.2f}' for ratio in ratios)})" if len(ratios) > 1 else ""
    return f"{median(ratios):.2f}{each}"


def require_same(work_dir: Path, arguments: argparse.Namespace, dataset: Dataset) -> None:
    """Note in the work folder what is compared there.

    Raises:
        BadInput: It holds another comparison.
    """
    file = work_dir / "comparison.json"
    named = ("iterations", "trials", "enqueue")
    wanted = {"dataset": dataset.name, "split": dataset.checksum, **{name: getattr(arguments, name) for name in named}}
    held = json.loads(file.read_bytes()) if file.exists() else wanted
    differ = [f"{name} {held[name]} (now {wanted[name]})" for name in wanted if held[name] != wanted[name]]
    if differ:
        raise BadInput(f"--work-dir {work_dir}: holds a comparison with {', '.join(differ)}; choose another folder")
    work_dir.mkdir(parents=True, exist_ok=True)
    write_whole(file, as_json(wanted))


def compare(arguments: argparse.Namespace) -> None:
    # Searches run in folders of their own.
    for name in ("data_dir", "work_dir"):
        setattr(arguments, name, getattr(arguments, name).absolute())
    if not is_known(arguments.dataset) and Path(arguments.dataset).exists():
        arguments.dataset = str(Path(arguments.dataset).absolute())
    dataset = choose_data(arguments.dataset, arguments.data_dir, arguments.image_size)
    require_same(arguments.work_dir, arguments, dataset)
    searches = run_all(arguments)
    folder = arguments.work_dir / "fresh"
    folder.mkdir(exist_ok=True)
    accuracies = fresh_seeds.accuracies(
        [search.winner for search in searches],
        arguments.fresh_seeds,
        dataset,
        arguments.data_dir,
        folder,
        lambda done, total: say(f"fresh seeds: {done} of {total}"),
    )
    print("\n".join(lines(searches, accuracies)))
    if arguments.json:
        rows = [to_dict(search) | {"test_accuracy": accuracies[search.key]} for search in searches]
        write_whole(arguments.json, as_json(rows))


def at_least(least: int) -> Callable[[str], int]:
    """Make the type of an option that is a whole number."""

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: allowed: whole numbers from {least} on")
        return int(text)

    return whole


def some_of(text: str) -> list[str]:
    """Read a list of searches, which run in one order whatever the order of the list."""
    names = text.split(",")
    if not set(names) <= TITLES.keys():
        raise argparse.ArgumentTypeError(f"{text}: allowed: {', '.join(TITLES)}, separated by commas")
    return [name for name in TITLES if name in names]


def leave(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_search_options(parser)
    parser.add_argument("--iterations", type=at_least(MIN_ITERATIONS), default=DEFAULT_ITERATIONS_DIGITS)
    parser.add_argument("--trials", type=at_least(1), default=50)
    parser.add_argument("--seeds", type=at_least(1), default=3, help="how many, from the first on")
    parser.add_argument("--first-seed", type=at_least(0), default=0, help="to go on from another comparison")
    parser.add_argument("--fresh-seeds", type=at_least(1), default=5, help="how many")
    parser.add_argument("--searches", type=some_of, default=list(TITLES), help="some of hpo,optuna,ray")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    parser.add_argument("--work-dir", type=Path, default=Path("build/live"), help="what has ended, and logs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        parser.error(f"argument --json: {arguments.json}: its folder does not exist")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the plain searches train on the CPU
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        compare(arguments)
    except HpoError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
