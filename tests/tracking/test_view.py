import json
import re
import socket

import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.tracking import MlflowTracker, open_store, view_experiment
from spectral_mlops.tracking import view as module
from spectral_mlops.tracking.store import Store
from spectral_mlops.tracking.view import LINES, TAG, chart_view
from tests.tracking.factory import epoch

FINAL = {f"final/divergence_{q}": 1.5 for q in ("gradient", "activation", "adjoint")}


def charts_of(state, section):
    return [c for c in state["compareRunCharts"] if c["metricSectionId"] == section]


def lines_of(state, section):
    charts = charts_of(state, section)
    return [c["selectedMetricKeys"] for c in charts if c["type"] == "LINE"]


def axes_of(state):
    return [
        (chart["xaxis"]["key"], chart["yaxis"]["key"])
        for chart in state["compareRunCharts"]
        if chart["type"] == "SCATTER"
    ]


def test_before_any_run_the_headlines_are_there():
    state = chart_view([])
    assert [s["name"] for s in state["compareRunSections"]] == [
        "Divergence and accuracy"
    ]
    assert lines_of(state, "Divergence and accuracy") == [
        ["divergence/gradient", "divergence/activation", "divergence/adjoint"],
        ["val/auc", "val/balanced_accuracy"],
        ["train/loss", "val/loss"],
    ]
    assert axes_of(state) == [(key, "final/auc") for key in FINAL]


def test_without_a_probe_the_excess_stands_in():
    state = chart_view(["excess/gradient", "val/auc", "final/auc", "excess/adjoint"])
    assert lines_of(state, "Divergence and accuracy") == [
        ["excess/gradient", "excess/adjoint"],
        ["val/auc"],
    ]
    assert axes_of(state) == [
        ("excess/gradient", "final/auc"),
        ("excess/adjoint", "final/auc"),
    ]


def test_groups_and_layers_are_those_that_runs_have():
    layers = [f"div_act/{n:02}_layer" for n in range(7)]
    groups = [f"val_acc/{n}" for n in range(LINES + 3)]
    state = chart_view([*reversed(layers), "probe_adj/00_a", *groups, "erank_act/all"])
    assert lines_of(state, "Layers") == [
        [layers[0], layers[3], layers[6]],
        ["probe_adj/00_a"],
    ]
    assert lines_of(state, "Groups") == [groups[:LINES], ["erank_act/all"]]


def test_what_is_not_ours_follows_closed():
    state = chart_view(["cost/pending", "val/auc", "mine", "a/b/c"])
    shown = {s["name"]: s["display"] for s in state["compareRunSections"]}
    assert shown == {
        "Divergence and accuracy": True,
        "a/b": False,
        "cost": False,
        "val": False,
    }
    assert next(iter(shown)) == "Divergence and accuracy"
    assert state["isAccordionReordered"]


def test_places_are_told_apart_and_point_to_a_section():
    state = chart_view([*FINAL, "final/auc", "val/auc", "div_act/0", "val_acc/a"])
    charts = state["compareRunCharts"]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    assert {chart["metricSectionId"] for chart in charts} <= sections


def test_ten_thousand_metrics_fit_into_the_tag():
    keys = [f"{a}_{q}/{n:05}_layer" for a in ("div", "probe") for q in ("act", "grad",
            "adj") for n in range(2000)]  # fmt: skip
    keys += [f"{s}/{'x' * 40}{n}" for s in ("val_acc", "val_loss", "norm_grad",
             "erank_act", "erank_grad", "erank_adj") for n in range(99)]  # fmt: skip
    assert len(json.dumps(chart_view([*keys, *FINAL, "val/auc", "final/auc"]))) < 20_000


def test_is_installed_for_the_runs_that_are_there(uri, monkeypatch):
    monkeypatch.setattr(module, "mlflow_version", "3.17.9")
    with MlflowTracker(tracking_uri=uri, experiment="study A") as tracker:
        tracker.log(epoch(0), FINAL | {"val/auc": 0.7, "divergence/gradient": 1.0})
        tracker.log_metrics({"final/auc": 0.75})
    for _ in range(2):
        view = view_experiment("study A", uri)
    store = open_store(uri)
    experiment = store.experiment("study A", make=False)
    number = experiment.experiment_id
    assert view.experiment == "study A"
    assert view.note == ""
    assert view.where == (
        f"mlflow ui --backend-store-uri {uri}  then  http://127.0.0.1:5000/#/"
        f"experiments/{number}/runs?compareRunsMode=CHART&viewStateShareKey=spectral"
    )
    state = json.loads(experiment.tags[TAG])
    assert lines_of(state, "Divergence and accuracy")[0] == ["divergence/gradient"]
    assert axes_of(state) == [(key, "final/auc") for key in FINAL]
    ranks = [f"erank_act/{group}" for group in ("all", "control_group", "patient")]
    assert ranks in map(sorted, lines_of(state, "Groups"))


def test_experiment_that_is_not_there_is_named_and_not_made(uri):
    with pytest.raises(InputError, match=r"no experiment in .* yet"):
        view_experiment("absent", uri)
    open_store(uri).experiment("there")
    with pytest.raises(InputError, match=r"no experiment 'absent' in .*: .* of there"):
        view_experiment("absent", uri)
    with pytest.raises(InputError, match="no experiment 'spectral_mlops'"):
        view_experiment(None, uri)
    assert len(open_store(uri).client.search_experiments()) == 2


def test_looking_makes_no_store(tmp_path):
    with pytest.raises(InputError, match=r"no MLflow store .*new.db to look at"):
        view_experiment(None, f"sqlite:///{tmp_path / 'new.db'}")
    assert [*tmp_path.iterdir()] == []


def test_files_out_of_reach_are_no_obstacle(uri):
    open_store(uri).client.create_experiment("served", "mlflow-artifacts:/7")
    assert view_experiment("served", uri).experiment == "served"


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("3.17.2", ""),
        ("3.170.0", r"MLflow 3.170.0: .* made for 3.17, and may not"),
        ("4.0.0rc1", r"MLflow 4.0.0rc1: .* made for 3.17"),
        ("", "MLflow of an unknown version"),
    ],
)
def test_another_version_is_a_note_and_no_obstacle(uri, monkeypatch, version, said):
    monkeypatch.setattr(module, "mlflow_version", version)
    open_store(uri).experiment("there")
    view = view_experiment("there", uri)
    assert bool(view.note) == bool(said)
    assert re.match(said, view.note)
    assert TAG in open_store(uri).experiment("there").tags


def test_server_that_does_not_tell_its_version():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = Store(f"http://user:secret@127.0.0.1:{port}", None)
    assert module._version(store) == ""


def test_command(command, monkeypatch, uri):
    open_store(uri).experiment("there")

    code, out, err = command("view", "there", "--tracking", uri)
    assert (code, err) == (0, "")
    assert "?compareRunsMode=CHART&viewStateShareKey=spectral" in out
    code, _, err = command("view", "absent", "--tracking", uri)
    assert code == 2
    assert "no experiment 'absent'" in err
    code, _, err = command("view", "--tracking", "spool")
    assert code == 2
    assert "--tracking spool: give the address" in err
    monkeypatch.setattr(module, "mlflow_version", "5.0.0")
    code, _, err = command("view", "there", "--tracking", uri)
    assert code == 0
    assert "MLflow 5.0.0" in err
