"""Test that a worker's self-check is made once, and that only what has passed is remembered."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hpo.training.numerics import numerics
from hpo.worker import self_check
from hpo.worker.self_check import check_once, checkpoints_if_sound, find_cache, key_of

CPU = torch.device("cpu")
HERE = numerics(CPU, "fp32")


class Counted:
    """A check with a given result that counts its calls."""

    def __init__(self, result=None):
        self.result, self.calls = result, 0

    def __call__(self, *_args):
        self.calls += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize(("result", "calls"), [(None, 1), ("a bit differs", 2)])
def test_only_a_passed_check_is_remembered(tmp_path, result, calls):
    check = Counted(result)

    assert [check_once("key", tmp_path / "cache", check) for _ in range(2)] == [result, result]
    assert check.calls == calls
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == (["key"] if result is None else [])


@pytest.mark.parametrize("place", [None, "file/cache", "file"], ids=["no home", "below a file", "a file"])
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, place):
    (tmp_path / "file").touch()
    check = Counted()

    assert [check_once("key", place and tmp_path / place, check) for _ in range(2)] == [None, None]
    assert check.calls == 2


def test_two_workers_that_start_at_once_check_both_and_remember_it_once(tmp_path):
    second = Counted()

    def first():
        return check_once("key", tmp_path, second)  # the other worker is through before this one has ended

    assert check_once("key", tmp_path, first) is None
    assert second.calls == 1
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize(
    "other",
    [
        (replace(HERE, precision="bf16"), "host", "cpu"),
        (replace(HERE, processor="another"), "host", "cpu"),
        (replace(HERE, libraries="DNNL_X=1"), "host", "cpu"),
        (replace(HERE, threads=7), "host", "cpu"),
        (replace(HERE, torch_version="3"), "host", "cpu"),
        (HERE, "another", "cpu"),
        (HERE, "host", "GPU-1"),
    ],
)
def test_a_check_counts_only_for_the_same_numerics_machine_and_device(other):
    assert key_of(*other) != key_of(HERE, "host", "cpu") == key_of(replace(HERE), "host", "cpu")


@pytest.mark.parametrize("name", ["__version__", "FORMAT"])
def test_a_check_counts_only_for_the_same_release(monkeypatch, name):
    before = key_of(HERE, "host", "cpu")
    monkeypatch.setattr(self_check, name, "another")

    assert key_of(HERE, "host", "cpu") != before


def test_a_user_without_a_home_folder_has_no_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert find_cache() == Path("/cache/hpo/self-check")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("hpo.settings.expand", lambda _text: (_ for _ in ()).throw(self_check.BadInput("no home")))
    assert find_cache() is None


@pytest.mark.parametrize(
    ("result", "shares", "message"),
    [
        (None, True, None),
        (torch.OutOfMemoryError("no room\nmore"), True, "device cpu: no memory for the self-check (no room)"),
        (
            "in a new process: a bit differs",
            False,
            "device cpu does not repeat training bit for bit in fp32 (in a new process: a bit differs); trials are "
            "trained from their start here, without checkpoints; `hpo doctor` checks the machine",
        ),
    ],
    ids=["sound", "no memory", "broken"],
)
def test_checkpoints_are_shared_only_where_nothing_speaks_against_it(
    monkeypatch, tmp_path, caplog, result, shares, message
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(self_check, "find_broken", Counted(result))
    checkpoints = object()

    assert checkpoints_if_sound(CPU, "fp32", checkpoints) is (checkpoints if shares else None)
    assert [record.getMessage() for record in caplog.records] == ([message] if message else [])


def test_a_worker_that_shares_nothing_checks_nothing(monkeypatch):
    check = Counted()
    monkeypatch.setattr(self_check, "find_broken", check)

    assert (checkpoints_if_sound(CPU, "fp32", None), check.calls) == (None, 0)
