import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score

from spectral_mlops.training.intervals import (
    Judged,
    performance_table,
    weighted_accuracy,
    weighted_auc,
    weighted_balanced_accuracy,
    weighted_loss,
)
from spectral_mlops.training.performance import Predictions


def predictions(seed, n=23, classes=2, signal=1.0, prefix="p"):
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    scores = rng.normal(size=(n, classes)).round(1)  # ties
    scores[np.arange(n), targets] += signal
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    ids = tuple(f"{prefix}{i}" for i in range(n))
    return Predictions(ids, targets, probabilities)


@pytest.mark.parametrize("classes", [2, 3])
def test_weighted_metrics_equal_scikit_learn_s(classes):
    said = predictions(0, classes=classes)
    weights = np.random.default_rng(1).integers(1, 4, size=(5, 23)).astype(float)
    picked = said.probabilities.argmax(1)
    scores = said.probabilities[:, 1] if classes == 2 else said.probabilities
    for row, w in enumerate(weights):
        repeated = np.repeat(np.arange(23), w.astype(int))
        y = said.targets[repeated]
        expected = {
            weighted_auc: roc_auc_score(y, scores[repeated], multi_class="ovr"),
            weighted_balanced_accuracy: balanced_accuracy_score(y, picked[repeated]),
            weighted_accuracy: np.mean(y == picked[repeated]),
            weighted_loss: log_loss(y, said.probabilities[repeated]),
        }
        for metric, value in expected.items():
            assert metric(said, weights)[row] == pytest.approx(value, rel=1e-12)


def test_no_weight_on_a_class_is_nan():
    said = predictions(0)
    weights = (said.targets == 1).astype(float)[None]
    assert np.isnan(weighted_auc(said, weights)).all()
    assert np.isfinite(weighted_balanced_accuracy(said, weights)).all()


def test_the_interval_is_that_of_scipy_s_bootstrap():
    """Of accuracy, one class: the plain percentile bootstrap of a mean."""
    rng = np.random.default_rng(3)
    said = predictions(3, n=60)
    said = Predictions(said.ids, np.zeros(60, dtype=int), said.probabilities)
    table = performance_table(
        [Judged("m", "probe", [said])], dict.fromkeys(said.ids, "a"), 4000
    )
    right = (said.probabilities.argmax(1) == 0).astype(float)
    theirs = stats.bootstrap(
        (right,), np.mean, n_resamples=4000, method="percentile", rng=rng
    ).confidence_interval
    row = table[(table["metric"] == "accuracy") & (table["group"] == "all")].iloc[0]
    assert row["value"] == right.mean()
    assert row["low"] == pytest.approx(theirs.low, abs=0.02)
    assert row["high"] == pytest.approx(theirs.high, abs=0.02)


def test_intervals_cover_the_truth():
    """Normal scores one SD apart: the AUC is Φ(1/√2)."""
    truth, inside = stats.norm.cdf(1 / np.sqrt(2)), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        y = np.arange(60) % 2
        score = rng.normal(size=60) + y
        p = 1 / (1 + np.exp(-score))
        said = Predictions(tuple(map(str, range(60))), y, np.stack([1 - p, p], axis=1))
        table = performance_table(
            [Judged("m", "probe", [said])], dict.fromkeys(said.ids, "a"), 200
        )
        row = table[(table["metric"] == "auc") & (table["group"] == "all")].iloc[0]
        inside += row["low"] <= truth <= row["high"]
    assert 0.89 <= inside / 200 <= 0.99


def test_values_are_means_over_networks_and_groups_stand_apart():
    parts = [predictions(k, n=12 + k, prefix=f"f{k}-") for k in range(3)]
    labels = {who: "ab"[int(who[-1]) % 2] for part in parts for who in part.ids}
    labels[parts[0].ids[0]] = "alone"
    table = performance_table([Judged("m", "validation", parts)], labels, 100)
    assert list(table.columns) == [
        *("model", "people", "group", "n", "metric", "value", "low", "high")
    ]
    assert list(dict.fromkeys(table["group"])) == ["all", "a", "b"]
    row = table[table["metric"] == "auc"].set_index("group")
    assert row.loc["all", "value"] == pytest.approx(np.mean([p.auc for p in parts]))
    assert row.loc["all", "n"] == 12 + 13 + 14
    # Even numbers are controls here, so no group has people of both classes.
    assert list(row.index) == ["all"]
    accuracy = table[table["metric"] == "accuracy"].set_index("group")
    right = [
        np.mean(
            [
                part.probabilities[i].argmax() == part.targets[i]
                for i, who in enumerate(part.ids)
                if labels[who] == "b"
            ]
        )
        for part in parts
    ]
    assert accuracy.loc["b", "value"] == pytest.approx(np.mean(right))
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_people_of_several_networks_are_drawn_once():
    """Two networks that say the same are as uncertain as one."""
    said = predictions(5, n=40)
    labels = dict.fromkeys(said.ids, "a")
    one = performance_table([Judged("m", "probe", [said])], labels)
    two = performance_table([Judged("m", "probe", [said, said])], labels)
    pd.testing.assert_frame_equal(one, two)
