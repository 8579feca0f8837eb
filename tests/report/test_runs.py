import io
import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from spectral_mlops.config import RunConfig, merge
from spectral_mlops.errors import InputError
from spectral_mlops.report.runs import (
    comparability,
    layers_table,
    over_seeds,
    read_run,
    runs_table,
)
from spectral_mlops.report.runs_console import show_retrained, show_runs


@pytest.fixture
def stored(tmp_path):
    """Write the files of a finished run."""

    def make(name, auc, z, probe="p1" * 32, **settings):
        folder = tmp_path / name
        (folder / "splits").mkdir(parents=True)
        base = RunConfig().model_dump(mode="json")
        config = json.dumps(merge(base, settings))
        (folder / "config.json").write_text(config)
        final = {"final/auc": auc, "final/auc_sd": 0.03, "final/loss": 0.6}
        if probe:
            final["final/divergence_gradient"] = z
        (folder / "final.json").write_text(json.dumps(final))
        index = {"probe": {"digest": probe, "strata": []} if probe else None}
        (folder / "splits" / "splits.json").write_text(json.dumps(index))
        rows = {
            "layer": ["b", "a", "out"],
            "quantity": ["gradient"] * 3,
            "pair": ["x – y"] * 3,
            "divergence": [0.002 * z, 0.001, np.nan],
            "z": [z, 0.5, np.nan],
        }
        pd.DataFrame(rows).to_csv(folder / "layers.tsv", sep="\t", index=False)
        return folder

    return make


def shown(function, *more):
    console = Console(width=120, file=io.StringIO())
    function(console, *more)
    return console.file.getvalue()


def test_seeds_are_summed_up_and_other_settings_are_not(stored):
    folders = [
        stored("one", 0.7, 1.0, training={"seed": 0}),
        stored("two", 0.8, 2.0, training={"seed": 1}),
        stored("three", 0.9, 3.0, training={"seed": 1, "epochs": 7}),
        stored("four", 0.9, 3.0, training={"seed": 1}, tracking={"uri": "sqlite:///x"}),
    ]
    runs = [read_run(folder) for folder in folders[:3]]
    table = runs_table(runs)
    assert list(table["training.epochs"]) == ["30", "30", "7"]
    assert list(table["AUC"]) == [0.7, 0.8, 0.9]
    assert "loss" in table
    assert "probe AUC" not in table
    seeds = over_seeds(runs).set_index("value")
    assert set(seeds["runs"]) == {"1, 2"}
    assert seeds.loc["AUC", "mean"] == pytest.approx(0.75)
    assert seeds.loc["AUC", "sd"] == pytest.approx(0.05 * 2**0.5)
    assert seeds.loc["b gradient ×10³", "highest"] == pytest.approx(4.0)
    assert "SD over folds" not in seeds.index
    twice = [runs[1], read_run(folders[3])]  # the same seed, recorded twice
    assert over_seeds(twice).empty


def test_layers_stand_in_their_own_order_beside_each_other(stored):
    runs = [read_run(stored("one", 0.7, 1.0)), read_run(stored("two", 0.8, 2.0))]
    table = layers_table(runs)
    assert list(table["layer"]) == ["b", "a"]
    assert list(table["#2 z"]) == [2.0, 0.5]
    assert list(table["#1 ×10³"]) == pytest.approx([2.0, 1.0])


def test_what_may_be_compared_is_said(stored):
    one = read_run(stored("one", 0.7, 1.0))
    same = read_run(stored("same", 0.8, 2.0, training={"seed": 4}))
    other = read_run(stored("other", 0.8, 2.0, probe="q2" * 32))
    without = read_run(stored("without", 0.8, 2.0, probe=""))
    relabelled = read_run(stored("relabelled", 0.7, 1.0, comparison={"seed": 1}))
    assert "z may be compared;" in comparability([one, same])
    assert "different probes (p1p1p1p1, q2q2q2q2)" in comparability([one, other])
    assert "different probes (p1p1p1p1, none)" in comparability([one, without])
    assert "No run has a probe" in comparability([without, without])
    assert "relabellings: z may not be" in comparability([one, relabelled])
    out = shown(show_runs, [one, other])
    assert "may not be compared" in " ".join(out.split())
    assert "Over seeds" not in out
    assert "Over seeds" in shown(show_runs, [one, same])


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "is no run"),
        ("final.json", None, "not finished"),
        ("layers.tsv", None, "layers.tsv is missing or damaged"),
        ("layers.tsv", "a\tb\n1\t2\n", "layers.tsv is missing or damaged"),
        ("effects.tsv", "a\tb\n1\t2\n", "effects.tsv is missing or damaged"),
        ("null.parquet", "no", "Cannot read .*null.parquet"),
        ("config.json", "{", "config.json is missing or damaged"),
        ("config.json", "[]", "config.json is damaged"),
        ("config.json", '{"trainning": {}}', "trainning"),
        ("splits/splits.json", None, r"there is no splits/splits.json"),
        ("splits/splits.json", "{", r"splits.json is missing or damaged"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_refused(file, content, said, stored):
    folder = stored("one", 0.7, 1.0)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=said):
        read_run(folder)


def test_the_test_by_retraining_is_printed():
    row = {
        "source": "train",
        "grouping": "dx",
        "quantity": "adjoint",
        "layer": "hidden_1",
        "group_a": "x",
        "group_b": "y",
        "observed": 0.00512,
        "null_mean": 0.003,
        "null_sd": 0.001,
        "z": 2.12,
        "p": 0.05,
        "p_max": 0.1,
        "reason": "",
    }
    none = dict.fromkeys(
        ("observed", "null_mean", "null_sd", "z", "p", "p_max"), np.nan
    )
    lacking = {**row, **none, "layer": "output", "reason": "rank 1"}
    table = pd.DataFrame([row, lacking])
    out = shown(show_retrained, table, {"train": "these batches"}, ["Among 19 …"])
    assert "On these batches" in out
    assert "5.12" in out
    assert "3.00±1.00" in out
    assert "rank 1" in out
    assert "Among 19" in out
    assert "x – y" not in out
    several = pd.concat([table, table.assign(group_b="w")])
    assert "(x – w)" in shown(show_retrained, several, {}, [])
    groupings = pd.concat([table, table.assign(grouping="site")])
    both = " ".join(shown(show_retrained, groupings, {}, []).split())
    assert "(dx: x – y)" in both
    assert "(site: x – y)" in both
