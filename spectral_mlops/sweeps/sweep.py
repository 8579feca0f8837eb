"""One study: Optuna knows the search, MLflow the measurements.

Every trial is a complete run of its own, flat, found by tags. All trials share one
probe and one set of relabellings; a study made with another probe is refused.
"""

import math
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import optuna
import pandas as pd
from optuna.trial import TrialState

from spectral_mlops.config import RunConfig, validate
from spectral_mlops.errors import (
    InputError,
    SpectralError,
    TrackingError,
    UnknownNameError,
)
from spectral_mlops.sweeps.draw import (
    UnusableDraw,
    plan_with,
    settle,
    settled_corners,
)
from spectral_mlops.sweeps.familywise import TrialNull
from spectral_mlops.sweeps.objective import Judgement
from spectral_mlops.sweeps.seen import Seen
from spectral_mlops.sweeps.space import Space, built_in
from spectral_mlops.sweeps.space_file import MAY_VARY, Objective
from spectral_mlops.sweeps.stopping import SOUGHT, Pruner, Stopping
from spectral_mlops.sweeps.study import open_study, trials_table
from spectral_mlops.tracking import Tracker, open_tracker
from spectral_mlops.training import Plan, make_plan, run
from spectral_mlops.training.loop import OnEpoch

RUN_STATUS: dict[TrialState, Literal["FINISHED", "KILLED", "FAILED"]] = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
}
"""How the state of a trial reads in MLflow."""


class Sweep:
    """Search on one cohort, one trial after another.

    Args:
        config: Settings that every trial starts from.
        study: Name; a study of that name goes on.
        storage: Optuna storage, ``sqlite:///optuna.db`` for a file here.
        runs: Folder below which each trial has its own.
        device: Where tensors live.
        pruner: Which trials are stopped early (`Stopping`).
        prune_divergence: Stop trials whose z is above it, if given.
        space: What a trial may change; the built-in space if not given.
        objective: How trials are judged (`Judgement`).
        tau: Largest divergence of ``constrained``, z.
        progress: Told about loading people.

    Raises:
        InputError: If the space cannot be used, if there is no divergence to judge
            by, or if the study was made with other people, another space or another
            objective.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        study: str,
        storage: str,
        runs: Path,
        device: str = "cpu",
        pruner: Pruner = "median",
        prune_divergence: float | None = None,
        space: Space | None = None,
        objective: Objective = "auc",
        tau: float = 2.0,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        if os.environ.get("MLFLOW_RUN_ID"):
            raise InputError(
                "MLFLOW_RUN_ID is set, and every trial is a run of its own: unset it."
            )
        self.config, self.runs, self.device = config, runs, device
        self.space = space or built_in()
        corners = settled_corners(self.space, config)
        # Planned with a model of the space: the one in the settings may be for others.
        first = corners[0] if corners else config
        self.plan = make_plan(first, Path.cwd(), progress)
        for corner in corners:
            plan_with(self.plan, corner)
        self.judgement = Judgement(objective, tau, self.plan.primary_quantity)
        if self.judgement.needs_divergence and self.plan.probe is None:
            raise InputError(
                f"--objective {objective} needs a probe. {self.plan.probe_note}"
            )
        self.stopping = Stopping(self.judgement, pruner, prune_divergence)
        self.stopping.check(self.plan.probe is not None)
        self.undelivered = 0
        self.where = ""
        rules = self.stopping.of_optuna()
        self.study = open_study(study, storage, self.judgement, rules)
        self._same("people", self._people())
        self._same("search", self._search())
        if prune_divergence is not None:
            self.study.set_user_attr(SOUGHT, prune_divergence)
        # A seed of its own for each visit, or a study that goes on would draw its
        # first trials again.
        seed = config.training.seed + len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self.judgement.sampler(seed, self.space.grouped)

    def run_trial(self, on_epoch: OnEpoch | None = None) -> TrialState:
        """Draw settings, train, and tell the study how it ended.

        A trial that fails leaves its error in the user attribute ``error``, ends
        its MLflow run as FAILED, and the study goes on.

        Args:
            on_epoch: Called with the epoch and its metrics.

        Returns:
            The state the trial ended in.

        Raises:
            SpectralError: What no other trial would do better: a store or a
                setting that cannot be used.
        """
        trial = self.study.ask()
        uid = uuid.uuid4().hex
        trial.set_user_attr("uid", uid)
        tracking = self.config.tracking
        folder = self.runs / f"{self._name(trial)}-{uid[:8]}"
        tracker = open_tracker(tracking.uri, tracking.experiment, folder)
        state, values = TrialState.FAIL, None
        seen = Seen(self.plan.quantities, self.judgement.quantity)
        try:
            values = self._train(trial, uid, tracker, folder, seen, on_epoch)
            state = TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            if isinstance(error, SpectralError):
                raise
        finally:
            self._end(trial, tracker, state, values, seen)
        return state

    def table(self) -> pd.DataFrame:
        """One row per trial: state, AUC, settings, divergence, run."""
        return trials_table(self.study, self.plan.quantities)

    def _train(
        self,
        trial: optuna.Trial,
        uid: str,
        tracker: Tracker,
        folder: Path,
        seen: Seen,
        on_epoch: OnEpoch | None,
    ) -> list[float]:
        """Train one complete run, and return what it is worth."""
        plan = self._plan(trial)

        def each_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            if epoch == 0:
                with suppress(TrackingError):  # a store that is away gives none yet
                    trial.set_user_attr("mlflow.run_id", tracker.run_id)
            seen.epoch(epoch, metrics)
            if on_epoch is not None:
                on_epoch(epoch, metrics)
            if why := self.stopping.why(trial, epoch, seen):
                trial.set_user_attr("stopped", why)
                self._constrain(trial, seen)
                raise optuna.TrialPruned

        finished = run(
            plan,
            tracker,
            folder,
            name=self._name(trial),
            tags={
                "spectral.kind": "trial",
                "spectral.uid": uid,
                "optuna.study": self.study.study_name,
                "optuna.trial_number": str(trial.number),
            },
            on_epoch=each_epoch,
            device=self.device,
            figures=False,
            checkpoints=False,
        )
        metrics = finished.result.metrics
        seen.end(metrics, TrialNull.of(plan, finished.result))
        if "baseline/confounds_auc" in metrics:
            self.study.set_user_attr("confounds_auc", metrics["baseline/confounds_auc"])
        self._constrain(trial, seen)
        return self.judgement.values(seen.auc, seen.divergence)

    def _plan(self, trial: optuna.Trial) -> Plan:
        """Draw a trial's settings; all else is the study's."""
        try:
            study = self.plan.config.model_dump(mode="json")
            for vary in MAY_VARY:  # the plan has those of the space's first corner
                study[vary] = getattr(self.config, vary).model_dump(mode="json")
            study["tracking"]["profile"] = "sweep"
            base = validate(RunConfig, study, "study")
            drawn = self.space.suggest(trial)
            config = settle(base, drawn, f"trial {trial.number}")
            return plan_with(self.plan, config)
        except (InputError, UnknownNameError) as error:
            raise UnusableDraw(str(error)) from error

    def _constrain(self, trial: optuna.Trial, seen: Seen) -> None:
        """Say once whether the trial is allowed: Optuna takes no second answer."""
        alone = self.study.user_attrs.get("confounds_auc", math.nan)
        about = (seen.auc, seen.divergence, alone)
        for name, far in self.judgement.constraints(*about).items():
            trial.set_constraint(name, far)
        if said := self.judgement.why_not(*about):
            trial.set_user_attr("infeasible", said)

    def _name(self, trial: optuna.Trial) -> str:
        return f"{self.study.study_name}-{trial.number:05d}"

    def _end(
        self,
        trial: optuna.Trial,
        tracker: Tracker,
        state: TrialState,
        values: list[float] | None,
        seen: Seen,
    ) -> None:
        """Keep what was seen, end the run as the trial ended, tell the study."""
        for name, value in seen.attributes().items():
            trial.set_user_attr(name, value)
        tracker.close(RUN_STATUS[state])
        if "mlflow.run_id" not in trial.user_attrs:
            with suppress(TrackingError):  # a store that was away may be back
                trial.set_user_attr("mlflow.run_id", tracker.run_id)
        self.undelivered += tracker.undelivered
        self.where = tracker.where
        self.study.tell(trial, values, state=state)

    def _people(self) -> dict[str, str]:
        """Whom the study is about."""
        settings = self.config.comparison
        return {
            "cohort": self.plan.cohort.digest,
            "probe": self.plan.probe.digest if self.plan.probe else "none",
            "set of relabellings": (
                f"{settings.permutations}, seed {settings.seed}, {settings.divergence}"
            ),
        }

    def _search(self) -> dict[str, str]:
        """What it searches, and for what."""
        judged = self.judgement
        tau = f" ≤ {judged.tau:g}" if judged.objective == "constrained" else ""
        return {
            "search space": self.space.digest,
            "objective": f"{judged.objective}{tau}",
            "primary quantity": judged.quantity,
        }

    def _same(self, about: str, mine: dict[str, str]) -> None:
        """Write down what the study is about, or refuse what is not that."""
        known: dict[str, Any] = self.study.user_attrs.get(about, {})
        if not known:
            self.study.set_user_attr(about, mine)
            return
        for what, digest in mine.items():
            if known[what] != digest:
                raise InputError(
                    f"Study '{self.study.study_name}' was made with another {what} "
                    f"({known[what][:20]} there, {digest[:20]} here): its trials "
                    "would not be comparable; choose another --study."
                )
