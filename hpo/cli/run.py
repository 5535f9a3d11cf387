"""`hpo run`: create a study or continue one, train its trials and confirm its best."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hpo.cli.config_file import ConfigOption
from hpo.cli.data import choose_data, data_settings
from hpo.cli.driving import check_artifacts, check_launcher, connect, drive, worker_environment, worker_options
from hpo.cli.help import SEARCH, STUDY, TRAINING, WORKERS
from hpo.cli.options import (
    DEFAULT_PRUNER_CHOICE,
    MAX_ITERATIONS,
    MAX_NUMBER,
    AddressOption,
    AlignChoice,
    ArtifactsOption,
    AugmentOption,
    BudgetOption,
    DataOption,
    DatasetOption,
    GpusOption,
    ImageSizeOption,
    JsonOption,
    LauncherChoice,
    LauncherOption,
    LeaseOption,
    PrecisionChoice,
    PrunerChoice,
    ReuseOption,
    SamplerChoice,
    StorageOption,
    StorageTimeoutOption,
    TimeoutOption,
    WorkersOption,
    complete_space,
    require_number,
)
from hpo.cli.output import print_json, say, show
from hpo.errors import BadInput, StudyFailed
from hpo.recipes.recipe import MIN_ITERATIONS
from hpo.settings import (
    DEFAULT_ALIGN,
    DEFAULT_ARTIFACTS,
    DEFAULT_CHECKPOINT_GB,
    DEFAULT_CONFIRM,
    DEFAULT_CONFIRM_SEEDS,
    DEFAULT_CONFIRM_TOP,
    DEFAULT_DATASET,
    DEFAULT_LAUNCHER,
    DEFAULT_LEASE_S,
    DEFAULT_PRECISION,
    DEFAULT_REUSE,
    DEFAULT_SAMPLER,
    DEFAULT_SEED,
    DEFAULT_STORAGE,
    DEFAULT_STORAGE_TIMEOUT_S,
    MAX_TRIALS,
    Precision,
    StudySettings,
    check_study_name,
    default_data_dir,
    default_iterations,
)
from hpo.wording import counted

if TYPE_CHECKING:
    from hpo.study import Study


def run(
    space_name: Annotated[
        str,
        typer.Option(
            "--space",
            metavar="NAME|FILE",
            autocompletion=complete_space,
            help="Shipped search space, or YAML file.",
            rich_help_panel=STUDY,
        ),
    ],
    trials: Annotated[
        int,
        typer.Option(
            min=1, max=MAX_TRIALS, metavar="N", help="Total number of trials of the study.", rich_help_panel=STUDY
        ),
    ],
    study_name: Annotated[
        str | None,
        typer.Option(
            "--study", metavar="NAME", help="Name of the study.", show_default="SPACE-DATASET", rich_help_panel=STUDY
        ),
    ] = None,
    from_study: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME",
            help="Begin with the finished trials of another study that lie in the space; they count towards --trials.",
            rich_help_panel=STUDY,
        ),
    ] = None,
    dataset: DatasetOption = DEFAULT_DATASET,
    image_size: ImageSizeOption = None,
    augment: AugmentOption = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            min=MIN_ITERATIONS,
            max=MAX_ITERATIONS,
            metavar="N",
            help="Optimizer steps of a full trial.",
            show_default="64,000, or 640 for the digits",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    workers: WorkersOption = None,
    launcher: LauncherOption = LauncherChoice[DEFAULT_LAUNCHER],
    address: AddressOption = None,
    gpus_per_worker: GpusOption = None,
    sampler: Annotated[
        SamplerChoice, typer.Option(help="Algorithm that chooses the recipes.", rich_help_panel=SEARCH)
    ] = SamplerChoice[DEFAULT_SAMPLER],
    pruner: Annotated[
        PrunerChoice, typer.Option(help="Algorithm that ends poor trials early.", rich_help_panel=SEARCH)
    ] = DEFAULT_PRUNER_CHOICE,
    align: Annotated[
        AlignChoice, typer.Option(help="Compare trials at equal phase time or iterations.", rich_help_panel=SEARCH)
    ] = AlignChoice[DEFAULT_ALIGN],
    precision: Annotated[
        PrecisionChoice,
        typer.Option(help="Number format. auto: bf16 where it is native, else fp32.", rich_help_panel=TRAINING),
    ] = PrecisionChoice[DEFAULT_PRECISION],
    submit: Annotated[
        bool,
        typer.Option("--submit", help="Create the study, and leave training to `hpo worker`.", rich_help_panel=WORKERS),
    ] = False,
    confirm: Annotated[
        bool | None,
        typer.Option(
            "--confirm/--no-confirm",
            help="At the end, train the best recipes on further seeds, like `hpo confirm`.",
            show_default="confirm" if DEFAULT_CONFIRM else "no-confirm",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_NUMBER,
            metavar="STEPS",
            help="End after about this many optimizer steps of all workers. 0: no limit.",
            show_default=False,
            rich_help_panel=SEARCH,
        ),
    ] = None,
    stop_after: Annotated[
        int | None,
        typer.Option(
            "--stop-after",
            min=0,
            max=MAX_TRIALS,
            metavar="N",
            help="End after this many trials without a better one. 0: no limit.",
            show_default=False,
            rich_help_panel=SEARCH,
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            callback=require_number,
            metavar="ACCURACY",
            help="End when a trial has this validation accuracy, from 0 to 1. 0: no target.",
            show_default=False,
            rich_help_panel=SEARCH,
        ),
    ] = None,
    reuse: ReuseOption = DEFAULT_REUSE,
    checkpoint_budget: BudgetOption = DEFAULT_CHECKPOINT_GB,
    seed: Annotated[
        int,
        typer.Option(min=0, max=MAX_NUMBER, metavar="N", help="Random seed of the study.", rich_help_panel=SEARCH),
    ] = DEFAULT_SEED,
    timeout: TimeoutOption = None,
    storage_timeout: StorageTimeoutOption = DEFAULT_STORAGE_TIMEOUT_S,
    lease: LeaseOption = DEFAULT_LEASE_S,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Serve optuna-dashboard while the study runs, read-only.")
    ] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    artifacts: ArtifactsOption = DEFAULT_ARTIFACTS,
    data_dir: DataOption = None,
    json_output: JsonOption = False,
    _config: ConfigOption = None,
) -> None:
    """Create or continue a study and train its trials.

    The same command continues an interrupted study; a larger --trials extends it. An end (--budget, --stop-after,
    --target) stays with the study until another is given; the trials that are running then are handed back.
    """
    from hpo import steering
    from hpo import study as studies
    from hpo.database.retry import RetryPolicy
    from hpo.database.storage import open_storage
    from hpo.launch.supervise import DRIVER_LAST_CALL_S
    from hpo.recipes.space_file import load_space
    from hpo.results import confirmation
    from hpo.results.notes import study_note
    from hpo.worker.stop import StopSignal

    if study_name is not None:
        check_study_name(study_name)
    check_launcher(launcher, address, gpus_per_worker)
    if submit and launcher != LauncherChoice.local:
        raise BadInput("--submit: only valid without --launcher ray; it leaves training to `hpo worker`")
    if submit and confirm:
        raise BadInput("--confirm: only valid without --submit; run `hpo confirm` when the trials have finished")
    space = load_space(space_name)
    check_artifacts(artifacts, local=launcher == LauncherChoice.local and not submit)
    stop = StopSignal(last_call_s=DRIVER_LAST_CALL_S)
    connected = connect(launcher, address, storage, workers, gpus_per_worker, stop)
    folder = data_dir or default_data_dir()
    data = choose_data(dataset, folder, image_size, None if augment is None else augment.value)
    name = study_name or f"{space.name}-{data.name}"
    settings = StudySettings(
        space=space.model_dump(mode="json", exclude_none=True),
        **data_settings(data),
        iterations=iterations or default_iterations(data.name),
        seed=seed,
        precision=choose_precision(precision.value),
        sampler=sampler.value,
        pruner=pruner.value,
        align=align.value,
    )
    database = open_storage(storage, "create", RetryPolicy(storage_timeout, gives_up=stop.__bool__))
    note = study_note(name, settings, space_name)
    begun = None if from_study is None else steering.begin_from(database, name, settings, from_study)
    prepare = None if begun is None else begun[0]
    ends = {"budget": budget, "stop_after": stop_after, "target_accuracy": target}
    study = studies.continue_or_create(database, name, settings, trials, note=note, prepare=prepare, ends=ends)
    if begun is not None:
        say(f"study {name}: {steering.describe(begun[1])}")
    _say_forecast(study, len(data.validation), reuse=reuse, budget=budget)
    options = worker_options(folder, checkpoint_budget, storage_timeout, lease, reuse)
    environment = worker_environment(storage, artifacts)
    if submit:
        say(f"study {name}: created; train it with `hpo worker --study {name}` on any machine")
    else:
        with _dashboard(storage, artifacts) if dashboard else nullcontext():
            drive(study, connected, timeout, options, environment, stop)
            companion = _begin_confirmation(study, confirm)
            if companion is not None:
                connected = connect(launcher, address, storage, workers, gpus_per_worker, stop)
                drive(companion, connected, timeout, options, environment, stop)
    confirmation.publish(study)
    summary = confirmation.status(study)
    if (total := summary["target"]) < trials:
        number = f"{counted(total, 'trial')} instead of {trials}"
        say(f"study {name}: {number}, because its search space has no more distinct recipes")
    if json_output:
        print_json(summary)
    else:
        _conclude(study, summary, storage)
    counts = summary["trials"]
    if counts["failed"] and not counts["complete"] + counts["pruned"]:
        raise StudyFailed(f"all trials of study {name} failed; `hpo dashboard` shows why")


def _say_forecast(study: Study, validation_images: int, *, reuse: bool, budget: int | None) -> None:
    """Say what a study will take, unless some of its trials have finished already."""
    from hpo.database import overview
    from hpo.recipes.space import SearchSpace
    from hpo.results.plan import sketch
    from hpo.results.proposals import Search

    counts, space, settings = overview.count(study.storage, study.study_id), study.space, study.settings
    if counts.finished or not isinstance(space, SearchSpace):
        return
    search = Search(
        space=space,
        iterations=settings.iterations,
        seed=settings.seed,
        sampler="random",
        pruner=settings.pruner,
        align=settings.align,
        trials=counts.total,
        workers=1,
        images=validation_images,
        reuse=reuse,
        budget=budget or None,
    )
    say(f"study {study.name}: {sketch(search)}; `hpo plan` with the same options estimates the time")


def _begin_confirmation(study: Study, wanted: bool | None) -> Study | None:
    """Begin or continue the confirmation of a search if that is finished, and has something to confirm.

    Args:
        wanted: None if the user has not said; then a search without anything to confirm is not worth a word.
    """
    if wanted is False or (wanted is None and not DEFAULT_CONFIRM):
        return None
    from hpo.database import overview, study_state
    from hpo.results import confirmation
    from hpo.study import find_best_trial

    counts = overview.count(study.storage, study.study_id)
    state = study_state.find_state(study.storage, study.study_id)
    if (counts.waiting + counts.running and state != "ended") or find_best_trial(study.trained_trials()) is None:
        return None
    companion = confirmation.begin(study, DEFAULT_CONFIRM_TOP, DEFAULT_CONFIRM_SEEDS)
    if companion is None and wanted:
        say(confirmation.nothing_to_confirm(study))
    return companion


def choose_precision(wanted: Precision | Literal["auto"]) -> Precision:
    """Replace `auto` by the format that this machine computes natively."""
    from hpo.launch.devices import find_native_precision

    return find_native_precision() if wanted == "auto" else wanted


@contextmanager
def _dashboard(storage: str, artifacts: str) -> Iterator[None]:
    """Serve optuna-dashboard during a run, and say where."""
    from hpo.artifacts import open_artifacts
    from hpo.dashboard.server import serve_beside
    from hpo.database.storage import open_storage

    with serve_beside(open_storage(storage, "read"), open_artifacts(artifacts, create=False)) as address:
        say(f"optuna-dashboard on {address} (read-only) until the run ends")
        yield


def _conclude(study: Study, summary: dict[str, Any], storage_url: str) -> None:
    from hpo.cli import view
    from hpo.results import confirmation

    show(view.status(summary))
    if summary["best"] is None:
        return
    print()
    show(view.best(confirmation.load_best(study), study.base.to_dict(), None))
    where = "" if storage_url == DEFAULT_STORAGE else " with the same --storage"
    print(f"\nNext{where}:")
    steps = (
        {}
        if summary["confirmation"]
        else {f"hpo confirm --study {study.name}": "trains the best recipes on further seeds"}
    )
    steps |= {
        f"hpo benchmark --study {study.name}": "compares winner and base recipe on the test split",
        f"hpo report --study {study.name} --out report": "writes a page with results and figures",
        "hpo dashboard": "shows all trials in a browser",
        "the same command with a larger --trials": "continues the search",
    }
    for command, purpose in steps.items():
        print(f"  {command}\n      {purpose}")
