from dataclasses import replace

import numpy as np
import pytest

from spectral_mlops.inference.comparison import (
    Comparison,
    average,
    headline,
    mean_excess,
    to_divergences,
)
from spectral_mlops.inference.significance import combined_z, p_max_t, p_value
from spectral_mlops.records import Divergence


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(12)


def comparison(values, **changes) -> Comparison:
    plain = Comparison(
        layer="fc1",
        quantity="gradient",
        grouping="sex",
        group_a="f",
        group_b="m",
        divergence="js",
        values=np.asarray(values, dtype=float),
        n_a=9,
        n_b=7,
        subjects_a=5,
        subjects_b=4,
        source="probe",
        null="4 relabellings of 9 people",
        strata="site",
        valid_for="held-out people",
        testable=True,
        reason="",
    )
    return replace(plain, **changes)


def test_a_row_by_hand():
    (row,) = to_divergences([comparison([6.0, 1, 2, 3, 6])])
    null = np.array([1.0, 2, 3, 6])
    assert row.value == 6
    assert (row.null_mean, row.excess) == (3, 3)
    assert row.null_sd == pytest.approx(np.sqrt(((null - 3) ** 2).sum() / 4))
    every = np.array([6.0, 1, 2, 3, 6])
    assert row.z == pytest.approx((6 - every.mean()) / every.std())
    assert row.p == row.p_max == 2 / 5
    assert row.reason == ""
    same = comparison([0.0])
    for name in Divergence.__dataclass_fields__:
        if hasattr(same, name) and name != "values":
            assert getattr(row, name) == getattr(same, name)


def test_rows_come_back_in_order():
    items = [comparison([1.0, 2, 3 + i], layer=f"l{i}") for i in (3, 1, 2)]
    items.insert(1, comparison([1.0], layer="alone"))
    assert [x.layer for x in to_divergences(items)] == ["l3", "alone", "l1", "l2"]


def test_a_family_is_a_quantity_a_grouping_and_a_pair(rng):
    def drawn(**changes):
        return comparison(rng.gamma(2.0, size=40), **changes)

    items = [
        drawn(layer=layer, **family)
        for layer in ("fc1", "fc2", "fc3")
        for family in (
            {},
            {"quantity": "adjoint"},
            {"grouping": "site"},
            {"group_b": "x"},
            {"group_a": "x"},
        )
    ]
    rows = to_divergences(items)
    for start in range(5):
        values = np.stack([x.values for x in items[start::5]], axis=1)
        assert [x.p_max for x in rows[start::5]] == p_max_t(values).tolist()
    assert [x.p for x in rows] == [float(p_value(x.values)) for x in items]


def test_untestable_rows_keep_their_excess_and_take_no_part(rng):
    values = rng.gamma(2.0, size=(30, 3))
    items = [comparison(values[:, i], layer=f"l{i}") for i in range(3)]
    items[1] = replace(items[1], testable=False, reason="the grouping is the target")
    rows = to_divergences(items)
    assert np.isnan([rows[1].z, rows[1].p, rows[1].p_max]).all()
    assert rows[1].excess == pytest.approx(values[0, 1] - values[1:, 1].mean())
    assert rows[1].null_sd == pytest.approx(values[1:, 1].std())
    assert rows[1].reason == "the grouping is the target"
    expected = p_max_t(values[:, [0, 2]])
    assert [rows[0].p_max, rows[2].p_max] == expected.tolist()


def test_without_a_null_there_is_the_value_alone():
    (row,) = to_divergences([comparison([0.3], null="none", reason="no factors")])
    assert row.value == 0.3
    numbers = [row.null_mean, row.null_sd, row.excess, row.z, row.p, row.p_max]
    assert np.isnan(numbers).all()
    assert row.reason == "no factors"


def test_an_unknown_value_has_no_numbers(rng):
    values = rng.gamma(2.0, size=20)
    values[0] = np.nan
    (row,) = to_divergences([comparison(values, reason="degenerate")])
    numbers = [row.value, row.null_mean, row.excess, row.z, row.p, row.p_max]
    assert np.isnan(numbers).all()


@pytest.mark.parametrize("reason", ["", "a remark"])
def test_relabellings_that_change_nothing_have_no_p_and_say_so(reason):
    items = [
        comparison([0.2] * 9, layer="flat", reason=reason),
        comparison([0.5, *[0.1 * i for i in range(8)]], layer="other"),
    ]
    flat, other = to_divergences(items)
    assert np.isnan([flat.z, flat.p, flat.p_max]).all()
    assert flat.excess == pytest.approx(0.0, abs=1e-15)
    assert flat.reason == (
        reason or "no relabelling within the strata gives another value"
    )
    assert other.p == other.p_max


def test_nan_relabellings_are_left_out_of_the_mean_and_count_in_p():
    (row,) = to_divergences([comparison([5.0, 1, np.nan, 3])])
    assert (row.null_mean, row.null_sd, row.excess) == (2, 1, 3)
    assert row.p == row.p_max == 2 / 4
    (row,) = to_divergences([comparison([5.0, np.nan, np.nan])])
    assert np.isnan([row.null_mean, row.null_sd, row.excess, row.z, row.p]).all()


def test_averages_are_formed_relabelling_by_relabelling(rng):
    values = rng.gamma(2.0, size=(3, 25)) * [[1.0], [10.0], [0.1]]
    folds = [[comparison(x, n_a=9 + i)] for i, x in enumerate(values)]
    (mean,) = average(folds)
    np.testing.assert_allclose(mean.values, values.mean(0))
    assert mean.n_a == 9
    (row,) = to_divergences([mean])
    assert row.z == pytest.approx(
        (mean.values[0] - mean.values.mean()) / mean.values.std()
    )
    separate = [x.z for x in to_divergences([comparison(x) for x in values])]
    assert row.z != pytest.approx(np.mean(separate), rel=1e-3)
    assert row.p == float(p_value(values.mean(0)))


def test_averages_keep_layers_quantities_groupings_and_pairs_apart():
    changes = [
        {"layer": "fc2"}, {"quantity": "adjoint"}, {"grouping": "site"},
        {"group_a": "x"}, {"group_b": "y"}, {},
    ]  # fmt: skip
    folds = [
        [comparison([10.0 * i + fold, 1, 2], **c) for i, c in enumerate(order)]
        for fold, order in enumerate((changes, changes))
    ]
    found = average(folds)
    assert [x.values[0] for x in found] == [10.0 * i + 0.5 for i in range(6)]


def test_folds_without_a_value_are_left_out():
    folds = [
        [comparison([np.nan], n_a=1, reason="degenerate")],
        [comparison([2.0, 1, 3], n_a=2)],
        [comparison([4.0, 5, 1], n_a=3)],
        [comparison([np.nan, 8, 8], n_a=4)],
    ]
    (found,) = average(folds)
    assert found.values.tolist() == [3, 3, 2]
    assert (found.n_a, found.reason) == (2, "")
    (nothing,) = average([folds[0], folds[0]])
    assert np.isnan(nothing.values).all()
    assert nothing.reason == "degenerate"


def test_a_fold_without_a_null_does_not_speak_for_those_that_have_one():
    folds = [
        [comparison([9.0], testable=False, null="none", reason="too many rows")],
        [comparison([2.0, 1, 3])],
        [comparison([4.0, 5, 1])],
    ]
    (found,) = average(folds)
    assert found.values.tolist() == [3, 3, 2]
    assert found.testable
    assert (found.reason, found.null) == ("", "4 relabellings of 9 people")
    refused = [comparison([9.0], null="none", reason="only 4 different values")]
    (one,) = average([refused, folds[1]])
    assert (one.values.tolist(), one.testable) == ([2, 1, 3], False)
    assert "different people" in one.reason
    (plain,) = average([folds[0], [comparison([1.0])]])
    assert plain.values.tolist() == [5]


def test_folds_of_more_and_fewer_relabellings_are_described_together():
    exact = comparison([2.0, 1, 3], null="exact, all 3 relabellings")
    (found,) = average([[exact], [comparison([4.0, 5, 1, 7, 3])]])
    assert found.values.tolist() == [3, 3, 2, 4, 3]
    assert (found.testable, "different people" in found.reason) == (False, True)


def test_an_average_is_testable_only_if_all_of_it_is():
    untestable = {"testable": False, "reason": "trained on"}
    folds = [[comparison([2.0, 1, 3])], [comparison([4.0, 5, 1], **untestable)]]
    (found,) = average(folds)
    assert found.values.tolist() == [3, 3, 2]
    assert (found.testable, found.reason) == (False, "trained on")


def test_a_relabelling_unknown_in_one_fold_counts_as_reaching():
    folds = [[comparison([5.0, 1, 1])], [comparison([5.0, np.nan, 1])]]
    (row,) = to_divergences(average(folds))
    assert row.p == 2 / 3


def test_no_folds():
    assert average([]) == []
    assert average([[], []]) == []
    assert to_divergences([]) == []


def test_headline_is_the_combined_z_over_layers(rng):
    values = rng.gamma(2.0, size=(30, 4))
    items = [comparison(values[:, i], layer=f"l{i}") for i in range(4)]
    items[2] = replace(items[2], testable=False)
    items.append(comparison(rng.normal(size=30), quantity="adjoint"))
    items.append(comparison([3.0], layer="no null"))
    items.append(comparison([0.4] * 30, layer="flat"))
    found = headline(items, "gradient")
    expected = combined_z(values[:, [0, 1, 3]])[0]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found == headline(iter(items), "gradient")
    assert np.isnan(headline(items, "activation"))
    assert np.isnan(headline([], "gradient"))
    assert np.isnan(headline(items[-1:], "gradient"))


def test_mean_excess_is_descriptive():
    items = [
        comparison([6.0, 1, 3]),
        comparison([1.0, 2, 4], layer="fc2", testable=False, reason="target"),
        comparison([7.0], layer="fc3"),
        comparison([50.0, 1, 3], quantity="adjoint"),
    ]
    assert mean_excess(items, "gradient") == (4 - 2) / 2
    assert mean_excess(items, "adjoint") == 48
    assert np.isnan(mean_excess(items, "activation"))
    assert np.isnan(mean_excess(items[2:3], "gradient"))
