from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from spectral_mlops.inference.effects import draw_subsamples
from spectral_mlops.inference.relabel import draw_relabellings
from spectral_mlops.records import ALL_LAYERS
from spectral_mlops.spectra.divergences import DIVERGENCES
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import make_plan, run, train

DRAWS = 25


def settings(small, **comparison):
    known = {
        "permutations": 19, "null_epochs": 2, "probe_fraction": 0.45,
        "effect_draws": DRAWS,
    }  # fmt: skip
    training = {"epochs": 1, "folds": 2, "batch_size": 8, "seeds": 2}
    return small(training=training, comparison=known | comparison)


def test_the_effect_of_the_inputs_by_a_slow_loop(small):
    """Activations of the first layer are the inputs: no network in the reference."""
    plan = make_plan(settings(small, effect_people=5), Path())
    result = train(plan, MemoryTracker())
    ids = sorted(plan.probe.ids)
    rows = plan.cohort.rows(ids)
    labels, sites = plan.labels(rows)["group"], plan.strata()["site"]
    codes = draw_relabellings(labels, [sites[i] for i in ids], DRAWS, 0)
    divergence = DIVERGENCES.get("js")

    def mean_over_folds(members):
        found = []
        for scaler in result.scalers:
            x = torch.from_numpy(scaler.transform(plan.cohort.features[rows])).double()
            a, b = (torch.linalg.svdvals(x[torch.from_numpy(m)]) for m in members)
            found.append(float(divergence(a, b)))
        return np.mean(found)

    values, chance = (
        [
            mean_over_folds([chosen & (row == code) for code in (0, 1)])
            for row, chosen in zip(drawn, draw_subsamples(drawn, 5, 0), strict=True)
        ]
        for drawn in (np.tile(codes[0], (DRAWS, 1)), codes[1:])
    )
    table = result.effects.set_index(["quantity", "layer"])
    row = table.loc[("activation", "hidden_1")]
    assert (row["m"], row["draws"], row["reason"]) == (5, DRAWS, "")
    assert row["n"] == min(labels.count(group) for group in set(labels))
    assert row["chance"] == pytest.approx(np.mean(chance), rel=1e-5)
    effects = np.array(values) - np.mean(chance)
    low, high = np.quantile(effects, [0.025, 0.975])
    scale = {"rel": 1e-4, "abs": 1e-7}
    assert row["effect"] == pytest.approx(effects.mean(), **scale)
    assert row["low"] == pytest.approx(low, **scale)
    assert row["high"] == pytest.approx(high, **scale)
    (found,) = [
        x
        for x in result.divergences
        if (x.layer, x.quantity) == ("hidden_1", "activation")
    ]
    assert row["divergence"] == pytest.approx(found.value)
    assert row["sd_seeds"] == pytest.approx(0, abs=1e-12)  # inputs, whatever the seed
    assert row["sd_folds"] > 0
    assert table.loc[("activation", "hidden_2"), "sd_seeds"] > 0


def test_the_mean_over_layers_is_of_those_with_a_value(small, tmp_path):
    plan = make_plan(settings(small), Path())
    tracker = MemoryTracker()
    done = run(plan, tracker, tmp_path / "run", name="x", figures=False)
    table = pd.read_csv(done.folder / "effects.tsv", sep="\t", keep_default_na=False)
    assert len(table) == len(done.result.effects) == len(tracker.tables["effects"])
    assert "effects.tsv" in tracker.files
    smallest = done.result.effects["n"].iloc[0]
    assert set(done.result.effects["m"]) == {smallest // 2}
    table = done.result.effects.set_index(["quantity", "layer"])
    adjoint = table.loc["adjoint"]
    assert "rank 1" in adjoint.loc["output", "reason"]
    assert np.isnan(
        adjoint.loc["output", ["divergence", "effect", "low"]].tolist()
    ).all()
    shaped = adjoint.loc[["hidden_1", "hidden_2"]]
    whole = adjoint.loc[ALL_LAYERS]
    for name in ("divergence", "chance"):
        assert whole[name] == pytest.approx(shaped[name].mean())
    assert whole["low"] < whole["effect"] < whole["high"]
    assert whole["high"] - whole["low"] <= (shaped["high"] - shaped["low"]).mean() * 1.5


def test_too_few_people_have_no_effect_and_say_so(small):
    plan = make_plan(settings(small, effect_people=40), Path())
    table = train(plan, MemoryTracker()).effects
    smallest = table["n"].iloc[0]
    known = table[np.isfinite(table["divergence"])]
    assert len(known)
    why = f"the smallest group has {smallest} people: no subsamples of 40"
    assert set(known["reason"]) == {why}
    assert known[["effect", "low", "high", "chance"]].isna().all(axis=None)
    assert set(known["m"]) == {0}


def test_groups_that_cannot_be_relabelled_have_no_zero_to_measure_from(small):
    """Site is the stratum and, under another name, the grouping."""
    plan = make_plan(settings(small), Path())
    people = plan.cohort.people.assign(scanner=plan.cohort.people["site"])
    cohort = replace(plan.cohort, people=people)
    plan = replace(plan, cohort=cohort, groupings=("scanner",))
    table = train(plan, MemoryTracker()).effects
    known = table[np.isfinite(table["divergence"])]
    assert len(known)
    assert known["effect"].isna().all()
    assert all("cannot move" in reason for reason in known["reason"])


def test_without_a_probe_there_are_none(small):
    plan = make_plan(settings(small, probe_fraction=0.2), Path())
    assert train(plan, MemoryTracker()).effects.empty
