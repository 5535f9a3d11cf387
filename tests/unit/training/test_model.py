"""Test the networks: their counts, layer tables, heads, and initial weights."""

import math

import pytest
import torch
from torch import nn

from hpo.recipes.recipe import documented_runs
from hpo.training.model import PadShortcut, ResNet, SeededDropout, count_parameters, layer_table

SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3)]


def model_of(head="linear", dropout=0.0, shortcut_norm=True, channels=3, seed=0, depth=20):
    return ResNet(
        channels=channels,
        classes=10,
        head=head,
        dropout=dropout,
        shortcut_norm=shortcut_norm,
        depth=depth,
        generator=torch.Generator().manual_seed(0),
        seed=seed,
    )


def documented_model(name):
    recipe = documented_runs()[name].recipe
    return model_of(recipe.head, recipe.dropout, recipe.shortcut_norm)


@pytest.mark.parametrize("name", documented_runs())
def test_a_documented_network_has_the_documented_counts(name):
    assert count_parameters(documented_model(name)) == documented_runs()[name].params


def test_the_layer_table_is_the_documented_one_row_by_row(reference):
    lines = reference("seed_000_151cb40c000699b3.txt").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    documented = [(name.split()[0], shape.strip("[]"), int(params)) for name, shape, params in cells[2:]]

    rows = layer_table(documented_model("baseline"), (32, 32, 3))

    found = [(row.name, f"(None, {', '.join(map(str, row.shape))})", row.params) for row in rows]
    assert len(documented) == 72
    assert found == documented


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_a_network_of_another_depth_has_the_parameters_of_he_et_al_2015_table_6(depth, millions):
    trainable = count_parameters(model_of(shortcut_norm=False, depth=depth)).trainable

    assert trainable / 1e6 == pytest.approx(millions, abs=0.06 if millions == 1.7 else 0.006)


@pytest.mark.parametrize("depth", [8, 20, 32])
def test_a_network_has_as_many_layers_with_weights_as_its_depth_says(depth):
    rows = layer_table(model_of(depth=depth), (8, 8, 3))

    assert [row.kind for row in rows if row.kind in ("Conv2D", "Dense")] == ["Conv2D"] * (depth - 1) + ["Dense"]


def test_the_layer_table_of_a_network_holds_all_of_its_parameters():
    for name, run in documented_runs().items():
        rows = layer_table(documented_model(name), (32, 32, 3))
        assert sum(row.params for row in rows) == run.params.total


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        ("linear", [("dense", "Dense", (10,), 650)]),
        ("dropout", [("dropout", "Dropout", (64,), 0), ("dense", "Dense", (10,), 650)]),
        (
            "dense",
            [
                ("dense", "Dense", (512,), 33_280),
                ("batch_normalization_19", "BatchNormalization", (512,), 2_048),
                ("activation_19", "Activation", (512,), 0),
                ("dropout", "Dropout", (512,), 0),
                ("dense_1", "Dense", (10,), 5_130),
            ],
        ),
    ],
)
def test_each_head_follows_on_the_flattened_features(head, rows):
    found = layer_table(model_of(head, 0.5, shortcut_norm=False), (8, 8, 3))
    after = [row.name for row in found].index("flatten") + 1

    assert [(row.name, row.kind, row.shape, row.params) for row in found[after:]] == rows


def test_describing_a_network_leaves_its_mode_and_statistics_alone():
    model = model_of("dense", 0.5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    layer_table(model, (8, 8, 3))

    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("head", "dropout"), [("linear", 0.0), ("dropout", 0.5), ("dense", 0.5)])
def test_every_parameter_of_every_head_learns_from_images_of_every_data_set(head, dropout, shape):
    height, width, channels = shape
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, channels, height, width, generator=generator)
    model = model_of(head, dropout, channels=channels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]

    loss = nn.functional.cross_entropy(model(images), torch.arange(8))
    loss.backward()
    optimizer.step()

    assert math.isfinite(loss.detach())
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A bias before BatchNorm is taken out again by it: its gradient is there, but no more than rounding.
        if not name.endswith("bias"):
            assert not torch.equal(parameter, old), name


def test_the_shortcut_takes_every_second_pixel_and_puts_zero_channels_on_each_side():
    x = torch.arange(2 * 4 * 5 * 6, dtype=torch.float32).reshape(2, 4, 5, 6) + 1
    expected = torch.zeros(2, 8, 3, 3)
    for row in range(3):
        for column in range(3):
            expected[:, 2:6, row, column] = x[:, :, 2 * row, 2 * column]

    assert torch.equal(PadShortcut()(x), expected)


def test_the_network_without_its_convolutions_is_its_shortcuts():
    model = model_of("linear", shortcut_norm=False).eval()
    for block in model.blocks:
        nn.init.zeros_(block.norm2.weight)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        first = model.activation(model.norm(model.conv(images)))
        expected = torch.zeros(2, 64, 8, 8)
        expected[:, 24:40] = first[:, :, ::4, ::4]
        found = model.blocks(first.clone())

    assert torch.equal(found, expected)


def test_the_initial_weights_are_he_normal_by_fan_in_and_the_biases_zero():
    layers = [module for module in model_of("dense", 0.5).modules() if isinstance(module, nn.Conv2d | nn.Linear)]

    assert len(layers) == 21
    for layer in layers:
        weights = layer.weight.detach()
        fan_in = weights[0].numel()
        count = weights.numel()
        std = math.sqrt(2 / fan_in)
        assert abs(weights.std().item() / std - 1) < 4 / math.sqrt(2 * count)
        assert abs(weights.mean().item()) < 4 * std / math.sqrt(count)
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_the_same_seed_makes_the_same_weights_whatever_was_drawn_before():
    torch.manual_seed(1)
    one = model_of("dense", 0.5, seed=3).state_dict()
    torch.manual_seed(2)
    other = model_of("dense", 0.5, seed=3).state_dict()

    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_seed_makes_other_weights_everywhere():
    one, other = model_of("dense", 0.5, seed=3), model_of("dense", 0.5, seed=4)

    for a, b in zip(one.modules(), other.modules(), strict=True):
        if isinstance(a, nn.Conv2d | nn.Linear):
            assert not torch.equal(a.weight, b.weight)


def test_dropout_and_linear_heads_start_from_the_same_weights():
    linear, dropout = model_of("linear", seed=3), model_of("dropout", 0.5, seed=3)

    for a, b in zip(linear.parameters(), dropout.parameters(), strict=True):
        assert torch.equal(a, b)


def test_dropout_draws_the_same_mask_again_from_the_same_seed_and_keeps_the_mean():
    generator = torch.Generator()
    dropout = SeededDropout(0.25, generator)
    x = torch.ones(200, 100)

    generator.manual_seed(5)
    one = dropout(x)
    generator.manual_seed(5)
    again = dropout(x)
    other = dropout(x)

    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(one.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert one.mean().item() == pytest.approx(1.0, abs=0.02)


def test_dropout_does_nothing_in_evaluation():
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))

    assert torch.equal(SeededDropout(0.9, torch.Generator()).eval()(x), x)
