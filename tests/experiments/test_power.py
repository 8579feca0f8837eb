"""Small versions of experiments/power, and its own logic."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from experiments.benchmarks.results import fill, read
from experiments.power import report, run
from experiments.power.curve import crossing, rates, smallest_found
from experiments.power.measure import combined, data_sets, outcomes, plan_of
from experiments.power.planted import PlantedSettings, load_planted
from experiments.power.stack import train_stack
from spectral_mlops.cohorts.simulated import SimulatedSettings, load_simulated
from spectral_mlops.tracking import MemoryTracker
from spectral_mlops.training import train
from spectral_mlops.training.fold import FoldRun

SMALL = {
    "cohort": {"settings": {"components": 12}},
    "training": {"epochs": 5, "folds": 2, "learning_rate": 1e-2},
    "comparison": {"permutations": 19},
}


# -- people ----------------------------------------------------------------------


def test_an_effect_of_one_gives_the_people_of_the_preset(tmp_path):
    own = load_planted(PlantedSettings(effect=1, people=20, components=9), tmp_path)
    preset = SimulatedSettings(
        preset="realistic", people=20, components=9, volumes=False
    )
    read_back = load_simulated(preset, tmp_path)
    np.testing.assert_array_equal(own.features, read_back.features)
    columns = ["group", "age", "sex", "site", "fd"]
    left, right = own.people[columns], read_back.people[columns]
    pd.testing.assert_frame_equal(left, right, check_dtype=False)


def test_effects_of_one_seed_have_the_same_people_splits_and_probe():
    none, large = (plan_of(80, 0.3, effect, 3, SMALL) for effect in (0, 8))
    assert none.probe == large.probe
    assert none.folds == large.folds
    assert (none.cohort.labels == large.cohort.labels).all()
    assert (none.cohort.features != large.cohort.features).any()


# -- training as one -------------------------------------------------------------


def test_a_stack_trains_as_each_network_alone():
    plans = [plan_of(80, 0.3, effect, 1, SMALL) for effect in (0, 2, 8)]
    runs = [FoldRun(p, 1, torch.device("cpu"), watched=False) for p in plans]
    train_stack(runs)
    chosen = set()
    for plan, stacked in zip(plans, runs, strict=True):
        alone = FoldRun(plan, 1, torch.device("cpu"), watched=False)
        for epoch in range(plan.config.training.epochs):
            alone.train_epoch(epoch)
            alone.validate(epoch)
        assert stacked.best_epoch == alone.best_epoch
        assert stacked.best_loss == pytest.approx(alone.best_loss, rel=1e-5)
        for name, weight in stacked.model.state_dict().items():
            torch.testing.assert_close(weight, alone.best_weights[name])
        chosen.add(stacked.best_epoch)
    assert len(chosen) > 1  # each network has its own checkpoint


def test_z_and_p_are_those_of_the_training_command():
    plans = [plan_of(80, 0.3, effect, 0, SMALL) for effect in (0, 4)]
    for plan, found in zip(plans, outcomes(plans), strict=True):
        metrics = train(plan, MemoryTracker()).metrics
        assert found["p_adjoint"] == metrics["final/primary_p"]
        for quantity in ("activation", "adjoint"):
            z = metrics[f"final/divergence_{quantity}"]
            assert found[f"z_{quantity}"] == pytest.approx(z, rel=1e-3)
        assert found["probe_auc"] == pytest.approx(metrics["final/probe_auc"])


def test_a_cohort_too_small_for_a_probe_is_refused_in_words():
    rows = list(data_sets(40, 0.2, (0.0, 1.0), 0, SMALL))
    assert [row["effect"] for row in rows] == [0.0, 1.0]
    assert all("needs at least 12" in row["refused"] for row in rows)


def test_a_cross_fit_holds_everyone_out_and_doubles_the_mean_p():
    changes = SMALL | {"training": {"epochs": 2, "folds": 2}}
    (row,) = data_sets(40, None, (2.0,), 0, changes)
    assert 0 < row["p_activation"] <= 1
    assert "z_activation" not in row
    parts = [[{"p_activation": p, "probe_auc": 0.5}] for p in (0.1, 0.2, 0.03)]
    assert combined(parts)[0]["p_activation"] == pytest.approx(0.22)


# -- rates and effects -----------------------------------------------------------


def test_rates_are_counted_per_cell_with_the_exact_interval():
    table = pd.DataFrame(
        {
            "people": [40, 40, 40, 80, 80],
            "share": [np.nan, np.nan, np.nan, 0.3, 0.3],
            "effect": [1.0, 1.0, 1.0, 1.0, 1.0],
            "p_activation": [0.05, 0.051, 0.01, 0.2, np.nan],
        }
    )
    found = rates(table, "activation").set_index("people")
    assert found.loc[40, "rate"] == pytest.approx(2 / 3)
    assert found.loc[80, "data_sets"] == 1
    # Clopper-Pearson by the beta distribution
    low = scipy.stats.beta.ppf(0.025, 2, 2)
    high = scipy.stats.beta.ppf(0.975, 3, 1)
    assert found.loc[40, ["low", "high"]].tolist() == pytest.approx([low, high])


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        ([0.0, 0.4, 0.8, 1.0], 2.0),
        ([0.0, 0.6, 1.0, 1.0], 1.5),
        ([0.9, 0.1, 0.1, 0.1], 0.0),
        ([0.0, 0.9, 0.1, 1.0], 8 / 9),  # the first crossing counts
        ([0.1, 0.2, 0.3, 0.79], np.inf),
    ],
)
def test_the_smallest_effect_is_where_lines_cross_the_power(rate, expected):
    effects = np.array([0.0, 1.0, 2.0, 4.0])
    assert crossing(effects, np.array(rate)) == pytest.approx(expected)


def test_the_interval_of_an_effect_covers_where_power_is_known():
    # p is small with probability effect / 4, so that power .8 is at 3.2
    effects, inside = np.arange(5.0), 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        rows = [
            {"seed": s, "effect": e, "p_adjoint": 0.01 if u < e / 4 else 0.9}
            for s in range(60)
            for u in [rng.uniform()]
            for e in effects
        ]
        found = smallest_found(pd.DataFrame(rows), "adjoint", seed=trial)
        assert found["data_sets"] == 60
        inside += found["low"] <= 3.2 <= found["high"]
    assert inside >= 34


def test_power_that_is_not_reached_is_beyond_the_effects_measured():
    rows = [
        {"seed": s, "effect": e, "p_adjoint": 0.5} for s in range(9) for e in (0, 1)
    ]
    found = smallest_found(pd.DataFrame(rows), "adjoint")
    assert found["effect"] == found["high"] == np.inf
    assert report.up_to(found["effect"], 1.0) == "> 1"


# -- the command -----------------------------------------------------------------


def test_quick_runs_go_on_where_they_were_and_leave_the_readme(
    tmp_path, monkeypatch, capsys
):
    cells = (run.Cell(40, 0.2), run.Cell(80, 0.3, (0.0, 2.0)))
    monkeypatch.setattr(run, "CELLS", cells)
    before = (run.HERE / "README.md").read_text()
    for seeds in ("1", "2"):
        words = ["run", "--quick", "--seeds", seeds, "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", words)
        run.main()
    table = report.load(tmp_path / "data_sets.csv")
    assert table.groupby("people")["seed"].unique().map(list).to_dict() == {
        40: [0],  # refused once, and not asked again
        80: [0, 1],
    }
    shown = capsys.readouterr().out
    assert "refused: No probe: 20% of 40 people" in shown
    about = read(tmp_path, "about")["about"]
    assert about["command"] == "python -m experiments.power.run --quick --seeds 2"
    assert (tmp_path / "power.png").stat().st_size > 1000
    assert (run.HERE / "README.md").read_text() == before


def test_the_readmes_tables_are_those_of_the_stored_numbers():
    folder = run.HERE / "results"
    stored = report.load(folder / "data_sets.csv")
    tables = report.tables(stored, read(folder, "about")["about"])
    text = (run.HERE / "README.md").read_text()
    assert fill(text, tables) == text
