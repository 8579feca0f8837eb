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
from typing import Any

import optuna
import pandas as pd
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from spectral_mlops.config import RunConfig
from spectral_mlops.errors import (
    InputError,
    SpectralError,
    TrackingError,
)
from spectral_mlops.sweeps.draw import draw_plan, plan_with, settled_corners
from spectral_mlops.sweeps.ended import TAKEN_OVER, Ended, TakenOver, said
from spectral_mlops.sweeps.familywise import TrialNull
from spectral_mlops.sweeps.objective import Judgement
from spectral_mlops.sweeps.processes import TrialProcesses, was_left
from spectral_mlops.sweeps.recipe import Recipe, kept_recipe, known_store
from spectral_mlops.sweeps.reconcile import Reconciled, reconcile
from spectral_mlops.sweeps.same import check_same, check_settings, people_of, search_of
from spectral_mlops.sweeps.seen import Seen
from spectral_mlops.sweeps.space import Space, built_in
from spectral_mlops.sweeps.space_file import Objective
from spectral_mlops.sweeps.stale import INTERRUPTED
from spectral_mlops.sweeps.stopping import SOUGHT, Pruner, Stopping
from spectral_mlops.sweeps.study import open_study, read_study, trials_table
from spectral_mlops.sweeps.tickets import INTERVAL, Hold, Tickets
from spectral_mlops.tracking import Tracker, open_tracker
from spectral_mlops.tracking.measures import MEASURES
from spectral_mlops.training import make_plan, run
from spectral_mlops.training.loop import OnEpoch


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
        heartbeat: Seconds between two signs of life of a worker, of a new study.

    Raises:
        InputError: If the space cannot be used, if there is no divergence to judge
            by, or if the study was made with other people, other settings, another
            space or another objective.
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
        objective: Objective | None = None,
        tau: float = 2.0,
        progress: Callable[[str, int, int], None] | None = None,
        heartbeat: float = INTERVAL,
    ) -> None:
        if os.environ.get("MLFLOW_RUN_ID"):
            raise InputError(
                "MLFLOW_RUN_ID is set, and every trial is a run of its own: unset it."
            )
        if (recipe := kept_recipe(study, storage)) is not None:
            check_settings(study, recipe, config)
        measures = MEASURES[config.training.task]
        Judgement.of(objective, tau, "", measures)  # before people are loaded
        self.config, self.runs, self.device = config, runs, device
        self.space = space or built_in()
        corners = settled_corners(self.space, config)
        # Planned with a model of the space: the one in the settings may be for others.
        first = corners[0] if corners else config
        self.plan = make_plan(first, Path.cwd(), progress)
        for corner in corners:
            plan_with(self.plan, corner)
        quantity = self.plan.primary_quantity
        self.judgement = Judgement.of(objective, tau, quantity, measures)
        if self.judgement.needs_divergence and self.plan.probe is None:
            raise InputError(
                f"--objective {self.judgement.objective} needs a probe. "
                f"{self.plan.probe_note}"
            )
        self.stopping = Stopping(self.judgement, pruner, prune_divergence)
        self.stopping.check(self.plan.probe is not None)
        self.undelivered = 0
        self.where = ""
        self.processes: TrialProcesses | None = None  # that share each trial
        rules = self.stopping.of_optuna()
        self.study = open_study(study, storage, self.judgement, rules)
        check_same(self.study, "people", people_of(self.plan))
        check_same(self.study, "search", search_of(self.space, self.judgement))
        if prune_divergence is not None:
            self.study.set_user_attr(SOUGHT, prune_divergence)
        self.tickets = Tickets(self.study, storage, heartbeat)
        self._confounds = self._known_confounds()
        self._options = {"pruner": pruner, "prune_divergence": prune_divergence}
        if recipe is None:
            self.recipe.keep(self.study)
        # A seed of its own for each visit, or a study that goes on would draw its
        # first trials again.
        self._sample(len(self.study.get_trials(deepcopy=False)))

    @classmethod
    def of_study(
        cls,
        study: str,
        storage: str,
        *,
        runs: Path,
        tracking: str | None = None,
        device: str = "cpu",
        trust: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
        given: Mapping[str, Any] | None = None,
        space: Space | None = None,
        judged: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> "Sweep":
        """Join a study that exists, with all that it keeps of itself (`want`).

        Args:
            study: Name.
            storage: See `Sweep`.
            runs: See `Sweep`.
            tracking: The study's store if not given; needed if its address has a
                password, which is never written down.
            device: See `Sweep`.
            trust: Whether code that the study names may run.
            progress: See `Sweep`.
            given: Nested settings; must be the study's own, but for ``tracking``,
                which may change.
            space: Must be the study's own, if given.
            judged: The same of ``objective`` and ``tau``.
            options: ``pruner`` and ``prune_divergence``, from now on.

        Raises:
            InputError: If there is no such study, it cannot be gone on with from this
                folder (other people, another function) or with what was given, or it
                names code without ``trust``.
        """
        recipe = Recipe.of(read_study(study, storage))
        if recipe is None:
            raise InputError(
                f"Study '{study}' was not made by 'spectral-mlops sweep': choose "
                "another --study."
            )
        config, how = recipe.config(tracking, given), recipe.sweep_settings(judged)
        recipe.check_trust(study, trust, given, space)
        return cls(
            config,
            study=study,
            storage=storage,
            runs=runs,
            device=device,
            space=space or recipe.made_space(),
            objective=how.objective,
            tau=how.tau,
            progress=progress,
            **{**recipe.options, **(options or {})},
        )

    @property
    def recipe(self) -> Recipe:
        """What the study keeps of itself."""
        settings = self.config.model_dump(mode="json")
        settings["tracking"] |= known_store(self.config)
        judged = {"objective": self.judgement.objective, "tau": self.judgement.tau}
        return Recipe(settings, self.space.content, judged, self._options)

    def want(self, trials: int) -> None:
        """Ask for trials more, and keep what workers need to join.

        Args:
            trials: How many; none are fine.
        """
        self.recipe.keep(self.study)
        if trials:
            self.tickets.add(trials)

    def run_trial(
        self, on_epoch: OnEpoch | None = None, hold: Hold | None = None
    ) -> TrialState:
        """Draw settings, train, and tell the study how it ended.

        A trial that fails leaves its error in the user attribute ``error``, ends
        its MLflow run as FAILED, and the study goes on. One that is interrupted fails
        with the error ``interrupted``, and its run is KILLED.

        Args:
            on_epoch: Called with the epoch and its metrics.
            hold: The ticket it is run for; spent at the end, given back at an
                interrupt. It alone decides the seed of what is drawn.

        Returns:
            The state the trial ended in.

        Raises:
            SpectralError: What no other trial would do better: a store or a
                setting that cannot be used.
        """
        if hold is not None:
            self._sample(hold.number)
        trial = self.study.ask()
        if hold is not None:
            hold.bind(trial.number)
        uid = uuid.uuid4().hex
        trial.set_user_attr("uid", uid)
        tracking = self.config.tracking
        folder = self.runs / f"{self._name(trial)}-{uid[:8]}"
        tracker = open_tracker(tracking.uri, tracking.experiment, folder)
        judged = self.judgement
        seen = Seen(self.plan.quantities, judged.quantity, judged.accuracy)
        ended = Ended()

        def each_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            if hold is not None and hold.lost:
                raise TakenOver
            if on_epoch is not None:
                on_epoch(epoch, metrics)

        try:
            ended.values = self._train(trial, uid, tracker, folder, seen, each_epoch)
            ended.state = TrialState.COMPLETE
        except optuna.TrialPruned:
            ended.state = TrialState.PRUNED
        except (TakenOver, UpdateFinishedTrialError):
            ended.error = TAKEN_OVER
        except KeyboardInterrupt:
            ended.error = INTERRUPTED
            raise
        except Exception as error:
            ended.error = INTERRUPTED if was_left(error) else said(error)
            if isinstance(error, SpectralError):
                raise
            if self.processes is not None:
                self.processes.check_waiting(error)
        finally:
            self._end(trial, uid, tracker, ended, seen)
            if hold is not None:
                hold.give_back() if ended.error == INTERRUPTED else hold.spend()
        return ended.state

    def reconcile(self) -> Reconciled:
        """Mend what dead workers left (see `sweeps.reconcile`)."""
        tracking = self.config.tracking
        about = (tracking.uri, tracking.experiment, self.runs)
        return reconcile(self.study, self.tickets, *about)

    def table(self) -> pd.DataFrame:
        """One row per trial: state, accuracy, settings, divergence, run."""
        accuracy = self.judgement.accuracy
        return trials_table(self.study, self.plan.quantities, accuracy)

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
        plan = draw_plan(trial, self.space, self.plan, self.config)
        shared = self.processes

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
            tags=self._tags(trial, uid),
            on_epoch=shared.begin_trial(plan, each_epoch) if shared else each_epoch,
            device=self.device,
            figures=False,
            checkpoints=False,
            team=shared,
        )
        metrics = finished.result.metrics
        seen.end(metrics, TrialNull.of(plan, finished.result))
        kept = f"confounds_{self.judgement.accuracy}"
        alone = metrics.get(f"baseline/{kept}", self._confounds)
        if alone != self._confounds and math.isfinite(alone):  # once: all share people
            self._confounds = alone
            self.study.set_user_attr(kept, alone)
        self._constrain(trial, seen)
        values = self.judgement.values(seen.accuracy, seen.divergence)
        if not all(map(math.isfinite, values)):
            raise ValueError(f"its value is {values[0]}: training went astray")
        return values

    def _constrain(self, trial: optuna.Trial, seen: Seen) -> None:
        """Say once whether the trial is allowed: Optuna takes no second answer."""
        if math.isnan(self._confounds):  # another worker may know by now
            self._confounds = self._known_confounds()
        about = (seen.accuracy, seen.divergence, self._confounds)
        for name, far in self.judgement.constraints(*about).items():
            trial.set_constraint(name, far)
        if said := self.judgement.why_not(*about):
            trial.set_user_attr("infeasible", said)

    def _known_confounds(self) -> float:
        """Return the accuracy of confounds alone; NaN as long as nobody knows."""
        name = f"confounds_{self.judgement.accuracy}"
        return float(self.study.user_attrs.get(name, math.nan))

    def _name(self, trial: optuna.Trial) -> str:
        return f"{self.study.study_name}-{trial.number:05d}"

    def _sample(self, number: int) -> None:
        """Seed what is drawn next: workers that share a seed draw other settings."""
        seed = self.config.training.seed + number
        self.study.sampler = self.judgement.sampler(seed, self.space.grouped)

    def _tags(self, trial: optuna.Trial, uid: str) -> dict[str, str]:
        """Return what a trial's run is found by."""
        tags = {
            "spectral.kind": "trial",
            "spectral.uid": uid,
            "optuna.study": self.study.study_name,
            "optuna.trial_number": str(trial.number),
        }
        if "retry_of" in trial.user_attrs:
            tags["optuna.retry_of"] = str(trial.user_attrs["retry_of"])
        return tags

    def _end(
        self,
        trial: optuna.Trial,
        uid: str,
        tracker: Tracker,
        ended: Ended,
        seen: Seen,
    ) -> None:
        """Keep what was seen, end the run as the trial ended, tell the study."""
        about = seen.attributes()
        if ended.error:
            about["error"] = ended.error
        with suppress(TrackingError):  # one that failed early has no run yet
            tracker.start(
                self._name(trial),
                tags=self._tags(trial, uid),
                cohort=self.plan.cohort.summary(),
            )
        with suppress(TrackingError):
            tracker.log_tags(ended.tags())
        tracker.close(ended.status)
        if "mlflow.run_id" not in trial.user_attrs:
            with suppress(TrackingError):  # a store that was away may be back
                about["mlflow.run_id"] = tracker.run_id
        self.undelivered += tracker.undelivered
        self.where = tracker.where
        if ended.error == TAKEN_OVER:
            return
        with suppress(UpdateFinishedTrialError):  # thought dead in this moment
            for name, value in about.items():
                trial.set_user_attr(name, value)
            self.study.tell(
                trial, ended.values, state=ended.state, skip_if_finished=True
            )
