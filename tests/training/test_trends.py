"""Ranks and norms apart along training, against slow loops and recorded spectra."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from spectral_mlops.errors import InputError
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, train
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.trends import COLUMNS, TRENDS, only, trend_table
from tests.training.test_trajectories import NUMBER, compared

RANK, NORM = TRENDS


def along(shift=6.0):
    """Two layers at three epochs, one statistic far out at one place."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(3, 2, NUMBER)) + 9
    values[1, 1, 0] += shift
    return values, {
        epoch: [
            dataclasses.replace(compared(f"layer{i}", values[k, i]), divergence=RANK)
            for i in range(2)
        ]
        for k, epoch in enumerate((0, 4, 9))
    }


def test_numbers_are_those_of_a_slow_loop():
    values, epochs = along()
    table = trend_table(epochs)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 6
    largest = []
    for k in range(NUMBER):
        cells = [values[e, i] for e in range(3) for i in range(2)]
        largest.append(max((x[k] - x.mean()) / x.std() for x in cells))
    for _, row in table.iterrows():
        cell = values[[0, 4, 9].index(row.epoch), int(row.layer[-1])]
        null = sorted(cell[1:])
        z = (cell[0] - cell.mean()) / cell.std()
        assert row.value == cell[0]
        assert row.null_mean == pytest.approx(sum(null) / len(null))
        # 39 relabelled values: 5 % lie between the second and the third of them
        assert null[1] <= row.null_05 <= null[2]
        assert null[-3] <= row.null_95 <= null[-2]
        assert row.z == pytest.approx(z)
        above = sum(x >= cell[0] for x in null)
        assert row.p == pytest.approx((1 + above) / NUMBER)
        above = sum(x >= z for x in largest[1:])
        assert row.p_max == pytest.approx((1 + above) / NUMBER)
        assert row.reason == ""
    best = table.loc[table.p_max.idxmin()]
    assert (best.epoch, best.layer, best.p_max) == (4, "layer1", 1 / NUMBER)


def test_relabellings_without_a_value_are_said_and_count():
    values, epochs = along()
    values[1, 1, 1:4] = np.nan
    row = trend_table(epochs).set_index(["epoch", "layer"]).loc[(4, "layer1")]
    assert row.reason.startswith("3 of 39 relabellings have no value")
    assert row.p == pytest.approx(4 / NUMBER)
    assert np.isfinite([row.null_05, row.null_95]).all()


def test_what_is_not_there_has_a_reason_and_no_band():
    _, epochs = along()
    gone = np.full(1, np.nan)
    epochs[0][0] = dataclasses.replace(epochs[0][0], values=gone, reason="rank 1")
    row = trend_table(epochs).iloc[0]
    assert row.reason == "rank 1"
    assert row[["value", "null_05", "null_95", "z", "p", "p_max"]].isna().all()
    assert list(trend_table({}).columns) == list(COLUMNS)


def test_a_norm_is_a_gradients_alone():
    _, epochs = along()
    items = [
        dataclasses.replace(x, divergence=NORM, quantity=quantity)
        for x in epochs[4]
        for quantity in ("gradient", "activation")
    ]
    table = trend_table({4: [*epochs[4], *items]})
    assert set(table[table.statistic == NORM].quantity) == {"gradient"}
    assert len(table) == 4
    assert only({4: items}, RANK) == {4: []}


@pytest.mark.parametrize("divergence", ["js", RANK])
def test_a_run_has_what_its_probe_shows(small, divergence):
    settings = small(comparison={"null_epochs": 3, "divergence": divergence})
    plan, tracker = make_plan(settings, Path()), MemoryTracker()
    table = train(plan, tracker).trends
    assert set(table.epoch) == {0, 1, 2}
    assert set(table.statistic) == set(TRENDS)
    assert not table.duplicated(list(COLUMNS[:6])).any()
    each = []
    for number in range(2):
        fold = FoldRun(plan, number, torch.device("cpu"))
        fold.train_epoch(0)
        found = fold.probe(0).comparisons(19, divergence=NORM, relabel="everyone")
        each.append({c.layer: c.values for c in found if c.quantity == "gradient"})
    rows = table[table.epoch == 0].set_index(["statistic", "quantity", "layer"])
    for layer in each[0]:
        mean, row = (each[0][layer] + each[1][layer]) / 2, rows.loc[
            (NORM, "gradient", layer)
        ]  # fmt: skip
        if np.isfinite(mean).all():
            assert row.value == pytest.approx(mean[0])
            assert row.null_mean == pytest.approx(mean[1:].mean())
            assert row.p == pytest.approx((1 + (mean[1:] >= mean[0]).sum()) / 20)
    ranks = tracker.to_frame("spectra").query("source == 'probe' and epoch == 0")
    ranks = ranks.pivot_table(
        index=["quantity", "layer", "fold"], columns="group", values="effective_rank"
    )
    apart = (ranks["control"] - ranks["patient"]).abs()
    apart = apart.groupby(level=["quantity", "layer"]).mean()
    for (quantity, layer), value in apart.items():
        row = rows.loc[(RANK, quantity, layer)]
        if np.isfinite(row.value):
            assert row.value == pytest.approx(value, rel=1e-5, abs=1e-7)
    assert np.isfinite(rows.loc[RANK].value).sum() >= 5


def test_without_a_probe_there_are_none(small):
    plan = make_plan(small(comparison={"probe_fraction": 0.2}), Path())
    assert train(plan, MemoryTracker()).trends.empty


def test_several_statistics_are_those_of_single_calls(small):
    settings = small(comparison={"groupings": ["group", "sex"]})
    fold = FoldRun(make_plan(settings, Path()), 0, torch.device("cpu"))
    shown, alone = fold.probe(0), fold.probe(0)
    names = ("js", *TRENDS, "js")
    together = shown.comparisons_by(names, 19, seed=2)
    assert list(together) == ["js", *TRENDS]
    for name, found in together.items():
        expected = alone.comparisons(19, seed=2, divergence=name, relabel="everyone")
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one.values, other.values, equal_nan=True)
            values = {"values": np.zeros(1)}
            one, other = (dataclasses.replace(x, **values) for x in (one, other))
            assert str(one) == str(other)
    (record,) = shown.to_records()
    assert {row.divergence for row in record.divergences} == {"js"}
    assert any(row.p > 0 for row in record.divergences)
    with pytest.raises(InputError, match="at least one"):
        shown.comparisons_by([])


def test_the_run_itself_is_the_same_without_them(small, monkeypatch):
    plan = make_plan(small(), Path())
    frames = []
    for names in (TRENDS, ()):
        monkeypatch.setattr("spectral_mlops.training.trends.TRENDS", names)
        tracker = MemoryTracker()
        result = train(plan, tracker)
        frames.append([tracker.to_frame("divergences"), result.trajectories])
        assert result.trends.empty == (not names)
    for one, other in zip(*frames, strict=True):
        pd.testing.assert_frame_equal(one, other)
