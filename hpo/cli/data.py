"""The data set of a study: chosen by name or path, and decoded with a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args

from hpo.cli.output import say
from hpo.errors import BadInput
from hpo.paths import expand_path
from hpo.settings import Augment, DatasetName
from hpo.wording import counted

if TYPE_CHECKING:
    from rich.progress import TaskID

    from hpo.study import Study
    from hpo.training.data import Dataset
    from hpo.training.images import Prepared


def choose_data(wanted: str, data_dir: Path, image_size: int | None = None, augment: Augment | None = None) -> Dataset:
    """Load the data set that --dataset names, after downloading or decoding it if it is not there yet.

    Raises:
        BadInput: It is neither a name nor a path, or cannot be a data set.
        DataUnavailable: It is neither on this machine nor can it be downloaded.
    """
    from hpo.training.datasets import choose_dataset, is_known, load_dataset

    if wanted == "auto" or is_known(wanted):
        if image_size is not None:
            raise BadInput(
                f"--image-size {image_size}: only valid with the path of a folder; {wanted} has a fixed size"
            )
        name, why_not_cifar10 = choose_dataset(cast(DatasetName | Literal["auto"], wanted), data_dir)
        if why_not_cifar10 is not None:
            _notice_digits(why_not_cifar10)
        return load_dataset(name, data_dir, augment=augment)
    own, checksum = _find_own(wanted, data_dir, image_size)
    return load_dataset(own, data_dir, checksum=checksum, augment=augment)


def data_settings(dataset: Dataset) -> dict[str, Any]:
    """Return the settings of a study that follow from its data set."""
    return {
        "dataset": dataset.name,
        "split": dataset.checksum,
        "image_shape": dataset.image_shape,
        "classes": len(dataset.classes),
        "augment": dataset.augment,
    }


def decode_for(study: Study, path: Path, data_dir: Path) -> None:
    """Decode the images of a study, and check that they are those that it was created with.

    Raises:
        BadInput: They are others, or the study's data set needs no path.
    """
    from hpo.training.datasets import is_known

    settings = study.settings
    if is_known(settings.dataset):
        raise BadInput(f"--dataset {path}: study {study.name} is on {settings.dataset}, which needs no path")
    height, width, _ = settings.image_shape
    prepared = _decode(path, data_dir, settings.dataset, height if height == width else None)
    if prepared.checksum != settings.split:
        raise BadInput(
            f"--dataset {path}: its checksum is {prepared.checksum[:12]}, "
            f"study {study.name} was created with {settings.split[:12]}"
        )


def _find_own(wanted: str, data_dir: Path, image_size: int | None) -> tuple[str, str]:
    """Return name and checksum of the user's own images, given by path, or by name if they are decoded."""
    from hpo.training.images import name_of
    from hpo.training.tensor_file import list_own

    path = expand_path(wanted)
    try:
        exists = path.exists()
    except OSError as error:
        raise BadInput(f"--dataset {wanted}: cannot be read: {error.strerror}") from error
    if exists:
        prepared = _decode(path, data_dir, name_of(path), image_size)
        return prepared.name, prepared.checksum
    checksums = [checksum for name, checksum in list_own(data_dir) if name == wanted]
    if not checksums:
        names = ", ".join(("auto", *get_args(DatasetName)))
        raise BadInput(f"--dataset {wanted}: allowed: {names}, or the path of a folder of images or an .npz file")
    if image_size is not None:
        raise BadInput(f"--image-size {image_size}: only valid with the path of a folder; {wanted} has been decoded")
    if len(checksums) > 1:
        listed = ", ".join(checksum[:12] for checksum in checksums)
        raise BadInput(f"--dataset {wanted}: {data_dir} has several with that name ({listed}); give the path")
    return wanted, checksums[0]


def _decode(path: Path, data_dir: Path, name: str, image_size: int | None) -> Prepared:
    from hpo.training.images import prepare

    with _DecodingProgress(name) as progress:
        prepared = prepare(path, data_dir, name=name, image_size=image_size, report=progress.report)
    if prepared.passed_over:
        say(f"{path}: skipped {counted(prepared.passed_over, 'entry', 'entries')} without images")
    return prepared


class _DecodingProgress:
    """A bar on stderr, which appears with the first report; without a terminal it is one line at the end."""

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._name = name
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._bar.stop()

    def report(self, done: int, total: int) -> None:
        """Show that more images are done."""
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(f"reading {self._name}", total=total)
        self._bar.advance(self._task, done)


def _notice_digits(why: str) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    text = f"CIFAR-10 is not available ({why}). This study uses scikit-learn's digits instead: 1,797 scans of 8x8."
    console.rule("[bold]NOTICE: digits in place of CIFAR-10", style="yellow")
    console.print(text, style="bold yellow", highlight=False, soft_wrap=True)
    console.rule(style="yellow")
