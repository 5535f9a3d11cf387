"""Check and time the training step on one GPU, in one command of less than eight minutes, correctness first.

    python benchmarks/gpu.py --json gpu.json

Sections, each in a process of its own with a deadline, so that one that hangs or dies costs only itself:

    environment     card, driver, libraries, and hashes of what the card draws; two cards with other hashes cannot agree
    determinism     all heads and precisions over two changes of the learning rate and of the epoch: trained again,
                    with eleven stops, and with each step as one CUDA graph (`graph_training.py`, a prototype)
    beside          the same while another process trains on the card
    speed           milliseconds a step, eager and as a graph; kernels a step; captures, states and evaluations
    packing         one to twelve processes on the card, without NVIDIA's MPS and with it: steps a second, and bits
    pressure        training with little memory left, where cuDNN may not get what it prefers: bits

The verdict is every comparison of bits in one list. After each section, what is known is written to the file.
`--device cpu --quick` is a dry run without a GPU, whose times say nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from graph_training import GraphTraining

from hpo.recipes.recipe import Recipe, documented_runs
from hpo.settings import Precision
from hpo.training.data import Dataset, Split, split_dataset
from hpo.training.numerics import prepare_torch
from hpo.training.train import Training
from hpo.trial import promise

HEADS = {"linear": 0.0, "dropout": 0.3, "dense": 0.3}
BATCH = 128
STEPS = 52
STOPS = (1, 2, 3, 4, 17, 20, 21, 25, 26, 40, 41)  # around the capture, changes of the rate (20, 40) and the epoch (25)
QUICK_STEPS = 3
QUICK_STOPS = (1,)
LEFT_MIB = (1500, 700, 400)
BUDGET_S = 460.0
START_S = 90.0
"""How long processes that train together may take until they are ready."""

SECTION_S = 220.0
"""The longest time of one section: on a CPU that others keep busy it takes several times as long as on a quiet one."""

MPS = "nvidia-cuda-mps-control"

Found = dict[str, Any]
Make = Callable[[], Training]


def prepare(precision: Precision) -> None:
    """Set torch up as a worker does."""
    prepare_torch(precision)


def precisions(args: argparse.Namespace) -> Sequence[Precision]:
    return ("bf16", "fp32") if args.device == "cpu" else get_args(Precision)


def random_images(args: argparse.Namespace, batches: int) -> Dataset:
    """Make random images on the device: of CIFAR-10's size on a GPU, as small as the digits in a dry run."""
    side, channels = (32, 3) if args.device == "cuda" else (8, 1)
    count = round((BATCH * batches + 7) / 0.9)  # a tenth is for validation
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, side, side, channels), dtype=torch.uint8, generator=generator)
    whole = Split(images=images, labels=torch.arange(count) % 10)
    return split_dataset("cifar10", whole, classes=tuple("0123456789"), augment="crop,flip").to(
        torch.device(args.device)
    )


def recipe_of(head: str = "linear", iterations: int = 64) -> Recipe:
    """Return a recipe whose rate changes at 20 and 40 of 64 iterations."""
    return replace(
        documented_runs()["baseline"].recipe,
        head=head,
        dropout=HEADS[head],
        shortcut_norm=head == "dense",
        iterations=iterations,
        boundaries=(20_000, 40_000),
        values=(0.1, 0.01, 0.001),
    )


def walk(make: Make, stops: Sequence[int], until: int) -> str:
    """Train as `hpo doctor` does, with all but a checkpoint thrown away at each stop, and hash the end."""
    end = promise.walk(make, stops, until)
    return hashlib.sha256(end.content + str(end.measured).encode()).hexdigest()[:16]


def walk_alone(args: argparse.Namespace, kind: Callable[..., Training] = GraphTraining) -> str:
    """Return the hash that packed workers, and those with little memory, must come to as well."""
    prepare("bf16")
    small = random_images(args, 25)
    return walk(lambda: kind(recipe_of(), small, "bf16"), (), QUICK_STEPS if args.quick else STEPS)


# Sections, each of which runs in a process of its own.


def environment(args: argparse.Namespace) -> Found:
    prepare("bf16")
    found: Found = {
        "torch": str(torch.__version__),
        "python": sys.version.split()[0],
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "drawn": drawn(torch.device(args.device)),
    }
    if args.device == "cpu":
        return found
    card = torch.cuda.get_device_properties(0)
    query = "driver_version,compute_mode,mig.mode.current,clocks.sm,clocks.max.sm,memory.used"
    smi = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True, check=False, timeout=30
    )
    return found | {
        "card": f"{card.name}, {card.major}.{card.minor}, {card.multi_processor_count} multiprocessors",
        "memory MiB": card.total_memory // 2**20,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "nvidia-smi": smi.stdout.strip(),
    }


def drawn(device: torch.device) -> dict[str, str]:
    """Hash random numbers of the shapes that a trajectory draws: they depend on the number of multiprocessors."""
    generator = torch.Generator(device).manual_seed(1)
    numbers = {
        "order": torch.randperm(45_000, generator=generator, device=device),
        "mask": torch.rand(BATCH, 512, generator=generator, device=device),
        "shifts": torch.randint(9, (2, BATCH, 1), generator=generator, device=device),
    }
    return {name: hashlib.sha256(t.cpu().numpy().tobytes()).hexdigest()[:16] for name, t in numbers.items()}


def determinism(args: argparse.Namespace) -> Found:
    until, stops = (QUICK_STEPS, QUICK_STOPS) if args.quick else (STEPS, STOPS)
    found: Found = {}
    for precision in precisions(args):
        prepare(precision)
        small = random_images(args, 25)
        for head in HEADS:
            eager, graph = (partial(kind, recipe_of(head), small, precision) for kind in (Training, GraphTraining))
            straight = walk(eager, (), until)
            found[f"{precision} {head}"] = {
                "hash": straight,
                "eager again": walk(eager, (), until) == straight,
                "eager with stops": walk(eager, stops, until) == straight,
                "graph": walk(graph, (), until) == straight,
                "graph again": walk(graph, (), until) == straight,
                "graph with stops": walk(graph, stops, until) == straight,
            }
    return found


def speed(args: argparse.Namespace) -> Found:
    steps, rounds = (1, 1) if args.quick else (150, 5)
    data = random_images(args, 2 if args.quick else 351)
    kinds: dict[str, Callable[..., Training]] = {"eager": Training, "graph": GraphTraining}
    found: Found = {}
    for precision in precisions(args):
        prepare(precision)
        for name, kind in kinds.items():
            found[f"{name} {precision}"] = timed(kind(recipe_of(iterations=640_000), data, precision), steps, rounds)
    if args.device == "cuda":
        prepare("bf16")
        make = partial(GraphTraining, recipe_of(iterations=640_000), data, "bf16")
        found["kernels"] = {
            name: profiled(kind(recipe_of(iterations=640_000), data, "bf16")) for name, kind in kinds.items()
        }
        found["once, ms"] = once(make)
        found["peak MiB"] = torch.cuda.max_memory_allocated() // 2**20
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
        found["graph bf16, cuDNN free to choose"] = timed(make(), steps, rounds)
    return found


def timed(training: Training, steps: int, rounds: int) -> Found:
    """Time a step until the device is done, and until the host is, which may run ahead."""
    training.advance(training.iteration + 2 * min(steps, 30))
    wall_ms, host_ms = [], []
    for _ in range(rounds):
        synchronise(training)
        begun = time.perf_counter()
        training.advance(training.iteration + steps)
        host_ms.append(1e3 * (time.perf_counter() - begun) / steps)
        synchronise(training)
        wall_ms.append(1e3 * (time.perf_counter() - begun) / steps)
    spread = [round(statistics.median(wall_ms), 3), round(min(wall_ms), 3), round(max(wall_ms), 3)]
    return {
        "ms a step: median, min, max": spread,
        "host ms": round(statistics.median(host_ms), 3),
        "rounds": rounds,
        "steps": steps,
    }


def synchronise(training: Training) -> None:
    if training.device.type == "cuda":
        torch.cuda.synchronize()


def profiled(training: Training, steps: int = 5) -> Found:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    training.advance(20)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        training.advance(20 + steps)
        torch.cuda.synchronize()
    durations_us: dict[str, list[float]] = {}
    for event in seen.events() or ():
        if event.device_type == DeviceType.CUDA:
            durations_us.setdefault(event.name[:90], []).append(event.time_range.elapsed_us())
    longest = sorted(durations_us.items(), key=lambda item: -sum(item[1]))[:14]
    return {
        "kernels a step": sum(map(len, durations_us.values())) / steps,
        "busy ms a step": sum(map(sum, durations_us.values())) / steps / 1e3,
        "longest: name, calls a step, us a step": [[name, len(us) / steps, sum(us) / steps] for name, us in longest],
    }


def once(make: Make) -> dict[str, float]:
    """Time what is not done in each step, in milliseconds."""
    training = make()
    training.advance(20)
    state = training.state()
    calls: dict[str, Callable[[], object]] = {
        "a new training": make,
        "state": training.state,
        "restore": lambda: training.restore(state),
        "three eager steps": lambda: training.advance(training.iteration + 3),
        "capture and one step": lambda: training.advance(training.iteration + 1),
        "an evaluation": lambda: training.evaluate(training.dataset.validation),
    }
    found = {}
    for name, call in calls.items():
        torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found[name] = round(1e3 * (time.perf_counter() - begun), 1)
    return found


def pressure(args: argparse.Namespace) -> Found:
    """Train with so little memory left that cuDNN may not get the workspace that it prefers."""
    prepare("bf16")
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(0, free - args.leave_mib * 2**20), dtype=torch.uint8, device="cuda")
    try:
        return {"held MiB": held.numel() // 2**20, "hash": walk_alone(args, Training)}
    except torch.OutOfMemoryError as error:
        return {"out of memory": str(error).splitlines()[0]}


def packed(args: argparse.Namespace) -> Found:
    """Train for some seconds when told to, as one of several processes on the card."""
    found = walk_alone(args)
    data = random_images(args, 2 if args.quick else 351)
    training = GraphTraining(recipe_of(iterations=640_000), data, "bf16", graphed=args.mode == "graph")
    step = 1 if args.quick else 50
    training.advance(step)
    print("ready", flush=True)
    sys.stdin.readline()
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() - begun < args.seconds:
        steps += training.advance(training.iteration + step)
        synchronise(training)
    return {"steps/s": steps / (time.perf_counter() - begun), "hash": found}


SECTIONS = {function.__name__: function for function in (environment, determinism, speed, pressure, packed)}


# The process that starts the sections.


def command(args: argparse.Namespace, section: str, *more: object) -> list[str]:
    options = [*("--device", args.device), *(["--quick"] if args.quick else []), *map(str, more)]
    return [sys.executable, __file__, "--section", section, *options]


def run(args: argparse.Namespace, section: str, *more: object, limit_s: float) -> Found:
    """Run a section, and return what it found, or how it failed."""
    try:
        done = subprocess.run(
            command(args, section, *more), capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {limit_s:.0f} s"}
    if done.returncode != 0:
        return {"error": f"ended with code {done.returncode}: {done.stderr[-1500:]}"}
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def training_processes(
    args: argparse.Namespace, workers: int, mode: str, seconds: float, environment: Mapping[str, str]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes that train, let them begin together, and kill what is left of them at the end.

    Raises:
        RuntimeError: One of them died, or hung, before it was ready.
    """
    with tempfile.TemporaryFile("w+") as errors:
        processes = [
            subprocess.Popen(
                command(args, "packed", "--mode", mode, "--seconds", seconds),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | environment,
            )
            for _ in range(workers)
        ]
        watchdog = threading.Timer(START_S, lambda: [process.kill() for process in processes])
        watchdog.start()
        try:
            for process in processes:
                if process.stdout is None or process.stdout.readline() != "ready\n":
                    errors.seek(0)
                    raise RuntimeError(f"a process did not start: {errors.read()[-1500:]}")
            watchdog.cancel()
            for process in processes:
                print("go", file=process.stdin, flush=True)
            yield processes
        finally:
            watchdog.cancel()
            for process in processes:
                process.kill()
                process.communicate()


def beside(args: argparse.Namespace) -> Found:
    """Check determinism while another process trains on the card."""
    try:
        with training_processes(args, 1, "eager", 120.0, {}):
            return run(args, "determinism", limit_s=120.0)
    except RuntimeError as error:
        return {"error": str(error)}


def pack(args: argparse.Namespace, workers: int, mode: str, environment: Mapping[str, str] | None = None) -> Found:
    """Train in several processes at once."""
    seconds = 0.2 if args.quick else 6.0
    try:
        with training_processes(args, workers, mode, seconds, environment or {}) as processes:
            outputs = [process.communicate(timeout=SECTION_S)[0] for process in processes]
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    if any(process.returncode for process in processes):
        return {"error": f"ended with codes {[process.returncode for process in processes]}"}
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {
        "steps/s in all": round(sum(each["steps/s"] for each in found), 1),
        "steps/s each": [round(each["steps/s"], 1) for each in found],
        "hashes": sorted({each["hash"] for each in found}),
    }


def packing(args: argparse.Namespace, left_s: Callable[[], float]) -> Found:
    """Pack processes on the card, without MPS and with a daemon of its own, as long as there is time."""
    if args.quick:
        return {"1 graph": pack(args, 1, "graph")}
    found: Found = {}
    for workers, mode in ((1, "eager"), (4, "eager"), (1, "graph"), (4, "graph"), (8, "graph")):
        if left_s() > 150:
            found[f"{workers} {mode}"] = pack(args, workers, mode)
    if not shutil.which(MPS):
        return found | {"MPS": f"there is no {MPS}"}
    try:
        with mps() as environment:
            for workers, mode in ((1, "graph"), (2, "graph"), (4, "graph"), (8, "graph"), (12, "graph"), (8, "eager")):
                if left_s() > 90:
                    found[f"{workers} {mode}, MPS"] = pack(args, workers, mode, environment)
    except subprocess.SubprocessError as error:
        found["MPS"] = str(error)
    return found


@contextmanager
def mps() -> Iterator[dict[str, str]]:
    """Run NVIDIA's MPS in folders of its own, and give the variables that lead processes to it."""
    with tempfile.TemporaryDirectory() as name:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": f"{name}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{name}/log"}
        for folder in environment.values():
            Path(folder).mkdir()
        call = partial(subprocess.run, env=os.environ | environment, capture_output=True, text=True, timeout=30)
        call([MPS, "-d"], check=True)
        try:
            yield environment
        finally:
            call([MPS], input="quit\n", check=True)


def verdict(results: Mapping[str, Found]) -> dict[str, bool]:
    """List every comparison of bits."""
    lines: dict[str, bool] = {}
    first = results.get("determinism", {"error": "not run"})
    for name, row in first.items() if "error" not in first else ():
        lines |= {f"{name}: {what}": value for what, value in row.items() if isinstance(value, bool)}
        if name in (beside := results.get("beside", {})):
            lines[f"{name}: beside another process"] = beside[name]["hash"] == row["hash"]
    if "bf16 linear" not in first:
        return lines
    alone = first["bf16 linear"]["hash"]
    for name, row in results.get("packing", {}).items():
        if "hashes" in row:
            lines[f"packed, {name}"] = row["hashes"] == [alone]
    for name, row in results.items():
        if name.startswith("pressure") and "hash" in row:
            lines[name] = row["hash"] == alone
    return lines


def conduct(args: argparse.Namespace) -> None:
    """Run the sections in their order, and keep what is known after each."""
    begun = time.monotonic()
    results: dict[str, Found] = {}

    def left_s() -> float:
        return BUDGET_S - (time.monotonic() - begun)

    def keep(name: str, found: Found) -> None:
        results[name] = found
        if args.json:
            args.json.write_text(json.dumps(results | {"verdict": verdict(results)}, indent=1) + "\n")
        print(f"{name}: done, {left_s():.0f} s left", file=sys.stderr, flush=True)

    for section in args.only:
        if section == "beside":
            keep(section, beside(args))
        elif section == "packing":
            keep(section, packing(args, left_s))
        elif section == "pressure":
            for mib in LEFT_MIB:
                keep(f"pressure, {mib} MiB left", run(args, section, "--leave-mib", mib, limit_s=30.0))
        else:
            keep(section, run(args, section, limit_s=SECTION_S))
    report(results)


def report(results: Mapping[str, Found]) -> None:
    for name, found in results.items():
        print(f"{name}: {json.dumps(found, indent=1)}")
    print("verdict:")
    for name, holds in verdict(results).items():
        print(f"  {'same bits ' if holds else 'OTHER BITS'}  {name}")


ORDER = ("environment", "determinism", "beside", "speed", "packing", "pressure")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check and time the training step on one GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: a dry run")
    parser.add_argument("--only", nargs="+", choices=ORDER, help="these sections alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=("eager", "graph"), default="graph", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=6.0, help=argparse.SUPPRESS)
    parser.add_argument("--leave-mib", type=int, default=700, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.only = args.only or [name for name in ORDER if args.device == "cuda" or name != "pressure"]
    if args.device == "cpu" and "pressure" in args.only:
        parser.error("--only pressure: needs --device cuda")
    if args.device == "cuda" and not args.section and not torch.cuda.is_available():
        parser.error("CUDA does not start here; --device cpu --quick is a dry run")
    return args


def main() -> None:
    args = parse()
    if args.section:
        print(json.dumps(SECTIONS[args.section](args)), flush=True)
    else:
        conduct(args)


if __name__ == "__main__":
    main()
