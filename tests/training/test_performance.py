import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score

from spectral_mlops.training.performance import Predictions


def predictions(n=23, classes=2, seed=0):
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.ones(classes), n)
    targets = np.arange(n) % classes
    return Predictions(tuple(f"s{i}" for i in range(n)), targets, p)


def test_the_auc_is_the_share_of_pairs_in_order():
    said = predictions()
    score, target = said.probabilities[:, 1], said.targets
    pairs = [
        (a > b) + 0.5 * (a == b) for a in score[target == 1] for b in score[target == 0]
    ]
    assert said.auc == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("classes", [2, 3])
def test_loss_and_balanced_accuracy(classes):
    said = predictions(classes=classes)
    assert said.loss == pytest.approx(log_loss(said.targets, said.probabilities))
    recalls = [
        (said.probabilities.argmax(1)[said.targets == k] == k).mean()
        for k in range(classes)
    ]
    assert said.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert 0 <= said.auc <= 1


def test_an_absent_class_has_no_auc():
    said = predictions()
    one = Predictions(said.ids, np.zeros(23, dtype=int), said.probabilities)
    assert np.isnan(one.auc)


@pytest.mark.parametrize("classes", [2, 3])
def test_of_whom_nothing_was_said_nobody_is_told_rightly(classes):
    """A network that diverged says NaN, of which argmax would make the first class."""
    said = predictions(classes=classes)
    said.probabilities[:12] = np.nan
    row = said.row()
    assert np.isnan([row["auc"], row["loss"]]).all()
    right = said.probabilities[12:].argmax(1) == said.targets[12:]
    assert row["accuracy"] == pytest.approx(right.sum() / 23)
    said.probabilities[:] = np.nan
    assert said.row()["accuracy"] == said.row()["balanced_accuracy"] == 0


def test_certainty_of_the_wrong_class_is_a_finite_loss():
    said = Predictions(("a",), np.array([0]), np.array([[0.0, 1.0]]))
    assert np.isfinite(said.loss)


def test_per_group_adds_up():
    said = predictions()
    labels = ["x" if i < 7 else "y" for i in range(23)]
    table = said.per_group(labels).set_index("group")
    assert list(table.index) == ["all", "x", "y"]
    assert table.loc["x", "n"] == 7
    weighted = (7 * table.loc["x", "loss"] + 16 * table.loc["y", "loss"]) / 23
    assert weighted == pytest.approx(table.loc["all", "loss"])
    assert table.loc["x", "loss"] == pytest.approx(said.losses[:7].mean())


def test_join_keeps_everybody():
    parts = [predictions(5, seed=1), predictions(4, seed=2)]
    joined = Predictions.join(parts)
    assert len(joined.ids) == len(joined.targets) == 9
    assert joined.loss == pytest.approx(np.mean([*parts[0].losses, *parts[1].losses]))


def test_a_group_of_one_class_has_recall_and_others_an_auc():
    said = predictions(30)
    labels = ["one"] * 9 + ["both"] * 21
    targets = np.array([1] * 9 + [0, 1, 1] * 7)
    said = Predictions(said.ids, targets, said.probabilities)
    table = said.per_group(labels).set_index("group")
    right = said.probabilities.argmax(1) == targets
    assert table.loc["one", "recall"] == right[:9].mean()
    assert np.isnan(table.loc["one", "auc"])
    assert np.isnan(table.loc["both", "recall"])
    score, target = said.probabilities[9:, 1], targets[9:]
    assert table.loc["both", "auc"] == pytest.approx(roc_auc_score(target, score))
    expected = balanced_accuracy_score(target, (score > 0.5).astype(int))
    assert table.loc["both", "balanced_accuracy"] == pytest.approx(expected)
    assert table.loc["both", "n"] == 21


def test_of_three_classes_a_group_with_two_has_neither_auc_nor_recall():
    said = predictions(12, classes=3)
    table = said.per_group(["x" if t < 2 else "y" for t in said.targets])
    row = table.set_index("group").loc["x"]
    assert np.isnan(row["auc"])
    assert np.isnan(row["recall"])
    assert 0 <= row["balanced_accuracy"] <= 1
