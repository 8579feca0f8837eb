"""The page of several runs."""

import json

import numpy as np
import pandas as pd
import pytest

from spectral_mlops.config import RunConfig, merge, validate
from spectral_mlops.report.html_compare import comparison_data, comparison_page
from spectral_mlops.report.runs import StoredRun
from tests.report.pages import HOSTILE, stored
from tests.report.test_html import Read


def finished(folder, name, probe="p1", z=1.0, **settings):
    """What `read_run` gives of a run, by hand."""
    base = RunConfig().model_dump(mode="json")
    config = validate(RunConfig, merge(base, settings), str(folder))
    layers = pd.DataFrame(
        {
            "layer": ["out"], "quantity": ["activation"], "pair": ["a – b"],
            "divergence": [0.002], "z": [z],
        }
    )  # fmt: skip
    final = {"final/divergence_activation": z, "final/auc": 0.7, "final/probe_auc": 0.6}
    return StoredRun(name, config, final, layers, probe)


def test_runs_of_one_probe_share_a_yardstick_and_others_do_not(tmp_path):
    runs = [
        finished(tmp_path, "a"),
        finished(tmp_path, "b", training={"seed": 3}),
        finished(tmp_path, "c", probe="p2"),
        finished(tmp_path, "d", comparison={"seed": 5}),
    ]
    records = [stored(name=run.name) for run in runs]
    data = comparison_data(runs, records)
    assert data["yardsticks"] == [0, 0, 1, 2]
    styles = [tuple(one["style"]) for one in data["runs"]]
    assert len(set(styles)) == 4
    alike = comparison_page(runs[:2], records[:2])
    assert "z may be compared" in "".join(Read(alike).text)
    apart = comparison_page(runs[1:3], records[1:3])
    assert "different probes" in "".join(Read(apart).text)


def test_only_the_last_epoch_and_the_primary_grouping_are_kept(tmp_path):
    records = stored(epochs=4)
    (one,) = comparison_data([finished(tmp_path, "a")], [records])["runs"]
    assert {tuple(cell["epochs"]) for cell in one["spectra"]} == {(3,)}
    assert {cell["grouping"] for cell in one["spectra"]} == {"diagnosis"}
    assert {cell["group"] for cell in one["trajectories"]} == {"control", "patient"}
    assert one["trajectories"][0]["epochs"] in ([0, 1, 2, 3], [-1, 0, 1, 2, 3])
    assert np.shape(one["maps"][0]["z"]) == (2, 5)


def test_settings_that_differ_are_listed_and_no_others(tmp_path):
    runs = [finished(tmp_path, "a"), finished(tmp_path, "b", training={"epochs": 7})]
    text = "".join(Read(comparison_page(runs, [stored(), stored()])).text)
    assert "training.epochs" in text
    assert "training.folds" not in text
    same = [finished(tmp_path, "a"), finished(tmp_path, "b")]
    text = "".join(Read(comparison_page(same, [stored(), stored()])).text)
    assert "do not differ" in text


def test_names_stay_names(tmp_path):
    runs = [finished(tmp_path, HOSTILE), finished(tmp_path, "b")]
    records = stored(name=HOSTILE, groups=(HOSTILE, "b"))
    page = Read(comparison_page(runs, [records, records]))
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 4
    assert json.loads(page.data)["compare"]["runs"][0]["name"] == HOSTILE


@pytest.mark.parametrize("kept", ["spectra", "nothing"])
def test_runs_without_records_have_their_table(tmp_path, kept):
    blank = stored()
    left = {"divergences": blank.divergences[:0], "metrics": blank.metrics[:0]}
    if kept == "nothing":
        left["spectra"] = blank.spectra[:0]
    page = comparison_page([finished(tmp_path, "a")], [stored(**left)])
    data = json.loads(Read(page).data)["compare"]
    assert data["runs"][0]["maps"] == []
