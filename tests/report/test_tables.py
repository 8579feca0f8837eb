import io

import numpy as np
import pandas as pd
from rich.console import Console

from spectral_mlops.records import Divergence, EpochRecord, Spectrum
from spectral_mlops.report import layer_table
from spectral_mlops.report.console import show_effects, show_run, show_trials
from spectral_mlops.tracking.measures import CLASSIFICATION


def spectrum(layer, quantity, group, rank, grouping="dx", status="ok", step=0):
    return Spectrum(
        layer=layer,
        quantity=quantity,
        grouping="all" if group == "all" else grouping,
        group=group,
        values=np.array([2.0, 1.0]),
        samples=4,
        rows=4,
        batch_samples=9,
        subjects=4,
        loss_scale=1 / 9,
        shape=(3, 2),
        route="gram",
        floor=0.0,
        below_floor=0,
        status=status,
        summaries={"effective_rank": rank},
        step=step,
    )


def divergence(layer, quantity, value=0.2, grouping="dx", reason=""):
    return Divergence(
        layer=layer,
        quantity=quantity,
        grouping=grouping,
        group_a="hc",
        group_b="sz",
        divergence="js",
        value=value,
        null_mean=0.1,
        null_sd=0.05,
        excess=0.1,
        z=2.0,
        p=0.04,
        p_max=0.07,
        n_a=5,
        n_b=6,
        subjects_a=5,
        subjects_b=6,
        source="probe",
        null="19",
        strata="none",
        valid_for="x",
        reason=reason,
    )


def records():
    folds = []
    for fold, shift in enumerate((0.0, 2.0)):
        folds.append(
            EpochRecord(
                3,
                "train",
                (
                    spectrum("a", "gradient", "hc", 1.0 + shift),
                    spectrum("a", "gradient", "hc", 3.0 + shift, step=1),
                    spectrum("a", "gradient", "sz", 5.0),
                    spectrum("a", "gradient", "all", 6.0),
                    spectrum("a", "gradient", "f", 9.0, grouping="sex"),
                    spectrum("a", "gradient", "sz", 99.0, status="non-finite"),
                    spectrum("a", "gradient", "sz", np.nan),
                ),
                fold=fold,
            )
        )
    return folds


def test_ranks_are_means_over_batches_and_folds_of_usable_spectra():
    table = layer_table(
        records(), [divergence("a", "gradient"), divergence("a", "adjoint")], "dx"
    )
    assert list(table["quantity"]) == ["gradient", "adjoint"]
    first, second = table.to_dict("records")
    assert (first["erank_hc"], first["erank_sz"], first["erank_all"]) == (3.0, 5.0, 6.0)
    assert np.isnan(second["erank_hc"])
    assert "erank_f" not in table.columns
    assert (first["pair"], first["n"], first["p_max"]) == ("hc – sz", "5 + 6", 0.07)


def test_other_groupings_are_left_out():
    rows = [divergence("a", "gradient", grouping="sex")]
    assert layer_table(records(), rows, "dx").empty


def shown(function, *arguments, width=80):
    console = Console(file=io.StringIO(), width=width)
    function(console, *arguments)
    return console.file.getvalue()


METRICS = {
    "final/auc": 0.7,
    "final/auc_sd": 0.05,
    "final/additivity": 2e-7,
    "final/divergence_gradient": 1.5,
    "final/probe_auc": 0.66,
}


def test_the_table_fits_a_terminal_and_says_what_is_missing():
    rows = [
        divergence("hidden_1", "activation"),
        divergence("output", "gradient", float("nan"), reason="degenerate: rank 1"),
    ]
    layers = layer_table(records(), rows, "dx")
    groups = pd.DataFrame(
        {
            "group": ["all", "hc"],
            "n": [11, 5],
            "loss": [0.5, 0.25],
            "accuracy": [1.0, 0.75],
        }
    )
    text = shown(show_run, layers, groups, METRICS)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for word in (
        "200.00",
        "100.00±50.00",
        "+2.00",
        "0.040",
        "0.070",
        "degenerate",
        "0.250",
    ):
        assert word in text
    assert "0.660 on the probe" in text.replace("\n", " ")
    assert "2.0e-07" in text
    assert "more than rounding" not in text
    assert "more than rounding" in shown(
        show_run, layers, groups, METRICS | {"final/additivity": 0.3}
    )
    for gap, told in ((3e-3, False), (3e-2, True)):  # as bfloat16 rounds, and not
        values = METRICS | {"final/additivity": gap}
        text = shown(show_run, layers, groups, values, CLASSIFICATION, True)
        assert ("more than rounding" in text) == told
        assert "in reduced precision" in text.replace("\n", " ")
    without = {k: v for k, v in METRICS.items() if "probe" not in k and "div" not in k}
    assert "probe" not in shown(show_run, layers, groups, without)
    assert "permuted in" not in text
    for every, words in ((1, "in every epoch"), (7, "every 7 epochs, and in the")):
        said = shown(show_run, layers, groups, METRICS | {"cost/null_every": every})
        assert f"Labels permuted {words}" in said
    z = "final/divergence_gradient"
    several = {f"{z}_sd_folds": 0.31, f"{z}_sd_seeds": 0.52, "final/auc_sd_seeds": 0.04}
    out = " ".join(shown(show_run, layers, groups, METRICS | several).split())
    assert (
        "z over layers: gradient +1.50 (SD 0.31 over folds, SD 0.52 over seeds)" in out
    )
    assert "AUC 0.700 ± 0.050 over folds, ± 0.040 over seeds (validation" in out


def effect(layer, **changes):
    known = {
        "quantity": "activation", "layer": layer, "group_a": "hc", "group_b": "sz",
        "divergence": 0.01, "effect": 0.00123, "low": -0.00045, "high": 0.0031,
        "chance": 0.002, "m": 9, "n": 18, "draws": 200, "sd_folds": 0.0007,
        "sd_seeds": float("nan"), "reason": "",
    }  # fmt: skip
    return known | changes


def test_effects_of_the_primary_quantity_say_what_they_are():
    nan = float("nan")
    rows = [
        effect("hidden_1"),
        effect("output", effect=nan, low=nan, high=nan, reason="rank 1"),
        effect("hidden_1", quantity="adjoint", effect=0.9),
    ]
    text = shown(show_effects, pd.DataFrame(rows), "activation")
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert "divergence of 9 people per group" in words
    assert "95 % of 200 draws of 9 of these people" in words
    (line,) = (line for line in text.splitlines() if "hidden_1" in line)
    assert line.split() == ["hidden_1", "1.23", "-0.45", "3.10", "2.00", "0.70"]
    assert "output" not in words
    assert "SD seeds" not in words
    pair = effect("hidden_1", group_b="od", sd_seeds=0.0001)
    several = shown(show_effects, pd.DataFrame([*rows, pair]), "activation")
    assert "hc – od" in several
    assert "SD seeds" in several
    assert shown(show_effects, pd.DataFrame(rows[1:2]), "activation") == ""


def test_trials_are_one_line_each():
    trials = pd.DataFrame(
        {
            "trial": [0, 1],
            "state": ["COMPLETE", "FAIL"],
            "auc": [0.71234, None],
            "learning_rate": [0.00123456, 0.01],
            "divergence.gradient": [1.23456, None],
            "divergence.activation": [-0.5, None],
            "run": ["0123456789abcdef0123456789abcdef"] * 2,
            "error": [None, "ValueError: by hand"],
        }
    )
    text = shown(show_trials, trials)
    assert "…" not in text
    complete, failed = (line for line in text.splitlines() if "0.0" in line)
    assert complete.split() == ["0", "COMPLETE", "0.712", "0.00123", "1.23", "-0.5"]
    assert failed.split() == ["1", "FAIL", "–", "0.01", "–", "–"]
    assert "z gra" in text
    assert "trial 1: ValueError: by hand" in text
    many = {f"training.a{n}": [n, None] for n in range(5)}
    several = trials.assign(**many, **{"lstm/model.settings.[b]": [None, "x"]})
    text = shown(show_trials, several)
    complete, failed = (line for line in text.splitlines() if "rate=" in line)
    judged = ["0", "COMPLETE", "0.712", "1.23", "-0.5"]
    drawn = ["learning_rate=0.00123", *(f"a{n}={n}" for n in range(5))]
    assert complete.split() == [*judged, *drawn][: len(complete.split())]
    assert set(drawn) < set(text.split())  # some on a second line
    assert failed.split() == ["1", "FAIL", *"–––", "learning_rate=0.01", "lstm/[b]=x"]
