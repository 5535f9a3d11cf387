from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hpo.recipes.schedule import CurvePoint
from hpo.results.figures import to_svg


def points(last: int) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(iteration=last * n // 4, train_loss=1.0, val_loss=1.0, val_accuracy=n / 5) for n in (1, 2, 3, 4)
    )


def test_curves_of_different_budgets_are_drawn_over_shares_of_them(documented_curves: Any) -> None:
    runs = {name: (SimpleNamespace(curve=points(8_000)),) for name in ("baseline", "dense_early_stopping", "dense")}
    facts = SimpleNamespace(compared=SimpleNamespace(runs=runs), settings=SimpleNamespace(iterations=8_000))

    figure = documented_curves.draw(facts, {"baseline": points(64_000), "dense": points(64_000)})

    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == ["baseline", "dense"]
    for axes in figure.axes:
        assert [list(line.get_xdata()) for line in axes.lines] == [[0.25, 0.5, 0.75, 1.0]] * 2
    assert "documented, 64,000" in to_svg(figure)
