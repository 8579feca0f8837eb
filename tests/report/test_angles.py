from dataclasses import replace

import numpy as np
import pytest

from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.report.angles import RelabelledAngle, angle_figure, with_null
from spectral_mlops.report.directions import angle_table
from tests.report.test_directions import basis, records


def null_of(fold, values, reason=""):
    angle = Comparison(
        "fc", "gradient", "dx", "a", "b", "principal_angle", np.array(values),
        4, 5, 4, 5, "probe", "one", "none", "held-out people", True, reason,
    )  # fmt: skip
    return RelabelledAngle(1, fold, 0, angle)


def pairs(*folds):
    return angle_table(
        one
        for fold in folds
        for seed, name in enumerate("ab")
        for one in records(basis(seed), name, fold=fold)
    )


def test_the_null_of_folds_and_of_their_mean():
    values = [[1.2, 0.4, 0.8, 1.3], [1.0, 0.6, 1.1, 0.9]]
    nulls = [null_of(fold, one) for fold, one in enumerate(values)]
    table = with_null(pairs(0, 1), nulls).set_index("fold")
    assert list(table.index) == [0, 1, "mean"]
    degrees = np.degrees([*values, np.mean(values, axis=0)])
    assert table["angle_degrees"].tolist() == pytest.approx(list(degrees[:, 0]))
    assert table["null_mean"].tolist() == pytest.approx(list(degrees[:, 1:].mean(1)))
    assert table["null_sd"].tolist() == pytest.approx(list(degrees[:, 1:].std(1)))
    z = (degrees[:, 0] - degrees.mean(1)) / degrees.std(1)
    assert table["z"].tolist() == pytest.approx(list(z))
    # 1.3 beats 1.2; 1.1 beats 1.0; of the means (1.1 | 0.5, 0.95, 1.1) one ties.
    assert table["p"].tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert table["rank"].tolist() == [2, 2, 2]
    assert table.loc["mean", "largest_degrees"] == table.loc[0, "largest_degrees"]


def test_what_has_no_null_says_why():
    plain = with_null(pairs(0), [])
    assert "only held-out people are relabelled" in plain["reason"][0]
    why = "no relabelling within the strata (site) changes groups"
    table = with_null(pairs(0), [null_of(0, [1.2], reason=why)])
    assert table["reason"][0] == why
    assert table["angle_degrees"][0] == pytest.approx(np.degrees(1.2))
    assert table[["null_mean", "z", "p"]].isna().all(axis=None)


def drawn(table):
    return angle_figure(table, "dx", "title").axes[0]


def test_the_figure_shows_the_numbers_of_the_table():
    table = with_null(
        pairs(0, 1),
        [null_of(0, [1.2, *np.linspace(0, 1, 19)]), null_of(1, [1.0, *[0.4] * 19])],
    )
    panel = drawn(table)
    mean = table.set_index("fold").loc["mean"]
    assert mean["p"] == pytest.approx(0.05)
    dots = [line for line in panel.lines if line.get_marker() == "o"]
    assert [list(x) for x in dots[0].get_xydata()] == [[2, mean["angle_degrees"]]]
    assert dots[0].get_markerfacecolor() == dots[0].get_color()
    band = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(mean["null_05"])
    assert band.max() == pytest.approx(mean["null_95"])
    assert [text.get_text() for text in panel.texts] == ["0.050"]
    assert panel.get_legend().get_texts()[0].get_text() == "a – b"


def test_a_figure_of_one_fold_and_one_without_null():
    one = drawn(with_null(pairs(0), [null_of(0, [1.2, 1.3, 0.1])]))
    dots = [line for line in one.lines if line.get_marker() == "o"]
    assert dots[0].get_markerfacecolor() == "white"
    bare = drawn(with_null(pairs(0), [null_of(0, [1.2])]))
    assert not bare.texts
    assert np.isfinite(bare.get_ylim()).all()


def test_several_pairs_have_no_numbers_on_each_other():
    names = angle_table(
        one for seed, name in enumerate("abc") for one in records(basis(seed), name)
    )
    first = null_of(0, [1.2, 0.3, 0.1])
    other = replace(first.angle, group_b="c")
    panel = drawn(with_null(names, [first, first._replace(angle=other)]))
    assert not panel.texts
    assert len(panel.get_legend().get_texts()) == 2


def test_nothing_has_the_columns():
    table = with_null(angle_table([]), [])
    assert len(table) == 0
    assert {"largest_degrees", "angle_degrees", "p", "reason"} <= set(table)
