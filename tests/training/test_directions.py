from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch

from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.probe import margin
from spectral_mlops.records import ALL_LAYERS
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.tracking.details import read_directions, read_influence
from spectral_mlops.training import make_plan, run
from spectral_mlops.training.details import direction_epochs
from spectral_mlops.training.fold import FoldRun


def test_epochs():
    assert [direction_epochs(n) for n in (1, 2, 3, 30)] == [
        {0}, {0, 1}, {0, 1, 2}, {0, 14, 29}
    ]  # fmt: skip


def finish(small, tmp_path, figures=True, **changes):
    plan = make_plan(small(**changes), Path())
    tracker = MemoryTracker()
    folder = tmp_path / "run"
    return plan, tracker, run(plan, tracker, folder, name="x", figures=figures)


def test_what_a_run_leaves(small, tmp_path):
    plan, tracker, done = finish(small, tmp_path)
    assert plan.probe is not None
    names = {
        "directions.parquet", "influence.parquet", "directions/angles.tsv",
        "directions/gradient.png", "directions/gradient.svg",
        "directions/activation.png", "directions/activation.svg",
        "directions/angles.png", "directions/angles.svg",
    }  # fmt: skip
    there = {p.relative_to(done.folder).as_posix() for p in done.folder.rglob("*")}
    assert names <= there
    assert names <= set(tracker.files)
    directions = read_directions(done.folder / "directions.parquet")
    assert {d.epoch for d in directions} == {0, 1, 2}
    assert {d.source for d in directions} == {"probe"}
    assert {d.fold for d in directions} == {0, 1}
    assert {d.layer for d in directions} == {"hidden_1"}
    assert {d.group for d in directions} == {"all", "control", "patient"}
    assert {d.index for d in directions} == {0, 1, 2}
    assert {d.shape for d in directions} == {(66,)}
    influence = pd.DataFrame(read_influence(done.folder / "influence.parquet"))
    assert set(influence["layer"]) == {"hidden_1", "hidden_2", "output", ALL_LAYERS}
    assert set(influence["epoch"]) == {0, 1, 2}
    own = influence[influence["group_a"] == influence["group_b"]]
    assert (own["value"] < 0).all()
    assert np.allclose(influence["learning_rate"], 3e-4)
    angles = pd.read_csv(done.folder / "directions" / "angles.tsv", sep="\t")
    assert len(angles) == 18  # 3 epochs, 2 quantities, 2 folds and their mean
    assert (angles["angle_degrees"] - angles["largest_degrees"]).abs().max() < 1e-3
    assert angles["p"].between(0.05, 1).all()
    assert angles["reason"].isna().all()
    means = angles[angles["fold"] == "mean"].set_index(["epoch", "quantity"])
    folds = angles[angles["fold"] != "mean"].groupby(["epoch", "quantity"])
    for name in ("angle_degrees", "null_mean", "largest_degrees"):
        expected = folds[name].mean().reindex(means.index)
        assert np.allclose(means[name], expected)


@pytest.mark.parametrize("quantity", ["gradient", "activation"])
def test_angles_are_those_of_people_relabelled_by_hand(quantity, small):
    """Rows of A and margin adjoints, an SVD per group and relabelling, and scipy."""
    plan = make_plan(small(), Path())
    fold = FoldRun(plan, 1, torch.device("cpu"), details=True)
    fold.train_epoch(0)
    rows = plan.cohort.rows(plan.probe.ids)
    x = torch.from_numpy(fold.scaler.transform(plan.cohort.features[rows]))
    model, seen = fold.model.eval(), []
    keep = model.hidden_1.register_forward_hook(lambda *call: seen.append(call[2]))
    margins = margin(model(x))
    keep.remove()
    (adjoint,) = torch.autograd.grad(margins.sum(), seen)
    a, d = x.double().numpy(), adjoint.double().numpy()
    ids = list(plan.cohort.people.index[rows])
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    labels = [plan.labels(rows)["group"][i] for i in order]
    sites = [plan.cohort.people["site"].iloc[rows[i]] for i in order]
    moved = draw_relabellings(labels, sites, 19, plan.config.comparison.seed)
    expected = []
    for codes in moved:
        spaces = []
        for code in (0, 1):
            members = [order[i] for i in np.flatnonzero(codes == code)]
            matrix = a[members].T
            if quantity == "gradient":
                matrix = matrix @ d[members]
            spaces.append(scipy.linalg.svd(matrix)[0][:, :3])
        expected.append(scipy.linalg.subspace_angles(*spaces)[0])
    (found,) = [
        item.angle for item in fold.details.angles if item.angle.quantity == quantity
    ]
    assert (found.layer, found.source) == ("hidden_1", "probe")
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)


def test_directions_are_those_of_the_probe_after_the_epoch(small):
    """Formed anew by hand: rows of A, margin adjoints, an SVD of the product."""
    plan = make_plan(small(), Path())
    fold = FoldRun(plan, 1, torch.device("cpu"), details=True)
    fold.train_epoch(0)
    rows = plan.cohort.rows(plan.probe.ids)
    x = torch.from_numpy(fold.scaler.transform(plan.cohort.features[rows]))
    model, seen = fold.model.eval(), []
    keep = model.hidden_1.register_forward_hook(lambda *call: seen.append(call[2]))
    margins = margin(model(x))
    keep.remove()
    (adjoint,) = torch.autograd.grad(margins.sum(), seen)
    labels = np.array(plan.labels(rows)["group"])
    for group in ("control", "patient"):
        at = torch.from_numpy(labels == group)
        matrix = (x[at].T @ adjoint[at]).double().numpy()
        u, s, _ = np.linalg.svd(matrix)
        found = [
            d
            for d in fold.details.directions
            if (d.group, d.quantity, d.fold) == (group, "gradient", 1)
        ]
        assert [d.value for d in found] == pytest.approx(list(s[:3]), rel=1e-5)
        assert abs(found[0].vector @ u[:, 0]) == pytest.approx(1, abs=1e-5)


def test_keeping_them_changes_nothing(small):
    plan = make_plan(small(), Path())
    plain, kept = (
        FoldRun(plan, 0, torch.device("cpu"), details=details)
        for details in (False, True)
    )
    for epoch in range(3):
        for fold in (plain, kept):
            fold.train_epoch(epoch)
            fold.validate(epoch)
    assert kept.details.directions
    assert kept.details.influence
    pairs = zip(plain.model.parameters(), kept.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_without_a_probe_the_last_watched_batch(small, tmp_path):
    changes = {"comparison": {"probe_fraction": 0.1}}
    plan, _, done = finish(small, tmp_path, figures=False, **changes)
    assert plan.probe is None
    assert [p.name for p in (done.folder / "directions").iterdir()] == ["angles.tsv"]
    assert {d.source for d in done.result.directions} == {"train"}
    assert not done.result.angles
    angles = pd.read_csv(done.folder / "directions" / "angles.tsv", sep="\t")
    assert angles["p"].isna().all()
    assert set(angles["reason"]) == {"descriptive: only held-out people are relabelled"}
    assert max(d.samples for d in done.result.directions) <= 8


def test_switched_off(small, tmp_path):
    off = {"spectra": {"directions": 0, "influence": False}}
    _, _, done = finish(small, tmp_path, **off)
    names = {p.name for p in done.folder.iterdir()}
    assert not names & {"directions.parquet", "influence.parquet", "directions"}


def test_a_simulated_brain_gets_images(small, tmp_path):
    cohort = {
        "preset": "easy", "people": 48, "components": 7, "modality": "volume",
        "volumes": True, "voxel_mm": 12.0, "folder": str(tmp_path / "cohort"),
    }  # fmt: skip
    plan, tracker, done = finish(
        small,
        tmp_path,
        cohort={"settings": cohort},
        training={"epochs": 1},
        spectra={"directions": 2},
    )
    folder = done.folder / "directions"
    for group in ("control", "patient", "everyone"):
        name = f"gradient-{group}-2.nii.gz"
        assert tracker.files[f"directions/{name}"] == (folder / name).read_bytes()
    image = nibabel.load(folder / "activation-control-1.nii.gz")
    assert image.shape == plan.cohort.features.shape[1:]
    assert np.array_equal(image.affine, plan.cohort.space.affine)
    seen = [s.restore(np.ones(s.width)) for s in done.result.scalers]
    known = np.isfinite(seen).any(axis=0)
    assert np.array_equal(np.isfinite(np.asarray(image.dataobj)), known)
