"""Answers of studies whose truth is known, and their page."""

import json
import math
import re
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from spectral_mlops.errors import InputError
from spectral_mlops.report.sweep_page import (
    accurate_trials,
    importance_table,
    study_data,
    study_page,
)
from spectral_mlops.sweeps import write_study
from spectral_mlops.sweeps.answers import answers, early_and_late, front
from spectral_mlops.sweeps.familywise import TrialNull
from tests.report.pages import HOSTILE

STORAGE = "sqlite:///optuna.db"
RATE, DROPOUT = FloatDistribution(0.0, 1.0), FloatDistribution(0.0, 1.0)


def known_study(count=40, name="known"):
    """AUC comes from the rate alone, divergence from dropout alone."""
    study = optuna.create_study(
        study_name=name, storage=STORAGE, direction="maximize", load_if_exists=True
    )
    study.set_user_attr(
        "search", {"objective": "auc", "primary quantity": "activation"}
    )
    study.set_user_attr("confounds_auc", 0.55)
    rng = np.random.default_rng(1)
    chance = np.random.default_rng(2).normal(size=(199, 40))
    for number in range(count):
        rate, dropout = rng.random(2)
        auc, z = 0.5 + 0.4 * rate, 4 - 5 * dropout
        attributes = {
            "auc": auc,
            "divergence.activation": z,
            "p": 0.01 if z > 2 else 0.4,
            **TrialNull(np.append(z, chance[:, number]), "these").attributes(),
            "trajectory.activation": [[0, -z], [4, 0.5 * z], [9, z]],
            "mlflow.run_id": f"run{number}",
        }
        branch = {"kind": CategoricalDistribution([HOSTILE, "b"])}
        more = {"b/momentum": FloatDistribution(0, 1)} if number % 2 else {}
        study.add_trial(
            create_trial(
                params={"rate": rate, "dropout": dropout}
                | {"kind": "b" if more else HOSTILE}
                | ({"b/momentum": rng.random()} if more else {}),
                distributions={"rate": RATE, "dropout": DROPOUT} | branch | more,
                value=auc,
                user_attrs=attributes,
                constraints={"confounds": 0.55 - auc},
            )
        )
    return study


def test_what_drives_accuracy_and_what_divergence():
    found = answers(known_study())
    table = importance_table(found.importances).set_index("setting")
    for method in ("fANOVA", "PED-ANOVA"):
        assert table[f"AUC, {method}"].idxmax() == "rate"
        assert table[f"divergence, {method}"].idxmax() == "dropout"
    assert table.loc["rate", "AUC, fANOVA"] > 0.9
    assert table.loc["dropout", "divergence, fANOVA"] > 0.9
    np.testing.assert_allclose(table.sum(), 1.0)
    assert math.isnan(table.loc["b/momentum", "AUC, fANOVA"])
    assert table.loc["b/momentum", "AUC, PED-ANOVA"] >= 0
    assert not found.notes


def test_few_trials_have_no_importances_and_it_is_said():
    found = answers(known_study(9))
    assert found.importances.empty
    assert any("there are 9" in note for note in found.notes)
    assert "there are 9" in study_page(found)


def slow_front(points):
    """Every pair is compared."""
    return [
        not any(
            (a >= b and max(0, u) <= max(0, v)) and (a > b or max(0, u) < max(0, v))
            for a, u in points
        )
        for b, v in points
    ]


def test_the_front_is_that_of_every_pair_compared():
    rng = np.random.default_rng(0)
    points = [(round(a, 1), round(3 * u, 1)) for a, u in rng.normal(size=(40, 2))]
    points += [(3 + k / 4, k / 2 - 1) for k in range(6)]  # z below 0 counts as 0
    frame = pd.DataFrame(points, columns=["auc", "divergence"])
    frame = frame.assign(state="COMPLETE", allowed=True)
    assert front(frame) == slow_front(points)
    assert sum(front(frame)) == 4
    frame.loc[frame["auc"].idxmax(), "allowed"] = False
    best = frame["auc"].idxmax()
    assert not front(frame)[best]
    frame.loc[0, ["state", "auc"]] = ["PRUNED", 9.0]
    assert not front(frame)[0]
    frame.loc[1, "divergence"] = np.nan
    assert not front(frame)[1]


def test_early_divergence_is_ranked_against_the_end():
    study = known_study()
    table = early_and_late(study.get_trials(), "activation").set_index("share")
    assert table["trials"].tolist() == [40, 40, 40]
    assert table.loc[0.1, "correlation"] == pytest.approx(-1)
    assert table.loc[0.5, "correlation"] == pytest.approx(1)
    few = early_and_late(study.get_trials()[:4], "activation")
    assert few["correlation"].isna().all()
    assert early_and_late(study.get_trials(), "gradient")["trials"].tolist() == [0] * 3


def test_accurate_without_detected_divergence():
    found = answers(known_study())
    half, table = accurate_trials(found)
    trials = found.trials
    wanted = trials[
        (trials["auc"] >= trials["auc"].median())
        & (trials["divergence"] <= 2)
        & (trials["auc"] >= 0.55)
    ]
    assert half == trials["auc"].median()
    assert sorted(table["trial"]) == sorted(wanted["trial"])
    assert 0 < len(table) < 20
    assert table["auc"].is_monotonic_decreasing


def test_p_over_trials_and_bounds_stand_beside_z():
    found = answers(known_study())
    trials = found.trials
    assert (trials["p_max"] >= 1 / 200).all()
    order = trials.sort_values("divergence")
    assert order["p_max"].iloc[0] == pytest.approx(1.0)
    assert order["p_max"].iloc[-1] < 0.2
    assert (trials["upper"] > trials["divergence"]).all()
    page = study_page(found)
    assert "adjusted over all finished trials" in page
    assert "not adjusted for having chosen the trial" in page
    assert "are no test" not in page.split("<script>")[0]


def test_what_counts_as_detected_is_tau_where_constrained():
    study = known_study()
    constrained = {"objective": "constrained ≤ 3.5", "primary quantity": "activation"}
    study.set_user_attr("search", constrained)
    found = answers(study)
    assert study_data(found)["detected"] == found.detected == 3.5
    _, table = accurate_trials(found)
    assert 2 < table["divergence"].max() <= 3.5
    page = study_page(found).split("<script>")[0]
    assert "z of activation at most 3.5" in page
    assert "are no test" in page


def test_trials_that_did_not_finish_have_no_p_over_trials():
    study = known_study(12)
    attributes = study.get_trials()[0].user_attrs
    study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=attributes))
    study.add_trial(create_trial(value=0.7, user_attrs={"auc": 0.7}))
    other = TrialNull(np.arange(200.0), "of others").attributes()
    study.add_trial(create_trial(value=0.7, user_attrs={"auc": 0.7} | other))
    found = answers(study)
    assert found.trials["p_max"].isna().tolist() == [False] * 12 + [True] * 3
    assert any(note.startswith("1 trials with other") for note in found.notes)


def test_the_page_is_whole_and_names_stay_text():
    out = write_study("known", known_study() and STORAGE, Path("new/sweep.html"))
    page = out.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))[
        "sweep"
    ]
    assert len(data["trials"]) == 40
    assert data["parameters"] == ["rate", "dropout", "kind", "b/momentum"]
    assert HOSTILE not in page
    assert "default-src 'none'" in page
    assert "fair" not in page.split("<script>")[0].lower()
    shown = page.split("<script>")[0]
    for word in ("fANOVA", "PED-ANOVA", "run7", "no detected divergence", "0.550"):
        assert word in shown


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED])
def test_a_study_without_finished_trials_has_a_page(state):
    study = optuna.create_study(study_name="bare", storage=STORAGE)
    assert "0" in study_page(answers(study))
    study.add_trial(create_trial(state=state))
    found = answers(study)
    page = study_page(found)
    assert "There is none" in page
    assert study_data(found)["trials"] == []


def test_an_unknown_study_names_those_there_are():
    with pytest.raises(InputError, match="there is none"):
        write_study("known", STORAGE, Path("x.html"))
    assert not Path("optuna.db").exists()
    known_study(1)
    with pytest.raises(InputError, match=r"there is known.* Did you mean 'known'"):
        write_study("knwon", STORAGE, Path("x.html"))
    with pytest.raises(InputError, match=r"sqlite:///optuna\.db"):
        write_study("known", "nowhere://x", Path("x.html"))
    assert not Path("x.html").exists()
