"""Check what the keys of segments tell apart, and how states are written."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from hpo.errors import ArtifactDamaged
from hpo.recipes.recipe import Recipe, documented_runs
from hpo.recipes.schedule import Evaluation, evaluation, learning_rate
from hpo.recipes.space_file import load_space
from hpo.settings import default_augment
from hpo.training.data import Split, split_dataset
from hpo.training.numerics import Numerics
from hpo.training.train import Training
from hpo.trial.checkpoints import decode, encode
from hpo.trial.segments import Segment, cut_path, segment_at, segment_of, segments

BUDGET = 64
NUMERICS = Numerics(
    device_type="cpu",
    processor="AuthenticAMD 25-17",
    libraries="no variables set",
    precision="fp32",
    threads=1,
    torch_version="2.14.1",
)
PLAN = evaluation(BUDGET, 16, 20)
RECIPE = Recipe(
    head="dropout",
    dropout=0.5,
    shortcut_norm=True,
    boundaries=(20000, 40000),
    values=(0.1, 0.01, 0.001),
    batch_size=16,
    iterations=BUDGET,
)

boundaries = st.sets(st.integers(1, 31), min_size=1, max_size=4).map(lambda s: tuple(2000 * b for b in sorted(s)))


@st.composite
def recipes(draw):
    found = draw(boundaries)
    rates = st.sampled_from((0.1, 0.01))
    values = tuple(draw(st.lists(rates, min_size=len(found) + 1, max_size=len(found) + 1)))
    return replace(RECIPE, boundaries=found, values=values)


def state_name(path: tuple[Segment, ...], iteration: int) -> tuple[str, int]:
    """Name a state as the index of checkpoints does."""
    return segment_of(path, iteration).key, iteration


@pytest.mark.parametrize(
    ("name", "shape", "key"),
    [
        ("cifar10", (32, 32, 3), "bc72743fe79e6ba03c3003f4a0363696f90058e7da4f0565157c6f1e282e1ab3"),
        ("fashion_mnist", (28, 28, 1), "0ff3e3b41be028c6dd089a77bad1f723d2acaefbcb306d8e8e45d718104a75d0"),
        ("digits", (8, 8, 1), "23eb27a71de36960c3fa554a8ba98adb5adfc198d836fdebb935d9af8750dbee"),
    ],
)
def test_keys_are_those_of_the_checkpoints_that_earlier_versions_left(name, shape, key):
    images = torch.arange(200).to(torch.uint8)[:, None, None, None].expand(200, *shape).contiguous()
    whole = Split(images=images, labels=torch.arange(200) % 10)
    augments = ("none", "crop", "crop,flip")
    keys = {}
    for augment in augments:
        dataset = split_dataset(name, whole, classes=tuple("0123456789"), augment=augment)
        keys[augment] = segments(RECIPE, dataset, PLAN, NUMERICS)[0].key

    assert keys[default_augment(name, shape[2])] == key
    assert len(set(keys.values())) == 3, "augmentation is part of the key"


@given(recipes(), recipes())
def test_two_recipes_share_a_state_just_where_their_rates_were_equal_up_to_it(few_digits, one, other):
    paths = [segments(recipe, few_digits, PLAN, NUMERICS) for recipe in (one, other)]
    rates = [[learning_rate(recipe, t) for t in range(BUDGET)] for recipe in (one, other)]
    for t in range(1, BUDGET + 1):
        same_rates = rates[0][:t] == rates[1][:t]
        assert (state_name(paths[0], t) == state_name(paths[1], t)) == same_rates, t


@given(recipes())
def test_segments_join_from_the_start_to_the_budget(few_digits, recipe):
    path = segments(recipe, few_digits, PLAN, NUMERICS)
    assert [s.start for s in path] == [0, *(s.end for s in path[:-1])]
    assert path[-1].end == BUDGET
    assert all(segment_at(path, s.start) == s == segment_of(path, s.end) for s in path)


@pytest.mark.parametrize(
    "change",
    [
        {"head": "linear"},
        {"head": "dense"},
        {"dropout": 0.4},
        {"shortcut_norm": False},
        {"batch_size": 32},
        {"momentum": 0.8},
        {"weight_decay": 1e-4},
        {"depth": 32},
        {"nesterov": True},
        {"label_smoothing": 0.1},
        {"seed": 1},
        {"values": (0.2, 0.01, 0.001)},
    ],
)
def test_what_determines_the_first_state_changes_the_first_key(few_digits, change):
    first = segments(RECIPE, few_digits, PLAN, NUMERICS)[0].key
    assert segments(replace(RECIPE, **change), few_digits, PLAN, NUMERICS)[0].key != first


KEYS_OF_EARLIER_RELEASES = {  # of the first segments, without data, numerics and evaluations
    "baseline": "e91209a6de3dfed6e651b19f2f58bb20507377bc957233593c1d78bc7a5595ba",
    "dense_early_stopping": "f8441c9cc0f00ddf7692f79940f2b4042710d9a0d20c7c8553286eb6bfbba4cc",
    "dense": "f8441c9cc0f00ddf7692f79940f2b4042710d9a0d20c7c8553286eb6bfbba4cc",
    "dropout": "fdc74895562ba928bd29b9acfbcaebd24c1307ff12e2486273100fb9b20b3e81",
    "smooth_lr": "fdc74895562ba928bd29b9acfbcaebd24c1307ff12e2486273100fb9b20b3e81",
}


@pytest.mark.parametrize("name", KEYS_OF_EARLIER_RELEASES)
def test_checkpoints_of_earlier_releases_are_found_by_the_keys_that_they_had(name):
    assert cut_path(documented_runs()[name].recipe, {})[0].key == KEYS_OF_EARLIER_RELEASES[name]


def test_the_keys_of_another_optimizer_are_those_of_earlier_releases_too():
    recipe = replace(documented_runs()["baseline"].recipe, momentum=0.8, weight_decay=5e-4, batch_size=64)

    assert [segment.key for segment in cut_path(recipe, {})] == [
        "43b5a25cc8a68c7e1743340f629dba88afb458d2a79fd90d4b31ebd44b885277",
        "011254697ce4109158bc06f3d0705d65df40a6bbd4f069b4a4847ec3a7051837",
        "9ee452893e8866cd9a690f2875678a6d4996904dbc62758600900f169cfb21ad",
    ]


def test_the_base_recipe_of_the_modern_space_trains_as_documented_run_1_does():
    assert cut_path(load_space("modern").base_recipe, {}) == cut_path(documented_runs()["baseline"].recipe, {})


@pytest.mark.parametrize(
    "change", [{"early_stopping": 5000}, {"boundaries": (20000, 50000)}, {"values": (0.1, 0.02, 0.001)}]
)
def test_what_comes_later_or_only_cuts_short_does_not_change_the_first_key(few_digits, change):
    first = segments(RECIPE, few_digits, PLAN, NUMERICS)[0].key
    assert segments(replace(RECIPE, **change), few_digits, PLAN, NUMERICS)[0].key == first


@pytest.mark.parametrize(
    "other",
    [
        replace(NUMERICS, device_type="cuda"),
        replace(NUMERICS, precision="bf16"),
        replace(NUMERICS, processor="GenuineIntel 6-143"),
        replace(NUMERICS, libraries="ONEDNN_MAX_CPU_ISA=AVX2"),
        replace(NUMERICS, threads=2),
        replace(NUMERICS, torch_version="2.9.0"),
    ],
)
def test_other_numerics_share_nothing(few_digits, other):
    ours, theirs = (segments(RECIPE, few_digits, PLAN, found) for found in (NUMERICS, other))
    assert {s.key for s in ours}.isdisjoint(s.key for s in theirs)


def test_other_data_or_another_evaluation_plan_share_nothing(few_digits):
    ours = {s.key for s in segments(RECIPE, few_digits, PLAN, NUMERICS)}
    other_data = replace(few_digits, checksum="0" * 64)
    other_plan = Evaluation(iterations=PLAN.iterations, images=PLAN.images - 1)
    assert ours.isdisjoint(s.key for s in segments(RECIPE, other_data, PLAN, NUMERICS))
    assert ours.isdisjoint(s.key for s in segments(RECIPE, few_digits, other_plan, NUMERICS))


@pytest.mark.parametrize("iteration", [0, 3])
def test_a_state_is_read_back_as_it_was_written(few_digits, iteration):
    training = Training(RECIPE, few_digits, "fp32")
    training.advance(iteration)
    written = training.state()
    read = decode(encode(written))
    assert (read.iteration, read.loss_sum, read.loss_count) == (iteration, written.loss_sum, iteration)
    assert read.correct_count == written.correct_count
    for ours, theirs in ((written.weights, read.weights), (written.momentum, read.momentum)):
        assert sorted(ours) == sorted(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_of_a_release_that_counted_no_correct_images_is_read_and_keeps_its_bytes(few_digits):
    training = Training(RECIPE, few_digits, "fp32")
    training.advance(2)
    content = encode(replace(training.state(), correct_count=None))

    assert b"correct" not in content
    assert decode(content).correct_count is None
    assert encode(decode(content)) == content


def test_a_checkpoint_takes_at_most_2_3_megabytes(few_digits):
    training = Training(RECIPE, few_digits, "fp32")
    training.advance(1)
    assert 2_000_000 < len(encode(training.state())) < 2_300_000


WEIGHTS = {"weights/a": torch.zeros(2)}
FACTS = {"iteration": 3, "loss_sum": "0x1.8p+1", "loss_count": 3}


def metadata(**changed):
    return {"state": json.dumps(FACTS | changed)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no tensors",
        b"\x80\x04pickle",
        save(WEIGHTS),
        save(WEIGHTS, {"state": "null"}),
        save(WEIGHTS, {"state": "[" * 100_000}),
        save(WEIGHTS, {"other": json.dumps(FACTS)}),
        save({"a": torch.zeros(2)}, metadata()),
        save({"else/a": torch.zeros(2)}, metadata()),
        save(WEIGHTS, metadata(iteration=None)),
        save(WEIGHTS, metadata(iteration="3")),
        save(WEIGHTS, metadata(iteration=3.0)),
        save(WEIGHTS, metadata(loss_count=True)),
        save(WEIGHTS, metadata(loss_sum=3.0)),
        save(WEIGHTS, metadata(loss_sum="three")),
        save(WEIGHTS, metadata(loss_sum="0x1p+9999")),
        save(WEIGHTS, metadata())[:-1],
        save(WEIGHTS, metadata()) + b"x",
    ],
)
def test_what_is_no_checkpoint_is_refused(content):
    with pytest.raises(ArtifactDamaged, match="it is not a training state"):
        decode(content)


@given(st.integers(0, 300), st.binary(min_size=1, max_size=8))
def test_a_file_that_was_changed_anywhere_is_read_or_refused(place, written):
    content = bytearray(save(WEIGHTS, metadata()))
    content[place : place + len(written)] = written
    try:
        state = decode(bytes(content))
    except ArtifactDamaged:
        return
    assert isinstance(state.iteration, int)
    assert isinstance(state.loss_sum, float)
