"""The end of a sweep: a page of the study, and a run of its own in MLflow."""

import uuid
from pathlib import Path

import numpy as np

from spectral_mlops.report.sweep_page import write_study_page
from spectral_mlops.report.sweep_plots import write_study_plots
from spectral_mlops.sweeps.answers import answers
from spectral_mlops.sweeps.sweep import Sweep
from spectral_mlops.tracking import open_tracker


def leave_summary(sweep: Sweep) -> Path:
    """Write the page of a sweep's study and its plots: a run of kind ``study``.

    Each visit to a study leaves one such run; the run of the last one has the page of
    all trials. What could not be delivered counts in ``sweep.undelivered``.

    Returns:
        The page.
    """
    study, tracking = sweep.study, sweep.config.tracking
    found = answers(study)
    number = len(found.trials)
    folder = sweep.runs / f"{study.study_name}-study-{uuid.uuid4().hex[:8]}"
    page = write_study_page(found, folder / "sweep.html")
    plots = write_study_plots(found, folder / "plots")
    tracker = open_tracker(tracking.uri, tracking.experiment, folder / "tracking")
    finished = found.trials[found.trials["state"] == "COMPLETE"]
    counts = found.trials["state"].value_counts()
    metrics = {f"trials/{str(state).lower()}": float(n) for state, n in counts.items()}
    allowed = finished[finished["allowed"]]
    accuracy = sweep.judgement.accuracy
    if len(allowed) and np.isfinite(allowed[accuracy]).any():
        metrics[f"best/{accuracy}"] = float(allowed[accuracy].max())
    tags = {
        "spectral.kind": "study",
        "optuna.study": study.study_name,
        "spectral.probe": sweep.plan.probe.digest if sweep.plan.probe else "none",
    }
    params = {"sweep.objective": found.objective, "sweep.space": sweep.space.digest}
    with tracker:
        tracker.start(
            f"{study.study_name}-study", params, tags, sweep.plan.cohort.summary()
        )
        tracker.log_metrics(metrics, step=number)
        tracker.log_file(page)
        for plot in plots:
            tracker.log_file(plot, "plots")
    sweep.undelivered += tracker.undelivered
    sweep.where = sweep.where or tracker.where  # workers have their own
    return page
