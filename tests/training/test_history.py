import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spectral_mlops.records import EpochRecord
from spectral_mlops.tracking import MemoryTracker, SpoolTracker, load_run
from spectral_mlops.training import make_plan, run
from spectral_mlops.training.history import History
from tests.tracking.factory import divergence, spectrum


def test_best_and_area_of_a_curve():
    history = History()
    losses, aucs = [3.0, 1.0, np.nan, 2.0], [0.5, 0.9, 0.6, 0.8]
    for epoch, (loss, auc) in enumerate(zip(losses, aucs, strict=True)):
        metrics = {"val/loss": loss, "val/auc": auc}
        if epoch == 3:
            metrics["divergence/gradient"] = 1.5
        history.add(epoch, [], metrics, {}, "diagnosis")
    assert history.metrics() == {
        "best/val_auc": 0.9,
        "best/val_loss": 1.0,
        "auc/val_auc": pytest.approx(0.7),
        "auc/divergence_gradient": 1.5,
    }


def test_mean_spectra_are_dense_and_by_rank_position():
    """Unequal shapes; two batches, two folds; a marked spectrum counts nowhere."""
    history = History()
    for epoch in range(3):
        records = []
        for fold in range(2):
            scale = 1.0 + epoch + 10 * fold
            shown = (
                spectrum("a", group="patient", values=(4.0 * scale, 2.0, 1.0)),
                spectrum("a", group="patient", values=(2.0 * scale, 2.0), step=1),
                spectrum("b", group="patient", values=(scale,)),
                spectrum("a", "adjoint", values=(7.0,)),
                spectrum("b", group="control group", status="non-finite"),
            )
            records.append(EpochRecord(epoch, "train", shown, (), fold))
        best = {(0, 0): 0, (1, 0): epoch}
        history.add(epoch, records, {}, best, "diagnosis")
    arrays = history.arrays()
    assert arrays["layers"].tolist() == ["a", "b"]
    assert arrays["quantities"].tolist() == ["gradient", "adjoint"]
    assert arrays["groups"].tolist() == ["patient", "all"]
    assert arrays["groupings"].tolist() == ["diagnosis", "all"]
    assert arrays["last"].shape == arrays["best"].shape == (2, 2, 2, 3)
    last = [np.mean([3.0 * 3, 3.0 * 13]), 2.0, 0.5]
    np.testing.assert_allclose(arrays["last"][0, 0, 0], last)
    best = [np.mean([3.0 * 1, 3.0 * 13]), 2.0, 0.5]  # fold 0 in epoch 0, fold 1 in 2
    np.testing.assert_allclose(arrays["best"][0, 0, 0], best)
    assert arrays["best_epochs"].tolist() == [0, 2]
    np.testing.assert_array_equal(arrays["last"][1, 0, 0], [8.0, np.nan, np.nan])
    assert np.isnan(arrays["last"][1, 1]).all()
    assert arrays["n"][0, 0, 0] == 4


def test_nothing_seen_gives_empty_arrays(tmp_path):
    path = History().write(tmp_path / "final.npz")
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["last"].shape == (0, 0, 0, 0)


def test_divergences_are_of_the_primary_grouping():
    history = History()
    rows = (
        divergence("a", value=0.2),
        divergence("a", value=0.4, pair=("x", "y")),
        divergence("a", value=9.0, grouping="sex"),
        divergence("b", value=np.nan),
    )
    shown = [EpochRecord(0, "train", (), rows)]
    history.add(0, shown, {}, {(0, 0): 0}, "diagnosis")
    found = history.divergences[0]
    assert found["a", "gradient"] == pytest.approx(0.3)
    assert np.isnan(found["b", "gradient"])
    assert not history.probe


def test_what_a_run_says_of_itself(small, tmp_path):
    settings = small(comparison={"groupings": ["group", "sex"]})
    plan = make_plan(settings, Path())
    tracker = SpoolTracker(tmp_path / "run")
    with tracker:
        finished = run(plan, tracker, tmp_path / "run", name="one")
    folder, result = finished.folder, finished.result
    told = json.loads((folder / "schema.json").read_text())
    layers = [row["layer"] for row in told["layers"]]
    assert layers == ["hidden_1", "hidden_2", "output"]
    counts = plan.cohort.people["sex"].value_counts().to_dict()
    assert {g: x["n"] for g, x in told["groupings"]["sex"].items()} == counts
    assert told["profile"] == "standard"
    assert "logged by the caller" not in told["keys"].values()
    assert {"best/val_auc", "auc/divergence_adjoint", "val_recall/control"} <= set(
        told["keys"]
    )
    coverage = pd.read_csv(folder / "coverage.tsv", sep="\t")
    columns = ["fold", "seed", "parameter", "layer", "method", "split", "why"]
    assert list(coverage) == columns
    assert len(coverage) == 2 * 6
    assert set(coverage["method"]) == {"rows"}
    gaps = pd.read_csv(folder / "additivity.tsv", sep="\t")
    assert gaps["gap"].max() == pytest.approx(result.additivity)
    groups = pd.read_csv(folder / "groups.tsv", sep="\t")
    assert groups["group"].tolist() == ["all", "control", "patient"]
    assert groups["auc"].notna().tolist() == [True, False, False]
    assert "git c" in (folder / "environment.txt").read_text()
    _check_final(folder)
    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as picture:
            assert picture.size == (400, 300)
    assert len(list((folder / "images").iterdir())) == 3 * 2  # maps, epochs with a null


def _check_final(folder):
    """Means of the last epoch, from the run's records anew."""
    frame = load_run(folder)
    last = frame[(frame["epoch"] == 2) & (frame["source"] == "train")]
    with np.load(folder / "final.npz", allow_pickle=False) as arrays:
        names = {name: arrays[name].tolist() for name in ("layers", "quantities")}
        groups = list(zip(arrays["groupings"], arrays["groups"], strict=True))
        for (layer, quantity, *group), rows in last.groupby(
            ["layer", "quantity", "grouping", "group"]
        ):
            k = arrays["last"].shape[-1]
            folds = [
                np.mean([np.pad(v, (0, k - len(v))) for v in own["values"]], axis=0)
                for _, own in rows.groupby("fold")
            ]
            place = (
                names["layers"].index(layer),
                groups.index(tuple(group)),
                names["quantities"].index(quantity),
            )
            expected = np.mean(folds, axis=0)
            found = np.nan_to_num(arrays["last"][place])
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_stores_password_is_written_nowhere(small, tmp_path):
    uri = "http://me:secret@127.0.0.1:9"
    plan = make_plan(small(tracking={"uri": uri}, training={"epochs": 1}), Path())
    tracker = MemoryTracker()
    run(plan, tracker, tmp_path / "run", name="one", figures=False)
    assert tracker.params["tracking.uri"] == "http://me:***@127.0.0.1:9"
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert not [p for p in files if b"secret" in p.read_bytes()]


def test_sweeps_have_few_keys_and_no_images(small, tmp_path):
    plan = make_plan(small(tracking={"profile": "sweep"}), Path())
    tracker = MemoryTracker()
    run(plan, tracker, tmp_path / "run", name="one")
    keys = {key for key, _, _ in tracker.history}
    assert len(keys) <= 40
    assert {
        "val/auc",
        "val_recall/patient",
        "divergence/adjoint",
        "final/primary_p",
        "best/val_auc",
        "auc/divergence_gradient",
    } <= keys
    assert not tracker.images
    assert "spectral.dropped_keys" in tracker.tags
