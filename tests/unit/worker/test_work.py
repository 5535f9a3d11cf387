"""Test what an exception in training means for its trial."""

import pytest
import torch

from hpo.database.attempt import Loss, Outcome
from hpo.worker.work import is_error, judge

FULL = "CUDA out of memory. Tried to allocate 2.00 MiB"


def caught(error):
    try:
        raise error
    except type(error) as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "device"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "cpu"),
        (RuntimeError("shapes cannot be multiplied"), "cuda"),
        (torch.OutOfMemoryError(FULL), "cpu"),
        (MemoryError("none left"), "cuda"),
        (ZeroDivisionError("division by zero"), "cpu"),
    ],
)
def test_an_exception_on_a_device_that_computes_fails_the_trial(error, device):
    outcome = judge(caught(error), torch.device(device), 7)

    assert isinstance(outcome, Outcome)
    reason = f"failed: {type(error).__name__}: {error} (test_work.py:14)"
    assert (outcome.state, outcome.value, outcome.attrs) == ("failed", None, {"outcome": reason, "iterations": 7})


def test_memory_that_neighbours_took_ends_the_attempt_alone():
    loss = judge(caught(torch.OutOfMemoryError(FULL)), torch.device("cuda", 3), 7)

    assert loss == Loss(kind="device full", reason=f"OutOfMemoryError: {FULL} (test_work.py:14)")


@pytest.mark.parametrize(
    ("outcome", "looked_at"),
    [
        ("stopped", False),
        ("parked", False),
        (Outcome(state="complete", value=0.5, attrs={}), False),
        (Outcome(state="pruned", value=0.5, attrs={}), False),
        (Outcome(state="failed", value=None, attrs={}), True),
        (Loss(kind="device full", reason=FULL), True),
    ],
)
def test_the_device_is_looked_at_after_an_exception_alone(outcome, looked_at):
    assert is_error(outcome) == looked_at
