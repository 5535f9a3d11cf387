"""Test how a worker waits that finds nothing to train."""

import pytest
import torch

from hpo.worker.registration import IdleBackoff, device_name, idle_poll_s
from hpo.worker.stop import StopSignal


@pytest.mark.parametrize(
    ("idle_s", "wait_s"), [(0.0, 0.5), (1.0, 0.5), (2.0, 0.5), (4.0, 1.0), (20.0, 5.0), (40.0, 10.0), (3600.0, 10.0)]
)
def test_a_worker_waits_a_quarter_of_the_time_that_it_has_been_idle(idle_s, wait_s):
    assert idle_poll_s(idle_s) == wait_s


def test_a_minute_of_idleness_costs_few_questions():
    idle_s, questions = 0.0, 0
    while idle_s < 60.0:
        idle_s += idle_poll_s(idle_s)
        questions += 1
    assert questions == 20


@pytest.mark.timeout(20)
def test_an_idle_worker_that_is_asked_to_stop_waits_no_longer():
    IdleBackoff(longest_s=3600.0, since_s=-3600.0).wait(StopSignal(reason="terminated"))


UUIDS = "GPU-5f2c1a00-1111-2222-3333-444455556666,MIG-0a1b2c3d-1111-2222-3333-444455556666"


@pytest.mark.parametrize(
    ("device", "visible", "name"),
    [
        ("cpu", "", "cpu"),
        ("cpu", UUIDS, "cpu"),
        ("cuda:1", "", "cuda:1"),
        ("cuda:0", "3", "cuda:3"),
        ("cuda:1", "3, 5", "cuda:5"),
        ("cuda:0", UUIDS, UUIDS.split(",")[0]),
        ("cuda:1", UUIDS, UUIDS.split(",")[1]),
    ],
)
def test_a_worker_names_its_device_so_that_it_differs_from_the_others_of_the_machine(device, visible, name):
    assert device_name(torch.device(device), visible) == name
