"""Test the watch over workers with places that are made up."""

from dataclasses import dataclass, field

import pytest

from hpo.errors import StudyFailed
from hpo.launch import supervise
from hpo.launch.supervise import MAX_RESTARTS, Ended, Workers, waiting_note
from hpo.settings import StudySettings
from hpo.study import continue_or_create
from hpo.worker.stop import StopSignal

SETTINGS = StudySettings(
    space={"name": "small", "base": "smooth_lr", "search": {}},
    dataset="digits",
    split="0",
    iterations=32,
    seed=0,
    precision="fp32",
    sampler="random",
    pruner="none",
    align="phase",
)


@dataclass
class Slot:
    """Be a place whose worker ends as it is told, and remember what it was asked to do."""

    ends: list[Ended | None]
    name: str = "slot"
    worker: str = ""
    output: str = "slot.log"
    asked: list[str] = field(default_factory=list)

    def start(self):
        self.asked.append("start")

    def waits(self):
        return False

    def poll(self):
        return self.ends.pop(0)

    def ask_to_end(self):
        self.asked.append("ask to end")

    def end(self, limit_s):
        assert limit_s <= supervise.TERMINATE_S
        self.asked.append("end")


@pytest.fixture
def workers(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(supervise, "POLL_S", 0.0)
    made = continue_or_create(opened(f"sqlite:///{tmp_path}/hpo.db"), "small", SETTINGS, 1)
    return lambda *slots: Workers(made, slots, "", "all.log")


def test_a_worker_that_keeps_dying_is_given_up_with_the_reason_and_all_are_ended(workers):
    broken = Slot([Ended(False, f"with code {code}") for code in range(1, 9)])
    fine = Slot([None] * 9)

    with pytest.raises(StudyFailed) as given_up:
        workers(fine, broken).run(StopSignal(), lambda *_: None)

    times = MAX_RESTARTS + 1
    assert str(given_up.value) == (
        f"the worker on slot died {times} times in a row, last with code {times}; its output is in slot.log"
    )
    assert broken.asked == ["start"] * times + ["ask to end", "end"]
    assert fine.asked == ["start", "ask to end", "end"]


def watch(workers, looks, *slots):
    """Look so often, then end all, and give what was seen."""
    stop = StopSignal()
    seen = []

    def look(counts, note):
        seen.append((counts.waiting, note))
        stop.reason = "timed out" if len(seen) == looks else ""

    workers(*slots).run(stop, look)
    return seen


def test_a_worker_that_ended_in_order_is_not_started_again_while_another_works(workers):
    ended, fine = Slot([Ended(True, "with code 0")] * 9), Slot([None] * 9)

    seen = watch(workers, 3, ended, fine)

    assert seen == [(1, "")] * 3
    assert ended.asked == ["start", "ask to end", "end"]


def test_workers_that_ended_with_a_stop_which_their_driver_missed_are_started_again(workers):
    slots = [Slot([Ended(True, "with code 0"), None, None]) for _ in range(2)]

    watch(workers, 3, *slots)

    assert [slot.asked for slot in slots] == [["start", "start", "ask to end", "end"]] * 2


@pytest.mark.parametrize(
    ("waiting", "note"),
    [([], ""), ([False, False], ""), ([True, False, True], "2 of 3 workers wait for room")],
)
def test_who_waits_for_room_is_told(waiting, note):
    assert waiting_note(waiting) == note
