"""Test which recipes drop out of a race, and in what order the others are ranked."""

import pytest

from hpo.results.race import Race, Score, race

LOST = "lost"


def entries(*accuracies):
    """Turn accuracies into scores of equal loss; a word or None is an entry itself."""
    return [Score(accuracy=a, loss=1.0) if isinstance(a, float) else a for a in accuracies]


@pytest.mark.parametrize(
    ("results", "seeds", "dropped", "ranking"),
    [
        ({"a": (), "base": ()}, (), {}, ("a", "base")),
        ({"a": (None,), "base": (0.9,)}, (), {}, ("a", "base")),
        ({"a": (0.5,), "base": (0.9,)}, (0,), {}, ("base", "a")),
        ({"a": (0.90, 0.92), "b": (0.91, 0.92), "base": (0.90, 0.90)}, (0, 1), {}, ("b", "a", "base")),
        ({"a": (0.80, 0.801), "b": (0.91, 0.92), "base": (0.90, 0.90)}, (0, 1), {"a": 2}, ("b", "base")),
        ({"a": (0.80, 0.801), "base": (0.90, 0.90)}, (0, 1), {"a": 2}, ("base",)),
        ({"a": (0.90, 0.901), "base": (0.80, 0.80)}, (0, 1), {}, ("a", "base")),
        ({"a": (0.80, 0.81), "base": (0.90, 0.91)}, (0, 1), {}, ("base", "a")),
        ({"a": (0.80, 0.95), "base": (0.90, 0.91)}, (0, 1), {}, ("base", "a")),
        ({"a": (0.80, 0.801, None), "base": (0.90, 0.90, 0.90)}, (0, 1, 2), {"a": 2}, ("base",)),
        ({"a": (0.80, 0.801, 1.0), "base": (0.90, 0.90, 0.90)}, (0, 1, 2), {"a": 2}, ("base",)),
        ({"a": (0.90, None, 0.9), "base": (0.90, 0.90, 0.90)}, (0,), {}, ("a", "base")),
        ({"a": (0.95, LOST), "b": (0.91, 0.92), "base": (0.90, 0.90)}, (0, 1), {"a": 2}, ("b", "base")),
        ({"a": (LOST,), "base": (0.90,)}, (0,), {"a": 1}, ("base",)),
        ({"a": (0.95, 0.10, 0.95), "base": (0.90, LOST, 0.91)}, (0, 2), {}, ("a", "base")),
        ({"a": (0.95,), "base": (LOST,)}, (), {}, ("a", "base")),
        ({"base": (0.95, 0.90)}, (0, 1), {}, ("base",)),
    ],
    ids=[
        "nothing yet",
        "a seed that is not complete does not count",
        "one seed drops none",
        "close recipes stay",
        "a recipe that is clearly behind drops out",
        "behind the base recipe too",
        "the base recipe stays however far behind",
        "equal differences show nothing",
        "varying differences show nothing",
        "a recipe that dropped out is not waited for",
        "and does not come back",
        "later seeds wait for earlier ones",
        "a lost run drops its recipe",
        "on the first seed too",
        "a seed on which the base recipe is lost does not count",
        "not even if it is the only one",
        "the base recipe alone",
    ],
)
def test_recipes_drop_out_when_they_are_clearly_behind(results, seeds, dropped, ranking):
    ended = race({name: entries(*accuracies) for name, accuracies in results.items()}, "base")

    assert ended == Race(seeds=seeds, dropped=dropped, ranking=ranking)


def test_equal_accuracies_are_ranked_by_loss():
    results = {
        name: [Score(accuracy=0.9, loss=loss), Score(accuracy=0.8, loss=loss)]
        for name, loss in {"a": 0.3, "base": 0.2, "b": 0.1}.items()
    }

    assert race(results, "base").ranking == ("b", "base", "a")
