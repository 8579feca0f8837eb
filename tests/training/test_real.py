"""Recurrent networks and transformers on real time courses, where they are here."""

import os
from pathlib import Path

import numpy as np
import pytest

from spectral_mlops.config import RunConfig, validate
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, run
from tests.conftest import ROOT

DATA = Path(os.environ.get("SPECTRAL_MLOPS_DATA", ROOT.parent / "shared" / "data"))
ABIDE = DATA / "abide_cc200_timecourses"
MODELS = {
    "lstm": {"width": 16},
    "transformer": {"width": 16, "heads": 2, "layers": 1, "feedforward": 16},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_unequal_lengths_and_dead_regions_are_trained_on(name, tmp_path):
    if not ABIDE.is_dir():
        pytest.skip(f"real data are not here: {ABIDE}")
    cohort = {
        "series": str(ABIDE / "timecourses_float16.npz"),
        "labels": str(ABIDE / "participants.tsv"),
        "positive": "autism",
        "lengths": "pad",
        "dead": "zero",
    }
    config = {
        "cohort": {"name": "timecourses", "settings": cohort},
        "model": {"name": name, "settings": MODELS[name]},
        "training": {"epochs": 2, "folds": 2, "learning_rate": 1e-3},
        "spectra": {"batches_per_epoch": 1, "directions": 0},
        "comparison": {"permutations": 19, "null_epochs": 1, "effect_draws": 20},
    }
    plan = make_plan(validate(RunConfig, config, "test"), Path())
    assert set(plan.cohort.lengths) == {146, 196}
    assert any("dead='zero'" in note for note in plan.cohort.notes)
    with MemoryTracker() as tracker:
        result = run(plan, tracker, tmp_path / "run", name=name, figures=False).result
    assert result.metrics["final/additivity"] < 1e-5
    assert 0.2 < result.metrics["final/auc"] < 0.9
    assert np.isfinite(result.metrics["final/divergence_activation"])
    assert result.scalers[0].inputs == (196, 200)
