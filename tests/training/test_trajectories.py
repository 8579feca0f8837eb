import dataclasses

import numpy as np
import pytest

from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.inference.significance import standardise
from spectral_mlops.training.trajectories import sentences, trajectory_table

NUMBER = 40


def compared(layer: str, values: np.ndarray, null: str = "same") -> Comparison:
    return Comparison(
        layer=layer,
        quantity="gradient",
        grouping="group",
        group_a="a",
        group_b="b",
        divergence="js",
        values=values,
        n_a=3,
        n_b=4,
        subjects_a=3,
        subjects_b=4,
        source="probe",
        null=null,
        strata="none",
        valid_for="",
        testable=True,
        reason="",
    )


def run(shift: float):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(5, 2, NUMBER))
    values[2:4, 1, 0] += shift  # two epochs of the second layer
    epochs = {
        epoch: [compared(f"layer{i}", values[k, i]) for i in range(2)]
        for k, epoch in enumerate((0, 4, 9, 14, 19))
    }
    return epochs, values


def test_epochs_and_layers_are_adjusted_together():
    epochs, values = run(shift=6.0)
    table = trajectory_table(epochs)
    assert len(table) == 10
    t = np.stack([standardise(x.T) for x in values], 1)  # [P + 1, epochs, layers]
    largest = t[1:].max((1, 2))
    for _, row in table.iterrows():
        place = [*epochs].index(row.epoch), int(row.layer[-1])
        assert row.t == pytest.approx(t[0][place])
        assert row.p_max == pytest.approx((1 + (largest >= row.t).sum()) / NUMBER)
    cluster = table.dropna(subset=["cluster_p"])
    best = cluster[cluster.cluster_p < 0.05]
    assert list(best.epoch) == [9, 14]
    assert set(best.layer) == {"layer1"}
    assert best.cluster_mass.nunique() == 1
    (said,) = sentences(table)
    assert "epochs 9 to 14" in said
    assert "over 5 epochs and 2 layers" in said


def test_a_layer_that_an_epoch_lacks_is_said():
    epochs, _ = run(shift=0.0)
    epochs[9] = epochs[9][:1]
    table = trajectory_table(epochs)
    missing = table[(table.epoch == 9) & (table.layer == "layer1")].iloc[0]
    assert np.isnan(missing.p_max)
    assert missing.reason == "no observed value at this epoch"
    assert table.p_max.notna().sum() == 9


def test_other_relabellings_are_no_test():
    epochs, _ = run(shift=6.0)
    epochs[4] = [dataclasses.replace(x, null="another") for x in epochs[4]]
    table = trajectory_table(epochs)
    assert table.p_max.isna().all()
    assert set(table.reason) == {"epochs were relabelled in different ways"}
    assert sentences(table) == []


def test_nothing_compared_is_an_empty_table():
    assert trajectory_table({}).empty
    assert sentences(trajectory_table({})) == []
