from statistics import NormalDist

import numpy as np
import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.inference.effects import (
    run_spread,
    smallest_detectable,
    spread,
    subsample_interval,
)
from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.inference.significance import p_value


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(23)


# -- the smallest detectable effect ----------------------------------------------


def test_by_hand():
    # alpha (P + 1) = 2: the second largest of 19 relabellings has to be exceeded.
    values = np.array([7.0, *range(1, 20)])
    found = smallest_detectable(values, alpha=0.1, power=0.9)
    sd = np.sqrt((19**2 - 1) / 12)
    assert (found.critical, found.null_mean) == (18, 10)
    assert found.null_sd == pytest.approx(sd)
    assert found.value == pytest.approx(18 + NormalDist().inv_cdf(0.9) * sd)
    assert found.effect == pytest.approx(found.value - 10)
    assert found.z == pytest.approx(found.effect / sd)
    assert (found.alpha, found.power, found.reason) == (0.1, 0.9, "")


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.29])
@pytest.mark.parametrize("permutations", [19, 99, 100])
def test_above_the_critical_value_and_only_there_is_significant(
    rng, permutations, alpha
):
    values = rng.gamma(2.0, size=permutations + 1)
    critical = smallest_detectable(values, alpha).critical
    for value, expected in [(critical * 1.001, True), (critical, False)]:
        values[0] = value
        assert (p_value(values) <= alpha) == expected


def test_the_observed_value_does_not_matter(rng):
    values = rng.gamma(2.0, size=100)
    before = smallest_detectable(values)
    values[0] = np.nan
    assert smallest_detectable(values) == before


def test_units_are_those_of_the_statistic(rng):
    values = rng.gamma(2.0, size=100)
    one, other = smallest_detectable(values), smallest_detectable(5 + 100 * values)
    assert other.effect == pytest.approx(100 * one.effect)
    assert other.z == pytest.approx(one.z)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.arange(10.0), "9 relabellings cannot give p ≤ 0.05"),
        (np.array([1.0]), "0 relabellings cannot give p ≤ 0.05"),
        (np.full(50, 0.1), "all relabellings give the same value"),
        (np.r_[np.full(4, np.nan), np.arange(36.0)], "have no value"),
    ],
)
def test_why_there_is_none(values, said):
    found = smallest_detectable(values)
    assert said in found.reason
    assert np.isnan([found.value, found.effect, found.z]).all()


@pytest.mark.parametrize(("alpha", "power"), [(0, 0.8), (1, 0.8), (0.05, 1), (0.1, 0)])
def test_shares_that_are_refused(alpha, power):
    with pytest.raises(InputError, match="between 0 and 1"):
        smallest_detectable(np.arange(50.0), alpha, power)


def test_where_a_shift_is_all_that_happens_the_power_is_as_promised(rng):
    labels = draw_relabellings(["a"] * 20 + ["b"] * 20, ["x"] * 40, 99, seed=3)
    weight = np.where(labels == 0, 1.0, -1.0) / 20

    def values(shift):
        return weight @ (rng.normal(size=40) + shift * (labels[0] == 0))

    effect = np.mean([smallest_detectable(values(0)).effect for _ in range(50)])
    wins = np.mean([p_value(values(effect)) <= 0.05 for _ in range(600)])
    assert 0.74 < wins < 0.86


# -- subsamples ------------------------------------------------------------------


def mean_of(numbers):
    return lambda ids: float(np.mean([numbers[i] for i in ids]))


@pytest.mark.parametrize("m", [5, 20, 36])
def test_the_width_is_that_of_a_finite_population(rng, m):
    ids = [f"s{i}" for i in range(40)]
    numbers = dict(zip(ids, rng.normal(size=40), strict=True))
    found = subsample_interval(mean_of(numbers), ids, m, draws=3000)
    expected = np.std(list(numbers.values()), ddof=1) * np.sqrt((1 - m / 40) / m)
    assert found.sd == pytest.approx(expected, rel=0.05)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * expected, rel=0.06)
    assert found.median == pytest.approx(np.mean(list(numbers.values())), abs=expected)
    assert (found.m, found.n, found.draws, found.lost) == (m, 40, 3000, 0)


def test_the_correction_gives_the_spread_of_fresh_people(rng):
    ids = list(map(str, range(60)))
    estimates = []
    for seed in range(30):
        numbers = dict(zip(ids, rng.normal(size=60), strict=True))

        def variance(chosen, numbers=numbers):
            return float(np.var([numbers[i] for i in chosen]))

        estimates.append(
            subsample_interval(variance, ids, 30, seed=seed).sampling_sd ** 2
        )
    fresh = rng.normal(size=(20000, 30)).var(1).std()
    assert np.sqrt(np.mean(estimates)) == pytest.approx(fresh, rel=0.12)


def test_draws_are_distinct_people_of_each_group_in_their_order():
    ids, groups = list("cabfed"), ["p", "q", "p", "q", "p", "q"]
    seen = []

    def remember(chosen):
        seen.append(tuple(chosen))
        return float(len(seen)) if len(seen) > 1 else float("nan")

    found = subsample_interval(remember, ids, 2, draws=60, groups=groups)
    for chosen in seen:
        assert list(chosen) == [i for i in ids if i in chosen]
        assert [groups[ids.index(i)] for i in chosen].count("p") == 2
        assert len(chosen) == 4
    assert len(set(seen)) == 9
    assert (found.m, found.n, found.draws, found.lost) == (2, 3, 59, 1)
    assert found.median == np.median(range(2, 61))


def test_nothing_but_the_seed_decides(rng):
    ids = list(map(str, range(12)))
    numbers = dict(zip(ids, rng.normal(size=12), strict=True))
    one, same, other = (
        subsample_interval(mean_of(numbers), ids, 6, draws=20, seed=s)
        for s in (1, 1, 2)
    )
    assert one == same != other


def test_no_draw_with_a_value():
    found = subsample_interval(lambda _: float("nan"), ["a", "b", "c"], 2, draws=5)
    assert np.isnan([found.median, found.low, found.high, found.sd]).all()
    assert (found.draws, found.lost) == (0, 5)


@pytest.mark.parametrize(
    ("ids", "m", "draws", "groups", "said"),
    [
        ("abcd", 4, 9, None, "fewer than 4"),
        ("abcd", 0, 9, None, "at least 1"),
        ("abcd", 2, 9, "xxyy", "fewer than 2"),
        ("abca", 2, 9, None, "3 different"),
        ("abcd", 2, 9, "xxy", "3 groups"),
        ("abcd", 2, 0, None, "draws=0"),
    ],
)
def test_subsamples_that_are_refused(ids, m, draws, groups, said):
    with pytest.raises(InputError, match=said):
        subsample_interval(len, list(ids), m, draws, groups=groups)


# -- folds and seeds -------------------------------------------------------------


def test_spread_by_hand():
    found = spread([1.0, np.nan, 2.0, 6.0])
    assert (found.mean, found.low, found.high, found.runs) == (3, 1, 6, 3)
    assert found.sd == pytest.approx(np.sqrt((4 + 1 + 9) / 2))
    assert np.isnan(spread([2.0]).sd)
    assert spread([np.nan]).runs == 0


def test_folds_and_seeds_are_parted():
    values = np.array([[1.0, 3.0], [10.0, 14.0], [5.0, np.nan], [np.nan, np.nan]])
    found = run_spread(values)
    assert (found.folds.mean, found.folds.low, found.folds.high) == (19 / 3, 2, 12)
    assert found.folds.runs == 3
    assert (found.seeds.mean, found.seeds.low, found.seeds.high) == (0, -2, 2)
    assert found.seeds.sd == pytest.approx(np.sqrt((1 + 1 + 4 + 4) / 2))
    assert run_spread(np.full((2, 2), np.nan)).folds.runs == 0


def test_parts_are_the_variances_that_were_put_in(rng):
    values = rng.normal(size=(400, 1)) * 3 + rng.normal(size=(400, 5))
    found = run_spread(values)
    assert found.seeds.sd == pytest.approx(1, rel=0.05)
    assert found.folds.sd == pytest.approx(np.sqrt(9 + 1 / 5), rel=0.1)
