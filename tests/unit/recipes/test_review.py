"""Test what is said of a space before it is searched."""

import pytest

from hpo.recipes.review import review_space
from hpo.recipes.shipped import list_shipped
from hpo.recipes.space_file import load_space, parse_space

BASE = (
    "{head: dropout, dropout: 0.3, shortcut_norm: false, boundaries: [20000], values: [0.1, 0.1], early_stopping: 7020}"
)


def review(search, base=BASE, iterations=640):
    space = parse_space(f"name: mine\nbase: {base}\nsearch: {search}\n", "mine.yaml")
    return review_space(space, iterations, training_images=1_000, validation_images=100)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("{head: [linear, dropout]}", []),
        ("{dropout: [0.3]}", ["dropout is not searched: its only value is 0.3"]),
        (
            "{boundaries: [[20000, 30000]]}",
            ["boundary_1 never matters: the learning rate is 0.1 on both sides of it"],
        ),
        (
            "{boundaries: [[20000, 30000]], values: [[0.1, 0.2], [0.1]]}",
            ["learning_rate_2 is not searched: its only value is 0.1"],
        ),
        ("{patience: [7020, 14040]}", []),
        ("{patience: [7020, 63000]}", []),
        (
            "{patience: [7020, 63900]}",
            ["patience 63900 never stops a trial: the budget of 64,000 ends before"],
        ),
        (
            "{patience: [7000, 7020, 20000]}",
            ["patience 7000 and 7020 train the same: evaluations are 5 iterations apart"],
        ),
        ("{batch_size: [128, 1000]}", []),
        (
            "{batch_size: [128, 1000, 2000, 4000]}",
            ["batch_size 1000, 2000 and 4000 train the same: there are 1,000 training images"],
        ),
        (
            "{batch_size: {low: 128, high: 65528, step: 200}}",
            ["batch_size 1128 to 65528 (323 values) train the same: there are 1,000 training images"],
        ),
    ],
)
def test_what_is_searched_in_vain_is_named(search, said):
    assert review(search) == said


def test_a_patience_has_less_room_the_fewer_evaluations_there_are():
    search = "{patience: [7020, 8000, 12000]}"

    assert review(search, iterations=640) == []
    assert review(search, iterations=32) == ["patience 7020 and 8000 train the same: evaluations are 1 iteration apart"]


@pytest.mark.parametrize("name", list_shipped())
def test_a_shipped_space_searches_nothing_in_vain(name):
    found = review_space(load_space(name), 64_000, training_images=45_000, validation_images=5_000)

    assert [line for line in found if "is not searched" not in line] == []
