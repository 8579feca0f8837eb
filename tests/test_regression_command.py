"""A number predicted from the command line: what is printed, left behind, refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from spectral_mlops.cohorts import simulate
from spectral_mlops.tracking import SpoolTracker, load_metrics, open_store
from spectral_mlops.training import make_plan, read_plan, run
from spectral_mlops.training.checkpoint import Checkpoints
from tests.training.numbers import aged
from tests.training.test_resume import RESULTS, Interrupted, same_run, stop_at

SETTINGS = """
[cohort]
name = "simulated"
[cohort.settings]
preset = "easy"
people = 80
voxel_mm = 12.0
coarsen = 1
modality = "volume"
[model.settings]
hidden = [12]
dropout = 0.0
[training]
task = "regression"
target = "age"
epochs = 6
folds = 3
learning_rate = 3e-3
[comparison]
permutations = 19
null_epochs = 2
probe_fraction = 0.35
[baselines]
draws = 200
"""


@pytest.fixture(scope="module")
def grey_matter(tmp_path_factory):
    """Maps of 80 people, in which grey matter shrinks with age."""
    place = tmp_path_factory.mktemp("c") / "cohort"
    return simulate(place, "easy", 80, 0, voxel_mm=12.0)


@pytest.fixture
def settings(grey_matter):
    text = SETTINGS.replace("[model", f'folder = "{grey_matter}"\n[model', 1)
    Path("run.toml").write_text(text)
    return "run.toml"


def test_age_from_grey_matter(command, settings, uri):
    code, out, _ = command("train", "--config", settings, "--tracking", uri)
    assert code == 0, out
    said = " ".join(out.split())
    assert "R² 0." in said
    assert "ridge regression on the same folds" in said
    assert "mean absolute error, 95 % of bootstrap draws" in said
    assert "AUC" not in out
    assert "accuracy" not in out
    (folder,) = Path("runs").iterdir()
    table = pd.read_table(folder / "predictions.tsv", dtype={"participant_id": str})
    columns = ["participant_id", "seed", "repeat", "target", "predicted"]
    assert list(table.columns) == columns
    people = pd.read_table(settings_folder(folder) / "participants.tsv", index_col=0)
    np.testing.assert_allclose(table["target"], people["age"][table["participant_id"]])
    assert r2_score(table["target"], table["predicted"]) > 0.1
    final = json.loads((folder / "final.json").read_text())
    assert final["final/r2"] > 0.1
    assert final["baseline/linear_r2"] > 0.1
    assert final["baseline/confounds_r2"] < 0.15
    judged = pd.read_table(folder / "performance.tsv")
    row = judged[(judged["model"] == "network") & (judged["people"] == "validation")]
    row = row[row["group"] == "all"].set_index("metric")["value"]
    assert set(row.index) == {"r2", "mae", "pearson", "loss"}
    assert row["r2"] == pytest.approx(final["final/r2"])
    assert row["mae"] == pytest.approx(final["final/mae"])
    groups = pd.read_table(folder / "groups.tsv").set_index("group")
    mae = mean_absolute_error(table["target"], table["predicted"])
    assert groups.loc["all", "mae"] == pytest.approx(mae)
    told = json.loads((folder / "schema.json").read_text())
    assert (told["task"], told["headline"], told["classes"]) == ("regression", "r2", [])
    assert told["target"] == "age"
    assert "coefficient of determination" in told["keys"]["val_r2/patient"]
    assert "logged by the caller" not in told["keys"].values()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "R² on the probe" in page
    assert "AUC on the probe" not in page
    store = open_store(uri)
    (found,) = store.client.search_runs(["1"])
    assert found.data.metrics["final/r2"] == pytest.approx(final["final/r2"])
    assert found.data.params["training.task"] == "regression"
    assert not [key for key in found.data.metrics if key.endswith("auc")]
    figures_and_views(command, folder, uri)


def settings_folder(run_folder):
    config = json.loads((run_folder / "config.json").read_text())
    return Path(config["cohort"]["settings"]["folder"])


def figures_and_views(command, folder, uri):
    """The rest of the commands on the same run."""
    code, out, _ = command("report", folder, "--figure", "performance")
    assert code == 0, out
    code, out, _ = command("view", "--tracking", uri)
    assert code == 0, out
    code, out, _ = command("compare", folder, folder)
    assert code == 0, out
    assert "R²" in out
    assert "mean absolute error" in out
    assert "AUC" not in out
    page = Path("compare.html").read_text(encoding="utf-8")
    assert '"headline": "r2"' in page or '"headline":"r2"' in page


def test_numbers_that_are_missing_are_refused_with_who_lacks_them(
    command, small_folder
):
    people = pd.read_table(small_folder / "participants.tsv", dtype=str)
    people.loc[[2, 5], "age"] = "n/a"
    people.to_csv("labels.tsv", sep="\t", index=False)
    words = ["--cohort", "fnc", "--features", small_folder / "fnc.csv"]
    words += ["--labels", "labels.tsv", "--order", "upper", "--tracking", "none"]
    code, _, err = command("train", *words, "--task", "regression", "--target", "age")
    assert code == 2
    assert "'age' is missing for 2 people (sub-003, sub-006)" in err
    assert not Path("runs").exists()
    people["age"] = "30"
    people.to_csv("labels.tsv", sep="\t", index=False)
    code, _, err = command("train", *words, "--task", "regression", "--target", "age")
    assert code == 2
    assert "everyone has age=30; there is nothing to predict" in err
    code, _, err = command("train", *words, "--target", "age")
    assert code == 2
    assert "target='age' is of task='regression'" in err


def test_a_label_column_of_numbers(command, small_folder):
    words = ["--cohort", "fnc", "--features", small_folder / "fnc.csv"]
    words += ["--labels", small_folder / "participants.tsv", "--order", "upper"]
    words += ["--tracking", "none", "--label-column", "age", "--permutations", "19"]
    code, _, err = command("train", *words)
    assert code == 2
    assert "labels in 'age' are numbers" in err
    quick = ["--epochs", "1", "--folds", "2", "--hidden", "5"]
    code, out, err = command("train", *words, *quick, "--task", "regression")
    assert code == 0, err
    assert "'age' holds numbers, no groups" in out
    assert "R²" in out


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    config = aged(training={"epochs": 4, "loss": "huber"})
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def start(plan, folder, **more):
        with SpoolTracker(folder) as tracker:
            run(plan, tracker, folder, name="one", figures=False, **more)

    start(make_plan(config, Path()), whole)
    with pytest.raises(Interrupted):
        start(make_plan(config, Path()), parts, on_epoch=stop_at(1))
    start(read_plan(parts, Path(), finished=False), parts, resume=True)
    same_run(whole, parts)
    assert (parts / RESULTS[0]).exists()
    assert "val/r2" in set(load_metrics(parts)["key"])
    read_plan(whole, Path())  # the people are those it was trained on
