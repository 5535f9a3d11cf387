"""Test that a training is seen to break the promise of equal bits when one bit of it is disturbed."""

from dataclasses import replace

import pytest
import torch

from hpo.training.train import Measurement, Training
from hpo.trial import promise
from hpo.trial.checkpoints import decode, encode
from hpo.trial.promise import SHORT, Walked, find_broken, find_difference, usable_precisions
from tests.disturbance import DISTURBED, one_bit_off

CPU = torch.device("cpu")


def test_the_promise_holds_on_this_machine():
    assert find_broken(CPU, "fp32", SHORT) is None


def test_one_bit_of_a_checkpoint_is_seen(monkeypatch):
    monkeypatch.setattr(promise, "decode", lambda content: one_bit_off(decode(content)))

    assert find_broken(CPU, "fp32", SHORT).startswith("interrupted at iterations 1, 4 and 5: ")


@pytest.mark.slow
def test_one_bit_of_a_step_is_seen(monkeypatch):
    trainings = []

    class Disturbed(Training):
        def advance(self, until, *args):
            trainings.append(self)
            if len(trainings) == 2:  # the first step after the training that is not interrupted
                self.restore(one_bit_off(self.state()))
            return super().advance(until, *args)

    monkeypatch.setattr(promise, "Training", Disturbed)

    assert find_broken(CPU, "fp32", SHORT).startswith("interrupted at iterations 1, 4 and 5: ")


def test_another_process_with_another_bit_is_seen(monkeypatch):
    walks = []

    def walk(*_args):
        walks.append(Walked(content=b"same", measured=MEASURED))
        return walks[-1]

    monkeypatch.setattr(promise, "walk", walk)
    monkeypatch.setattr(promise, "find_difference", lambda ours, theirs: None if theirs in walks else "a bit differs")
    other = Walked(content=b"other", measured=MEASURED)

    assert find_broken(CPU, "fp32", SHORT, other) == "in a new process: a bit differs"


MEASURED = Measurement(loss=2.0, accuracy=0.5, images=8)


@pytest.fixture(scope="module")
def end():
    training = Training(promise.check_recipe(CPU), promise.synthetic_images(CPU), "fp32")
    training.advance(1)
    return Walked(content=encode(training.state()), measured=MEASURED)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda state: state, None),
        (one_bit_off, "1 of 432 numbers of the weight conv.weight differ"),
        (
            lambda state: replace(state, momentum=state.momentum | {DISTURBED: state.momentum[DISTURBED] * 2}),
            "432 of 432 numbers of the momentum conv.weight differ",
        ),
        (lambda state: replace(state, loss_sum=1.0, loss_count=3), "loss_sum is 1.0 instead of 2.5"),
        (lambda state: replace(state, correct_count=9), "correct_count is 9 instead of 1"),
    ],
    ids=["nothing", "one bit", "momentum", "loss", "count"],
)
def test_what_differs_first_is_said(end, change, what):
    state = replace(decode(end.content), loss_sum=2.5, correct_count=1)
    expected = replace(end, content=encode(state))

    assert find_difference(expected, replace(end, content=encode(change(state)))) == what


def test_another_evaluation_of_the_same_state_is_said(end):
    other = replace(MEASURED, loss=2.5)

    assert find_difference(end, replace(end, measured=other)) == f"the evaluation is {other} instead of {MEASURED}"


@pytest.mark.parametrize(
    ("device", "bf16", "wanted"),
    [
        ("cpu", False, ("fp32",)),
        ("cpu", True, ("fp32", "bf16")),
        ("cuda", False, ("fp32",)),
        ("cuda", True, ("fp32", "tf32", "bf16")),
    ],
)
def test_only_native_precisions_are_checked(monkeypatch, device, bf16, wanted):
    monkeypatch.setattr(promise, "computes_bf16", lambda _device: bf16)

    assert sorted(usable_precisions(torch.device(device))) == sorted(wanted)
