"""A study in the pages of others: optuna-dashboard, and MLflow's own."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest

from spectral_mlops.cohorts import simulate
from spectral_mlops.config import RunConfig, validate
from spectral_mlops.sweeps import Sweep, leave_summary
from spectral_mlops.tracking import open_store
from tests.browser.test_pages import WAIT, section, wait_for_charts
from tests.tracking.servers import LOOPBACK, Server, free_port, running

pytestmark = [pytest.mark.slow, pytest.mark.browser]
TRIALS = 5


@dataclass(frozen=True)
class Study:
    """A study, where it is, and the pages that show it."""

    sweep: Sweep
    dashboard: str
    mlflow: str

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.sweep.study.get_trials()


@pytest.fixture(scope="module")
def study(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    # Beside Python too: an environment need not be activated.
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which("optuna-dashboard", path=places)
    if program is None:
        pytest.skip("there is no optuna-dashboard here")
    folder = tmp_path_factory.mktemp("study")
    cohort = {"preset": "easy", "people": 56, "components": 12, "volumes": False}
    simulate(folder / "people", "easy", 56, 0, components=12, volumes=False)
    settings = {
        "cohort": {"settings": cohort | {"folder": str(folder / "people")}},
        "training": {"epochs": 6, "folds": 2, "batch_size": 8},
        "comparison": {"permutations": 19, "null_epochs": 2, "probe_fraction": 0.45},
        "tracking": {"uri": server.address, "experiment": "search"},
    }
    storage = f"sqlite:///{folder / 'optuna.db'}"
    sweep = Sweep(
        validate(RunConfig, settings, "test"),
        study="search",
        storage=storage,
        runs=folder / "runs",
        pruner="none",
    )
    for _ in range(TRIALS):
        sweep.run_trial()
    leave_summary(sweep)
    assert sweep.undelivered == 0
    experiment = open_store(server.address).client.get_experiment_by_name("search")
    port = free_port()
    words = [program, storage, "--host", LOOPBACK, "--port", str(port)]
    with running(Server(words, folder, port, "/dashboard")) as dashboard:
        yield Study(
            sweep,
            f"{dashboard.address}/dashboard/studies/1",
            f"{server.address}/#/experiments/{experiment.experiment_id}/runs",
        )


def test_optuna_dashboard_opens_a_study_of_ours(visit, study, keep):
    visit.page.goto(study.dashboard)
    visit.page.get_by_text("search", exact=False).first.wait_for(timeout=WAIT)
    wait_for_charts(visit, 2)
    best = max(trial.value for trial in study.trials())
    shown = visit.page.inner_text("body")
    assert str(round(best, 4))[:5] in shown
    keep("dashboard-study", visit.page.screenshot())
    visit.page.goto(f"{study.dashboard}/trials?numbers=0")
    visit.page.get_by_text("Trial 0", exact=False).first.wait_for(timeout=WAIT)
    visit.page.get_by_text("mlflow.run_id", exact=False).first.wait_for(timeout=WAIT)
    shown = visit.page.inner_text("body")
    trial = study.trials()[0]
    for said in (*trial.params, trial.user_attrs["mlflow.run_id"], "Complete"):
        assert said in shown
    keep("dashboard-trial", visit.page.screenshot())
    assert visit.outside == []
    assert [e for e in visit.errors if "favicon" not in e] == []


def test_trials_stand_flat_in_mlflow_beside_their_study(visit, study, keep):
    visit.page.goto(study.mlflow)
    names = [f"search-{number:05d}" for number in range(TRIALS)]
    for name in (*names, "search-study"):
        visit.page.get_by_text(name, exact=True).first.wait_for(timeout=WAIT)
    # Nested runs would be counted with their parent only when it is unfolded.
    assert f"{TRIALS + 1} matching runs" in visit.page.inner_text("body")
    runs = open_store(study.mlflow.partition("/#")[0]).client.search_runs(
        [study.mlflow.rpartition("/experiments/")[2].partition("/")[0]]
    )
    assert len(runs) == TRIALS + 1
    assert all("mlflow.parentRunId" not in run.data.tags for run in runs)
    keep("study-runs", visit.page.screenshot())
    assert visit.outside == []


def test_charts_of_trials_have_a_line_per_trial(visit, study, keep):
    visit.page.goto(f"{study.mlflow}?compareRunsMode=CHART")
    wait_for_charts(visit, 1)
    for name in ("divergence", "val", "train"):
        assert section(visit, name).is_visible()
    search = visit.page.get_by_placeholder("Search metric charts")
    for key in ("divergence/", "val/"):
        search.fill(key)
        visit.page.wait_for_timeout(3000)
        wait_for_charts(visit, 2)
        names = {f"search-{number:05d}" for number in range(TRIALS)}
        assert all(set(lines) == names for lines in visit.charts()), key
    keep("study-charts", visit.page.screenshot())
    assert visit.outside == []
