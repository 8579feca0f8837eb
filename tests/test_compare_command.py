"""The command ``compare`` as a person uses it."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spectral_mlops import cli
from spectral_mlops.tracking import MemoryTracker, MlflowTracker, open_store
from spectral_mlops.training import make_plan, run
from spectral_mlops.training.retrain import MEAN
from spectral_mlops.training.retrain_tracking import headline_metrics


@pytest.fixture
def command(command):
    """The command ``compare``."""
    return functools.partial(command, "compare")


@pytest.fixture
def folder(small, tmp_path, uri):
    plan = make_plan(small(tracking={"uri": uri}), Path())
    folder = tmp_path / "runs" / "one"
    with MlflowTracker(tracking_uri=uri, folder=folder) as tracker:
        run(plan, tracker, folder, name="one")
    return folder


def stored(uri, folder):
    """The MLflow run of a folder, and the files under ``retrain``."""
    client = open_store(uri).client
    run_id = json.loads((folder / "spool/run.json").read_text())["run_id"]
    paths = [item.path for item in client.list_artifacts(run_id, "retrain")]
    return client, client.get_run(run_id), paths


def test_a_run_is_tested_and_the_test_goes_on(command, folder, uri):
    ended = stored(uri, folder)[1].info
    code, out, _ = command(folder, "--retrain", 19)
    assert code == 0
    assert "retraining" in out
    assert "Among 19 retrainings on 'group' permuted over people within site" in out
    assert "mean over layers" in out
    assert "does not by itself show that dynamics differ" in " ".join(out.split())
    log = folder / "retrain" / "permutations.jsonl"
    before = log.stat().st_mtime_ns
    code, again, _ = command(folder, "--retrain", 19)
    assert code == 0
    assert log.stat().st_mtime_ns == before
    assert "Logged before to MLflow run" in again
    first, second = (
        text[text.index("On training") : text.index("Kept in")] for text in (out, again)
    )
    assert first == second
    table = pd.read_csv(folder / "retrain" / "result.tsv", sep="\t")
    client, kept, paths = stored(uri, folder)
    assert paths == ["retrain/result.json", "retrain/result.tsv"]
    assert (kept.info.status, kept.info.end_time) == (ended.status, ended.end_time)
    assert kept.data.metrics["retrain/permutations"] == 19
    means = table[table["layer"] == "mean over layers"]
    for row in means.itertuples():
        key = f"{row.source}_{row.quantity}"
        assert kept.data.metrics[f"retrain/p_{key}"] == row.p
        assert kept.data.metrics[f"retrain/z_{key}"] == pytest.approx(row.z)
        assert len(client.get_metric_history(kept.info.run_id, f"retrain/p_{key}")) == 1


def test_what_cannot_be_delivered_is_said_and_delivered_later(
    command, folder, uri, tmp_path
):
    away = f"sqlite:///{tmp_path / 'absent' / 'mlflow.db'}"
    code, out, _ = command(folder, "--retrain", 19, "--tracking", away)
    assert code == 3
    assert "Not logged to MLflow" in out
    assert (folder / "retrain" / "result.json").is_file()
    code, out, _ = command(folder, "--retrain", 19)
    assert code == 0
    assert "Look at it" in out
    assert stored(uri, folder)[2]
    (folder / "spool/run.json").unlink()
    code, out, _ = command(folder, "--retrain", 19)
    assert code == 3
    assert "does not say which MLflow run this is" in out


def test_a_store_that_goes_away_meanwhile(command, folder, uri, monkeypatch):
    def lost(*args, **kwargs):
        raise OSError("gone")

    from mlflow import MlflowClient

    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_artifact", lost)
        code, out, _ = command(folder, "--retrain", 19)
    assert code == 3
    assert "Not all of it is logged" in out
    assert "undelivered: spectral-mlops sync" in " ".join(out.split())
    assert not (folder / "retrain" / "logged.json").exists()
    code, out, _ = command(folder, "--retrain", 19)
    assert code == 0
    assert (folder / "retrain" / "logged.json").exists()
    client, kept, paths = stored(uri, folder)
    assert paths == ["retrain/result.json", "retrain/result.tsv"]
    history = client.get_metric_history(kept.info.run_id, "retrain/permutations")
    assert [point.value for point in history] == [19]
    assert not list((folder / "retrain").glob("delivery*"))


def test_names_of_numbers():
    rows = [
        ("probe", "dx", "gradient", MEAN, "a", "b", 0.5, 1.0),
        ("probe", "dx", "gradient", "fc", "a", "b", 0.25, 1.0),
        ("probe", "a site", "gradient", MEAN, "x", "y", 0.05, np.nan),
        ("probe", "a site", "gradient", MEAN, "x", "z", 0.1, np.nan),
    ]
    names = ["source", "grouping", "quantity", "layer", "group_a", "group_b", "p", "z"]
    assert headline_metrics(pd.DataFrame(rows, columns=names)) == {
        "retrain/p_probe_gradient": 0.5,
        "retrain/z_probe_gradient": 1.0,
        "retrain/p_probe_gradient_a_site_x-y": 0.05,
        "retrain/p_probe_gradient_a_site_x-z": 0.1,
    }


def test_runs_are_shown_side_by_side(command, folder):
    other = folder.with_name("two")
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    config["training"]["seed"] = 5
    (other / "config.json").write_text(json.dumps(config))
    code, out, _ = command(folder, other)
    assert code == 0
    assert "training.seed" in out
    assert "Over seeds" in out
    assert "share the probe" in out
    code, out, _ = command(folder)
    assert code == 0
    assert "--retrain 99" in out


def test_runs_that_differ_in_their_seed_are_tested_together(command, small, folder):
    """The p is that of a slow average of what the runs' networks show."""
    runs, nulls = [folder], []
    for seed in (1, 2):
        training = {"epochs": 3, "folds": 2, "batch_size": 8, "seed": seed}
        runs.append(folder.with_name(f"seed-{seed}"))
        plan = make_plan(small(training=training), Path())
        run(plan, MemoryTracker(), runs[-1], name="x", figures=False)
    code, out, err = command(*runs)
    assert (code, err) == (0, "")
    for path in runs:
        table = pd.read_parquet(path / "null.parquet")
        rows = table[(table["quantity"] == "adjoint") & table["testable"]]
        rows = rows[rows["values"].map(len) > 1].sort_values("layer")
        nulls.append(np.array(rows["values"].tolist()))
    mean = (nulls[0] + nulls[1] + nulls[2]) / 3
    assert mean.shape == (2, 20)  # the output's has rank 1
    t = (mean - mean.mean(1, keepdims=True)) / mean.std(1, keepdims=True)
    together = t.mean(0)
    p = (together >= together[0]).sum() / 20
    assert f"Runs 1, 2, 3 together: p = {p:.3f} for adjoint" in " ".join(out.split())
    assert not (folder / "null_pairs.parquet").exists()
    table = pq.read_table(runs[1] / "null.parquet")
    names = table.schema.names
    other = [text.replace("(", "(0") for text in table["null"].to_pylist()]
    assert other != table["null"].to_pylist()
    changed = table.set_column(names.index("null"), "null", pa.array(other))
    pq.write_table(changed, runs[1] / "null.parquet")
    code, out, _ = command(*runs)
    assert code == 0
    said = " ".join(out.split())
    assert "No joint test of runs 1, 2, 3: gradient between control and patient" in said
    assert "was relabelled in different ways" in said
    (runs[1] / "null.parquet").write_bytes(b"PAR1")
    code, _, err = command(*runs)
    assert code == 2
    assert "Cannot read" in err


def test_bad_input_is_one_sentence(command, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    unfinished = tmp_path / "unfinished"
    shutil.copytree(folder, unfinished)
    (unfinished / "final.json").unlink()
    homeless = tmp_path / "homeless"
    shutil.copytree(folder, homeless)
    config = json.loads((homeless / "config.json").read_text())
    config["cohort"]["settings"]["folder"] = None
    (homeless / "config.json").write_text(json.dumps(config))
    for words, said in (
        ((tmp_path / "empty",), "is no run"),
        ((tmp_path / "absent", "--retrain", 19), "is no run"),
        ((unfinished,), "not finished"),
        ((unfinished, "--retrain", 19), "not finished"),
        ((homeless, "--retrain", 19), "go to the folder the run was trained in"),
        ((folder, "--retrain", 18), "19 or more"),
        ((folder, "--retrain", 19, "--workers", 0), "--workers 0"),
        ((folder, "--retrain", 19, "--device", "tpu"), "--device tpu"),
    ):
        code, _, err = command(*words)
        assert code == 2, words
        assert said in err
        assert len(err.strip().splitlines()) == 1
    assert not Path("cohort").exists()
    assert not (folder / "retrain").exists()


def test_help_answers_without_the_heavy_packages():
    code = (
        "import sys; sys.argv = ['spectral-mlops', 'compare', '--help']\n"
        "from spectral_mlops.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'mlflow', 'pandas'} & set(sys.modules)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(cli.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "--retrain" in shown.stdout
