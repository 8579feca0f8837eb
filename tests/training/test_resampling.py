"""People drawn for intervals: relatives together, nobody twice as evidence."""

import numpy as np
import pandas as pd
import pytest

from spectral_mlops.training.intervals import Judged, performance_table
from spectral_mlops.training.performance import Predictions
from spectral_mlops.training.resampling import bootstrap_weights


def said_of(n=30, prefix="p", seed=1):
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 2
    score = rng.normal(size=n) + targets
    p = 1 / (1 + np.exp(-score))
    ids = tuple(f"{prefix}{i}" for i in range(n))
    return Predictions(ids, targets, np.stack([1 - p, p], axis=1))


def intervals(parts, families=None):
    ids = {who for part in parts for who in part.ids}
    labels = dict.fromkeys(ids, "a")
    judged = [Judged("m", "validation", parts)]
    return performance_table(judged, labels, 300, 0, families=families)


def test_twins_who_are_told_alike_are_as_uncertain_as_half_as_many_people():
    one = said_of()
    ids = said_of(prefix="q").ids
    twins = Predictions.join([one, Predictions(ids, one.targets, one.probabilities)])
    families = {who: who[1:] for who in twins.ids}
    alone = intervals([one])
    related = intervals([twins], families)
    pd.testing.assert_frame_equal(related.drop(columns="n"), alone.drop(columns="n"))
    strangers = intervals([twins])
    wide, narrow = (t["high"] - t["low"] for t in (related, strangers))
    assert (wide > 1.2 * narrow).all()


def test_without_relatives_nothing_changes():
    said = said_of()
    families = {who: f"alone {who}" for who in said.ids}
    pd.testing.assert_frame_equal(intervals([said], families), intervals([said]))


def test_repeats_of_a_person_are_one_person():
    """Three repeats of the same predictions in two folds are no more evidence."""
    halves = [said_of(14, "a", 2), said_of(16, "b", 3)]
    once, thrice = intervals(halves), intervals(halves * 3)
    pd.testing.assert_frame_equal(once, thrice)
    assert set(thrice["n"]) == {30}


def test_families_are_drawn_as_a_whole_and_as_often_as_any_other():
    cells = dict(zip("abcdefgh", [0, 0, 0, 0, 1, 1, 0, 1], strict=True))
    families = {"a": "F", "b": "F", "g": "M", "h": "M", "e": "a"}
    drawn = bootstrap_weights(cells, families, 20_000, np.random.default_rng(0))
    assert set(drawn) == set(cells)
    np.testing.assert_array_equal(drawn["a"], drawn["b"])
    np.testing.assert_array_equal(drawn["g"], drawn["h"])  # of two cells, of one kind
    np.testing.assert_array_equal(drawn["a"] + drawn["c"] + drawn["d"], 3)
    np.testing.assert_array_equal(drawn["e"] + drawn["f"], 2)
    assert (drawn["g"] == 1).all()  # the only family across cells
    for name, count in (("a", 3), ("e", 2)):  # binomial: n = families, p = 1 / n
        assert drawn[name].mean() == pytest.approx(1, abs=0.03)
        assert drawn[name].var() == pytest.approx(1 - 1 / count, abs=0.03)
