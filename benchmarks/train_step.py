"""Measure images per second of the training loop, side by side with the loops that one would write instead.

Measured is `hpo.training.train.Training.advance`: ResNet-20 with the linear head, batches of 128, on the CPU,
evaluations not included. Beside it, on the same network and batch size:

    bare        forward, backward and optimizer step on one resident, normalised batch: what the loop itself may cost
    usual-0     torchvision transforms on PIL images in a DataLoader without workers, default memory format, plain SGD,
                fp32, loss.item() in each step
    usual-2     the same with two DataLoader workers
    keras       Keras `fit` on tf.data with pad, crop and flip from tf.image; where --keras-python is given
    matmul-fp32, matmul-bf16    products of two 2048 x 2048 matrices: what the machine can compute

Each variant lives in a process of its own, so that one's allocator, threads and workers are not another's. They take
turns, one round each (A B C D A B C D ...), so that noise on a shared machine meets all of them, and ratios are formed
within a round. 32x32x3 images are random pixels, 45,000 of them as in CIFAR-10's training split, since the speed
does not depend on what they show; 8x8x1 are scikit-learn's digits (in Keras random pixels of the same number).
The loops do what pays in speed and leave out metrics: neither they nor `hpo` count training accuracy.

    python benchmarks/train_step.py --keras-python /tmp/keras/bin/python --json train_step.json

`docs/benchmarks.md` says how to make that environment, and gives results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

# Only the standard library is imported here: the Keras variant runs this file in an environment without torch.
if TYPE_CHECKING:
    from torch import Tensor, nn

    from hpo.training.data import Dataset

BATCH = 128
TRAINING_IMAGES = {32: 45_000, 8: 1_293}
GFLOP_PER_STEP = {32: 31.03, 8: 1.930}  # forward and backward, as torch.utils.flop_counter counts
STEPS_SCALE = {32: 1, 8: 16}
WARM_UP_STEPS = 5  # more than the 4 batches that two DataLoader workers fetch ahead
MATMUL_SIDE = 2048
EMULATED_ROWS = 8  # of the first matrix where bf16 is emulated, hundreds of times as slow as fp32
MATMULS = 4
OURS = "hpo"

Measure = Callable[[int], float]
"""Do so many steps, warm, and return the seconds that they took."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The loop of one variant, as its process serves it.

    Attributes:
        gflop: Floating-point work of one step; 0 unless it is a matrix product.
    """

    measure: Measure
    versions: str
    precision: str = "fp32"
    gflop: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The spread of one quantity over the rounds."""

    median: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Self:
        """Summarise at least one value."""
        return cls(median=statistics.median(values), min=min(values), max=max(values), n=len(values))

    def text(self, digits: int) -> str:
        """Write median, and in brackets minimum and maximum."""
        return f"{self.median:,.{digits}f} [{self.min:,.{digits}f}, {self.max:,.{digits}f}]"


def load(side: int) -> Dataset:
    """Make 32x32x3 images of random pixels, or load the 8x8x1 digits."""
    import torch

    from hpo.training.data import VALIDATION_SHARE, Split, split_dataset
    from hpo.training.datasets import load_dataset

    if side == 8:
        return load_dataset("digits", Path())
    count = round(TRAINING_IMAGES[side] / (1 - VALIDATION_SHARE))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 10
    return split_dataset(
        "cifar10",
        Split(images=images, labels=labels),
        classes=tuple("0123456789"),
        augment="crop,flip",
    )


def resnet(dataset: Dataset) -> nn.Module:
    """Build the network that `hpo` trains, with the linear head."""
    import torch

    from hpo.training.model import ResNet

    return ResNet(
        channels=dataset.image_shape[2],
        classes=len(dataset.classes),
        head="linear",
        dropout=0.0,
        shortcut_norm=False,
        generator=torch.Generator(),
    ).train()


def warmed(step_through: Callable[[int], object]) -> Measure:
    """Make a measurement of a loop that has no start-up of its own."""

    def measure(steps: int) -> float:
        step_through(WARM_UP_STEPS)
        started = time.perf_counter()
        step_through(steps)
        return time.perf_counter() - started

    return measure


def torch_versions() -> str:
    import torch

    return f"torch {torch.__version__}"


def serve_ours(side: int, _threads: int) -> Served:
    import torch

    from hpo.recipes.recipe import documented_runs
    from hpo.training.numerics import native_precision
    from hpo.training.train import Training

    precision = native_precision(torch.device("cpu"))
    training = Training(documented_runs()["baseline"].recipe, load(side), precision)
    assert training.recipe.batch_size == BATCH
    measure = warmed(lambda steps: training.advance(training.iteration + steps))
    return Served(measure=measure, versions=torch_versions(), precision=precision)


def serve_bare(side: int, _threads: int) -> Served:
    import torch

    from hpo.training.data import normalise
    from hpo.training.numerics import native_precision
    from hpo.training.train import keep_memory

    keep_memory()
    precision = native_precision(torch.device("cpu"))
    dataset = load(side)
    images, labels = normalise(dataset.train.images[:BATCH], dataset), dataset.train.labels[:BATCH]
    model = resnet(dataset).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)

    def step_through(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return Served(measure=warmed(step_through), versions=torch_versions(), precision=precision)


def serve_usual(side: int, workers: int) -> Served:
    import torch

    dataset = load(side)
    model = resnet(dataset)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = usual_batches(dataset, workers)

    def step_through(some: Iterable[tuple[Tensor, Tensor]]) -> float:
        total = 0.0
        for images, labels in some:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total

    def measure(steps: int) -> float:
        stream = iter(batches)  # starts the workers, and dropping it stops them, so that they do not disturb others
        step_through(islice(stream, WARM_UP_STEPS))
        started = time.perf_counter()
        step_through(islice(stream, steps))
        return time.perf_counter() - started

    return Served(measure=measure, versions=torch_versions())


def usual_batches(dataset: Dataset, workers: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Augment image by image with torchvision, epoch after epoch without a pause."""
    import torch
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision import transforms

    class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __init__(self) -> None:
            self.images = dataset.train.images.numpy()
            self.labels = dataset.train.labels.tolist()
            self.transform = transforms.Compose(
                [
                    transforms.ToPILImage(),
                    transforms.RandomCrop(dataset.image_shape[:2], padding=dataset.padding),
                    *([transforms.RandomHorizontalFlip()] if dataset.flip else []),
                    transforms.ToTensor(),
                    transforms.Normalize((dataset.mean / 255).tolist(), (dataset.std / 255).tolist()),
                ]
            )

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.transform(self.images[index]), self.labels[index]

    images = Images()
    endless = RandomSampler(images, num_samples=1 << 40)
    return DataLoader(images, batch_size=BATCH, sampler=endless, num_workers=workers)


def serve_keras(side: int, threads: int) -> Served:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    model = keras_resnet(side, channels=3 if side == 32 else 1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    batches = keras_batches(side)
    warnings.filterwarnings("ignore", message="`shuffle=True` was passed")
    ends: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter()))

    def measure(steps: int) -> float:
        ends.clear()
        model.fit(batches, steps_per_epoch=WARM_UP_STEPS + steps, callbacks=[clock], verbose=0)
        return ends[-1] - ends[WARM_UP_STEPS - 1]

    return Served(measure=measure, versions=f"Keras {keras.__version__}, TensorFlow {tf.__version__}")


def keras_batches(side: int) -> Any:
    """Augment with tf.image, which is as fast as Keras's RandomTranslation and RandomFlip or faster."""
    import numpy as np
    import tensorflow as tf

    count, channels, padding = TRAINING_IMAGES[side], 3 if side == 32 else 1, side // 8
    images = np.random.default_rng(0).integers(256, size=(count, side, side, channels), dtype=np.uint8)
    mean, std = images.mean(dtype=np.float32), images.std(dtype=np.float32)

    def augment(image: Any, label: Any) -> tuple[Any, Any]:
        image = tf.pad(image, [[padding, padding], [padding, padding], [0, 0]])
        image = tf.image.random_crop(image, (side, side, channels))
        if side == 32:
            image = tf.image.random_flip_left_right(image)
        return (tf.cast(image, tf.float32) - mean) / std, label

    batches = tf.data.Dataset.from_tensor_slices((images, np.arange(count) % 10)).shuffle(count).repeat()
    return batches.map(augment, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)


def keras_resnet(side: int, channels: int) -> Any:
    """Build the layers of `hpo.training.model.ResNet` with the linear head in Keras."""
    import keras
    import tensorflow as tf
    from keras import layers

    def normed(x: Any, width: int, stride: int = 1) -> Any:
        return layers.BatchNormalization()(layers.Conv2D(width, 3, stride, padding="same")(x))

    def pad_shortcut(x: Any, width: int) -> Any:
        edges = [[0, 0], [0, 0], [0, 0], [width // 4, width // 4]]
        return layers.Lambda(lambda t: tf.pad(t[:, ::2, ::2], edges))(x)

    x = images = layers.Input((side, side, channels))
    x = layers.ReLU()(normed(x, 16))
    for width in (16, 32, 64):
        for block in range(3):
            widens = width > 16 and block == 0
            y = normed(layers.ReLU()(normed(x, width, 2 if widens else 1)), width)
            x = layers.ReLU()(layers.Add()([y, pad_shortcut(x, width) if widens else x]))
    return keras.Model(images, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def serve_matmul(precision: str) -> Served:
    import torch

    from hpo.training.numerics import native_precision

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    native = precision == "fp32" or native_precision(torch.device("cpu")) == "bf16"
    rows = MATMUL_SIDE if native else EMULATED_ROWS
    left, right = torch.randn(rows, MATMUL_SIDE).to(dtype), torch.randn(MATMUL_SIDE, MATMUL_SIDE).to(dtype)

    def measure(_steps: int) -> float:
        left @ right
        started = time.perf_counter()
        for _ in range(MATMULS if native else 1):
            left @ right
        return (time.perf_counter() - started) / (MATMULS if native else 1)

    gflop = 2 * rows * MATMUL_SIDE**2 / 1e9
    return Served(measure=measure, versions=torch_versions(), precision=precision, gflop=gflop)


SERVERS: dict[str, Callable[[int, int], Served]] = {
    OURS: serve_ours,
    "bare": serve_bare,
    "usual-0": lambda side, _threads: serve_usual(side, workers=0),
    "usual-2": lambda side, _threads: serve_usual(side, workers=2),
    "keras": serve_keras,
    "matmul-fp32": lambda _side, _threads: serve_matmul("fp32"),
    "matmul-bf16": lambda _side, _threads: serve_matmul("bf16"),
}


def serve(variant: str, side: int, threads: int) -> None:
    """Answer each number of steps on stdin with a line of seconds on stdout, after a first line that says what runs."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes elsewhere
    if variant != "keras":
        import torch

        torch.set_num_threads(threads)
    served = SERVERS[variant](side, threads)
    served.measure(1)
    print(json.dumps([served.versions, served.precision, served.gflop]), file=answers)
    for line in sys.stdin:
        print(served.measure(int(line)), file=answers)


class Variant:
    """One variant in a process of its own.

    Side effects:
        Starts a process, and ends it at the end of a `with` block.
    """

    def __init__(self, name: str, python: str, side: int, threads: int) -> None:
        self.name = name
        command = [python, __file__, "--serve", name, "--size", str(side), "--threads", str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )
        self.versions, self.precision, self.gflop = json.loads(self._answer())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def measure(self, steps: int) -> float:
        """Have so many steps done, and return the seconds that they took."""
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin)
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"train_step: the process of {self.name} ended with status {self._process.wait()}")
        return line


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The results for one size of images.

    Attributes:
        images_per_s: By variant.
        ratios: Images per second of `hpo` over those of each other variant, formed within a round.
        matmul_gflops: Per second, by precision.
        precision: That `hpo` trained in.
        share: Of the rate of matrix products in that precision, reached by a step of `hpo`.
        versions: By variant.
    """

    side: int
    steps: int
    precision: str
    images_per_s: dict[str, Summary]
    ratios: dict[str, Summary]
    matmul_gflops: dict[str, Summary]
    share: Summary
    versions: dict[str, str]


def run(side: int, args: argparse.Namespace) -> Result:
    """Let all variants take turns at one size of images."""
    steps = args.steps * STEPS_SCALE[side]
    names = [name for name in SERVERS if name != "keras" or args.keras_python]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        variants = [stack.enter_context(Variant(n, python_of(n, args), side, args.threads)) for n in names]
        for number in range(args.rounds):
            for variant in variants:
                seconds[variant.name].append(variant.measure(steps))
            print(f"{side}x{side}: round {number + 1} of {args.rounds} done", file=sys.stderr)
    return summarise(side, steps, variants, seconds)


def python_of(variant: str, args: argparse.Namespace) -> str:
    return args.keras_python if variant == "keras" else sys.executable


def summarise(side: int, steps: int, variants: list[Variant], seconds: dict[str, list[float]]) -> Result:
    """Form rates, and ratios within each round."""
    loops = [v for v in variants if not v.gflop]
    rates = {v.name: [BATCH * steps / s for s in seconds[v.name]] for v in loops}
    gflops = {v.precision: [v.gflop / s for s in seconds[v.name]] for v in variants if v.gflop}
    ours = next(v for v in loops if v.name == OURS)
    reached = [rate / BATCH * GFLOP_PER_STEP[side] for rate in rates[OURS]]
    return Result(
        side=side,
        steps=steps,
        precision=ours.precision,
        images_per_s={name: Summary.of(values) for name, values in rates.items()},
        ratios={name: Summary.of(quotients(rates[OURS], rates[name])) for name in rates if name != OURS},
        matmul_gflops={precision: Summary.of(values) for precision, values in gflops.items()},
        share=Summary.of(quotients(reached, gflops[ours.precision])),
        versions={v.name: v.versions for v in loops},
    )


def quotients(numerators: list[float], denominators: list[float]) -> list[float]:
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def lines(result: Result) -> Iterator[str]:
    """Write a result as a table."""
    n = result.share.n
    channels = 3 if result.side == 32 else 1
    yield f"{result.side}x{result.side}x{channels}, batch {BATCH}, {result.steps} steps a round, n = {n} rounds"
    yield f"  {'':12}{'images/s: median [min, max]':>32}{f'{OURS} is so many times as fast':>32}"
    for name, summary in result.images_per_s.items():
        ratio = result.ratios[name].text(2) if name in result.ratios else ""
        yield f"  {name:12}{summary.text(0):>32}{ratio:>32}".rstrip()
    for precision, summary in result.matmul_gflops.items():
        yield f"  matmul {precision}: {summary.text(1)} GFLOP/s"
    yield f"  {OURS} ({result.precision}) does {result.share.text(2)} of the {result.precision} matmul rate"
    yield ""


def environment(threads: int) -> dict[str, Any]:
    """Describe the machine."""
    machine = {"processor": processor(), "cores": os.cpu_count(), "threads": threads}
    return machine | {
        "python": platform.python_version(),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the training loop's images per second against others.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="per round at 32x32, and 16 times as many at 8x8")
    parser.add_argument("--size", choices=("32", "8", "both"), default="both", help="side of the images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keras-python", metavar="PATH", help="interpreter of an environment that has TensorFlow")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.serve:
        serve(args.serve, int(args.size), args.threads)
        return
    described = environment(args.threads)
    print("; ".join(f"{name} {value}" for name, value in described.items()), flush=True)
    results = []
    for side in (32, 8) if args.size == "both" else (int(args.size),):
        results.append(run(side, args))
        print("\n".join(lines(results[-1])), flush=True)
    described["load_after"] = round(os.getloadavg()[0], 2)
    print("; ".join(sorted(set(results[0].versions.values()))), f"load after {described['load_after']}", sep="; ")
    if args.json:
        written = {"environment": described, "results": [asdict(result) for result in results]}
        args.json.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
