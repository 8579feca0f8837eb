"""The interval of an AUC over folds."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.real.run import interval
from spectral_mlops.training.performance import Predictions


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0.1, 0.2, 0.8, 0.9], (1.0, 1.0)), ([0.5] * 4, (0.5, 0.5))],
)
def test_what_every_draw_agrees_on_has_no_width(scores, expected):
    ids = tuple("abcdefgh")
    folds = [
        SimpleNamespace(validation_ids=ids[i : i + 4]) for i in (4, 0)
    ]  # another order than that of the predictions
    column = np.array(scores * 2)
    said = Predictions(
        ids, np.array([0, 0, 1, 1] * 2), np.stack([1 - column, column], 1)
    )
    assert interval(SimpleNamespace(folds=folds), said) == pytest.approx(expected)


def test_more_people_make_it_narrower():
    rng = np.random.default_rng(1)
    widths = []
    for n in (20, 320):
        targets = np.tile([0, 1], n // 2)
        score = 1 / (1 + np.exp(-(rng.normal(size=n) + targets)))
        ids = tuple(map(str, range(n)))
        said = Predictions(ids, targets, np.stack([1 - score, score], 1))
        plan = SimpleNamespace(folds=[SimpleNamespace(validation_ids=ids)])
        low, high = interval(plan, said)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.5)  # the root of 16
