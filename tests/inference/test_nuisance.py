from itertools import permutations

import numpy as np
import pytest
import scipy.stats

from spectral_mlops.errors import InputError
from spectral_mlops.inference.nuisance import (
    design_matrix,
    freedman_lane,
    freedman_lane_of_orders,
)
from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.inference.significance import p_max_t, p_value

AGE = np.array([21, 35, 44, 28, 60, 52, 39, 47, 33, 26, 58, 41])
SEX = np.array(list("fmfmmfmfmmff"))
MOTION = np.array([0.1, 0.4, 0.2, 0.15, 0.5, 0.3, 0.22, 0.35, 0.12, 0.4, 0.6, 0.2])
GROUPS = list("aabbababbaba")
COLUMNS = {"age": AGE, "sex": SEX, "motion": MOTION}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(17)


def full_model(groups):
    """Intercept, numbers and dummies as a textbook writes them, groups last."""
    levels = sorted(set(groups))[1:]
    dummies = [[float(g == level) for g in groups] for level in levels]
    return np.column_stack([np.ones(12), AGE, SEX == "m", MOTION, *dummies])


def least_squares(x, y):
    """Coefficients, residual sum of squares and their degrees of freedom."""
    beta, *_ = np.linalg.lstsq(x, y, rcond=None)
    return beta, float(((y - x @ beta) ** 2).sum()), len(y) - x.shape[1]


def t_of_last(x, y):
    beta, squares, free = least_squares(x, y)
    variance = squares / free * np.linalg.inv(x.T @ x)[-1, -1]
    return beta[-1] / np.sqrt(variance)


def test_t_is_that_of_ordinary_least_squares(rng):
    y = rng.normal(size=(12, 3)) + AGE[:, None] / 10
    found = freedman_lane(y, GROUPS, COLUMNS, permutations=3)
    assert (found.statistic, found.dof) == ("|t|", (1, 7))
    for k in range(3):
        expected = abs(t_of_last(full_model(GROUPS), y[:, k]))
        assert found.values[0, k] == pytest.approx(expected)


def test_f_compares_the_models_with_and_without_groups(rng):
    groups = list("aabbcbcbcaca")
    y = rng.normal(size=12)
    found = freedman_lane(y, groups, COLUMNS, permutations=3)
    assert (found.statistic, found.dof) == ("F", (2, 6))
    x = full_model(groups)
    _, full, free = least_squares(x, y)
    _, reduced, _ = least_squares(x[:, :4], y)
    expected = ((reduced - full) / 2) / (full / free)
    assert found.values[0, 0] == pytest.approx(expected)


def test_without_nuisance_they_are_the_statistics_of_scipy(rng):
    y = rng.normal(size=12)
    two = freedman_lane(y, GROUPS, permutations=1)
    line = scipy.stats.linregress([g == "b" for g in GROUPS], y)
    assert two.values[0, 0] == pytest.approx(abs(line.slope / line.stderr))
    three = list("aabbcbcbcaca")
    parts = [y[[g == level for g in three]] for level in "abc"]
    expected = scipy.stats.f_oneway(*parts).statistic
    assert freedman_lane(y, three, permutations=1).values[0, 0] == pytest.approx(
        expected
    )


def test_without_nuisance_every_order_gives_the_exact_test(rng):
    y, codes = rng.normal(size=7), np.array([0, 1, 0, 1, 1, 0, 1])
    orders = np.array(list(permutations(range(7))))
    found = freedman_lane_of_orders(y[:, None], codes, np.ones((7, 1)), orders)
    exact = scipy.stats.permutation_test(
        (y[codes == 0], y[codes == 1]),
        lambda a, b: abs(scipy.stats.ttest_ind(a, b).statistic),
        alternative="greater",
        vectorized=False,
        n_resamples=10**4,
    )
    assert len(exact.null_distribution) == 35
    assert found.p[0] == pytest.approx(exact.pvalue)


def test_without_nuisance_the_null_is_that_of_relabelled_groups(rng):
    strata = list("xxxxyyyyzzzz")
    y = rng.normal(size=12)
    found = freedman_lane(y, GROUPS, strata=strata, permutations=40, seed=9)
    for row, value in zip(
        draw_relabellings(GROUPS, strata, 40, seed=9), found.values[:, 0], strict=True
    ):
        t = scipy.stats.ttest_ind(y[row == 0], y[row == 1]).statistic
        assert value == pytest.approx(abs(t))


def test_each_relabelling_is_the_procedure_as_its_authors_write_it(rng):
    y = rng.normal(size=7)
    z = np.column_stack([np.ones(7), AGE[:7]])
    x = np.column_stack([z, [0, 1, 0, 1, 1, 0, 1]])
    orders = np.array(list(permutations(range(7))))
    beta, *_ = np.linalg.lstsq(z, y, rcond=None)
    fit, residual = z @ beta, y - z @ beta
    # Moving residuals by all orders or by all inverse orders is the same set.
    expected = [abs(t_of_last(x, fit + residual[o])) for o in orders[::7]]
    design = design_matrix({"age": AGE[:7]}, 7)
    inverse = np.argsort(orders[::7], axis=1)
    found = freedman_lane_of_orders(y[:, None], x[:, -1].astype(int), design, inverse)
    np.testing.assert_allclose(found.values[:, 0], expected)


def test_columns_move_together_and_max_t_holds_over_them(rng):
    y = rng.normal(size=(12, 3))
    y[:, 2] = -2 * y[:, 0] + 5
    found = freedman_lane(y, GROUPS, COLUMNS, permutations=99)
    np.testing.assert_allclose(found.values[:, 2], found.values[:, 0])
    np.testing.assert_array_equal(found.p, p_value(found.values))
    np.testing.assert_array_equal(found.p_max, p_max_t(found.values))
    alone = freedman_lane(y[:, 1], GROUPS, COLUMNS, permutations=99)
    np.testing.assert_allclose(alone.values[:, 0], found.values[:, 1])


def test_units_mean_nothing(rng):
    y = rng.normal(size=12)
    found = freedman_lane(y, GROUPS, COLUMNS, permutations=20)
    days = COLUMNS | {"age": AGE * 365.25 + 1e4}
    for other in (y * 1e-200, y * 1e150, 3 - y):
        again = freedman_lane(other, GROUPS, days, permutations=20)
        np.testing.assert_allclose(again.values, found.values, rtol=1e-6)


def test_what_nuisance_explains_is_no_difference(rng):
    held, plain, runs = 0, 0, 300
    for seed in range(runs):
        age = rng.normal(size=40)
        groups = np.where(age + rng.normal(size=40) > 0, "a", "b")
        y = 2 * age + rng.normal(size=40)
        held += freedman_lane(y, groups, {"age": age}, permutations=39, seed=seed).p[0]\
            <= 0.05  # fmt: skip
        plain += freedman_lane(y, groups, permutations=39, seed=seed).p[0] <= 0.05
    assert scipy.stats.binomtest(int(held), runs, 0.05).pvalue > 1e-3
    assert plain > runs / 2


def test_a_difference_beyond_nuisance_is_found(rng):
    age = rng.normal(size=60)
    groups = np.where(age + rng.normal(size=60) > 0, "a", "b")
    y = np.column_stack([5 * age, 5 * age + 2 * (groups == "a")])
    y += rng.normal(size=y.shape)
    found = freedman_lane(y, groups, {"age": age}, permutations=199)
    assert found.p_max[1] == 1 / 200
    assert found.p[0] > 0.05


def test_columns_that_cannot_be_tested_say_why(rng):
    y = rng.normal(size=(12, 4))
    y[3, 0] = np.nan
    y[:, 1] = 0.3 + AGE / 7
    y[:, 2] = 0.1
    found = freedman_lane(y, GROUPS, {"age": AGE}, permutations=19)
    assert np.isnan(found.p).tolist() == [True, True, True, False]
    assert np.isnan(found.p_max).tolist() == [True, True, True, False]
    flat = "nothing is left beyond the nuisance fit"
    assert found.reasons == ("values are not finite", flat, flat, "")


def test_groups_that_nuisance_determines_cannot_be_tested(rng):
    y = rng.normal(size=12)
    found = freedman_lane(y, GROUPS, {"scanner": [g * 2 for g in GROUPS]})
    assert found.reasons == ("the nuisance columns determine the groups",)
    assert np.isnan(found.p).all()
    many = {str(i): rng.normal(size=12) for i in range(10)}
    found = freedman_lane(y, GROUPS, many)
    assert found.reasons == ("no degrees of freedom are left for residuals",)


def test_a_perfect_fit_ties_with_its_mirror_image():
    y = np.array([g == "b" for g in GROUPS], dtype=float)
    order = np.arange(12)
    swap = np.argsort(np.argsort(GROUPS, kind="stable"), kind="stable")
    mirror = np.empty(12, dtype=int)
    a, b = (np.flatnonzero(np.array(GROUPS) == g) for g in "ab")
    mirror[a], mirror[b] = b, a
    codes = (y > 0).astype(int)
    orders = np.stack([order, mirror, swap])
    found = freedman_lane_of_orders(y[:, None], codes, np.ones((12, 1)), orders)
    assert np.isfinite(found.values).all()
    assert found.p[0] == 2 / 3


def test_designs_have_an_intercept_numbers_and_dummies():
    design = design_matrix({"age": AGE, "site": list("pqrpqrpqrpqr")}, 12)
    assert design.shape == (12, 4)
    np.testing.assert_allclose(design[:, 1], scipy.stats.zscore(AGE))
    assert design[:3, 2:].tolist() == [[0, 0], [1, 0], [0, 1]]
    # Booleans are categories, a constant tells nothing.
    assert design_matrix({"patient": AGE > 40}, 12)[:, 1].tolist() == list(AGE > 40)
    constant = design_matrix({"tr": np.full(12, 0.1)}, 12)
    np.testing.assert_allclose(constant[:, 1], 0, atol=1e-15)
    objects = np.array([1, 2.5, 4], dtype=object)
    np.testing.assert_allclose(
        design_matrix({"fd": objects}, 3)[:, 1], scipy.stats.zscore([1, 2.5, 4])
    )


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([1.0, np.nan, 2.0], "'x' lacks 1 of 3 values, the first at place 1"),
        ([np.inf, 3.0, np.nan], "'x' lacks 2 of 3 values, the first at place 0"),
        (["p", "q", None], "'x' lacks 1 of 3 values, the first at place 2"),
        ([1.0, 2.0], r"'x' has shape \[2\].*3 subjects"),
    ],
)
def test_nuisance_that_is_refused(column, said):
    with pytest.raises(InputError, match=said):
        design_matrix({"x": column}, 3)


def test_people_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="3 values, 2 groups"):
        freedman_lane([1.0, 2.0, 3.0], ["a", "b"])
    with pytest.raises(InputError, match="one group"):
        freedman_lane([1.0, 2.0], ["a", "a"])
