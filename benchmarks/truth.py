"""Train recipes of a space on several seeds to their ends, so that whole searches can be replayed from their curves.

    python benchmarks/truth.py --seeds 8                                           # digits, 640 iterations
    python benchmarks/truth.py --dataset ~/cifar10 --iterations 1280 --seeds 4      # a folder of images

The runs are trials of an ordinary study with prefix reuse and without a pruner, on the validation split alone. The same
command continues after a break, and run a second time beside the first it is a second worker. Whenever it ends, the
seeds on which every recipe is complete are added to the file of this data set, image size and budget in
`benchmarks/truth/`. With another `--run-seed` it adds further seeds, on this machine or another.

The recipes are the base recipe and the first distinct ones of a Sobol sequence over the space's parameters.
"""

from __future__ import annotations

import argparse
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from scipy.stats import qmc
from truth_table import Run, Truth, load, merge, save

from hpo import DISTRIBUTION
from hpo import study as studies
from hpo.artifacts import open_artifacts
from hpo.cli.data import choose_data, data_settings
from hpo.database import overview
from hpo.database.storage import Storage, open_storage
from hpo.errors import HpoError
from hpo.recipes.comparison import BASELINE, Comparison
from hpo.recipes.recipe import Recipe
from hpo.recipes.space import Param, SearchSpace
from hpo.recipes.space_file import load_space
from hpo.settings import StudySettings, default_data_dir
from hpo.study import Study
from hpo.training.data import Dataset
from hpo.training.numerics import native_precision
from hpo.trial.checkpoints import Checkpoints
from hpo.trial.objective import NUMERICS
from hpo.wording import counted
from hpo.worker.stop import EXIT_CODES, StopSignal
from hpo.worker.work import work

OUT = Path(__file__).parent / "truth"
POINTS_PER_RECIPE = 8
"""Points of the sequence for each recipe that is wanted: several give the same recipe in small spaces."""


def draw_recipes(space: SearchSpace, count: int, seed: int) -> dict[str, Recipe]:
    """Draw the base recipe and distinct others, spread evenly over the space, at the reference budget.

    Raises:
        SystemExit: The space seems not to have so many.
    """
    distributions = space.distributions()
    sequence = qmc.Sobol(len(distributions), rng=seed).random(POINTS_PER_RECIPE * 2 ** (count - 1).bit_length())
    drawn = dict.fromkeys([space.base_recipe, *(_recipe_at(space, point) for point in sequence)])
    if len(drawn) < count:
        raise SystemExit(f"--recipes {count}: only {len(drawn)} distinct ones of space {space.name} were found")
    names = [BASELINE, *(f"recipe {number}" for number in range(1, count))]
    return dict(zip(names, drawn, strict=False))


def _recipe_at(space: SearchSpace, point: Any) -> Recipe:
    """Return the recipe at a point of the unit cube."""
    pairs = zip(space.distributions().items(), point, strict=True)
    params = {name: _member_at(distribution, share) for (name, distribution), share in pairs}
    base = space.base_recipe
    applying = space.suggest(FixedTrial(params))  # type: ignore[arg-type]
    return space.recipe(applying, iterations=base.iterations, seed=base.seed)


def _member_at(distribution: BaseDistribution, share: float) -> Param:
    """Return the value that lies at a share in [0, 1) of a parameter's values."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]  # type: ignore[return-value]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    assert distribution.step is not None
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return round(distribution.low + int(share * count) * distribution.step, 9)


def begin(arguments: argparse.Namespace, dataset: Dataset, storage: Storage) -> Study:
    """Create or continue the study of all runs."""
    recipes = draw_recipes(load_space(arguments.space), arguments.recipes, arguments.draw_seed)
    comparison = Comparison.of(recipes, name=f"truth-{arguments.space}", searched_seed=arguments.run_seed)
    settings = StudySettings(
        space=comparison.model_dump(mode="json"),
        **data_settings(dataset),
        iterations=arguments.iterations,
        seed=arguments.draw_seed,
        precision=native_precision(torch.device(arguments.device)),
        sampler="random",
        pruner="none",
        align="iteration",
    )
    name = f"{_name(arguments, dataset)}-seeds-{arguments.run_seed}"
    return studies.continue_or_create(storage, name, settings, arguments.seeds * len(recipes))


def _name(arguments: argparse.Namespace, dataset: Dataset) -> str:
    size = arguments.image_size
    return f"{dataset.name}{f'-{size}x{size}' if size else ''}-{arguments.iterations}"


def train(study: Study, arguments: argparse.Namespace, stop: StopSignal) -> None:
    """Train the runs that are left, until a signal comes."""
    artifacts = open_artifacts(str(arguments.work_dir / "artifacts"))
    with stop.installed():
        work(
            study,
            device=torch.device(arguments.device),
            data_dir=arguments.data_dir,
            stop=stop,
            checkpoints=Checkpoints(study.storage, artifacts),
            at_end=lambda _: {},  # a benchmark measures here on the test split, which stays closed
        )


def collect(study: Study, arguments: argparse.Namespace, dataset: Dataset) -> Truth:
    """Collect the seeds on which every recipe is complete."""
    comparison = study.space
    assert isinstance(comparison, Comparison)
    trials = study.trials()
    rows = [trials[start : start + len(comparison.runs)] for start in range(0, len(trials), len(comparison.runs))]
    complete = [trial for row in rows if all(t.state == TrialState.COMPLETE for t in row) for trial in row]
    runs = [_run(study, trial) for trial in complete]
    fields = {"iterations": study.settings.iterations, "seed": study.settings.seed}
    return Truth(
        source=_source(study, arguments, dataset, complete),
        recipes={name: Recipe.from_dict(run | fields) for name, run in comparison.runs.items()},
        runs={(run.recipe, run.seed): run for run in runs},
    )


def _run(study: Study, trial: FrozenTrial) -> Run:
    assert trial.value is not None
    return Run(
        recipe=trial.params["run"],
        seed=trial.params["seed"],
        accuracy=trial.value,
        loss=trial.user_attrs["validation loss"],
        curve=tuple(overview.load_curve(study.storage, trial._trial_id)),
    )


def _source(study: Study, arguments: argparse.Namespace, dataset: Dataset, trials: list[FrozenTrial]) -> dict[str, Any]:
    batch_size = study.space.base_recipe.batch_size
    numerics = {tuple(trial.user_attrs[NUMERICS].items()) for trial in trials}
    return {
        "command": f"benchmarks/truth.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "space": arguments.space,
        "dataset": study.settings.dataset,
        "split": study.settings.split,
        "iterations": study.settings.iterations,
        "seeds": sorted({trial.params["seed"] for trial in trials}),
        "iterations per epoch": len(dataset.train) / batch_size,
        "optimizer steps": overview.trained_iterations(study.storage, study.study_id),
        "python": platform.python_version(),
        "hpo": version(DISTRIBUTION),
        "numerics": [dict(fields) for fields in sorted(numerics)],
    }


def add_to_file(truth: Truth, path: Path) -> str:
    """Write a truth to a file, beside the seeds that the file has already, and say so in a line.

    Raises:
        SystemExit: The file is of other recipes, or of another data set or budget.
    """
    if path.exists():
        try:
            truth = merge(load(path), truth)
        except ValueError as error:
            raise SystemExit(f"{path} cannot be added to: {error}") from error
    save(truth, path)
    return f"{path} has {len(truth.recipes)} recipes on {counted(len(truth.seeds), 'seed')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="smooth_lr", help="name or file")
    parser.add_argument("--dataset", default="digits", help="name or path")
    parser.add_argument("--image-size", type=int, help="for images of different sizes")
    parser.add_argument("--iterations", type=int, default=640)
    parser.add_argument("--recipes", type=int, default=32, help="how many, the base recipe among them")
    parser.add_argument("--seeds", type=int, default=4, help="how many; more later continue the same study")
    parser.add_argument("--draw-seed", type=int, default=0, help="of the recipes")
    parser.add_argument("--run-seed", type=int, default=0, help="of the seeds of the runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    parser.add_argument("--work-dir", type=Path, default=Path("build/truth"), help="database and checkpoints")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the truth files")
    arguments = parser.parse_args()

    for folder in (arguments.work_dir, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    stop = StopSignal()
    try:
        dataset = choose_data(arguments.dataset, arguments.data_dir, arguments.image_size)
        study = begin(arguments, dataset, open_storage(f"sqlite:///{arguments.work_dir / 'hpo.db'}", "create"))
        train(study, arguments, stop)
    except HpoError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    truth = collect(study, arguments, dataset)
    print(f"{len(truth.recipes)} recipes on {len(truth.seeds)} of {counted(arguments.seeds, 'seed')}")
    if truth.runs:
        print(add_to_file(truth, arguments.out / f"{_name(arguments, dataset)}.json.gz"))
    raise SystemExit(EXIT_CODES.get(stop.reason, 0))


if __name__ == "__main__":
    main()
