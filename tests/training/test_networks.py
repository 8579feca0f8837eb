from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from spectral_mlops.inference.significance import combined_z
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.tracking.details import read_directions, read_influence
from spectral_mlops.training import make_plan, run, train
from spectral_mlops.training.again import read_plan
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.networks import by_fold, spread_metrics
from tests.training.test_loop import plain_training


def same_weights(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.fixture
def three(small):
    """Settings of a run with three networks in each of two folds."""

    def make(**changes):
        return small(**changes | {"training": {"epochs": 2, "seeds": 3}})

    return make


def final(tracker):
    return {key: value for key, _, value in tracker.history if key.startswith("final/")}


def test_the_first_network_is_that_of_a_run_with_one(small, three):
    one = train(make_plan(small(training={"epochs": 2}), Path()), MemoryTracker())
    several = train(make_plan(three(), Path()), MemoryTracker())
    assert several.networks == [(f, s) for f in range(2) for s in range(3)]
    assert one.networks == [(0, 0), (1, 0)]
    for fold in range(2):
        assert same_weights(one.weights[fold], several.weights[3 * fold])
        assert one.headline[fold] == several.headline[3 * fold]
    firsts = [d for d in several.directions if d.seed == 0]
    assert len(firsts) == len(one.directions) == len(several.directions) / 3
    for a, b in zip(one.directions, firsts, strict=True):
        assert np.array_equal(a.vector, b.vector)
    assert [x for x in several.influence if x.seed == 0] == one.influence
    different = {w["hidden_1.weight"].sum().item() for w in several.weights}
    assert len(different) == 6


def test_other_networks_have_random_numbers_of_their_own(three):
    """Trained by hand, the seed as a fourth word of NumPy's seed sequence."""
    plan = make_plan(three(), Path())
    network = FoldRun(plan, 1, torch.device("cpu"), seed=2)
    for epoch in range(2):
        network.train_epoch(epoch)
    expected = plain_training(plan, 1, 2).state_dict()
    assert same_weights(network.model.state_dict(), expected)


def test_seeds_then_folds_are_averaged_before_z(three):
    """By a slow loop over networks; and each network's own z for the spread."""
    plan = make_plan(three(), Path())
    tracker = MemoryTracker()
    result = train(plan, tracker)
    mean, alone = 0, np.empty((2, 3))
    for (fold, seed), weights in zip(result.networks, result.weights, strict=True):
        network = FoldRun(plan, fold, torch.device("cpu"))
        network.model.load_state_dict(weights)
        compared = network.probe(0).comparisons(permutations=19)
        values = [c.values for c in compared if c.quantity == "activation"]
        layers = np.stack(values, axis=1)
        mean = mean + layers / 6
        alone[fold, seed] = combined_z(layers)[0]
    found = {k: x for k, x in result.metrics.items() if k.startswith("final/")}
    assert {name: x for name, x in found.items() if x == x} == final(tracker)
    name = "final/divergence_activation"
    assert result.metrics[name] == pytest.approx(combined_z(mean)[0])
    folds = alone.mean(1)
    assert result.metrics[f"{name}_sd_folds"] == pytest.approx(folds.std(ddof=1))
    squares = np.square(alone - folds[:, None]).sum()
    assert result.metrics[f"{name}_sd_seeds"] == pytest.approx(np.sqrt(squares / 4))
    aucs = np.reshape(result.headline, (2, 3))
    assert result.metrics["final/auc"] == pytest.approx(aucs.mean())
    assert result.metrics["final/auc_sd"] == pytest.approx(aucs.mean(1).std())


def test_records_and_files_tell_seeds_apart(three, tmp_path):
    plan = make_plan(three(), Path())
    tracker = MemoryTracker()
    done = run(plan, tracker, tmp_path / "run", name="x", figures=False)
    seen = {(r.epoch, r.source, r.fold, r.seed) for r in tracker.records}
    assert seen == {
        *((e, "train", f, s) for e in range(2) for f in range(2) for s in range(3)),
        *((e, "probe", f, s) for e in (-1, 0, 1) for f in range(2) for s in range(3)),
    }
    names = {path.name for path in (done.folder / "checkpoints").iterdir()}
    assert names == {
        *(f"fold-{f}.pt" for f in range(2)),
        *(f"fold-{f}-seed-{s}.pt" for f in range(2) for s in (1, 2)),
        *(f"fold-{f}-scaler.npz" for f in range(2)),
    }
    said = pd.read_csv(done.folder / "predictions.tsv", sep="\t")
    people = len(plan.cohort.people) - len(plan.probe.ids)
    assert said.groupby("seed")["participant_id"].nunique().tolist() == [people] * 3
    assert len(said) == 3 * people
    assert read_plan(done.folder, Path()).probe == plan.probe  # `compare --retrain`
    groups = done.result.groups.set_index("group")
    assert groups.loc["all", "n"] == people
    right = (said["p_1"] > 0.5) == (said["target"] == 1)
    assert groups.loc["all", "accuracy"] == pytest.approx(right.mean())
    directions = read_directions(done.folder / "directions.parquet")
    assert {(d.fold, d.seed) for d in directions} == set(done.result.networks)
    influence = read_influence(done.folder / "influence.parquet")
    assert {(x.fold, x.seed) for x in influence} == set(done.result.networks)
    angles = pd.read_csv(done.folder / "directions" / "angles.tsv", sep="\t")
    assert set(angles["seed"]) == {"0", "1", "2", "mean"}


def test_controls_hold_every_network(three):
    few = dict.fromkeys(
        ("loss_matched", "matched", "permuted", "pseudo", "nuisance"), False
    )
    plan = make_plan(three(controls={"run": True, "draws": 1, **few}), Path())
    result = train(plan, MemoryTracker())
    table = result.controls.set_index("control")
    z = [name for name in table.index if np.isfinite(table.loc[name, "z"])]
    assert {"trained", "init", "input", "input-surrogate", "unrelated-target"} <= {*z}
    assert table.loc["trained", "z"] == result.metrics["final/divergence_adjoint"]


class Network:
    def __init__(self, number):
        self.number = number


def test_numbers_of_networks_are_parted_by_fold():
    order = [Network(0), Network(1), Network(0), Network(1)]
    assert by_fold(order, "abcd") == [["a", "c"], ["b", "d"]]
    spread = spread_metrics(order, {"x": [1.0, 5.0, 3.0, np.nan]})
    assert spread["x_sd_folds"] == pytest.approx(np.std([2, 5], ddof=1))
    assert spread["x_sd_seeds"] == pytest.approx(np.sqrt(2))
    assert set(spread_metrics(order[:2], {"x": [1.0, 2.0]})) == {"x_sd_folds"}
