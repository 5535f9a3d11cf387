"""A check of this machine before it trains: one finding for each thing that a study needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from platform import python_version
from statistics import median
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hpo import DISTRIBUTION, __version__
from hpo.artifacts import check_artifacts_folder, open_artifacts
from hpo.database.probe import probe_storage
from hpo.errors import ArtifactsUnavailable, DataDamaged, DeviceLost, HpoError, StorageUnavailable
from hpo.launch.cores import count_cores, find_quota
from hpo.settings import DEFAULT_CHECKPOINT_GB, GIGABYTE, Precision
from hpo.training.datasets import DatasetState, list_states
from hpo.training.numerics import native_precision
from hpo.trial.promise import FULL, Walked, find_broken, walk_in_new_process
from hpo.worker.device import find_gpu_file, require_device, why_no_cuda

Status = Literal["ok", "failed"]

OPTIONAL = ("s3", "gs", "ray", "tensorboard", "mlflow", "pandas")
"""Extras whose packages are checked where they are installed."""

NAMED = ("torch", "torchvision", "optuna", "sqlalchemy", "numpy")
"""Packages whose versions are shown in any case."""

DRIVER_QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
DRIVER_S = 10.0

TEST_BYTES = 1 << 20
"""Size of the file that is written to the artifacts: about half a checkpoint."""


MEND = (
    "unset variables that choose kernels (ONEDNN_*, MKL_*, CUDNN_*), update the driver, and test the memory; "
    "until then workers train from scratch here"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check has found.

    Attributes:
        remedy: What to do about a failure; None where there is none.
    """

    check: str
    status: Status
    text: str
    remedy: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """What is checked: the options of `hpo doctor`."""

    device: torch.device
    asked_device: str
    data_dir: Path
    storage: str
    artifacts: str


def iter_findings(places: Places) -> Iterator[Finding]:
    """Check this machine, and yield each finding as soon as it is known; the longest check comes last.

    Side effects:
        Writes a file to the artifacts and deletes it. Sets torch up as `prepare_torch` does. Starts a process.
    """
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        check_versions,
        check_processor,
        lambda: check_data(places.data_dir),
        lambda: check_storage(places.storage),
        lambda: check_artifacts(places.artifacts),
        lambda: check_training(places.device, places.asked_device),
    )
    for check in checks:
        yield from check()


def check_versions() -> Iterator[Finding]:
    """Compare the installed packages with the ranges that this release is tested with."""
    requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    wrong = list(list_mismatches(requirements, find_version))
    allowed_python = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    if python_version() not in SpecifierSet(allowed_python):
        wrong.append(f"Python {python_version()} (needs {allowed_python})")
    if wrong:
        remedy = f"pip install --upgrade {DISTRIBUTION}"
        yield Finding(check="versions", status="failed", text="; ".join(wrong), remedy=f"run `{remedy}`")
        return
    versions = ", ".join(f"{name} {find_version(name)}" for name in NAMED)
    text = f"hpo {__version__}, Python {python_version()}, {versions}; all packages are in the tested ranges"
    yield Finding(check="versions", status="ok", text=text)


def list_mismatches(requirements: Iterable[Requirement], find: Callable[[str], str | None]) -> Iterator[str]:
    """List the packages that are missing, or have a version outside their range.

    Args:
        find: Returns the version of an installed package; None for one that is not installed.
    """
    for requirement in requirements:
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        optional = not needed and any(map(partial(_belongs_to, requirement), OPTIONAL))
        version = find(requirement.name)
        if version is None and needed:
            yield f"{requirement.name} is not installed (needs {requirement.specifier})"
        elif version is not None and (needed or optional) and not requirement.specifier.contains(version, True):
            yield f"{requirement.name} {version} (needs {requirement.specifier})"


def find_version(package: str) -> str | None:
    """Find the version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_processor() -> Iterator[Finding]:
    """Name the processor, its cores that workers can have, and the memory."""
    cores, quota = os.cpu_count() or 1, find_quota()
    limit = "no CPU quota" if quota is None else f"a CPU quota of {quota:g}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{_processor_name()}, {count_cores()} of {cores} cores for workers ({limit}), {_gigabytes(memory)} memory"
    yield Finding(check="processor", status="ok", text=text)


def check_devices(asked: str) -> Iterator[Finding]:
    """Name each GPU and make sure that it computes; without GPUs, say what trains, and whether a GPU is left unused."""
    gpu_file = find_gpu_file()
    if not torch.cuda.is_available():
        unused = gpu_file is not None and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
        if not unused or asked == "cpu":
            cpu = torch.device("cpu")
            yield Finding(check="device", status="ok", text=f"cpu, trains in {native_precision(cpu)}; no GPU is used")
        else:
            remedy = "install the driver that the installed torch needs, or pass --device cpu"
            text = f"this machine has a GPU ({gpu_file}), but CUDA does not start: {why_no_cuda()}"
            yield Finding(check="device", status="failed", text=text, remedy=remedy)
        return
    driver = find_driver()
    for index in range(torch.cuda.device_count()):
        yield _check_gpu(torch.device("cuda", index), driver)


def find_driver() -> str:
    """Find the version of NVIDIA's driver; `unknown` where its tool does not say."""
    try:
        done = subprocess.run(DRIVER_QUERY, check=True, capture_output=True, encoding="utf-8", timeout=DRIVER_S)
    except (OSError, subprocess.SubprocessError):  # a container may lack the tool
        return "unknown"
    return (done.stdout.splitlines() or ["unknown"])[0].strip()


def check_data(folder: Path) -> list[Finding]:
    """Say which data sets are there; a damaged one is a failure, a missing one is not."""
    try:
        return [describe_data(list_states(folder))]
    except DataDamaged as error:
        return [
            Finding(check="data", status="failed", text=str(error), remedy="delete the file; `hpo run` makes it anew")
        ]


def describe_data(states: Iterable[DatasetState]) -> Finding:
    """Sum up the data sets of a folder."""
    named: dict[str, list[DatasetState]] = {"complete": [], "missing": [], "damaged": []}
    for each in states:
        named[each.state].append(each)
    if named["damaged"]:
        text = "; ".join(f"{each.title} is damaged: {each.detail}" for each in named["damaged"])
        remedy = "delete the data set's files, then run `hpo data fetch NAME`"
        return Finding(check="data", status="failed", text=text, remedy=remedy)
    complete, missing = (", ".join(each.title for each in named[state]) for state in ("complete", "missing"))
    text = f"{complete}; missing: {missing} (`hpo data fetch NAME` downloads one)" if missing else complete
    return Finding(check="data", status="ok", text=text)


def check_storage(url: str) -> Iterator[Finding]:
    """Make sure that the database answers, has the tables of this release, and can be written."""
    try:
        probe = probe_storage(url)
    except HpoError as error:
        unreachable = isinstance(error, StorageUnavailable)
        remedy = "start the database, or correct --storage" if unreachable else None
        yield _failed("storage", error, remedy or "correct --storage, or the rights of its user")
        return
    took = "" if probe.round_trip_s is None else f", round trip {_milliseconds(probe.round_trip_s)}"
    if probe.revision is None:
        holds = "does not exist yet" if probe.round_trip_s is None else "has no studies yet"
        text = f"{probe.shown_url} {holds}; `hpo run` will create it{took}"
    else:
        text = f"{probe.shown_url} can be written, tables of revision {probe.revision}{took}"
    yield Finding(check="storage", status="ok", text=text)


def check_artifacts(url: str) -> Iterator[Finding]:
    """Write a file to the artifacts, read it back and delete it, and look at the free space.

    A folder that does not exist is not created.
    """
    try:
        check_artifacts_folder(url)
        free_bytes = None if "://" in url else shutil.disk_usage(_existing(Path(url).absolute())).free
        took_s = None if "://" not in url and not Path(url).exists() else time_artifacts(url)
    except (HpoError, OSError) as error:
        full = isinstance(error, ArtifactsUnavailable)
        remedy = "free some space, or make the store reachable" if full else "choose another place with --artifacts"
        yield _failed("artifacts", error, remedy)
        return
    done = (
        f"{url} does not exist yet; `hpo run` will create it"
        if took_s is None
        else f"{url}: wrote, read and deleted {TEST_BYTES >> 20} MB in {_milliseconds(took_s)}"
    )
    yield describe_space(done, free_bytes)


def describe_space(done: str, free_bytes: int | None) -> Finding:
    """Judge the space that is free for artifacts; a bucket does not tell."""
    if free_bytes is None:
        return Finding(check="artifacts", status="ok", text=done)
    text = f"{done}, {_gigabytes(free_bytes)} free"
    if free_bytes >= DEFAULT_CHECKPOINT_GB * GIGABYTE:
        return Finding(check="artifacts", status="ok", text=text)
    remedy = f"free {DEFAULT_CHECKPOINT_GB:g} GB, or lower --checkpoint-budget of `hpo run`"
    return Finding(check="artifacts", status="failed", text=text, remedy=remedy)


def time_artifacts(url: str) -> float:
    """Write a file, read it and delete it, and return the median time in seconds."""
    store, content = open_artifacts(url, create=False), os.urandom(TEST_BYTES)
    times_s = []
    for _ in range(3):
        begun = time.perf_counter()
        artifact = store.write(content)
        try:
            store.read(artifact)
        finally:
            store.remove(artifact.artifact_id)
        times_s.append(time.perf_counter() - begun)
    return median(times_s)


def check_training(device: torch.device, asked: str) -> Iterator[Finding]:
    """Check the devices, and a short training: uninterrupted, interrupted and in a new process, all bits compared.

    The new process comes first, as a GPU may be for one process at a time.
    """
    try:
        elsewhere = walk_in_new_process(device)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        yield from check_devices(asked)
        text = f"a new process could not train on {device}: {_last_line(error)}"
        remedy = "end other processes on the device, and run `hpo doctor` again"
        yield Finding(check="promise", status="failed", text=text, remedy=remedy)
        return
    yield from check_devices(asked)
    for precision, other in elsewhere.items():
        yield check_promise(device, precision, other)


def check_promise(device: torch.device, precision: Precision, elsewhere: Walked) -> Finding:
    """Compare a training in this process, uninterrupted and interrupted, with the same one in another process."""
    name = f"{device} in {precision}"
    try:
        require_device(device)
        broken = find_broken(device, precision, FULL, elsewhere)
    except (DeviceLost, RuntimeError) as error:
        remedy = "end other processes on the device, and run `hpo doctor` again"
        text = f"{name}: training failed: {_last_line(error)}"
        return Finding(check="promise", status="failed", text=text, remedy=remedy)
    if broken is None:
        how = f"interrupted {len(FULL.stops)} times, and in a new process"
        return Finding(check="promise", status="ok", text=f"{name}: {FULL.until} steps repeat bit for bit, {how}")
    return Finding(check="promise", status="failed", text=f"{name}: training does not repeat, {broken}", remedy=MEND)


def _check_gpu(device: torch.device, driver: str) -> Finding:
    card = torch.cuda.get_device_properties(device)
    text = (
        f"{device}, {card.name}, {_gigabytes(card.total_memory)} memory, compute capability {card.major}.{card.minor}, "
        f"driver {driver}, CUDA {torch.version.cuda}, trains in {native_precision(device)}"
    )
    try:
        require_device(device)
    except DeviceLost as error:
        return Finding(
            check="device", status="failed", text=str(error), remedy="end other processes on it, or reset it"
        )
    return Finding(check="device", status="ok", text=text)


def _failed(check: str, error: Exception, remedy: str) -> Finding:
    """Describe a failure; a message that ends with a command or an option has its own remedy."""
    text, _, own = str(error).rpartition("; ")
    if "`" in own or "--" in own:
        return Finding(check=check, status="failed", text=text, remedy=own)
    return Finding(check=check, status="failed", text=str(error), remedy=remedy)


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is not None and requirement.marker.evaluate({"extra": extra})


def _processor_name(path: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = [line.partition(":") for line in path.read_text("utf-8", errors="replace").splitlines()]
    except OSError:  # another system than Linux
        lines = []
    return next((value.strip() for name, _, value in lines if name.strip() == "model name"), "unknown processor")


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / GIGABYTE:,.0f} GB"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _last_line(error: BaseException) -> str:
    """Return what a failed process printed last, or else an error's own message."""
    text = (getattr(error, "stderr", None) or str(error)).strip()
    return text.splitlines()[-1] if text else type(error).__name__
