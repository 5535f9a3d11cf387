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
    image_shape=(8, 8, 1),
    classes=10,
    augment="crop",
    iterations=32,
    seed=0,
    precision="fp32",
    sampler="random",
    pruner="none",
    align="phase",
)


@dataclass(eq=False)
class Slot:
    """A place whose worker ends as it is told, and that remembers what it was asked to do."""

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


def watch(workers, looks, *slots):
    """Look so often, then end all, and give what was seen."""
    stop = StopSignal()
    seen = []

    def look(counts, note):
        seen.append((counts.waiting, note))
        stop.reason = "timed out" if len(seen) == looks else ""

    workers(*slots).run(stop, look)
    return seen


DIED = MAX_RESTARTS + 1
LAST = "the worker on {} died 4 times in a row, last with code 4; its output is in slot.log"


def dying():
    """List the ends of a worker that dies at every look, each time with another code."""
    return [Ended(False, f"with code {code}") for code in range(1, 9)]


def test_a_place_whose_worker_keeps_dying_is_given_up_with_a_warning_and_the_others_go_on(workers, caplog):
    broken, fine = Slot(dying(), "broken"), Slot([None] * 9)

    seen = watch(workers, DIED + 3, fine, broken)

    assert len(seen) == DIED + 3
    assert broken.asked == ["start"] * DIED + ["ask to end", "end"]
    assert fine.asked == ["start", "ask to end", "end"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{LAST.format('broken')}; no more workers are started there, 1 devices remain"
    ]


def test_the_others_are_started_again_after_a_stop_although_a_place_was_given_up(workers):
    ended = Slot([None] * DIED + [Ended(True, "with code 0"), None])

    watch(workers, DIED + 2, Slot(dying()), ended)

    assert ended.asked == ["start", "start", "ask to end", "end"]


@pytest.mark.parametrize(
    ("names", "message"),
    [(["one"], LAST.format("one")), (["one", "other"], f"{LAST.format('other')}; no other device remains")],
)
def test_a_study_fails_when_no_place_is_left_and_all_are_ended(workers, names, message):
    slots = [Slot(dying(), name) for name in names]

    with pytest.raises(StudyFailed) as given_up:
        workers(*slots).run(StopSignal(), lambda *_: None)

    assert str(given_up.value) == message
    assert [slot.asked for slot in slots] == [["start"] * DIED + ["ask to end", "end"]] * len(slots)


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
    [([], ""), ([False, False], ""), ([True, False, True], "waiting for room: 2 of 3 workers")],
)
def test_who_waits_for_room_is_told(waiting, note):
    assert waiting_note(waiting) == note
