"""The command line as a person uses it: what is printed, left behind, returned."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spectral_mlops import cli, load_run
from spectral_mlops.cohorts import simulate
from spectral_mlops.tracking import open_store
from tests.interrupts import lose_a_signal

ROOT = Path(__file__).parents[1]
QUICK = ["--epochs", "2", "--folds", "2", "--hidden", "7,5", "--permutations", "19"]


@pytest.fixture
def cohort_files(tmp_path_factory):
    """A small FNC table and its labels, the columns named as in the wild."""
    folder = simulate(
        tmp_path_factory.mktemp("c") / "small",
        "easy",
        40,
        1,
        components=8,
        volumes=False,
    )
    people = pd.read_csv(folder / "participants.tsv", sep="\t", dtype=str)
    fnc = pd.read_csv(folder / "fnc.csv", dtype={"participant_id": str})
    labels = pd.DataFrame({"Id": people["participant_id"], "Dx_group": people["group"]})
    out = tmp_path_factory.mktemp("files")
    fnc.rename(columns={"participant_id": "Id"}).to_csv(out / "fnc.csv", index=False)
    labels.sample(frac=1, random_state=0).to_csv(out / "labels.csv", index=False)
    return out


@pytest.fixture
def command(command, uri):
    """The command line, with a store of this test's own where none is given."""

    def call(*words):
        if words[0] in ("train", "sweep") and "--tracking" not in words:
            words = (*words, "--tracking", uri)
        return command(*words)

    return call


def fnc(files, *more):
    return [
        "train",
        "--cohort",
        "fnc",
        "--features",
        files / "fnc.csv",
        "--labels",
        files / "labels.csv",
        "--order",
        "upper",
        *QUICK,
        *more,
    ]


def test_people_too_few_for_a_probe_are_held_out_in_turn(command, cohort_files, uri):
    code, out, _ = command(*fnc(cohort_files), "--crossfit", "2")
    assert code == 0
    assert "Part 2 of 2: 20 people held out." in out
    assert "twice the mean p of 2 parts" in " ".join(out.split())
    folders = sorted(path.name for path in Path("runs").iterdir())
    assert [name.rpartition("-")[2] for name in folders] == ["crossfit", "1", "2"]
    table = pd.read_table(Path("runs") / folders[0] / "crossfit.tsv")
    assert table["held_out"].tolist() == [20, 20]
    client = open_store(uri).client
    experiment = client.get_experiment_by_name("spectral_mlops")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_training_on_a_table_end_to_end(command, cohort_files, uri):
    code, out, _ = command(*fnc(cohort_files))
    assert code == 0
    assert "id = 'Id'" in out
    assert "group = 'Dx_group'" in out
    assert "40 people joined by id" in out
    assert "No probe" in out
    assert "descriptive" in out
    assert f"mlflow ui --backend-store-uri {uri}" in out
    (folder,) = Path("runs").iterdir()
    client = open_store(uri).client
    experiment = client.get_experiment_by_name("spectral_mlops")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id in out
    assert run.info.status == "FINISHED"
    assert run.data.params["training.epochs"] == "2"
    assert run.data.metrics["final/additivity"] < 1e-5
    assert len(client.get_metric_history(run.info.run_id, "val/auc")) == 2
    frame = load_run(run.info.run_id, uri)
    assert set(frame["quantity"]) == {"gradient", "activation", "adjoint"}
    assert set(frame["group"]) == {"all", "control", "patient"}
    assert json.loads((folder / "config.json").read_text())["training"]["folds"] == 2


def test_the_same_run_from_a_config_file(command, cohort_files, tmp_path, uri):
    config = tmp_path / "run.toml"
    config.write_text(
        f"""
        [cohort]
        name = "fnc"
        [cohort.settings]
        features = "{cohort_files}/fnc.csv"
        labels = "{cohort_files}/labels.csv"
        order = "upper"
        [model.settings]
        hidden = [7, 5]
        [training]
        epochs = 9
        folds = 2
        [comparison]
        permutations = 19
        """
    )
    code, _, _ = command("train", "--config", config, "--epochs", 2)
    assert code == 0
    command(*fnc(cohort_files))
    client = open_store(uri).client
    first, second = client.search_runs(
        [client.get_experiment_by_name("spectral_mlops").experiment_id]
    )
    assert first.data.params == second.data.params
    known, again = (
        {key: x for key, x in run.data.metrics.items() if not key.startswith("cost/")}
        for run in (first, second)
    )
    assert known == again


def test_the_simulated_cohort_by_volume(command):
    code, out, _ = command(
        "train", "--modality", "volume", "--people", 24, "--preset", "easy", *QUICK
    )
    assert code == 0
    assert "mm" in out
    assert (Path("cohort") / "easy-24-0" / "sub-001" / "anat").is_dir()


def test_controls_end_to_end(command, small_folder):
    words = ["--people", 56, "--preset", "easy", "--cohort-seed", 3, *QUICK]
    config = Path("run.toml")
    config.write_text(
        f"""
        [cohort.settings]
        folder = "{small_folder}"
        components = 12
        volumes = false
        [comparison]
        probe_fraction = 0.45
        primary_quantity = "gradient"
        [controls]
        nuisance_columns = ["sex"]
        """
    )
    code, out, _ = command("train", "--controls", "--config", config, *words)
    assert code == 0
    for name in ("trained", "init", "input-surrogate", "loss-matched", "nuisance sex"):
        assert f" {name} " in out
    assert "nuisance age" not in out
    assert "among relabellings of these subjects within site" in out
    assert "difference in gradient" in out
    assert "\nVerdict: " in out
    (folder,) = Path("runs").iterdir()
    for line in (folder / "verdict.txt").read_text().splitlines():
        assert line in " ".join(out.split())
    table = pd.read_csv(folder / "controls.tsv", sep="\t").set_index("control")
    assert 0 < table.loc["trained", "p"] <= 1
    command("train", "--config", config, *words)
    plain = max(Path("runs").iterdir(), key=lambda run: run.stat().st_mtime)
    sentence = (folder / "verdict.txt").read_text().splitlines()[0]
    assert (plain / "verdict.txt").read_text() == sentence + "\n"


def test_controls_without_a_probe_are_refused(command, cohort_files):
    code, _, err = command(*fnc(cohort_files), "--controls")
    assert code == 2
    assert "--controls" in err
    assert "larger cohort or fraction" in err
    assert len(err.strip().splitlines()) == 1


def test_simulate_makes_a_cohort_once_and_refuses_another_in_its_place(command):
    words = ["simulate", "made", "--people", 12, "--components", 8, "--no-volumes"]
    assert command(*words)[0] == 0
    assert (Path("made") / "participants.tsv").is_file()
    assert command(*words)[0] == 0
    code, _, err = command(*words, "--seed", 5)
    assert code == 2
    assert "made" in err
    code, _, err = command("simulate", "other", "--preset", "strong")
    assert code == 2
    assert "null" in err
    assert not Path("other").exists()


def spoil(files, edit):
    table = pd.read_csv(files / "fnc.csv")
    edit(table).to_csv(files / "fnc.csv", index=False)


def relabel(files, edit):
    table = pd.read_csv(files / "labels.csv")
    edit(table).to_csv(files / "labels.csv", index=False)


def with_nan(table):
    table.iloc[3, 4] = np.nan
    return table


def contradiction(table):
    row = table.iloc[[0]].assign(
        Dx_group="control" if table["Dx_group"][0] == "patient" else "patient"
    )
    return pd.concat([table, row])


def as_they_are(files):
    """Leave the files; the flags are wrong."""


def only_patients(table):
    return table.assign(Dx_group="patient")


BAD = {
    "wrong triangle": (as_they_are, ["--order", "lower"], ["fnc.csv", "upper"]),
    "id in one table only": (
        lambda files: relabel(files, lambda table: table.iloc[1:]),
        [],
        ["fnc.csv", "sub-"],
    ),
    "contradictory rows": (
        lambda files: relabel(files, contradiction),
        [],
        ["labels.csv", "sub-"],
    ),
    "one group": (lambda files: relabel(files, only_patients), [], ["patient", "two"]),
    "no such label column": (
        as_they_are,
        ["--label-column", "diagnose"],
        ["diagnose", "Dx_group"],
    ),
    "nan": (lambda files: spoil(files, with_nan), [], ["sub-", "missing"]),
    "empty file": (
        lambda files: (files / "fnc.csv").write_text(""),
        [],
        ["fnc.csv", "empty"],
    ),
    "no such file": (lambda files: (files / "labels.csv").unlink(), [], ["labels.csv"]),
    "letters for numbers": (as_they_are, ["--hidden", "big"], ["--hidden", "64,32"]),
    "too many folds": (as_they_are, ["--folds", "90"], ["folds=90"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(name, command, cohort_files, uri):
    break_it, flags, words = BAD[name]
    break_it(cohort_files)
    before = open_store(uri).client.search_experiments()
    code, out, err = command(*fnc(cohort_files), *flags)
    assert code == 2, out
    assert err.startswith("Error: ")
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert all(word in err for word in words), err
    assert not Path("runs").exists()
    assert len(open_store(uri).client.search_experiments()) == len(before)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[training]\nepoch = 3\n", ["run.toml", "training.epoch", "'epochs'"]),
        ("[trainning]\nepochs = 3\n", ["run.toml", "'trainning'", "'training'"]),
        ("[training]\nepochs = 'many'\n", ["run.toml", "training.epochs", "many"]),
        ("[training\n", ["run.toml", "not valid TOML", "line 1"]),
        ("[model.settings]\nhiden = [3]\n", ["'hiden'", "'hidden'"]),
    ],
)
def test_a_misspelt_config_names_file_key_and_the_nearest(
    command, tmp_path, text, words
):
    config = tmp_path / "run.toml"
    config.write_text(text)
    code, _, err = command("train", "--config", config)
    assert code == 2
    assert all(word in err for word in words), err
    assert not Path("cohort").exists()


def test_several_seeds_are_spread_and_effects_are_told(
    command, small_folder, tmp_path, uri
):
    config = tmp_path / "run.toml"
    config.write_text(
        f'cohort.settings = {{ folder = "{small_folder}", preset = "easy", people = 56,'
        " seed = 3, components = 12, volumes = false }\n"
        "comparison = { probe_fraction = 0.45, effect_people = 6 }\n"
    )
    code, out, err = command("train", "--config", config, "--seeds", 2, *QUICK)
    assert (code, err) == (0, "")
    assert re.search(r"AUC \S+ ± \S+ over folds, ± \S+ over seeds", out)
    assert re.search(r"activation \S+ \(SD \S+ over folds, SD \S+ over seeds\)", out)
    assert "divergence of 6 people per group on the probe" in " ".join(out.split())
    (folder,) = Path("runs").iterdir()
    final = json.loads((folder / "final.json").read_text())
    assert {"final/auc_sd_seeds", "final/divergence_adjoint_sd_seeds"} <= final.keys()
    (run_id,) = re.findall(r"/runs/([0-9a-f]{32})", out)
    assert set(load_run(run_id, uri)["seed"]) == {0, 1}
    files = {x.path for x in open_store(uri).client.list_artifacts(run_id)}
    assert {"null.parquet", "effects.tsv"} <= files
    code, _, err = command("train", "--config", config, "--seeds", 0)
    assert code == 2
    assert "training.seeds=0" in err


def test_a_model_for_other_people_is_refused(command, cohort_files):
    words = fnc(cohort_files)[: -len(QUICK)]
    code, _, err = command(*words, "--model", "gru")
    assert code == 2
    assert "The model 'gru' takes time courses" in err
    assert not Path("runs").exists()


def test_an_unusable_store_is_one_sentence(command, cohort_files):
    code, _, err = command(*fnc(cohort_files), "--tracking", "gopher://x")
    assert code == 2
    assert "gopher" in err
    assert not Path("runs").exists()
    assert len(err.strip().splitlines()) == 1


def test_an_interrupted_run_is_marked_and_keeps_what_it_had(
    command, cohort_files, uri, monkeypatch
):
    def stop(metrics):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.train, "describe", stop)
    code, _, err = command(*fnc(cohort_files))
    assert code == 130
    (folder,) = Path("runs").iterdir()
    assert f"spectral-mlops train --resume {folder}" in err
    client = open_store(uri).client
    (run,) = client.search_runs(
        [client.get_experiment_by_name("spectral_mlops").experiment_id]
    )
    assert run.info.status == "KILLED"
    assert "val/auc" in run.data.metrics
    assert len(load_run(run.info.run_id, uri)) > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_python_loses_ends_the_run_after_the_epoch(
    command, cohort_files, monkeypatch, number
):
    described = []

    def lose_it(metrics):
        described.append(metrics)
        lose_a_signal(number)
        return ""

    monkeypatch.setattr(cli.train, "describe", lose_it)
    code, _, err = command(*fnc(cohort_files))
    assert code == 130
    assert "Interrupted" in err
    assert len(described) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM).__module__ == cli.__name__


def test_the_real_mlsp_files(command, uri):
    data = os.environ.get("SPECTRAL_MLOPS_DATA", ROOT.parent / "shared" / "data")
    folder = Path(data) / "mlsp2014_fnc"
    if not folder.is_dir():
        pytest.skip(f"real data are not here: {folder}")
    code, out, _ = command(
        "train",
        "--cohort",
        "fnc",
        "--features",
        folder / "train_FNC.csv",
        "--labels",
        folder / "train_labels.csv",
        "--order",
        "upper",
        *QUICK,
    )
    assert code == 0
    assert "86 people joined by id" in out
    assert "46 0, 40 1" in out
    assert "No probe" in out
    code, _, err = command(
        "train",
        "--cohort",
        "fnc",
        "--features",
        folder / "train_FNC.csv",
        "--labels",
        folder / "train_labels.csv",
        "--order",
        "lower",
        *QUICK,
    )
    assert code == 2
    assert "upper" in err


@pytest.mark.parametrize("words", [[], ["train"], ["sweep"], ["simulate"]])
def test_help_answers_without_the_heavy_packages(words):
    code = (
        f"import sys; sys.argv = ['spectral-mlops', *{words!r}, '--help']\n"
        "from spectral_mlops.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'mlflow', 'optuna', 'pandas', 'sklearn', 'nilearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "Usage" in shown.stdout


def test_the_installed_command_answers():
    path = shutil.which("spectral-mlops", path=str(Path(sys.executable).parent))
    assert path is not None
    shown = subprocess.run(
        [path, "train", "--epochs", "none"], capture_output=True, check=False
    )
    assert shown.returncode == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", "tpu"], ["--device tpu", "cpu"]),
        (["--runs", "/proc/no/such"], ["/proc/no"]),
    ],
)
def test_what_the_machine_does_not_have(command, cohort_files, flags, words, uri):
    code, _, err = command(*fnc(cohort_files), *flags)
    assert code == 2
    assert len(open_store(uri).client.search_experiments()) == 1
    assert all(word in err for word in words)
    assert len(err.strip().splitlines()) == 1


def test_a_termination_signal_ends_a_run_as_killed(cohort_files, uri):
    words = [sys.executable, "-m", "spectral_mlops.cli", *map(str, fnc(cohort_files))]
    words += ["--tracking", uri, "--epochs", "5000"]
    client = open_store(uri).client
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        run = wait_for_an_epoch(client)
    finally:
        process.terminate()
    assert process.wait(timeout=60) != 0
    assert client.get_run(run).info.status == "KILLED"


def wait_for_an_epoch(client):
    for _ in range(240):
        time.sleep(0.5)
        experiment = client.get_experiment_by_name("spectral_mlops")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        if runs and "val/auc" in runs[0].data.metrics:
            return runs[0].info.run_id
    raise AssertionError("no epoch was logged within two minutes")
