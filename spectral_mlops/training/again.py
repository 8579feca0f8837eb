"""A run's plan, read back from its folder: to retrain it, or to go on with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from spectral_mlops.cohorts import FeatureScaler, check_cohort
from spectral_mlops.errors import InputError
from spectral_mlops.models import is_imported
from spectral_mlops.report.runs import read_run_config
from spectral_mlops.training.fold import fit_scaler
from spectral_mlops.training.plan import Plan, make_plan


def read_plan(
    run: Path,
    workdir: Path,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    finished: bool = True,
    trust: bool = False,
) -> Plan:
    """Settle a run once more: the same settings, people and splits.

    Args:
        run: Its folder.
        workdir: Folder that paths of the run's settings start from.
        progress: Told ``(what, done, total)``.
        finished: Whether it must have come to its end.
        trust: Whether code that the folder names may run.

    Raises:
        InputError: If the folder is no such run, names code without ``trust``, or its
            people are not there or have changed.
    """
    config = read_run_config(run, finished=finished)
    if is_imported(config.model.name) and not trust:
        raise InputError(
            f"{run} names code to run, model.name='{config.model.name}': if you trust "
            "that folder, and what that name is here, add --trust."
        )
    place = getattr(check_cohort(config.cohort), "place", None)
    if place is not None and not (workdir / place).is_dir():
        raise InputError(
            f"The people of {run} are missing: there is no {place} in {workdir}; go "
            "to the folder the run was trained in."
        )
    plan = make_plan(config, workdir, progress, run / "splits")
    if finished:
        _check_people(plan, run)
    return plan


def _check_people(plan: Plan, run: Path) -> None:
    """Refuse people other than those of the run: features, or targets."""
    changed = InputError(
        f"The people of {plan.cohort.source} are not those that {run} was trained on: "
        "features or targets differ; restore them, or train again."
    )
    for number, fold in enumerate(plan.folds):
        now = fit_scaler(plan, plan.cohort.rows(fold.train_ids))
        path = run / "checkpoints" / f"fold-{number}-scaler.npz"
        if not path.is_file():
            raise InputError(f"{run} is not complete: there is no {path}.")
        with np.load(path, allow_pickle=False) as arrays:
            then = FeatureScaler.from_arrays(arrays)
        if not (
            np.array_equal(now.mask, then.mask)
            and np.allclose(now.mean, then.mean, rtol=1e-6)
            and np.allclose(now.sd, then.sd, rtol=1e-6)
        ):
            raise changed
    path = run / "predictions.tsv"
    said = pd.read_csv(path, sep="\t", dtype={"participant_id": str})
    rows = plan.cohort.rows(said["participant_id"])
    if not np.allclose(plan.targets[rows], said["target"].to_numpy(), rtol=1e-12):
        raise changed
