"""The command ``compare`` as a person uses it."""

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
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, run


@pytest.fixture
def command(monkeypatch, capsys):
    """Call the command in this process; gives exit code, output, error output."""

    def call(*words):
        monkeypatch.setattr(
            sys, "argv", ["spectral-mlops", "compare", *map(str, words)]
        )
        monkeypatch.setattr(cli, "console", cli.Console(width=200))
        monkeypatch.setattr(cli, "problems", cli.Console(stderr=True, width=200))
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out, shown.err

    return call


@pytest.fixture
def folder(small, tmp_path):
    plan = make_plan(small(), Path())
    run(plan, MemoryTracker(), tmp_path / "runs" / "one", name="one")
    return tmp_path / "runs" / "one"


def test_a_run_is_tested_and_the_test_goes_on(command, folder):
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
    assert again[again.index("On training") :] == out[out.index("On training") :]
    assert (folder / "retrain" / "result.tsv").is_file()


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
        rows = table[(table["quantity"] == "activation") & table["testable"]]
        rows = rows[rows["values"].map(len) > 1].sort_values("layer")
        nulls.append(np.array(rows["values"].tolist()))
    mean = (nulls[0] + nulls[1] + nulls[2]) / 3
    assert mean.shape == (3, 20)
    t = (mean - mean.mean(1, keepdims=True)) / mean.std(1, keepdims=True)
    together = t.mean(0)
    p = (together >= together[0]).sum() / 20
    assert f"Runs 1, 2, 3 together: p = {p:.3f} for activation" in " ".join(out.split())
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
