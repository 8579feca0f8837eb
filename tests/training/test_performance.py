import numpy as np
import pytest
from sklearn.metrics import log_loss

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
