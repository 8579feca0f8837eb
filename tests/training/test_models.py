"""`train` from end to end, with every model there is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from spectral_mlops.errors import InputError
from spectral_mlops.models import MODELS
from spectral_mlops.models.padding import valid_steps
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import inputs, make_plan, run
from spectral_mlops.training.controls import Controls
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.held_out import mix
from spectral_mlops.training.outcome import no_outcome
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
        drawn = name == "lstm"  # the others' figures are drawn by the same code
        finished = run(plan, tracker, tmp_path / "run", name=name, figures=drawn)
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


@pytest.mark.slow
def test_time_courses_are_held_against_controls(tmp_path):
    model = {"name": "gru", "settings": {"width": 4}}
    config = toy(model=model, controls={"run": True, "draws": 1})
    plan = make_plan(config, Path())
    with MemoryTracker() as tracker:
        result = run(plan, tracker, tmp_path / "run", name="x", figures=False).result
    table = result.controls.set_index("control")
    for name in ("init", "input-surrogate", "unrelated-target"):
        assert np.isfinite(table.loc[name, "z"]), name


def test_surrogates_keep_their_own_lengths():
    plan = make_plan(toy(model={"name": "gru"}), Path())
    inputs = FoldRun(plan, 0, torch.device("cpu")).held_out.inputs
    mixing = torch.randn(len(inputs), len(inputs), dtype=torch.float64)
    mixed = mix(mixing, inputs)
    assert torch.equal(valid_steps(mixed), valid_steps(inputs))
    first = (mixing @ inputs[:, 0].double()).float()
    torch.testing.assert_close(mixed[:, 0], first)


def test_a_run_with_batch_normalisation_says_what_that_means():
    model = {"name": "mlp", "settings": {"norm": "batch"}}
    notes = make_plan(toy("fnc", model=model), Path()).notes
    assert sum("Batch normalisation mixes" in note for note in notes) == 1
    model = {"name": "mlp", "settings": {"norm": "layer"}}
    notes = make_plan(toy("fnc", model=model), Path()).notes
    assert not any("Batch normalisation" in note for note in notes)


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


def test_volumes_need_not_fit_into_memory(tmp_path, monkeypatch):
    """Read when they are asked for, they give the same run, to rounding."""
    config = toy("volume", model={"name": "cnn3d", "settings": SMALL["cnn3d"][1]})
    plan = make_plan(config, Path())
    whole = FoldRun(plan, 0, torch.device("cpu"))
    monkeypatch.setattr(inputs, "IN_MEMORY", 0)
    lazy = FoldRun(plan, 0, torch.device("cpu"))
    assert (whole.lazy, lazy.lazy) == (False, True)
    for epoch in range(2):
        losses = [one.train_epoch(epoch)[1] for one in (whole, lazy)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        said = [one.validate(epoch) for one in (whole, lazy)]
        np.testing.assert_allclose(*(x.probabilities for x in said), rtol=1e-5)
    held = [one.predict_probe() for one in (whole, lazy)]
    np.testing.assert_allclose(*(x.probabilities for x in held), rtol=1e-5)
    probed = [one.probe(2).divergences(permutations=19) for one in (whole, lazy)]
    for column in ("value", "z", "p"):
        np.testing.assert_allclose(*(x[column] for x in probed), rtol=1e-3, atol=1e-6)
    with MemoryTracker() as tracker:
        found = run(plan, tracker, tmp_path / "run", name="x", figures=False).result
    assert found.metrics["final/additivity"] < 1e-5


def test_controls_and_directions_of_volumes_in_parts_are_those_of_all_at_once(
    monkeypatch,
):
    """To rounding: sums over people are taken in another order."""
    config = toy("volume", model={"name": "cnn3d", "settings": SMALL["cnn3d"][1]})
    plan = make_plan(config, Path())
    whole = FoldRun(plan, 0, torch.device("cpu"), details=True)
    monkeypatch.setattr(inputs, "IN_MEMORY", 0)
    lazy = FoldRun(plan, 0, torch.device("cpu"), details=True)
    sizes = []
    lazy.model.conv_1.register_forward_hook(lambda m, a, out: sizes.append(len(out)))
    for one in (whole, lazy):
        one.train_epoch(0)
        one.validate(0)
    assert max(sizes) <= config.training.batch_size < len(plan.probe.ids)
    kept = [
        {(d.quantity, d.group, d.index): d for d in one.details.directions}
        for one in (whole, lazy)
    ]
    assert kept[0].keys() == kept[1].keys()
    assert kept[0]
    for key, one in kept[0].items():
        other = kept[1][key]
        assert (one.source, one.samples) == ("probe", other.samples)
        assert other.value == pytest.approx(one.value, rel=1e-4)
        assert abs(one.vector @ other.vector) == pytest.approx(1, abs=1e-3)
    angles = [[x.angle.values for x in one.details.angles] for one in (whole, lazy)]
    np.testing.assert_allclose(*angles, atol=2e-3)
    outcomes = []
    for one in (whole, lazy):
        controls = Controls(plan, [one], no_outcome("none"), no_outcome("none"))
        mixing = torch.eye(len(plan.probe.ids), dtype=torch.float64).flip(0)
        mixed = controls._probe(mixing=mixing)
        outcomes.append([controls._probe(), controls._probe([*range(14)]), mixed])
    for a, b in zip(*outcomes, strict=True):
        assert np.isfinite(a.z)
        np.testing.assert_allclose(a.values, b.values, rtol=1e-3, atol=1e-3)
    assert max(sizes) <= config.training.batch_size
