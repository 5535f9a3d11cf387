"""Test what is believed of a note that lists checkpoints, and what is not."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import ArtifactDamaged
from hpo.recipes.schedule import CurvePoint
from hpo.trial.checkpoint_note import SavedCheckpoint, _sign, lies_on, note_name, read_note, write_note
from hpo.trial.segments import Segment

KEY = bytes(range(32))
PATH = (Segment(key="a" * 64, start=0, end=20), Segment(key="b" * 64, start=20, end=32))
EVALUATED = (8, 16, 24, 32)
NAME = note_name(PATH, KEY)


def point(iteration, **changed):
    return CurvePoint(**({"iteration": iteration, "train_loss": 2.0, "val_loss": 1.5, "val_accuracy": 0.5} | changed))


SAVED = SavedCheckpoint(
    segment="b" * 64,
    iteration=25,
    curve=(point(8), point(16), point(24)),
    artifact_id="01234567-89ab-4cde-8f01-23456789abcd",
    size_bytes=2_000_000,
    sha256="c" * 64,
)
ROW = json.loads(json.dumps(asdict(SAVED)))


def signed(text):
    return f"{_sign(NAME, KEY, text)}\n{text}".encode()


def test_a_note_is_read_as_it_was_written():
    assert read_note(NAME, write_note(NAME, [SAVED, SAVED], KEY), KEY) == [SAVED, SAVED]


@pytest.mark.parametrize(
    "forged",
    [
        json.dumps([ROW]).encode(),
        b"\n" + json.dumps([ROW]).encode(),
        write_note(NAME, [SAVED], bytes(32)),
        write_note("unindexed-other", [SAVED], KEY),
        write_note(NAME, [SAVED], KEY).replace(b"0.5", b"0.9"),
        write_note(NAME, [SAVED], KEY)[:-1],
        write_note(NAME, [SAVED], KEY) + b" ",
        b"null",
        b"",
        "ü".encode("latin-1"),
        b"[" * 100_000,
    ],
)
def test_what_no_worker_of_the_database_signed_is_not_believed(forged):
    with pytest.raises(ArtifactDamaged, match="its signature is wrong"):
        read_note(NAME, forged, KEY)


@given(st.binary())
def test_no_other_content_is_believed(content):
    with pytest.raises(ArtifactDamaged, match="its signature is wrong"):
        read_note(NAME, content, KEY)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("null", "valid array"),
        ("7", "valid array"),
        ("[" * 100_000, "recursion limit"),
        ("[null]", "0: "),
        ("[", "EOF"),
        (json.dumps([ROW | {"iteration": 10**30}]), "0.iteration: "),
        (json.dumps([ROW | {"iteration": 0}]), "0.iteration: "),
        (json.dumps([ROW | {"iteration": "25"}]), "0.iteration: "),
        (json.dumps([ROW | {"iteration": True}]), "0.iteration: "),
        (json.dumps([ROW | {"size_bytes": -1}]), "0.size_bytes: "),
        (json.dumps([ROW | {"artifact_id": "../../hpo.db"}]), "0.artifact_id: "),
        (json.dumps([ROW | {"sha256": "C" * 64}]), "0.sha256: "),
        (json.dumps([ROW | {"segment": ""}]), "0.segment: "),
        (json.dumps([ROW | {"curve": None}]), "0.curve: "),
        (json.dumps([ROW | {"curve": [{"iteration": 8}]}]), "0.curve.0.train_loss: "),
        (json.dumps([{name: value for name, value in ROW.items() if name != "sha256"}]), "0.sha256: "),
    ],
)
def test_what_is_signed_and_of_another_form_is_refused_with_the_place(text, why):
    with pytest.raises(ArtifactDamaged, match=why):
        read_note(NAME, signed(text), KEY)


@pytest.mark.parametrize(
    ("changed", "fits"),
    [
        ({}, True),
        ({"iteration": 31}, True),
        ({"iteration": 32}, False),  # without its last point
        ({"iteration": 32, "curve": (*SAVED.curve, point(32))}, True),
        ({"iteration": 33, "curve": (*SAVED.curve, point(32))}, False),
        ({"iteration": 20, "segment": "a" * 64, "curve": SAVED.curve[:2]}, True),
        ({"iteration": 20, "curve": SAVED.curve[:2]}, False),
        ({"segment": "a" * 64}, False),
        ({"curve": ()}, False),
        ({"curve": (point(8), point(24))}, False),
        ({"curve": (point(16), point(8), point(24))}, False),
        ({"curve": (*SAVED.curve, point(32, val_accuracy=0.999))}, False),
        ({"curve": (*SAVED.curve[:2], point(24, val_accuracy=1.0, val_loss=0.0))}, True),
        ({"curve": (*SAVED.curve[:2], point(24, val_accuracy=1.001))}, False),
        ({"curve": (*SAVED.curve[:2], point(24, val_accuracy=-0.001))}, False),
        ({"curve": (*SAVED.curve[:2], point(24, val_loss=-0.001))}, False),
        ({"curve": (*SAVED.curve[:2], point(24, val_loss=float("inf")))}, False),
        ({"curve": (*SAVED.curve[:2], point(24, train_loss=float("nan")))}, False),
    ],
)
def test_a_checkpoint_belongs_to_a_recipe_with_its_whole_curve_alone(changed, fits):
    assert lies_on(replace(SAVED, **changed), PATH, EVALUATED) is fits


def test_databases_that_share_a_store_have_notes_of_their_own():
    assert len({note_name(PATH, KEY), note_name(PATH, bytes(32)), note_name(PATH[:1], KEY)}) == 3
