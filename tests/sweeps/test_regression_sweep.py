"""Studies of a number: R² where AUC stands otherwise."""

import math
import re
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState

from spectral_mlops.errors import InputError
from spectral_mlops.report.sweep_page import study_data, study_page
from spectral_mlops.sweeps import Sweep
from spectral_mlops.sweeps.answers import answers
from spectral_mlops.sweeps.confirm import confirm
from spectral_mlops.sweeps.objective import Judgement
from spectral_mlops.sweeps.space_file import data_space
from spectral_mlops.tracking import open_store
from spectral_mlops.tracking.measures import REGRESSION
from tests.training.numbers import aged

NAN, STORAGE = math.nan, "sqlite:///optuna.db"
SPACE = {"training.learning_rate": {"low": 3e-3, "high": 3e-2, "log": True}}
NUMBERS = ["--task", "regression", "--target", "age"]


@pytest.fixture
def make(uri):
    def make(**how):
        config = aged(tracking={"uri": uri})
        place = {"study": "s", "storage": STORAGE, "runs": Path("runs")}
        return Sweep(config, space=data_space(SPACE, "x"), **place, **how)

    return make


def test_what_is_allowed_and_which_way_is_better():
    judged = Judgement.of(None, 2.0, "adjoint", REGRESSION)
    assert (judged.objective, judged.names) == ("r2", ["r2"])
    assert judged.directions == ["maximize"]
    assert not judged.needs_divergence
    assert judged.values(-0.3, NAN) == [-0.3]
    assert judged.constraints(0.4, 9.0, 0.1) == pytest.approx({"confounds": -0.3})
    assert judged.constraints(-0.4, 9.0, -0.1) == pytest.approx({"confounds": 0.3})
    assert "R² -0.400 is below the -0.100" in judged.why_not(-0.4, 9.0, -0.1)
    both = Judgement.of("r2,divergence", 2.0, "adjoint", REGRESSION)
    assert (both.both, both.names) == (True, ["r2", "divergence"])
    assert both.directions == ["maximize", "minimize"]
    assert both.values(0.2, -1.0) == [0.2, 0.0]
    tied = Judgement.of("constrained", 1.0, "adjoint", REGRESSION)
    assert tied.constraints(0.5, 1.5, 0.2) == pytest.approx(
        {"confounds": -0.3, "divergence": 0.5}
    )


@pytest.mark.parametrize(
    ("objective", "name"),
    [(None, "r2"), ("r2,divergence", "r2,divergence"), ("constrained", "constrained")],
)
def test_a_study_of_a_number_from_first_trial_to_page(make, uri, objective, name):
    sweep = make(objective=objective)
    states = [sweep.run_trial() for _ in range(2)]
    assert states == [TrialState.COMPLETE] * 2
    client = open_store(uri).client
    alone = sweep.study.user_attrs["confounds_r2"]
    for trial in sweep.study.get_trials():
        metrics = client.get_run(trial.user_attrs["mlflow.run_id"]).data.metrics
        z = metrics["final/divergence_adjoint"]
        assert trial.values[0] == pytest.approx(metrics["final/r2"])
        assert trial.user_attrs["r2"] == trial.values[0]
        assert trial.user_attrs["divergence.adjoint"] == pytest.approx(z)
        assert len(trial.user_attrs["trajectory.r2"]) == 3
        (folder,) = Path("runs").glob(f"s-{trial.number:05d}-*")
        judged = pd.read_table(folder / "performance.tsv")
        judged = judged[(judged["group"] == "all") & (judged["metric"] == "r2")]
        kept = judged.set_index(["model", "people"])["value"]
        assert alone == pytest.approx(kept["confounds", "validation"], abs=1e-4)
        assert trial.values[0] == pytest.approx(kept["network", "validation"], abs=1e-4)
        assert trial.constraints["confounds"] == pytest.approx(alone - trial.values[0])
        if name == "r2,divergence":
            assert trial.values[1] == pytest.approx(max(0.0, z))
        if name == "constrained":
            assert trial.constraints["divergence"] == pytest.approx(z - 2)
    found = answers(sweep.study)
    assert found.objective.split(" ")[0] == name
    assert found.confounds == alone
    page = study_page(found)
    told = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "AUC" not in told
    assert "best R² of those allowed" in told
    assert study_data(found)["accuracy"] == "R²"
    assert "r2" in sweep.table()


def test_an_objective_of_the_other_task_is_refused(make, small):
    with pytest.raises(InputError, match=r"judged by R²: choose r2, 'r2,divergence'"):
        make(objective="auc")
    place = {"study": "s", "storage": STORAGE, "runs": Path("runs")}
    with pytest.raises(InputError, match="judged by AUC: choose auc"):
        Sweep(small(), objective="r2,divergence", **place)
    assert not Path("optuna.db").exists()


def test_a_chosen_trial_of_a_number_is_confirmed(make, uri):
    sweep = make()
    sweep.run_trial()
    done = confirm("s", STORAGE, runs=Path("runs"), number=0)
    assert list(done.table["probe"]) == ["first", "second"]
    assert done.table["r2"].notna().all()
    assert "their R² had" in study_page(answers(sweep.study))


def test_ages_of_the_simulated_cohort_on_the_command_line(command, cheap, uri):
    words = ["sweep", "--config", cheap, "--tracking", uri, *NUMBERS, "--trials", 2]
    code, out, err = command(*words, "--workers", 0, "--objective", "auc")
    assert code == 2
    assert "choose r2" in err
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert "Predicted: 'age'" in out
    study = optuna.load_study(study_name="sweep", storage=STORAGE)
    for trial in study.get_trials():
        assert trial.state == TrialState.COMPLETE
        assert trial.params.keys() == {"depth", "width", "learning_rate", "dropout"}
    client = open_store(uri).client
    experiment = client.get_experiment_by_name("spectral_mlops")
    runs = client.search_runs([experiment.experiment_id])
    (summary,) = (run for run in runs if run.data.tags["spectral.kind"] == "study")
    allowed = [
        trial.values[0]
        for trial in study.get_trials()
        if all(x <= 0 for x in trial.constraints.values())
    ]
    assert summary.data.metrics.get("best/r2") == (
        pytest.approx(max(allowed)) if allowed else None
    )
    # One of two settings that only go together, said again alone.
    again = ["sweep", "--target", "age", "--workers", 0, "--trials", 1]
    assert command(*again)[0] == 0
    code, _, err = command("sweep", "--target", "fd", "--workers", 0)
    assert code == 2
    assert "training.target=age, and here it is fd" in err
