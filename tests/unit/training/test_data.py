"""Test data sets: how they are found, checked, split, augmented and fetched."""

import gzip
import hashlib
import io
import pickle
import socket
import struct
import tarfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from hpo.errors import DataDamaged, DataUnavailable
from hpo.results.test_split import load_test_split
from hpo.training import data, datasets
from hpo.training.data import Batches, Dataset, Split, normalise, stratified_split
from hpo.training.datasets import choose_dataset, fetch_dataset, load_dataset

NOWHERE = Path("/nonexistent")


# Splits


def rows_of(*splits):
    """List (pixels, label) of all images, sorted, so that sets of images can be compared."""
    return sorted(
        (image.tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images.numpy(), split.labels.numpy(), strict=True)
    )


def all_digits():
    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target


def test_digits_are_1797_real_scans_of_which_a_fifth_is_kept_for_the_test(digits):
    assert (len(digits.train), len(digits.validation)) == (1_293, 144)
    assert digits.image_shape == (8, 8, 1)
    assert (digits.train.images.dtype, digits.train.labels.dtype) == (torch.uint8, torch.int64)
    assert (digits.name, digits.padding, digits.flip) == ("digits", 1, False)


def test_the_splits_of_digits_are_distinct_parts_of_the_scans(digits):
    images, labels = all_digits()
    whole = rows_of(Split(images=torch.from_numpy(images), labels=torch.from_numpy(labels)))
    found = rows_of(digits.train, digits.validation)

    left = list(whole)
    for row in found:
        left.remove(row)

    assert len(left) == 360
    assert len(set(whole)) == len(whole)  # no scan stands twice, so that none can be in two splits
    assert not set(left) & set(found)


def test_the_test_images_of_digits_are_those_that_the_first_split_sets_aside(digits):
    images, labels = all_digits()
    whole = Split(images=torch.from_numpy(images)[..., None], labels=torch.from_numpy(labels))
    rest, test = stratified_split(whole, 0.2)

    assert rows_of(rest) == rows_of(digits.train, digits.validation)
    assert not set(rows_of(test)) & set(rows_of(digits.train, digits.validation))


def test_every_class_of_digits_has_its_share_of_each_split(digits):
    _, labels = all_digits()
    whole = np.bincount(labels)

    train = np.bincount(digits.train.labels.numpy())
    validation = np.bincount(digits.validation.labels.numpy())

    assert np.abs(train - whole * 0.8 * 0.9).max() < 2  # each of two splits rounds
    assert np.abs(validation - whole * 0.8 * 0.1).max() < 2


def test_digits_are_split_the_same_every_time_whatever_was_drawn_before(digits):
    np.random.seed(1)
    torch.manual_seed(1)
    again = load_dataset("digits", NOWHERE)

    assert again.checksum == digits.checksum == "0f0e738ae99df2fa73a31ad2b375d86bdf1c35183d3e625bfd18b5f805ab67a4"
    assert torch.equal(again.train.images, digits.train.images)
    assert torch.equal(again.validation.labels, digits.validation.labels)


def test_the_checksum_is_of_the_images_and_labels_of_both_splits(few_digits):
    digest = hashlib.sha256()
    for split in (few_digits.train, few_digits.validation):
        digest.update(split.images.numpy().tobytes() + split.labels.numpy().tobytes())

    assert few_digits.checksum == digest.hexdigest()


def test_a_split_has_the_images_in_their_first_order_each_in_one_part():
    labels = torch.arange(200) % 10
    whole = Split(images=torch.arange(200, dtype=torch.int64).reshape(200, 1, 1, 1), labels=labels)

    first, second = stratified_split(whole, 0.1)

    positions = [split.images.flatten().tolist() for split in (first, second)]
    assert [len(p) for p in positions] == [180, 20]
    assert [p == sorted(p) for p in positions] == [True, True]
    assert sorted(positions[0] + positions[1]) == list(range(200))
    assert torch.equal(torch.bincount(second.labels), torch.full((10,), 2))
    assert torch.equal(first.labels, first.images.flatten() % 10)


def test_normalised_training_images_have_mean_0_and_deviation_1(digits):
    found = normalise(digits.train.images, digits)

    assert found.shape == (1_293, 1, 8, 8)
    assert found.mean().item() == pytest.approx(0, abs=1e-5)
    assert found.std().item() == pytest.approx(1, abs=1e-5)


def test_each_channel_is_normalised_by_its_own_mean_and_deviation():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([10, 50, 255])
    images = (torch.rand(200, 4, 5, 3, generator=generator) * spread).to(torch.uint8)
    whole = Split(images=images, labels=torch.arange(200) % 10)
    dataset = data.split_dataset("cifar10", whole, classes=tuple("0123456789"), augment="crop,flip")

    found = normalise(dataset.train.images, dataset)

    assert torch.allclose(found.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(found.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-5)
    pixel = (dataset.train.images[7, 2, 3].float() - dataset.mean) / dataset.std
    assert torch.equal(found[7, :, 2, 3], pixel)


# Batches


def plain_dataset(images, padding, flip):
    """Make a data set whose normalisation changes nothing."""
    labels = torch.arange(len(images)) % 10
    split = Split(images=images, labels=labels)
    channels = images.shape[3]
    return Dataset(
        name="cifar10",
        classes=tuple("0123456789"),
        train=split,
        validation=split,
        mean=torch.zeros(channels),
        std=torch.ones(channels),
        padding=padding,
        flip=flip,
        checksum="",
    )


def crops(image, padding, flip):
    """List every crop of a zero-padded image, mirrored too where that is allowed, pixel by pixel."""
    height, width, channels = image.shape
    found = []
    for dy in range(2 * padding + 1):
        for dx in range(2 * padding + 1):
            crop = np.zeros((height, width, channels), np.uint8)
            for y in range(height):
                for x in range(width):
                    row, column = y + dy - padding, x + dx - padding
                    if 0 <= row < height and 0 <= column < width:
                        crop[y, x] = image[row, column]
            found.append(crop)
            if flip:
                found.append(crop[:, ::-1])
    return [crop.tobytes() for crop in found]


@settings(max_examples=40)
@given(
    height=st.integers(2, 6),
    width=st.integers(2, 6),
    channels=st.integers(1, 3),
    padding=st.integers(0, 2),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_drawn_image_is_a_crop_of_its_own_padded_image_mirrored_or_not(
    height, width, channels, padding, flip, seed
):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (12, height, width, channels), generator=generator, dtype=torch.uint8)
    batches = Batches(plain_dataset(images, padding, flip), 12)
    indices = torch.randint(0, 12, (20,), generator=generator)

    drawn, labels = batches.draw(indices, generator)

    assert drawn.shape == (20, channels, height, width)
    assert drawn.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, indices % 10)
    for image, index in zip(drawn.permute(0, 2, 3, 1).to(torch.uint8).numpy(), indices.tolist(), strict=True):
        assert image.tobytes() in crops(images[index].numpy(), padding, flip)


def test_all_shifts_and_mirrors_are_drawn_equally_often_and_independently():
    image = torch.arange(1, 31, dtype=torch.uint8).reshape(1, 5, 6, 1)
    batches = Batches(plain_dataset(image, 1, True), 1)
    names = crops(image[0].numpy(), 1, True)
    generator = torch.Generator().manual_seed(0)

    drawn, _ = batches.draw(torch.zeros(3_600, dtype=torch.int64), generator)

    counts = dict.fromkeys(names, 0)
    for found in drawn.permute(0, 2, 3, 1).to(torch.uint8).numpy():
        counts[found.tobytes()] += 1
    assert len(counts) == 18
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 40.8  # chi-square, 17 degrees, p = 0.001


def test_without_flip_no_image_is_mirrored():
    image = torch.arange(1, 31, dtype=torch.uint8).reshape(1, 5, 6, 1)
    batches = Batches(plain_dataset(image, 1, False), 1)

    drawn, _ = batches.draw(torch.zeros(500, dtype=torch.int64), torch.Generator().manual_seed(0))

    found = {crop.tobytes() for crop in drawn.permute(0, 2, 3, 1).to(torch.uint8).numpy()}
    assert found == set(crops(image[0].numpy(), 1, False))


def test_a_batch_is_a_function_of_its_seed_alone(digits):
    batches = Batches(digits, 32)

    def drawn(seed):
        return batches.draw(torch.arange(32), torch.Generator().manual_seed(seed))

    one, again, other = drawn(1), drawn(1), drawn(2)

    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert torch.equal(one[1], digits.train.labels[:32])
    assert not torch.equal(one[0], other[0])


def test_drawing_leaves_the_data_set_as_it_was(few_digits):
    before = few_digits.train.images.clone()

    Batches(few_digits, 32).draw(torch.arange(32), torch.Generator().manual_seed(1))

    assert torch.equal(few_digits.train.images, before)


@given(images=st.integers(1, 50), batch_size=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_an_epoch_is_the_beginning_of_a_permutation_cut_into_full_batches(images, batch_size, seed):
    dataset = plain_dataset(torch.zeros(images, 2, 2, 1, dtype=torch.uint8), 0, False)
    batches = Batches(dataset, batch_size)
    size = min(batch_size, images)

    order = batches.order(torch.Generator().manual_seed(seed))
    again = batches.order(torch.Generator().manual_seed(seed))

    assert order.shape == (images // size, size) == (batches.per_epoch, size)
    assert torch.equal(order, again)
    assert len(set(order.flatten().tolist())) == order.numel()
    assert 0 <= int(order.min()) <= int(order.max()) < images


def test_a_cifar_epoch_of_batches_of_128_has_351_steps():
    dataset = plain_dataset(torch.zeros(45_000, 1, 1, 1, dtype=torch.uint8), 0, False)

    assert Batches(dataset, 128).per_epoch == 351


# CIFAR-10, in files of its own format


def cifar_batch(number, images=60):
    pixels = np.random.default_rng(number).integers(0, 256, (images, 3_072), dtype=np.uint8)
    labels = [(i + number) % 10 for i in range(images)]
    return pixels, labels, pickle.dumps({"data": pixels, "labels": labels}, protocol=2)


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """Write two training batches, and no test batch."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    train_list = []
    for number in (1, 2):
        *_, content = cifar_batch(number)
        (folder / f"data_batch_{number}").write_bytes(content)
        train_list.append([f"data_batch_{number}", hashlib.md5(content).hexdigest()])
    monkeypatch.setattr(CIFAR10, "train_list", train_list)
    return folder


def cifar_rows():
    """List (pixels, label) of the images in the batches, pixel by pixel from their format: planes of rows."""
    found = []
    for number in (1, 2):
        pixels, labels, _ = cifar_batch(number)
        for flat, label in zip(pixels, labels, strict=True):
            image = bytes(flat[1024 * c + 32 * y + x] for y in range(32) for x in range(32) for c in range(3))
            found.append((image, label))
    return sorted(found)


def test_cifar10_has_the_pixels_and_labels_of_its_files(small_cifar):
    found = load_dataset("cifar10", small_cifar.parent)

    assert found.image_shape == (32, 32, 3)
    assert (len(found.train), len(found.validation)) == (108, 12)
    assert rows_of(found.train, found.validation) == cifar_rows()
    assert (found.train.images.dtype, found.train.labels.dtype) == (torch.uint8, torch.int64)
    assert (found.padding, found.flip) == (4, True)


def test_the_test_images_of_cifar10_are_not_opened(small_cifar):
    before = load_dataset("cifar10", small_cifar.parent).checksum
    (small_cifar / "test_batch").mkdir()  # which cannot be read

    assert load_dataset("cifar10", small_cifar.parent).checksum == before


def test_a_missing_file_of_cifar10_is_named(small_cifar):
    path = small_cifar / "data_batch_2"
    path.unlink()

    with pytest.raises(DataDamaged) as refused:
        load_dataset("cifar10", small_cifar.parent)

    assert str(refused.value) == f"{path} is missing; remove {small_cifar} to fetch the data set again"


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-1], lambda c: c[:100] + b"?" + c[101:], lambda c: b"", lambda c: c * 2]
)
def test_an_altered_file_of_cifar10_is_named_and_not_unpickled(small_cifar, damage):
    path = small_cifar / "data_batch_1"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))

    with pytest.raises(DataDamaged) as refused:
        load_dataset("cifar10", small_cifar.parent)

    found, expected = hashlib.md5(path.read_bytes()).hexdigest(), hashlib.md5(whole).hexdigest()
    assert str(refused.value) == (
        f"{path} is damaged: its md5 is {found}, expected {expected}; remove {small_cifar} to fetch the data set again"
    )


def test_damaged_data_is_not_replaced_by_digits_without_a_word(small_cifar):
    (small_cifar / "data_batch_1").write_bytes(b"")

    with pytest.raises(DataDamaged):
        choose_dataset("auto", small_cifar.parent)


def test_cifar10_that_is_not_there_is_unavailable(tmp_path):
    with pytest.raises(DataUnavailable) as refused:
        load_dataset("cifar10", tmp_path)

    assert (
        str(refused.value)
        == f"cifar10 is not in {tmp_path}: the folder {tmp_path / CIFAR10.base_folder} does not exist"
    )


def test_auto_takes_cifar10_where_it_is(small_cifar):
    assert choose_dataset("auto", small_cifar.parent) == ("cifar10", None)


# Fashion-MNIST, in files of its own format


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def fashion_arrays():
    images = np.random.default_rng(0).integers(0, 256, (120, 28, 28), dtype=np.uint8)
    return {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": np.arange(120) % 10}


def write_fashion(folder):
    folder.mkdir(parents=True)
    for name, array in fashion_arrays().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
    return folder


@pytest.fixture
def fashion_checksums(monkeypatch):
    sums = {name: hashlib.sha256(idx(array)).hexdigest() for name, array in fashion_arrays().items()}
    monkeypatch.setattr(datasets, "FASHION_MNIST_TRAIN", sums)
    return sums


def test_fashion_mnist_has_the_pixels_and_labels_of_its_files(tmp_path, fashion_checksums):
    write_fashion(tmp_path / "FashionMNIST" / "raw")

    found = load_dataset("fashion_mnist", tmp_path)

    images, labels = fashion_arrays().values()
    assert found.image_shape == (28, 28, 1)
    assert rows_of(found.train, found.validation) == sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )
    assert (found.train.images.dtype, found.train.labels.dtype) == (torch.uint8, torch.int64)
    assert (found.padding, found.flip) == (4, True)


def test_the_test_images_of_fashion_mnist_are_not_opened(tmp_path, fashion_checksums):
    folder = write_fashion(tmp_path / "FashionMNIST" / "raw")
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (folder / name).mkdir()  # which cannot be read

    assert len(load_dataset("fashion_mnist", tmp_path).train) == 108


def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path, monkeypatch, fashion_checksums):
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", write_fashion(tmp_path / "debian"))

    assert len(load_dataset("fashion_mnist", tmp_path / "empty").train) == 108


def test_fashion_mnist_that_is_nowhere_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "debian")

    with pytest.raises(DataUnavailable) as refused:
        load_dataset("fashion_mnist", tmp_path)

    assert str(refused.value) == (
        f"fashion_mnist is in none of {tmp_path / 'FashionMNIST' / 'raw'}, {tmp_path / 'debian'}"
    )


def test_debians_fashion_mnist_is_whole():
    if not datasets.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip(f"Debian's dataset-fashion-mnist is not installed: there is no {datasets.DEBIAN_FASHION_MNIST}")

    found = load_dataset("fashion_mnist", NOWHERE)

    assert (len(found.train), len(found.validation), found.image_shape) == (54_000, 6_000, (28, 28, 1))
    assert torch.equal(torch.bincount(found.validation.labels), torch.full((10,), 600))
    assert found.mean.item() == pytest.approx(0.2860 * 255, abs=0.2)  # as is published of all 60,000
    assert found.std.item() == pytest.approx(0.3530 * 255, abs=0.2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[:-20],
        lambda c: c[:10] + b"\xff" + c[11:],
        lambda c: c[:-8] + b"????" + c[-4:],
        lambda c: b"",
        lambda c: b"not gzip",
        lambda c: gzip.compress(b"another file"),
    ],
    ids=["cut short", "no deflate stream", "another CRC", "empty", "not gzip", "another file"],
)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_damaged_file_of_fashion_mnist_is_named(tmp_path, fashion_checksums, name, damage):
    path = write_fashion(tmp_path / "FashionMNIST" / "raw") / f"{name}.gz"
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(DataDamaged) as refused:
        load_dataset("fashion_mnist", tmp_path)

    assert str(refused.value).startswith(f"{path} ")


def test_a_missing_file_of_fashion_mnist_is_named(tmp_path, fashion_checksums):
    path = write_fashion(tmp_path / "FashionMNIST" / "raw") / "train-labels-idx1-ubyte.gz"
    path.unlink()

    with pytest.raises(DataDamaged) as refused:
        load_dataset("fashion_mnist", tmp_path)

    assert str(refused.value) == f"{path} is missing; remove {path.parent} to fetch the data set again"


# Fetching, from servers on this machine


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@contextmanager
def http_server(files):
    """Serve some files by path, and 404 for all others."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def raw_server(answer):
    """Accept one connection, and answer some bytes, or nothing until the test is over where that is None."""
    over = threading.Event()

    def serve(listening):
        connection, _ = listening.accept()
        with connection:
            if answer is None:
                over.wait()
            else:
                connection.recv(4096)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30)
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/file"
        finally:
            over.set()
            thread.join()


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_a_server_that_accepts_and_never_answers_is_given_up_within_the_limit():
    with raw_server(answer=None) as url:
        started = time.monotonic()
        with pytest.raises(
            DataUnavailable, match=r"^cifar10 could not be downloaded: (no answer within 0\.3 s|.*timed out.*)$"
        ):
            datasets.require_reachable("cifar10", url, limit_s=0.3)
        took_s = time.monotonic() - started

    assert took_s < 3


def test_a_server_that_does_not_speak_http_is_unavailable_and_not_a_crash():
    with raw_server(answer=b"220 this is a mail server\r\n") as url, pytest.raises(DataUnavailable) as refused:
        datasets.require_reachable("cifar10", url, limit_s=5)

    assert str(refused.value) == "cifar10 could not be downloaded: 220 this is a mail server"


def test_a_server_that_has_no_such_file_is_unavailable():
    with http_server({}) as url, pytest.raises(DataUnavailable) as refused:
        datasets.require_reachable("cifar10", f"{url}/file", limit_s=5)

    assert str(refused.value) == "cifar10 could not be downloaded: HTTP Error 404: Not Found"
    refused.value.__cause__.close()


def test_a_server_that_answers_is_reachable():
    with http_server({"/file": b"content"}) as url:
        assert datasets.require_reachable("cifar10", f"{url}/file", limit_s=5) is None


def test_auto_takes_digits_and_says_why_where_cifar10_cannot_be_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{closed_port()}/cifar.tar.gz")

    assert choose_dataset("auto", tmp_path) == (
        "digits",
        "cifar10 could not be downloaded: <urlopen error [Errno 111] Connection refused>",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_asked_for_by_name_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{closed_port()}/cifar.tar.gz")

    with pytest.raises(DataUnavailable, match=r"^cifar10 could not be downloaded: "):
        choose_dataset("cifar10", tmp_path)


def test_digits_need_no_network(tmp_path):
    assert choose_dataset("digits", tmp_path) == ("digits", None)


@pytest.fixture
def cifar_archive(monkeypatch):
    """Make an archive like CIFAR-10's, and let torchvision expect it."""
    batches = {f"data_batch_{number}": cifar_batch(number)[2] for number in (1, 2)}
    meta = pickle.dumps({"label_names": [str(i) for i in range(10)]}, protocol=2)
    files = batches | {"test_batch": cifar_batch(3)[2], "batches.meta": meta}
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        content = buffer.getvalue()
    sums = {name: hashlib.md5(found).hexdigest() for name, found in files.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in batches])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    return content


def test_cifar10_is_fetched_once_and_then_found(tmp_path, monkeypatch, cifar_archive):
    with http_server({"/cifar.tar.gz": cifar_archive}) as url:
        monkeypatch.setattr(CIFAR10, "url", f"{url}/cifar.tar.gz")
        assert choose_dataset("auto", tmp_path) == ("cifar10", None)

    fetch_dataset("cifar10", tmp_path)  # the server is gone
    found = load_dataset("cifar10", tmp_path)
    assert rows_of(found.train, found.validation) == cifar_rows()


@pytest.mark.parametrize("read", [lambda folder: choose_dataset("auto", folder), lambda folder: None])
def test_the_official_archive_is_taken_without_any_network(tmp_path, monkeypatch, cifar_archive, read):
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{closed_port()}/cifar.tar.gz")
    (tmp_path / CIFAR10.filename).write_bytes(cifar_archive)

    assert read(tmp_path) in (("cifar10", None), None)
    found = load_dataset("cifar10", tmp_path)

    assert rows_of(found.train, found.validation) == cifar_rows()
    assert sorted(path.name for path in tmp_path.iterdir()) == [CIFAR10.base_folder, CIFAR10.filename]


def test_an_archive_that_is_cut_short_is_named_and_nothing_is_unpacked(tmp_path, cifar_archive):
    path = tmp_path / CIFAR10.filename
    path.write_bytes(cifar_archive[:-100])

    with pytest.raises(DataDamaged) as refused:
        choose_dataset("auto", tmp_path)

    assert str(refused.value).startswith(f"{path} is damaged: its md5 is ")
    assert str(refused.value).endswith("; download it again")
    assert list(tmp_path.iterdir()) == [path]


def test_cifar100_has_the_fine_classes_of_its_files(tmp_path, monkeypatch):
    pixels = np.random.default_rng(1).integers(0, 256, (200, 3072), dtype=np.uint8)
    names = [f"class {number}" for number in range(20)]
    contents = {
        "train": {"data": pixels, "fine_labels": [n % 20 for n in range(200)], "coarse_labels": [0] * 200},
        "test": {"data": pixels[:20], "fine_labels": list(range(20)), "coarse_labels": [0] * 20},
        "meta": {"fine_label_names": names, "coarse_label_names": ["all"]},
    }
    (tmp_path / CIFAR100.base_folder).mkdir()
    md5 = {}
    for name, content in contents.items():
        written = pickle.dumps(content, protocol=2)
        (tmp_path / CIFAR100.base_folder / name).write_bytes(written)
        md5[name] = hashlib.md5(written).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5["meta"]})

    dataset, test = load_dataset("cifar100", tmp_path), load_test_split("cifar100", tmp_path)

    assert dataset.classes == tuple(names)
    assert (len(dataset.train), len(dataset.validation), dataset.augment) == (180, 20, "crop,flip")
    assert torch.bincount(dataset.validation.labels).tolist() == [1] * 20
    assert test.labels.tolist() == list(range(20))
    assert torch.equal(test.images[3].permute(2, 0, 1).reshape(-1), torch.from_numpy(pixels[3]))


def test_an_archive_that_is_not_cifar10_is_unavailable_and_leaves_no_data_set(tmp_path, monkeypatch, cifar_archive):
    with http_server({"/cifar.tar.gz": cifar_archive[:-100]}) as url:
        monkeypatch.setattr(CIFAR10, "url", f"{url}/cifar.tar.gz")
        name, reason = choose_dataset("auto", tmp_path)

    assert name == "digits"
    assert reason.startswith("cifar10 could not be downloaded: ")
    with pytest.raises(DataUnavailable):
        load_dataset("cifar10", tmp_path)


@pytest.fixture
def fashion_files(monkeypatch, tmp_path, fashion_checksums):
    """Make the four files of Fashion-MNIST, and let torchvision and us expect them."""
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    arrays = fashion_arrays()
    train = {f"{name}.gz": gzip.compress(idx(array), mtime=0) for name, array in arrays.items()}
    files = train | {name.replace("train", "t10k"): content for name, content in train.items()}
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    return {f"/{name}": content for name, content in files.items()}


def test_fashion_mnist_is_fetched_once_and_then_found(tmp_path, monkeypatch, fashion_files):
    with http_server(fashion_files) as url:
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"{url}/"])
        fetch_dataset("fashion_mnist", tmp_path)

    fetch_dataset("fashion_mnist", tmp_path)  # the server is gone
    assert len(load_dataset("fashion_mnist", tmp_path).train) == 108


def test_a_fetch_that_broke_off_is_taken_up_by_the_next(tmp_path, monkeypatch, fashion_files):
    first = next(iter(fashion_files))
    with http_server({first: fashion_files[first]}) as url:
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"{url}/"])
        with pytest.raises(DataUnavailable) as refused:
            fetch_dataset("fashion_mnist", tmp_path)
    assert str(refused.value) == "fashion_mnist could not be downloaded: HTTP Error 404: Not Found"
    refused.value.__cause__.close()

    with http_server(fashion_files) as url:
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"{url}/"])
        fetch_dataset("fashion_mnist", tmp_path)

    assert len(load_dataset("fashion_mnist", tmp_path).train) == 108


def test_a_fetch_leaves_the_time_limit_of_other_sockets_alone(tmp_path, monkeypatch, fashion_files):
    before = socket.getdefaulttimeout()
    with http_server(fashion_files) as url:
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"{url}/"])
        fetch_dataset("fashion_mnist", tmp_path)

    assert socket.getdefaulttimeout() == before
