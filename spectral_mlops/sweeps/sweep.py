"""One study: Optuna knows the search, MLflow the measurements.

Every trial is a complete run of its own, flat, found by tags. All trials share one
probe and one set of relabellings; a study made with another probe is refused.
"""

import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import optuna
import pandas as pd
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from spectral_mlops.config import RunConfig, merge, validate
from spectral_mlops.errors import InputError, SpectralError, TrackingError
from spectral_mlops.sweeps.space import suggest
from spectral_mlops.tracking import Tracker, open_tracker
from spectral_mlops.training import Plan, make_plan, run
from spectral_mlops.training.loop import OnEpoch

WARM_UP_EPOCHS = 5
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
        prune: Stop trials whose validation AUC is below the median's.
        progress: Told about loading people.

    Raises:
        InputError: If the study was made with another probe or other people.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        study: str,
        storage: str,
        runs: Path,
        device: str = "cpu",
        prune: bool = True,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        if os.environ.get("MLFLOW_RUN_ID"):
            raise InputError(
                "MLFLOW_RUN_ID is set, and every trial is a run of its own: unset it."
            )
        self.config, self.runs, self.device = config, runs, device
        self.plan = make_plan(config, Path.cwd(), progress)
        self.undelivered = 0
        self.where = ""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = (
            optuna.pruners.MedianPruner(
                n_startup_trials=4, n_warmup_steps=WARM_UP_EPOCHS
            )
            if prune
            else optuna.pruners.NopPruner()
        )
        try:
            self.study = optuna.create_study(
                study_name=study,
                storage=storage,
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
        except (SQLAlchemyError, ValueError, ImportError) as error:
            raise InputError(
                f"--storage {storage}: Optuna cannot use it ({error}); a file here is "
                "sqlite:///optuna.db."
            ) from error
        self._same_people()
        # A seed of its own for each visit, or a study that goes on would draw its
        # first trials again.
        seed = config.training.seed + len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)

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
        state, value = TrialState.FAIL, None
        try:
            value = self._train(trial, uid, tracker, folder, on_epoch)
            state = TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            if isinstance(error, SpectralError):
                raise
        finally:
            self._end(trial, tracker, state, value)
        return state

    def table(self) -> pd.DataFrame:
        """One row per trial: state, AUC, settings, divergence, run."""
        rows = []
        for trial in self.study.get_trials(deepcopy=False):
            attributes = trial.user_attrs
            rows.append(
                {
                    "trial": trial.number,
                    "state": trial.state.name,
                    "auc": trial.value,
                    **trial.params,
                    **{
                        key: attributes.get(key)
                        for quantity in self.plan.quantities
                        for key in [f"divergence.{quantity}"]
                    },
                    "run": attributes.get("mlflow.run_id"),
                    "error": attributes.get("error"),
                }
            )
        return pd.DataFrame(rows)

    def _train(
        self,
        trial: optuna.Trial,
        uid: str,
        tracker: Tracker,
        folder: Path,
        on_epoch: OnEpoch | None,
    ) -> float:
        """Train one complete run and keep what belongs beside the trial."""
        base = merge(
            self.plan.config.model_dump(mode="json"), {"tracking": {"profile": "sweep"}}
        )
        drawn = merge(base, suggest(trial))
        config = validate(RunConfig, drawn, f"trial {trial.number}")
        plan = Plan(
            config,
            self.plan.cohort,
            self.plan.classes,
            self.plan.groupings,
            self.plan.probe,
            self.plan.probe_note,
            self.plan.folds,
        )

        def each_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            if epoch == 0:
                with suppress(TrackingError):  # a store that is away gives none yet
                    trial.set_user_attr("mlflow.run_id", tracker.run_id)
            self._keep_divergence(trial, metrics, "divergence/")
            trial.report(metrics["val/auc"], epoch)
            if on_epoch is not None:
                on_epoch(epoch, metrics)
            if trial.should_prune():
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
        self._keep_divergence(trial, finished.result.metrics, "final/divergence_")
        return finished.result.metrics["final/auc"]

    def _name(self, trial: optuna.Trial) -> str:
        return f"{self.study.study_name}-{trial.number:05d}"

    def _end(
        self,
        trial: optuna.Trial,
        tracker: Tracker,
        state: TrialState,
        value: float | None,
    ) -> None:
        """End the run as the trial ended, then tell the study."""
        tracker.close(RUN_STATUS[state])
        self.undelivered += tracker.undelivered
        self.where = tracker.where
        self.study.tell(trial, value, state=state)

    def _keep_divergence(
        self, trial: optuna.Trial, metrics: Mapping[str, float], prefix: str
    ) -> None:
        """Keep the latest divergence per quantity, also of trials that are pruned."""
        for quantity in self.plan.quantities:
            value = metrics.get(f"{prefix}{quantity}")
            if value is not None and value == value:
                trial.set_user_attr(f"divergence.{quantity}", value)

    def _same_people(self) -> None:
        """Write down whom the study is about, or refuse others."""
        settings = self.config.comparison
        mine = {
            "cohort": self.plan.cohort.digest,
            "probe": self.plan.probe.digest if self.plan.probe else "none",
            "set of relabellings": (
                f"{settings.permutations}, seed {settings.seed}, {settings.divergence}"
            ),
        }
        known: dict[str, Any] = self.study.user_attrs.get("people", {})
        if not known:
            self.study.set_user_attr("people", mine)
            return
        for what, digest in mine.items():
            if known[what] != digest:
                raise InputError(
                    f"Study '{self.study.study_name}' was made with another {what} "
                    f"({known[what][:20]} there, {digest[:20]} here): its trials "
                    "would not be comparable; choose another --study."
                )
