"""Test the decisions about trials whose workers vanish or whose devices fail."""

import pytest

from hpo.database.losses import count_lapses


@pytest.mark.parametrize(
    ("attempts", "lapses", "deepest"),
    [
        ([], 0, 0),
        ([("lapsed", 0)], 1, 0),
        ([("lapsed", 0)] * 4, 4, 0),
        ([("lapsed", 10), ("lapsed", 20), ("lapsed", 30)], 1, 30),  # each got further
        ([("lapsed", 10), ("lapsed", 10), ("lapsed", 5), ("lapsed", 10)], 4, 10),
        ([("lapsed", 10), ("stopped", 20), ("lapsed", 20), ("parked", 20)], 1, 20),
        ([("lapsed", 10), ("lapsed", 10), (None, 11)], 0, 11),
        ([("lapsed", 0), ("device lost", 0), ("device full", 0), ("hung", 0)], 4, 0),
        ([("device lost", 10), ("hung", 20), ("device full", 20)], 2, 20),
    ],
)
def test_a_lost_attempt_counts_until_an_attempt_gets_further(attempts, lapses, deepest):
    assert count_lapses(attempts) == (lapses, deepest)
