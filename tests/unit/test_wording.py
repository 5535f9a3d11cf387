"""Test how messages write numbers of things."""

import pytest

from hpo.wording import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("trial",), "0 trials"),
        (1, ("trial",), "1 trial"),
        (1200, ("trial",), "1,200 trials"),
        (1, ("entry", "entries"), "1 entry"),
        (2, ("entry", "entries"), "2 entries"),
    ],
)
def test_a_noun_agrees_with_its_number(number, words, text):
    assert counted(number, *words) == text
