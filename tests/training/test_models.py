"""`train` from end to end, with every model there is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.models import MODELS
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, run
from tests.training.toys import toy

SMALL = {
    "mlp": ("fnc", {"hidden": [6], "norm": "layer"}),
    "logistic": ("fnc", {}),
    "lstm": ("timecourses", {"width": 4}),
    "gru": ("timecourses", {"width": 4, "pooling": "last"}),
    "transformer": (
        "timecourses",
        {"width": 8, "heads": 2, "layers": 1, "feedforward": 8},
    ),
    "cnn1d": ("timecourses", {"channels": [4, 6], "kernel": 3}),
    "cnn2d": ("fnc", {"channels": [2, 3], "kernel": 3}),
    "ica_lstm": ("timecourses", {"window": 3, "stride": 2, "encoder": 6, "width": 3}),
    "cnn3d": ("volume", {"channels": [2, 3]}),
}


def test_every_model_is_here():
    assert set(SMALL) <= set(MODELS)
    assert {name for name in MODELS if ":" not in name} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_trains_exactly_and_leaves_everything(name, tmp_path):
    modality, settings = SMALL[name]
    config = toy(modality, model={"name": name, "settings": settings})
    plan = make_plan(config, Path())
    with MemoryTracker() as tracker:
        finished = run(plan, tracker, tmp_path / "run", name=name, figures=False)
    metrics = finished.result.metrics
    assert metrics["final/additivity"] < 1e-5
    assert np.isfinite(metrics["final/auc"])
    if name != "logistic":  # two classes: rank 1, no shape
        assert np.isfinite(metrics["final/divergence_activation"])
        assert np.isfinite(metrics["final/divergence_gradient"])
    assert len(finished.result.divergences) > 0
    assert (tmp_path / "run/directions.parquet").exists()
    assert (tmp_path / "run/checkpoints/fold-1-scaler.npz").exists()
    table = pd.read_csv(tmp_path / "run/layers.tsv", sep="\t")
    assert table["layer"].nunique() >= 1


def test_windows_are_trained_on_too(tmp_path):
    model = {"name": "ica_lstm", "settings": SMALL["ica_lstm"][1]}
    plan = make_plan(toy("windows", model=model), Path())
    with MemoryTracker() as tracker:
        finished = run(plan, tracker, tmp_path / "run", name="x", figures=False)
    assert finished.result.metrics["final/additivity"] < 1e-5


@pytest.mark.parametrize("name", SMALL)
def test_people_that_a_model_cannot_take_are_refused_first(name, tmp_path):
    other = "volume" if SMALL[name][0] != "volume" else "fnc"
    if name in ("mlp", "logistic"):
        other = "timecourses"
    config = toy(other, model={"name": name, "settings": SMALL[name][1]})
    with pytest.raises(InputError, match=f"The model '{name}' takes"):
        make_plan(config, tmp_path)
    assert not list(tmp_path.iterdir())
