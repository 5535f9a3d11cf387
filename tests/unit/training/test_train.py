"""Test training: that any state leads on as an uninterrupted walk would, bit for bit, and that it learns."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from hpo.recipes.recipe import documented_runs
from hpo.recipes.schedule import learning_rate
from hpo.training.data import normalise
from hpo.training.numerics import native_precision
from hpo.training.train import Training

# 180 images to train: an epoch has 9 steps. The rate drops after steps 8 and 12.
RECIPE = replace(
    documented_runs()["baseline"].recipe, boundaries=(16_000, 24_000), batch_size=20, iterations=32, seed=5
)
HEADS = {"linear": 0.0, "dropout": 0.5, "dense": 0.5}
MEASURED_EVERY = 5
VALIDATION_SUBSET = 7


def recipe_of(head, **changed):
    return replace(RECIPE, head=head, dropout=HEADS[head], **changed)


def walk(training, until):
    """Train on, measuring now and then."""
    curve = []
    while training.iteration < until:
        target = min(until, training.iteration - training.iteration % MEASURED_EVERY + MEASURED_EVERY)
        training.advance(target)
        if target % MEASURED_EVERY == 0:
            curve.append(training.measure(VALIDATION_SUBSET))
    return curve


def walk_with_stops(recipe, dataset, precision, until, stops):
    """Train the same, leaving everything but the state behind at each stop."""
    training, curve = Training(recipe, dataset, precision), []
    for stop in (*stops, until):
        curve += walk(training, stop)
        state = training.state()
        training = Training(recipe, dataset, precision)
        training.advance(1)  # a training that stands elsewhere is brought to the state as well as a new one
        training.restore(state)
    return training, curve


def assert_same_state(one, other):
    for sums in ("iteration", "loss_sum", "loss_count", "correct_count"):
        assert getattr(one, sums) == getattr(other, sums), sums
    for part in ("weights", "momentum"):
        found, expected = getattr(one, part), getattr(other, part)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype == expected[name].dtype, name
            assert torch.equal(tensor, expected[name]), name


def same_weights(one, other):
    return all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())


@pytest.mark.parametrize(
    ("head", "precision", "until", "stops", "changed"),
    [
        ("linear", "fp32", 20, (1, 8, 9, 10, 13), {}),
        ("dropout", "fp32", 20, (1, 8, 9, 10, 13), {}),
        ("dense", "fp32", 20, (1, 8, 9, 10, 13), {}),
        ("dense", "fp32", 6, (0, 3), {"momentum": 0.0}),
        ("dense", "fp32", 4, (1,), {"weight_decay": 1e-4, "batch_size": 500}),
        ("linear", "fp32", 4, (1, 3), {"depth": 8, "nesterov": True}),
        ("dense", "bf16", 4, (1, 3), {"depth": 8, "nesterov": True, "weight_decay": 5e-4, "label_smoothing": 0.1}),
        ("linear", "bf16", 6, (3,), {}),
        ("dropout", "bf16", 6, (3,), {}),
        ("dense", "bf16", 6, (3,), {}),
    ],
)
def test_a_walk_with_stops_is_the_walk_without_bit_for_bit(few_digits, head, precision, until, stops, changed):
    recipe = recipe_of(head, **changed)
    straight = Training(recipe, few_digits, precision)
    curve = walk(straight, until)

    stopped, curve_with_stops = walk_with_stops(recipe, few_digits, precision, until, stops)

    assert curve_with_stops == curve
    assert_same_state(stopped.state(), straight.state())
    assert (
        straight.state().momentum.keys()
        == ({} if recipe.momentum == 0 else dict(straight.model.named_parameters())).keys()
    )


@pytest.fixture(scope="module")
def dense_walk(few_digits):
    """Walk 6 steps without a stop."""
    training = Training(recipe_of("dense"), few_digits, "fp32")
    return walk(training, 6), training.state()


@pytest.mark.slow
@settings(max_examples=6, phases=[Phase.generate])  # to shrink a failure takes minutes
@given(stops=st.sets(st.integers(0, 6), max_size=3).map(sorted))
def test_wherever_a_walk_stops_it_ends_in_the_same_state(few_digits, dense_walk, stops):
    curve, state = dense_walk

    stopped, curve_with_stops = walk_with_stops(recipe_of("dense"), few_digits, "fp32", 6, stops)

    assert curve_with_stops == curve
    assert_same_state(stopped.state(), state)


# What the fields that can be searched may be, on a small network.
recipes = st.builds(
    recipe_of,
    st.sampled_from(sorted(HEADS)),
    depth=st.sampled_from([8, 14]),
    batch_size=st.sampled_from([10, 20, 45]),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    nesterov=st.booleans(),
    weight_decay=st.sampled_from([0.0, 1e-4, 1e-2]),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.3]),
    boundaries=st.just((2_000, 8_000)),  # a warm-up of one step
    values=st.tuples(st.sampled_from([0.01, 0.1]), st.sampled_from([0.05, 0.1]), st.just(0.01)),
)


@pytest.mark.slow
@settings(max_examples=12, phases=[Phase.generate])
@given(recipe=recipes, stops=st.sets(st.integers(0, 6), max_size=2).map(sorted))
def test_whatever_is_searched_a_walk_with_stops_is_the_walk_without_bit_for_bit(few_digits, recipe, stops):
    straight = Training(recipe, few_digits, "fp32")
    curve = walk(straight, 6)

    stopped, curve_with_stops = walk_with_stops(recipe, few_digits, "fp32", 6, stops)

    assert curve_with_stops == curve
    assert_same_state(stopped.state(), straight.state())


def by_hand(recipe, dataset, steps):
    """Train with the formulas of `torch.optim.SGD`'s documentation, one operation at a time."""
    training = Training(recipe, dataset, "fp32")
    parameters = list(training.model.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    training.model.train()
    order = training._batches.order(training._seeded("order", 0))
    for step in range(steps):
        images, labels = training._batches.draw(order[step], training._seeded("iteration", step))
        log_likelihoods = training.model(images).log_softmax(1)
        true = nn.functional.one_hot(labels, 10)
        target = (1 - recipe.label_smoothing) * true + recipe.label_smoothing / 10
        loss = -(target * log_likelihoods).sum(1).mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient, velocity in zip(parameters, gradients, velocities, strict=True):
                decayed = gradient + recipe.weight_decay * parameter
                velocity.mul_(recipe.momentum).add_(decayed)
                direction = decayed + recipe.momentum * velocity if recipe.nesterov else velocity
                parameter.sub_(learning_rate(recipe, step) * direction)
    return training


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"momentum": 0.5},
        {"nesterov": True},
        {"weight_decay": 0.01},
        {"label_smoothing": 0.2},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01, "label_smoothing": 0.2, "batch_size": 45},
    ],
    ids=str,
)
def test_a_step_is_that_of_the_formulas(few_digits, changed):
    recipe = recipe_of("linear", depth=8, values=(0.02, 0.01, 0.001), **changed)
    training = Training(recipe, few_digits, "fp32")
    training.advance(3)

    expected = dict(by_hand(recipe, few_digits, 3).model.named_parameters())

    for name, parameter in training.model.named_parameters():
        torch.testing.assert_close(
            parameter, expected[name], rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_label_smoothing_is_part_of_the_training_loss_and_of_no_other(few_digits):
    plain, smoothed = (
        Training(recipe_of("linear", depth=8, label_smoothing=smoothing), few_digits, "fp32")
        for smoothing in (0.0, 0.5)
    )
    assert plain.measure(20) == smoothed.measure(20)

    for training in (plain, smoothed):
        training.advance(1)
    smoothed.model.load_state_dict(plain.model.state_dict())
    one, other = plain.measure(20), smoothed.measure(20)

    assert one.train_loss != other.train_loss
    assert (one.val_loss, one.val_accuracy) == (other.val_loss, other.val_accuracy)


@pytest.mark.parametrize(("batch_size", "images"), [(10, 10), (45, 45), (500, 180)])
def test_a_batch_size_changes_the_images_of_a_step_and_not_the_steps_of_a_budget(few_digits, batch_size, images):
    training = Training(recipe_of("linear", depth=8, batch_size=batch_size), few_digits, "fp32")
    seen = []
    training.model.register_forward_pre_hook(lambda _model, inputs: seen.append(len(inputs[0])))

    assert training.advance(32) == 32
    assert seen == [images] * 32


def test_a_state_is_a_copy_that_further_training_leaves_alone(few_digits):
    training = Training(recipe_of("dropout"), few_digits, "fp32")
    training.advance(3)
    state = training.state()
    weights = {name: tensor.clone() for name, tensor in state.weights.items()}
    momentum = {name: tensor.clone() for name, tensor in state.momentum.items()}

    training.advance(5)
    other = Training(recipe_of("dropout"), few_digits, "fp32")
    other.restore(state)
    other.advance(5)

    assert_same_state(state, replace(state, weights=weights, momentum=momentum))
    assert_same_state(other.state(), training.state())


def test_only_states_of_the_same_network_fit(few_digits):
    training = Training(recipe_of("dropout"), few_digits, "fp32")
    start = training.state()
    training.advance(1)
    state = training.state()
    name, tensor = next(iter(state.momentum.items()))
    other = Training(recipe_of("dense"), few_digits, "fp32").state().weights
    misfits = [
        replace(state, iteration=33),
        replace(state, iteration=-1),
        replace(state, iteration=1_000_000),
        replace(state, loss_count=2),
        replace(state, loss_count=-1),
        replace(state, weights=other),
        replace(state, weights={}),
        replace(state, weights=state.weights | {"more": tensor}),
        replace(state, momentum={}),
        replace(state, momentum=state.momentum | {name: tensor[:1]}),
        replace(state, momentum=state.momentum | {name: tensor.double()}),
        replace(start, momentum=state.momentum),
    ]

    assert [training.misfit(fit) for fit in (start, state, replace(state, loss_sum=math.nan))] == [None] * 3
    assert None not in [training.misfit(misfit) for misfit in misfits]


def test_a_new_training_stands_at_iteration_0_without_momentum(few_digits):
    state = Training(recipe_of("dense"), few_digits, "fp32").state()

    assert (state.iteration, state.momentum) == (0, {})
    assert (state.loss_sum, state.loss_count, state.correct_count) == (0.0, 0, 0)


def test_training_ends_exactly_where_it_is_asked_to(few_digits):
    training = Training(recipe_of("linear"), few_digits, "fp32")

    assert [training.advance(3), training.iteration] == [3, 3]
    assert [training.advance(3), training.iteration] == [0, 3]
    assert [training.advance(4), training.iteration] == [1, 4]


def test_training_stops_before_the_next_step_when_told_to(few_digits):
    training = Training(recipe_of("linear"), few_digits, "fp32")
    straight = Training(recipe_of("linear"), few_digits, "fp32")
    answers = iter([False, False, False, True])

    assert training.advance(20, lambda: next(answers)) == 3
    assert straight.advance(3) == 3

    assert list(answers) == []
    assert_same_state(training.state(), straight.state())


def test_training_that_is_told_to_stop_at_once_does_nothing(few_digits):
    training = Training(recipe_of("linear"), few_digits, "fp32")
    before = training.state()

    assert training.advance(20, lambda: True) == 0
    assert_same_state(training.state(), before)


def test_the_learning_rate_changes_at_exactly_its_iteration(few_digits):
    constant = Training(recipe_of("linear", momentum=0.0, boundaries=(), values=(0.1,)), few_digits, "fp32")
    dropping = Training(
        recipe_of("linear", momentum=0.0, boundaries=(16_000,), values=(0.1, 0.001)), few_digits, "fp32"
    )
    constant.advance(8)
    dropping.advance(8)
    before = constant.state()
    assert_same_state(dropping.state(), before)

    constant.advance(9)
    dropping.advance(9)

    for name, _ in constant.model.named_parameters():
        step = constant.state().weights[name].double() - before.weights[name].double()
        small = dropping.state().weights[name].double() - before.weights[name].double()
        assert torch.allclose(small, step * 0.01, rtol=0, atol=1e-7), name
    assert not same_weights(constant.state(), dropping.state())


def test_what_comes_later_in_a_recipe_does_not_change_the_path_to_it(few_digits):
    early = recipe_of("dropout", boundaries=(16_000,), values=(0.1, 0.01), early_stopping=4_000)
    late = recipe_of("dropout", boundaries=(16_000, 32_000), values=(0.1, 0.01, 0.5))
    one, other = Training(early, few_digits, "fp32"), Training(late, few_digits, "fp32")

    assert walk(one, 10) == walk(other, 10)
    assert_same_state(one.state(), other.state())


def test_evaluation_changes_neither_the_state_nor_what_follows(few_digits):
    evaluated = Training(recipe_of("dense"), few_digits, "fp32")
    left_alone = Training(recipe_of("dense"), few_digits, "fp32")
    evaluated.advance(3)
    left_alone.advance(3)
    before = evaluated.state()

    first = evaluated.evaluate(few_digits.validation)
    again = evaluated.evaluate(few_digits.validation)

    assert first == again
    assert_same_state(evaluated.state(), before)
    evaluated.advance(5)
    left_alone.advance(5)
    assert_same_state(evaluated.state(), left_alone.state())


def test_an_evaluation_is_the_mean_over_single_images(few_digits):
    training = Training(recipe_of("dense"), few_digits, "fp32")
    training.advance(3)
    split = few_digits.validation

    found = training.evaluate(split)

    losses, right = [], 0
    training.model.eval()
    with torch.no_grad():
        for index in range(len(split)):
            logits = training.model(normalise(split.images[index : index + 1], few_digits))
            losses.append(nn.functional.cross_entropy(logits, split.labels[index : index + 1]).item())
            right += int(logits.argmax() == split.labels[index])
    assert found.loss == pytest.approx(math.fsum(losses) / 20, rel=1e-5)
    assert (found.accuracy, found.images) == (right / 20, 20)


def test_a_measurement_on_the_whole_split_is_its_evaluation_with_the_mean_loss_of_the_steps_before(few_digits):
    training = Training(recipe_of("dense"), few_digits, "fp32")
    losses = []
    for step in range(1, 4):
        before = training.state().loss_sum
        training.advance(step)
        losses.append(training.state().loss_sum - before)

    point = training.measure(20)

    whole = training.evaluate(few_digits.validation)
    assert (point.iteration, point.val_loss, point.val_accuracy) == (3, whole.loss, whole.accuracy)
    assert point.train_loss == pytest.approx(sum(losses) / 3, rel=1e-12)
    state = training.state()
    assert (state.loss_sum, state.loss_count, state.correct_count) == (0.0, 0, 0)


@pytest.mark.parametrize(("head", "batch_size"), [("dropout", 16), ("linear", 1_000)])
def test_the_training_accuracy_is_that_of_the_batches_since_the_last_measurement(few_digits, head, batch_size):
    recipe = recipe_of(head, batch_size=batch_size, values=(0.05,), boundaries=())
    training, seen = Training(recipe, few_digits, "fp32"), []
    training.model.register_forward_hook(lambda model, _images, logits: seen.append((model.training, logits.detach())))
    drawn, draw = [], training._batches.draw
    training._batches.draw = lambda *args: drawn.append(draw(*args)) or drawn[-1]

    points = []
    for until in (3, 8):
        training.advance(until)
        points.append(training.measure(20))

    logits = [logits for in_training, logits in seen if in_training]
    right = [float((ours.argmax(1) == labels).float().mean()) for ours, (_, labels) in zip(logits, drawn, strict=True)]
    assert [p.train_accuracy for p in points] == pytest.approx([sum(right[:3]) / 3, sum(right[3:]) / 5], rel=1e-6)
    assert len(set(right)) > 1


def test_a_state_without_a_count_of_correct_images_has_no_training_accuracy_until_the_next_measurement(few_digits):
    whole = Training(recipe_of("linear"), few_digits, "fp32")
    whole.advance(2)
    training = Training(recipe_of("linear"), few_digits, "fp32")
    training.restore(replace(whole.state(), correct_count=None))
    assert training.state().correct_count is None

    curves = []
    for walked in (whole, training):
        curves.append([])
        for until in (4, 6):
            walked.advance(until)
            curves[-1].append(walked.measure(20))

    assert None not in [point.train_accuracy for point in curves[0]]
    assert curves[1] == [replace(curves[0][0], train_accuracy=None), curves[0][1]]
    assert_same_state(training.state(), whole.state())


def test_a_state_saved_at_a_measurement_misses_nothing_without_a_count(few_digits):
    whole = Training(recipe_of("linear"), few_digits, "fp32")
    whole.advance(2)
    whole.measure(20)
    training = Training(recipe_of("linear"), few_digits, "fp32")
    training.restore(replace(whole.state(), correct_count=None))

    assert training.state().correct_count == 0


def test_a_measurement_on_a_subset_takes_the_same_images_every_time(few_digits):
    training = Training(recipe_of("linear"), few_digits, "fp32")
    training.advance(2)

    one, again, whole = training.measure(7), training.measure(7), training.measure(20)

    assert (one.val_loss, one.val_accuracy) == (again.val_loss, again.val_accuracy)
    assert one.val_loss != whole.val_loss
    assert (one.val_accuracy * 7) % 1 == pytest.approx(0)


def test_other_seeds_walk_other_paths_from_the_first_weight_on(few_digits):
    one = Training(recipe_of("dropout", seed=1), few_digits, "fp32")
    other = Training(recipe_of("dropout", seed=2), few_digits, "fp32")
    assert not same_weights(one.state(), other.state())

    other.restore(one.state())
    one.advance(1)
    other.advance(1)

    assert not same_weights(one.state(), other.state())  # order, crops and masks follow the seed too


def test_training_learns_digits(digits):
    recipe = recipe_of("linear", boundaries=(32_000,), values=(0.05, 0.005), batch_size=32, iterations=64)
    training = Training(recipe, digits, "fp32")

    training.advance(8)
    first = training.measure(len(digits.validation))
    training.advance(56)
    training.measure(len(digits.validation))
    training.advance(64)
    last = training.measure(len(digits.validation))

    assert last.train_loss < first.train_loss / 2
    assert last.val_loss < first.val_loss
    assert last.val_accuracy > 0.6


def test_bf16_and_fp32_walk_other_paths(few_digits):
    one, other = (Training(recipe_of("linear"), few_digits, precision) for precision in ("fp32", "bf16"))
    one.advance(1)
    other.advance(1)

    assert not same_weights(one.state(), other.state())
    assert {tensor.dtype for tensor in other.state().weights.values()} == {torch.float32, torch.int64}


def test_the_native_precision_is_one_that_training_knows(few_digits):
    Training(recipe_of("linear"), few_digits, native_precision(torch.device("cpu"))).advance(1)

    assert native_precision(torch.device("cpu")) in ("fp32", "bf16")
