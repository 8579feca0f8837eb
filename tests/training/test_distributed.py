"""A run of two processes is that of one; what one suffers ends both."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from spectral_mlops.errors import InputError
from spectral_mlops.tracking import SpoolTracker, load_metrics, load_run, open_store
from spectral_mlops.training import make_plan, read_plan, run
from spectral_mlops.training.distributed import (
    Team,
    check_separable,
    started_by_torchrun,
)
from tests.conftest import ROOT
from tests.training.test_resume import logged, same_run
from tests.training.toys import toy

FAST = {"baselines": {"draws": 100}}
EVERYONE = FAST | {"model": {"settings": {"dropout": 0.0}}}
"""Of each process its own units are dropped otherwise."""
EXACT = ("layer", "quantity", "grouping", "group", "group_a", "group_b", "samples",
         "rows", "batch_samples", "subjects", "status", "shape", "route", "step",
         "epoch", "fold", "seed", "source", "rank", "reason", "valid_for")  # fmt: skip


def torchrun(*words, **more):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "2", "--module", *map(str, words),
    ]  # fmt: skip
    added = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command,
        env=os.environ | added | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def work(what, *folders):
    process = torchrun("tests.training.workers", what, *folders, cwd=ROOT)
    said, problems = process.communicate(timeout=600)
    return process.returncode, said, problems


def worked(what, *folders):
    code, said, problems = work(what, *folders)
    assert code == 0, problems[-4000:]
    assert said.count("done") == 2


def prepared(folder, settings):
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(settings.model_dump_json())
    return folder


def alone(settings, folder):
    with SpoolTracker(folder) as tracker:
        return run(
            make_plan(settings, Path()), tracker, folder, name="one", figures=False
        )


def assert_alike(one, two):
    """The same in every count and word, and up to float32 rounding in numbers."""
    for kind in ("spectra", "divergences"):
        a, b = (load_run(folder, kind=kind) for folder in (one, two))
        assert len(a) == len(b) > 0
        for name in [name for name in EXACT if name in a]:
            assert a[name].astype(str).equals(b[name].astype(str)), (kind, name)
        if kind == "divergences":
            for name in ("value", "z", "p", "p_max"):
                np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-4)
            continue
        for x, y in zip(a["values"], b["values"], strict=True):
            top = np.max(x, initial=0.0)
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * top + 1e-9)
    a, b = (json.loads((x / "final.json").read_text()) for x in (one, two))
    assert a.keys() == b.keys()
    gap = "final/additivity"
    assert max(a.pop(gap), b.pop(gap)) < 1e-5
    np.testing.assert_allclose(
        [*a.values()], [b[name] for name in a], rtol=2e-3, atol=1e-4
    )
    assert (one / "coverage.tsv").read_text() == (two / "coverage.tsv").read_text()
    for name in ("influence.parquet", "directions.parquet"):
        if not (one / name).exists():
            continue
        x, y = pd.read_parquet(one / name), pd.read_parquet(two / name)
        assert len(x) == len(y)
        if name == "influence.parquet":
            np.testing.assert_allclose(x["value"], y["value"], rtol=1e-3, atol=1e-7)
    x, y = logged(one), logged(two)
    assert x[["key", "step"]].equals(y[["key", "step"]])


@pytest.mark.slow
def test_two_processes_find_what_one_finds(small, tmp_path):
    """Odd batches, a last one of a single person, groups on one process only."""
    step = {
        "epochs": 2,
        "batch_size": 7,
        "seeds": 2,
        "class_weights": "balanced",
        "accumulate": 2,
        "clip_norm": 0.3,
        "optimizer": "sgd",
        "learning_rate": 0.3,
        "momentum": 0.9,
        "schedule": "cosine",
    }
    transformer = {
        "name": "transformer",
        "settings": {"width": 8, "heads": 2, "layers": 1, "dropout": 0.0},
    }
    cases = {
        "plain": small(training={"batch_size": 5, "epochs": 2}, **EVERYONE),
        "step": small(
            training=step, comparison={"groupings": ["group", "site"]}, **EVERYONE
        ),
        "tokens": toy(model=transformer, comparison={"effect_draws": 20}, **FAST),
        "no probe": toy(
            "fnc",
            cohort={"settings": {"people": 31}},
            training={"batch_size": 6},
            model={"name": "tests.training.workers:Gained"},
            **FAST,
        ),
    }
    folders = [prepared(tmp_path / name, x) for name, x in cases.items()]
    worked("train", *folders)
    for folder, (name, settings) in zip(folders, cases.items(), strict=True):
        alone(settings, folder / "one")
        assert_alike(folder / "one", folder / "run")
        spectra = load_run(folder / "one", kind="spectra")
        trained = spectra[spectra["source"] == "train"]
        if name == "step":
            assert set(trained["seed"]) == {0, 1}
            assert set(trained["batch_samples"]) == {7, 1}
            large = trained[trained["batch_samples"] == 7]
            assert 1 in large["samples"].tolist()  # its group is on one process
        if name == "no probe":
            methods = set(pd.read_csv(folder / "run/coverage.tsv", sep="\t")["method"])
            assert methods == {"rows", "replay"}


@pytest.mark.slow
def test_goes_on_after_an_interrupt(small, tmp_path):
    settings = small(training={"epochs": 4}, model={"settings": {"dropout": 0.3}})
    whole, parts = (prepared(tmp_path / x, settings) for x in ("whole", "parts"))
    worked("train", whole)
    code, _, problems = work("interrupt", parts)
    assert code != 0
    assert "Interrupted" in problems
    assert (parts / "run/checkpoints/last.pt").exists()
    worked("resume", parts)
    same_run(whole / "run", parts / "run")


@pytest.mark.slow
def test_one_process_goes_on_with_the_run_of_two(small, tmp_path):
    settings = small(training={"epochs": 3}, **EVERYONE)
    folder = prepared(tmp_path / "parts", settings)
    assert work("interrupt", folder)[0] != 0
    kept = folder / "run"
    with SpoolTracker(kept) as tracker:
        plan = read_plan(kept, Path(), finished=False)
        run(plan, tracker, kept, name="one", figures=False, resume=True)
    alone(settings, tmp_path / "one")
    assert_alike(tmp_path / "one", kept)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["refuse", "break"])
def test_an_error_on_one_process_ends_all(small, tmp_path, what):
    folder = prepared(tmp_path / "one", small())
    worked(what, folder)
    ends = (folder / "run/spool/events.jsonl").read_text().splitlines()
    assert "FAILED" in ends[-1]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["settings", "weights"])
def test_processes_agree(small, tmp_path, what):
    changes = {"model": {"settings": {"dropout": 0.3}}}
    worked(what, prepared(tmp_path / "one", small(**changes)))


def settings_file(folder, small_folder, uri, epochs):
    path = folder / "run.toml"
    path.write_text(
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
        epochs = {epochs}
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
    return path


def epochs_logged(runs):
    found = list(runs.glob("*/spool/events.jsonl"))
    return found[0].read_bytes().count(b'"kind": "metrics"') if found else 0


@pytest.mark.slow
@pytest.mark.parametrize("signal_", ["interrupt", "kill one"])
def test_command_is_interrupted_and_goes_on_as_one_run(
    small_folder, tmp_path, uri, signal_
):
    """Only the first process speaks, and there is one MLflow run."""
    settings, runs = settings_file(tmp_path, small_folder, uri, 60), tmp_path / "runs"
    train = ("spectral_mlops.cli", "train")
    process = torchrun(*train, "--config", settings, "--runs", runs, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while epochs_logged(runs) < 4 or not list(runs.glob("*/checkpoints/last.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if signal_ == "interrupt":
        process.send_signal(signal.SIGTERM)
    else:
        os.kill(child_of_rank(process.pid, 1), signal.SIGKILL)
    said, problems = process.communicate(timeout=300)
    assert process.returncode != 0
    assert said.count("Primary outcome") == 1
    assert problems.count("Interrupted. The run is saved") == 1
    folder = next(runs.iterdir())
    client = open_store(uri).client
    experiments = [x.experiment_id for x in client.search_experiments()]
    found = client.search_runs(experiments)
    assert len(found) == 1
    lost = "KILLED" if signal_ == "interrupt" else "FAILED"
    assert found[0].info.status == lost
    if signal_ != "interrupt":
        return  # how it goes on is the same
    again = torchrun(*train, "--resume", folder, cwd=tmp_path)
    said, problems = again.communicate(timeout=600)
    assert again.returncode == 0, problems[-3000:]
    assert said.count("Its page:") == 1
    found = client.search_runs(experiments)
    assert [one.info.status for one in found] == ["FINISHED"]
    assert found[0].data.tags["spectral.processes"] == "2"
    losses = load_metrics(folder).query("key == 'train/loss'")
    assert losses["step"].tolist() == [*range(60)]


def child_of_rank(parent, rank):
    """Find a process that torchrun has started, by its environment."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(child)
    raise AssertionError


@pytest.mark.parametrize(("people", "size"), [(7, 2), (1, 2), (2, 3), (0, 2), (9, 4)])
def test_shares_are_the_batch_in_order(people, size):
    batch, teams = torch.randperm(people), []
    for rank in range(size):
        team = Team()
        team.rank, team.size = rank, size
        teams.append(team)
    shares = [team.share(batch) for team in teams]
    assert torch.equal(torch.cat(shares), batch)
    sizes = [len(share) for share in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        (nn.BatchNorm1d(3), True),
        (nn.SyncBatchNorm(3), True),
        (nn.InstanceNorm1d(3, track_running_stats=True), True),
        (nn.InstanceNorm1d(3), False),
        (nn.LayerNorm(3), False),
    ],
    ids=str,
)
def test_models_that_need_the_whole_batch_are_refused(layer, refused):
    model = nn.Sequential(nn.Linear(3, 3), layer)
    if not refused:
        check_separable(model)
        return
    with pytest.raises(InputError, match=r"'1' \(\w+\) takes statistics over the"):
        check_separable(model)


def test_a_run_of_one_process_needs_no_torchrun(monkeypatch, command):
    assert not started_by_torchrun()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0" if name != "WORLD_SIZE" else "1")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert not started_by_torchrun()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert started_by_torchrun()
    code, _, problems = command("sweep", "run")
    assert code == 2
    assert "torchrun started 2 processes, which only the commands train" in problems
