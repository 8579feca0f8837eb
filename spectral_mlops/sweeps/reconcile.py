"""Makes Optuna's trials and MLflow's runs say the same, after whatever happened.

Optuna knows how a trial ended; its run is found by the unique id that the trial was
given before the run was made. Doing it again mends nothing more.
"""

from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from spectral_mlops.errors import InputError
from spectral_mlops.sweeps.ended import ERROR, Ended, Status
from spectral_mlops.sweeps.recipe import Recipe
from spectral_mlops.sweeps.stale import DIED, mend
from spectral_mlops.sweeps.study import read_study
from spectral_mlops.sweeps.tickets import Tickets
from spectral_mlops.tracking import undelivered_runs
from spectral_mlops.tracking.choose import NONE, SPOOL
from spectral_mlops.tracking.spool import read_info
from spectral_mlops.tracking.trials import TrialRun, TrialRuns

ORPHAN = "spectral.orphan"


@dataclass
class Reconciled:
    """What a pass over a study found.

    Attributes:
        mended: One sentence each; none at the next pass.
        listed: What only its user can mend, one sentence each.
        waiting: Folders of ended trials from which something is to be delivered.
    """

    mended: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    waiting: list[Path] = field(default_factory=list)


def reconcile(
    study: optuna.Study,
    tickets: Tickets,
    tracking: str | None,
    experiment: str | None,
    runs: Path,
) -> Reconciled:
    """Mend what killed workers and stores that were away left behind.

    Trials of dead workers fail and are tried again; runs end as their trials did; a
    run without a trial is tagged ``spectral.orphan``. Runs of trials that are
    running are left alone.

    Args:
        study: Any.
        tickets: Its.
        tracking: Where its runs are; see `open_tracker`.
        experiment: See `Store.experiment`.
        runs: Folder of runs, of this machine.

    Raises:
        TrackingError: If the store does not answer; trials are mended all the same.
    """
    found = Reconciled(mended=mend(study, tickets))
    found.waiting = _waiting(study, runs)
    found.listed += [f"{folder}: undelivered" for folder in found.waiting]
    if tracking not in (NONE, SPOOL):
        _match(study, tracking, experiment, found)
    return found


def reconcile_study(
    name: str, storage: str, tracking: str | None, runs: Path
) -> Reconciled:
    """Do so for a study that exists, with what it keeps of itself.

    Args:
        name: Of the study.
        storage: Address of a database.
        tracking: The study's store if not given.
        runs: Folder of runs.

    Raises:
        InputError: If there is no such study, or none that `Sweep` made.
    """
    study = read_study(name, storage)
    if (recipe := Recipe.of(study)) is None:
        raise InputError(f"Study '{name}' does not say where its runs are.")
    where = recipe.config(tracking).tracking
    about = (where.uri, where.experiment, runs)
    return reconcile(study, Tickets(study, storage), *about)


def _match(
    study: optuna.Study, tracking: str | None, experiment: str | None, found: Reconciled
) -> None:
    """Hold trials against runs."""
    try:
        store = TrialRuns(study.study_name, tracking, experiment)
    except InputError as error:  # no experiment: nothing was ever tracked
        ended = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
        found.listed += [str(error)] if ended else []
        return
    # Runs before trials: a trial is there before its run, so none is an orphan that
    # another worker makes in between.
    runs = store.all()
    trials = study.get_trials(deepcopy=False)
    by_uid = {run.tags.get("spectral.uid", run.run_id): run for run in runs}
    for trial in trials:
        run = by_uid.pop(trial.user_attrs.get("uid", ""), None)
        if not trial.state.is_finished():
            continue
        if run is not None:
            _end(store, trial, run, found)
        elif "uid" in trial.user_attrs:
            found.listed.append(f"trial {trial.number}: {trial.state.name}, no run")
        else:
            found.listed.append(f"trial {trial.number}: {DIED} before it had a run")
    for run in by_uid.values():
        if ORPHAN not in run.tags:
            store.mend(run.run_id, None, {ORPHAN: "true"})
            found.mended.append(f"run {run.run_id}: no trial of the study; {ORPHAN}")


def _end(
    store: TrialRuns, trial: FrozenTrial, run: TrialRun, found: Reconciled
) -> None:
    """End a run as its trial ended, if it has not."""
    ended = Ended.of(trial)
    if any(_amiss(run, ended)):  # it may have ended since it was read
        run = store.one(run.run_id)
    status, missing = _amiss(run, ended)
    if missing or status:
        store.mend(run.run_id, status, missing)
        found.mended.append(
            f"trial {trial.number}: {ended.state.name}, run {run.run_id} was "
            f"{run.status}; {ended.status}"
        )


def _amiss(run: TrialRun, ended: Ended) -> tuple[Status | None, dict[str, str]]:
    """Return the status and the tags that a run should have, and has not."""
    tags = ended.tags()
    if ERROR in run.tags:  # what the run knows itself is more
        tags.pop(ERROR, None)
    missing = {name: text for name, text in tags.items() if run.tags.get(name) != text}
    return (None if run.status == ended.status else ended.status), missing


def _waiting(study: optuna.Study, runs: Path) -> list[Path]:
    """Return folders with something undelivered, but for trials that are running."""
    if not runs.is_dir():
        return []
    name = study.study_name
    waiting = undelivered_runs(runs)
    running = {
        f"{name}-{trial.number:05d}-{trial.user_attrs.get('uid', '')[:8]}"
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    }
    return [
        folder
        for folder in waiting
        if folder.name.startswith(f"{name}-")
        and folder.name not in running
        and read_info(folder).get("tracking_uri")
    ]
