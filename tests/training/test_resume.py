"""A run that was interrupted goes on as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from spectral_mlops.errors import InputError, TrackingError
from spectral_mlops.schedule import NullEpochs
from spectral_mlops.tracking import (
    MlflowTracker,
    SpoolTracker,
    load_metrics,
    load_run,
    open_store,
)
from spectral_mlops.training import make_plan, read_plan, run
from spectral_mlops.training.checkpoint import Checkpoints
from spectral_mlops.training.history import History
from tests.conftest import ROOT
from tests.training.toys import toy

RESULTS = (
    "predictions.tsv",
    "layers.tsv",
    "epochs.tsv",
    "trends.tsv",
    "effects.tsv",
    "performance.tsv",
    "directions/angles.tsv",
    "coverage.tsv",
    "additivity.tsv",
    "groups.tsv",
    "performance.tsv",
    "verdict.txt",
)


class Interrupted(Exception):
    pass


@pytest.fixture
def every_epoch(monkeypatch):
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)


def stop_at(last):
    def on_epoch(epoch, metrics):
        if epoch == last:
            raise Interrupted

    return on_epoch


def start(plan, folder, tracker=None, **more):
    with tracker or SpoolTracker(folder) as tracker:
        return run(plan, tracker, folder, name="one", figures=False, **more)


def logged(folder):
    frame = load_metrics(folder)
    known = frame[~frame["key"].str.startswith("cost/")]
    return known.drop(columns="time").reset_index(drop=True)


def same_run(one, other):
    pd.testing.assert_frame_equal(logged(one), logged(other))
    for kind in ("spectra", "divergences"):
        pd.testing.assert_frame_equal(
            load_run(one, kind=kind), load_run(other, kind=kind)
        )
    for name in RESULTS:
        assert (one / name).read_text() == (other / name).read_text(), name
    for path in sorted((one / "checkpoints").glob("fold-*.pt")):
        weights, others = (
            torch.load(folder / "checkpoints" / path.name, weights_only=True)
            for folder in (one, other)
        )
        assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("last", [0, 2])
def test_goes_on_bit_for_bit(small, tmp_path, every_epoch, last):
    settings = small(
        training={"epochs": 5, "seeds": 2},
        comparison={"null_epochs": 3},
        model={"settings": {"dropout": 0.3}},
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start(make_plan(settings, Path()), whole)
    with pytest.raises(Interrupted):
        start(make_plan(settings, Path()), parts, on_epoch=stop_at(last))
    assert (parts / "checkpoints/last.pt").exists()
    start(read_plan(parts, Path(), finished=False), parts, resume=True)
    same_run(whole, parts)
    assert not (parts / "checkpoints/last.pt").exists()
    assert not list(parts.rglob("*.new"))


@pytest.mark.slow
def test_goes_on_bit_for_bit_with_every_setting_of_a_step(tmp_path, every_epoch):
    """Momentum, a schedule, weights, accumulation, clipping, precision, patience."""
    training = {
        "epochs": 9,
        "optimizer": "sgd",
        "momentum": 0.9,
        "learning_rate": 0.5,
        "schedule": "one-cycle",
        "class_weights": "balanced",
        "accumulate": 2,
        "batch_size": 5,
        "clip_norm": 0.5,
        "amp": "bfloat16",
        "patience": 2,
    }
    model = {"name": "transformer", "settings": {"width": 8, "heads": 2, "layers": 1}}
    fast = {"comparison": {"effect_draws": 20}, "spectra": {"directions": 1}}
    settings = toy(model=model, training=training, **fast)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = start(make_plan(settings, Path()), whole)
    assert 2 < done.result.metrics["final/epochs"] < 9
    with pytest.raises(Interrupted):
        start(make_plan(settings, Path()), parts, on_epoch=stop_at(1))
    start(read_plan(parts, Path(), finished=False), parts, resume=True)
    same_run(whole, parts)


def test_interrupted_after_the_last_epoch_it_is_done_again(
    small, tmp_path, every_epoch
):
    plan = make_plan(small(), Path())
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start(plan, whole)
    with pytest.raises(Interrupted):
        start(plan, parts, on_epoch=stop_at(plan.config.training.epochs - 1))
    start(read_plan(parts, Path(), finished=False), parts, resume=True)
    same_run(whole, parts)


def test_interrupted_before_any_checkpoint_begins_anew(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "due", lambda self: False)
    settings = small(training={"epochs": 3})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start(make_plan(settings, Path()), whole)
    with pytest.raises(Interrupted):
        start(make_plan(settings, Path()), parts, on_epoch=stop_at(1))
    assert not (parts / "checkpoints/last.pt").exists()
    start(read_plan(parts, Path(), finished=False), parts, resume=True)
    same_run(whole, parts)


def test_one_mlflow_run_without_a_double_point(small, tmp_path, uri, every_epoch):
    plan = make_plan(small(training={"epochs": 4}), Path())
    folder = tmp_path / "one"
    tracker = MlflowTracker(tracking_uri=uri, folder=folder)
    with pytest.raises(Interrupted):
        start(plan, folder, tracker, on_epoch=stop_at(1))
    client = open_store(uri).client
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    again = MlflowTracker(tracking_uri=uri, folder=folder)
    start(read_plan(folder, Path(), finished=False), folder, again, resume=True)
    assert again.run_id == tracker.run_id
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    history = client.get_metric_history(tracker.run_id, "val/auc")
    assert [point.step for point in history] == [0, 1, 2, 3]
    pd.testing.assert_frame_equal(
        load_metrics(folder), load_metrics(tracker.run_id, uri)
    )
    with pytest.raises(TrackingError, match="has finished"):
        start(plan, folder, MlflowTracker(tracking_uri=uri, folder=folder), resume=True)


def test_other_people_settings_and_damage_are_refused(small, tmp_path, every_epoch):
    plan = make_plan(small(training={"epochs": 3}), Path())
    folder = tmp_path / "one"
    with pytest.raises(Interrupted):
        start(plan, folder, on_epoch=stop_at(0))
    faster = make_plan(small(training={"epochs": 3, "learning_rate": 0.1}), Path())
    with pytest.raises(InputError, match="another settings"):
        Checkpoints(folder, faster).load([], NullEpochs(3, 0.0), History())
    others = small(
        training={"epochs": 3}, cohort={"settings": {"seed": 4, "folder": "o"}}
    )
    with pytest.raises(TrackingError, match="other people"):
        start(make_plan(others, Path()), folder, resume=True)
    path = folder / "checkpoints/last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"last\.pt cannot be read"):
        start(plan, folder, resume=True)
    torch.save({"planted": os.system}, path)
    with pytest.raises(InputError, match=r"last\.pt cannot be read"):
        start(plan, folder, resume=True)


def test_a_checkpoint_now_and_then(small, tmp_path):
    now = [0.0]
    plan = make_plan(small(), Path())
    kept = Checkpoints(tmp_path, plan, every=5.0, clock=lambda: now[0])
    assert not kept.due()
    now[0] = 5.0
    assert kept.due()
    kept.save(0, [], NullEpochs(3, 0.0), {}, History())
    assert not kept.due()
    assert kept.load([], NullEpochs(3, 0.0), History()) == (1, {})
    kept.remove()
    assert kept.load([], NullEpochs(3, 0.0), History()) == (0, {})


@pytest.mark.slow
def test_killed_again_and_again_at_the_command_line(small_folder, tmp_path, uri):
    command = [sys.executable, "-m", "spectral_mlops.cli", "train"]
    settings = tmp_path / "run.toml"
    settings.write_text(
        f"""
        [cohort.settings]
        preset = "easy"
        people = 56
        seed = 3
        components = 12
        volumes = false
        folder = "{small_folder}"
        [model.settings]
        hidden = [9, 5]
        [training]
        epochs = 60
        folds = 2
        batch_size = 8
        [comparison]
        permutations = 19
        null_epochs = 4
        probe_fraction = 0.45
        [tracking]
        uri = "{uri}"
        """
    )
    runs = tmp_path / "runs"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = [*command, "--config", str(settings), "--runs", str(runs)]
    process = subprocess.Popen(first, cwd=tmp_path, env=environment)
    for _ in range(3):
        folder = killed_after_some_epochs(process, runs)
        again = [*command, "--resume", str(folder)]
        process = subprocess.Popen(again, cwd=tmp_path, env=environment)
    assert process.wait(timeout=300) == 0
    assert len(list(runs.iterdir())) == 1
    losses = load_metrics(folder).query("key == 'train/loss'")
    assert losses["step"].tolist() == [*range(60)]
    whole = subprocess.run(first, cwd=tmp_path, env=environment, check=False)
    assert whole.returncode == 0
    other = next(path for path in runs.iterdir() if path != folder)
    same_run(other, folder)


def killed_after_some_epochs(process, runs):
    """Kill a training once it has logged more than before; return its folder."""
    deadline, before = time.monotonic() + 120, None
    while time.monotonic() < deadline:
        assert process.poll() is None, "it came to its end"
        found = list(runs.glob("*/spool/events.jsonl"))
        lines = found[0].read_bytes().count(b'"kind": "metrics"') if found else 0
        before = lines if before is None and found else before
        if found and before is not None and lines >= before + 6:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return found[0].parents[1]
        time.sleep(0.05)
    raise TimeoutError
