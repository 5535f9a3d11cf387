"""Test how recipes of people's own are read."""

import pytest

from hpo.errors import BadInput
from hpo.steering import parse_params


def test_parameters_are_read_as_in_a_space_file():
    words = ["head=dense", "dropout=0.5", "weight_decay=1e-4", "early_stopping=true", "boundary_1=2e4"]

    assert parse_params(words) == {
        "head": "dense",
        "dropout": 0.5,
        "weight_decay": 1e-4,
        "early_stopping": True,
        "boundary_1": 20_000.0,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dropout"], "'dropout': allowed: NAME=VALUE, such as head=dense or dropout=0.5"),
        (["=0.5"], "'=0.5': allowed: NAME=VALUE, such as head=dense or dropout=0.5"),
        (["dropout="], "'dropout=': allowed: NAME=VALUE, such as head=dense or dropout=0.5"),
        (["dropout=0.5", "dropout=0.3"], "'dropout=0.3': dropout is given twice"),
        (["dropout=[0.5"], "'dropout=[0.5': '[0.5' is not a value"),
    ],
)
def test_other_words_are_refused(words, message):
    with pytest.raises(BadInput) as refused:
        parse_params(words)

    assert str(refused.value) == message
