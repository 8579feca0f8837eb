"""Reports find the names of a run's numbers by its task."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from spectral_mlops.report.console import show_parts, show_performance
from spectral_mlops.report.figures import draw_figure
from spectral_mlops.report.figures_people import BY_GROUP, OVERALL
from spectral_mlops.report.html import report_page
from spectral_mlops.report.html_people import people_of, performance
from spectral_mlops.tracking.measures import (
    CLASSIFICATION,
    MEASURES,
    REGRESSION,
    WORDS,
    measures_of,
)
from spectral_mlops.tracking.view import chart_view
from tests.report.test_figures import stored_of

SETTINGS = {"training": {"task": "regression"}}


@pytest.fixture
def stored():
    """A run of a number, read back."""
    one = stored_of(epochs=2)
    keys = ["val/loss", "val/r2", "val/mae", "val_mae/control", "val_mae/patient"]
    rows = [(key, step, 0.5 + step, 0.0) for key in keys for step in (0, 1)]
    metrics = pd.DataFrame(rows, columns=["key", "step", "value", "time"])
    final = {"final/r2": 0.25, "final/mae": 6.5, "final/probe_r2": 0.125}
    groups = pd.DataFrame(
        {
            "group": ["all", "control", "patient"],
            "n": [9, 5, 4],
            "loss": [0.5, 0.4, 0.6],
            "r2": [0.3, 0.2, np.nan],
            "mae": [6.0, 7.0, 5.0],
            "pearson": [0.5, 0.4, 0.6],
        }
    )
    return replace(
        one,
        config={**one.config, **SETTINGS},
        metrics=metrics,
        final={**one.final, **final},
        tables={**one.tables, "groups": groups},
    )


def test_a_run_without_a_task_is_a_classification():
    assert measures_of({}) is CLASSIFICATION
    assert measures_of({"training": {"epochs": 3}}) is CLASSIFICATION
    assert measures_of(SETTINGS) is REGRESSION


@pytest.mark.parametrize("task", [*MEASURES])
def test_every_name_has_words_and_panels(task):
    one = MEASURES[task]
    assert {*one.overall, *one.groups.values(), one.told, *one.judged} <= {*WORDS}
    assert {*one.lower} <= {*one.overall}
    assert one.headline not in one.lower
    keys = {key for panel in OVERALL[task].values() for key in panel}
    assert keys <= {"train/loss", "val/loss", *(f"val/{k}" for k in one.overall)}
    sections = {s for panel in BY_GROUP[task].values() for s in panel}
    assert sections <= {f"val_{curve}" for curve in one.groups}


def test_the_page_of_a_number_says_r2_and_errors(stored):
    page = report_page(stored)
    assert "R² on the probe" in page
    assert "mean absolute error, validation people" in page
    assert "AUC on the probe" not in page
    found = performance(stored.metrics, ["control", "patient"], REGRESSION)
    assert found["overall"].keys() == {"val/loss", "val/r2", "val/mae"}
    assert found["groups"] == {
        "mae": {"control": [[0, 1], [0.5, 1.5]], "patient": [[0, 1], [0.5, 1.5]]}
    }
    assert found["told"]["kind"] == "mae"
    assert not found["told"]["bounded"]
    people = people_of(stored.tables["groups"], REGRESSION)
    assert [one["mae"] for one in people] == [7.0, 5.0, 6.0]
    assert people_of(stored.tables["groups"], CLASSIFICATION) == []


def test_the_figure_of_a_number(stored, tmp_path):
    path = draw_figure(stored, "performance", tmp_path / "one.svg", "svg")
    text = path.read_text(encoding="utf-8")
    assert "R², correlation" in text
    assert "mean absolute error" in text
    assert "AUC" not in text


def test_tables_of_a_number_for_a_terminal():
    rows = [
        (model, people, "all", 9, metric, 0.25, 0.125, 0.5)
        for model in ("network", "linear")
        for people in ("validation", "probe")
        for metric in ("r2", "mae", "pearson", "loss")
    ]
    names = ["model", "people", "group", "n", "metric", "value", "low", "high"]
    console = Console(file=StringIO(), width=200)
    show_performance(console, pd.DataFrame(rows, columns=names), REGRESSION)
    parts = {"part": [1], "held_out": [20], "z": [1.0], "p": [0.2], "r2": [0.375]}
    show_parts(console, pd.DataFrame(parts))
    said = console.file.getvalue()
    assert said.count("0.25 (0.12 to 0.50)") == 8
    assert "linear: ridge regression" in said
    assert "0.375" in said
    assert "AUC" not in said


def test_the_view_of_an_experiment_shows_what_its_runs_have():
    keys = ["divergence/adjoint", "final/divergence_adjoint", "train/loss", "val/loss"]
    charts = chart_view([*keys, "val/r2", "val/pearson", "val/mae", "final/r2"])
    lines = [x["selectedMetricKeys"] for x in charts["compareRunCharts"][:3]]
    assert lines == [
        ["divergence/adjoint"],
        ["val/r2", "val/pearson"],
        ["train/loss", "val/loss"],
    ]
    assert charts["compareRunCharts"][3]["yaxis"]["key"] == "final/r2"
    both = chart_view([*keys, "val/auc", "final/auc", "val/r2", "final/r2"])
    shown = [x.get("yaxis", {}).get("key") for x in both["compareRunCharts"]]
    assert {"final/auc", "final/r2"} <= {*shown}
