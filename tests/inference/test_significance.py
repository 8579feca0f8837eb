from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.inference.significance import (
    combined_z,
    holm,
    p_max_t,
    p_value,
    standardise,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def counted(values):
    """Share of all labellings that reach the observed one, itself among them."""
    reach = 1
    for value in values[1:]:
        if np.isnan(value) or value >= values[0] or np.isclose(
            value, values[0], rtol=1e-9, atol=0
        ):  # fmt: skip
            reach += 1
    return reach / len(values)


def moved(values):
    """Standardised by mean and SD of all labellings, the observed included."""
    known = values[~np.isnan(values)]
    return (values - known.sum() / len(known)) / np.sqrt(
        ((known - known.mean()) ** 2).sum() / len(known)
    )


def test_p_by_hand():
    assert p_value(np.array([3.0, 1, 2, 3, 4])) == 3 / 5
    assert p_value(np.array([5.0, 1, 2, 3, 4])) == 1 / 5
    assert p_value(np.array([0.0, 1, 2, 3, 4])) == 1
    assert p_value(np.array([1.0])) == 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(st.integers(-3, 6).map(float), st.just(np.nan)), min_size=1
    ).filter(lambda x: not np.isnan(x[0]))
)
def test_p_is_the_share_that_reaches(values):
    p = float(p_value(np.array(values)))
    assert p == counted(values)
    assert 1 / len(values) <= p <= 1


def test_a_nan_relabelling_counts_as_reaching():
    assert p_value(np.array([9.0, 1, np.nan, 2])) == 2 / 4
    assert np.isnan(p_value(np.array([np.nan, 1, 2])))


def test_ties_to_rounding_count_as_reaching():
    value = 0.1 + 0.2
    assert p_value(np.array([value, 0.3, 0.3 - 1e-12, 0.3 * (1 - 1e-6)])) == 3 / 4
    assert p_value(np.array([-2.0, -2.0 - 1e-12, -3.0])) == 2 / 3


def test_p_of_many_layers_equals_one_by_one(rng):
    values = rng.normal(size=(30, 4, 3))
    values[3, 1, 1] = np.nan
    found = p_value(values)
    assert found.shape == (4, 3)
    for i in range(4):
        for j in range(3):
            assert found[i, j] == counted(values[:, i, j])


def test_standardised_over_all_labellings_the_observed_included(rng):
    values = rng.gamma(2.0, size=(40, 3))
    values[7, 2] = np.nan
    found = standardise(values)
    for layer in range(3):
        np.testing.assert_allclose(found[:, layer], moved(values[:, layer]), rtol=1e-12)
    np.testing.assert_allclose(np.nanmean(found, 0), 0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(found, 0), 1, rtol=1e-12)
    # By hand: without the observed in it, the first would be at infinity.
    assert standardise(np.array([1.0, 0, 0, 0]))[0] == pytest.approx(np.sqrt(3))


def test_scale_and_offset_mean_nothing(rng):
    values = rng.normal(size=(20, 2))
    found = standardise(values * [1e-200, 1e30] + [0, 1e30])
    np.testing.assert_allclose(found[:, 1], standardise(values)[:, 1], rtol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.0, 1e-12])
def test_constant_values_have_no_z(value):
    values = np.full((7, 2), value)
    values[:, 1] = [3, 1, 2, 4, 5, 6, 7]
    values[3, 0] *= 1 + 1e-15
    assert np.isnan(standardise(values)[:, 0]).all()
    assert np.isfinite(standardise(values)[:, 1]).all()
    assert np.isnan(p_max_t(values)).tolist() == [True, False]
    assert np.isnan(combined_z(values[:, :1])).all()
    np.testing.assert_allclose(combined_z(values), combined_z(values[:, 1:]))


def test_one_labelling_or_none_known():
    assert np.isnan(standardise(np.array([2.0]))).all()
    assert np.isnan(standardise(np.full(4, np.nan))).all()
    assert np.isnan(p_max_t(np.array([[2.0, 3.0]]))).all()


def test_family_wise_p_by_the_maximum(rng):
    values = rng.gamma(2.0, size=(50, 5)) * [1, 10, 0.1, 1e-6, 1e6]
    found = p_max_t(values)
    t = np.stack([moved(values[:, layer]) for layer in range(5)], axis=1)
    for layer in range(5):
        reach = sum(max(t[i]) >= t[0, layer] for i in range(1, 50))
        assert found[layer] == (1 + reach) / 50
    assert (found >= p_value(values)).all()


def test_layers_without_z_take_no_part_in_the_maximum(rng):
    values = rng.gamma(2.0, size=(50, 4))
    values[:, 1] = 3.0
    values[0, 2] = np.nan
    found = p_max_t(values)
    assert np.isnan(found).tolist() == [False, True, True, False]
    np.testing.assert_array_equal(found[[0, 3]], p_max_t(values[:, [0, 3]]))


def test_a_nan_relabelling_reaches_every_layer():
    values = np.array([[9.0, 9], [1, 1], [2, np.nan], [3, 2], [1, 3]])
    assert p_max_t(values).tolist() == [2 / 5, 2 / 5]


def test_one_layer_alone_has_its_own_p(rng):
    values = rng.normal(size=(60, 1))
    assert p_max_t(values)[0] == p_value(values)[0]


def test_holm_by_hand():
    p = np.array([0.01, 0.04, 0.03, 0.005])  # Times 4, 3, 2, 1 in order of size.
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1, 1])
    assert holm(np.array([])).shape == (0,)
    with_nan = holm(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(with_nan, [0.02, np.nan, 0.04])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_holm_rejects_what_the_step_down_rejects(values, alpha):
    rejected = set()
    for step, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[i] * (len(values) - step) > alpha:
            break
        rejected.add(i)
    assert set(np.flatnonzero(holm(np.array(values)) <= alpha)) == rejected


def test_combined_z_by_a_direct_formula(rng):
    values = rng.gamma(2.0, size=(30, 4)) * [1, 100, 1e-4, 5]
    means = [sum(moved(values[:, k])[i] for k in range(4)) / 4 for i in range(30)]
    np.testing.assert_allclose(combined_z(values), moved(np.array(means)), rtol=1e-10)


def test_combined_z_weighs_layers_alike_and_leaves_out_the_unknown(rng):
    values = rng.gamma(2.0, size=(30, 3))
    scaled = values * [1, 1e9, 1e-9]
    np.testing.assert_allclose(combined_z(scaled), combined_z(values), rtol=1e-9)
    values[0, 1] = np.nan
    np.testing.assert_allclose(combined_z(values), combined_z(values[:, [0, 2]]))
    one = values[:, :1]
    np.testing.assert_allclose(combined_z(one), standardise(one[:, 0]), rtol=1e-12)


def test_every_relabelling_enumerated_gives_the_exact_test():
    data = np.array([0.3, 1.9, 2.2, -0.4, 3.1, 0.0, 1.0])
    observed = (1, 2, 4)
    splits = [observed, *(x for x in combinations(range(7), 3) if x != observed)]
    values = np.array([abs(data[list(s)].mean() - np.delete(data, s).mean())
                       for s in splits])  # fmt: skip
    exact = scipy.stats.permutation_test(
        (data[list(observed)], np.delete(data, observed)),
        lambda a, b: abs(a.mean() - b.mean()),
        alternative="greater",
        n_resamples=10**4,
    ).pvalue
    assert p_value(values) == pytest.approx(exact)


def differences(data, labels):
    """|mean difference| of each layer under every relabelling, ``[P + 1, L]``."""
    first = (labels == labels.min()).astype(float)
    first /= first.sum(1, keepdims=True)
    second = (labels == labels.max()).astype(float)
    second /= second.sum(1, keepdims=True)
    return np.abs(first @ data - second @ data)


def test_without_a_difference_p_is_uniform(rng):
    p = []
    for i in range(600):
        labels = draw_relabellings(list("aaaaabbbbbbb"), ["x"] * 12, 99, seed=i)
        p.append(float(p_value(differences(rng.normal(size=(12, 1)), labels)[:, 0])))
    # p steps by 1/100: spread it evenly below each step.
    spread = np.array(p) - rng.uniform(0, 0.01, size=len(p))
    assert scipy.stats.kstest(spread, "uniform").pvalue > 1e-3
    # Few relabellings exist of so few people, so that ties make p larger at most.
    assert (
        scipy.stats.binomtest(int(np.sum(np.array(p) <= 0.05)), 600, 0.05).pvalue > 1e-3
    )


def test_the_family_is_wrong_as_rarely_as_promised(rng):
    wrong = plain = 0
    runs = 600
    for i in range(runs):
        labels = draw_relabellings(list("aaaaaaaabbbbbb"), ["x"] * 14, 99, seed=i)
        shared = rng.normal(size=(14, 1))
        data = 0.7 * shared + rng.normal(size=(14, 6)) * np.arange(1, 7)
        values = differences(data, labels)
        wrong += (p_max_t(values) <= 0.05).any()
        plain += (p_value(values) <= 0.05).any()
    assert scipy.stats.binomtest(int(wrong), runs, 0.05).pvalue > 1e-3
    assert plain > 2 * wrong  # six layers uncorrected


def test_what_differs_is_found(rng):
    labels = draw_relabellings(list("aaaaaaaabbbbbb"), ["x"] * 14, 199, seed=1)
    data = rng.normal(size=(14, 3))
    data[labels[0] == 1, :2] += 4.0
    values = differences(data, labels)
    assert (p_max_t(values)[:2] <= 0.02).all()
    assert combined_z(values)[0] > 2
