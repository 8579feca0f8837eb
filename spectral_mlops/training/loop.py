"""All folds, epoch by epoch, so that one run has one curve per number.

Folds share the probe and its relabellings; their statistics are averaged
relabelling by relabelling before z is formed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch

from spectral_mlops.cohorts import FeatureScaler
from spectral_mlops.inference.comparison import (
    Comparison,
    average,
    headline,
    to_divergences,
)
from spectral_mlops.monitor import EpochSpectra
from spectral_mlops.records import Direction, Divergence, EpochRecord, Influence
from spectral_mlops.tracking import Tracker
from spectral_mlops.tracking.metrics import safe_name
from spectral_mlops.tracking.profiles import PROFILES
from spectral_mlops.training.controls import Controls
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.history import History
from spectral_mlops.training.outcome import outcome_of
from spectral_mlops.training.performance import Predictions
from spectral_mlops.training.plan import Plan
from spectral_mlops.training.trajectories import trajectory_table
from spectral_mlops.training.verdict import controls_table, verdict_of

OnEpoch = Callable[[int, Mapping[str, float]], None]
Progress = Callable[[str, int, int], None]

CURVES = {
    "loss": "loss",
    "acc": "accuracy",
    "bacc": "balanced_accuracy",
    "auc": "auc",
    "recall": "recall",
}
"""Sections ``val_<curve>/<group>``, and columns of `Predictions.per_group`."""
UNTRAINED = -1
"""Epoch of what the probe shows before training."""


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run found.

    Attributes:
        metrics: Final numbers, ``final/…``; NaN where there is no probe.
        last_epoch: Records of the last epoch's watched batches, all folds.
        divergences: On the probe at the chosen checkpoints, averaged over folds;
            from the last epoch's training batches where there is no probe.
        validation: Out-of-fold predictions at the chosen checkpoints.
        groups: How well each group's validation people are predicted
            (`Predictions.per_group`).
        fold_auc: Validation AUC of each fold.
        best_epochs: The checkpoint chosen in each fold, by validation loss.
        additivity: Largest relative gap between the sum over groups and what
            reached a parameter, on the first watched batch of every fold.
        weights: State dict of the chosen checkpoint of each fold.
        scalers: What each fold's features were scaled with before the network.
        init: On the probe at the untrained networks, averaged over folds.
        controls: What the primary outcome was held against (`controls_table`), if
            it was.
        verdict: What the primary outcome means, and what the controls leave of it;
            empty where there is no probe.
        trajectories: Epochs of the probe adjusted over epochs and layers, and their
            clusters (`trajectory_table`).
        directions: Of the first layer at chosen epochs, all folds.
        influence: Of each group's steps on each group's loss, all epochs and folds.
        coverage: How every parameter of each fold is watched (`CoverageRow`).
        gaps: Relative gap of each parameter (see ``additivity``), columns ``fold,
            parameter, gap``.
        history: Curves and mean spectra.
    """

    metrics: dict[str, float]
    last_epoch: list[EpochRecord]
    divergences: list[Divergence]
    validation: Predictions
    groups: pd.DataFrame
    fold_auc: list[float]
    best_epochs: list[int]
    additivity: float
    weights: list[dict[str, torch.Tensor]]
    scalers: list[FeatureScaler]
    init: list[Divergence]
    controls: pd.DataFrame | None
    verdict: str
    trajectories: pd.DataFrame = field(default_factory=pd.DataFrame)
    directions: list[Direction] = field(default_factory=list)
    influence: list[Influence] = field(default_factory=list)
    coverage: pd.DataFrame = field(default_factory=pd.DataFrame)
    gaps: pd.DataFrame = field(default_factory=pd.DataFrame)
    history: History = field(default_factory=History)


class _EpochOfFolds:
    """What all folds showed in one epoch, as trackers take it."""

    def __init__(self, shown: list[tuple[int, EpochSpectra]]) -> None:
        self._shown = shown

    def to_records(self) -> list[EpochRecord]:
        """Records of every fold and source."""
        return [
            replace(record, fold=fold)
            for fold, spectra in self._shown
            for record in spectra.to_records()
        ]

    def release(self) -> None:
        """Free what was kept for nulls."""
        for _, spectra in self._shown:
            spectra.release()


def train(
    plan: Plan,
    tracker: Tracker,
    on_epoch: OnEpoch | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> RunResult:
    """Train every fold, watch it, and log each epoch.

    Args:
        plan: The run.
        tracker: Open; it is not closed here.
        on_epoch: Called with the epoch and its metrics after they are logged; what
            it raises ends the run.
        device: Where tensors live.
        progress: Told ``(what, done, total)`` while controls are computed.

    Returns:
        What was found.
    """
    folds = [
        FoldRun(plan, k, torch.device(device), details=True)
        for k in range(len(plan.folds))
    ]
    null_epochs, history = plan.null_epochs(), History()
    last: list[EpochRecord] = []
    training_comparisons: list[list[Comparison]] = []
    untrained = [x for fold in folds if (x := fold.probe(UNTRAINED)) is not None]
    init, init_folds = _on_probe(plan, untrained)
    along: dict[int, list[Comparison]] = {}
    for epoch in range(plan.config.training.epochs):
        with_null = epoch in null_epochs
        trained = [fold.train_epoch(epoch) for fold in folds]
        said = [fold.validate(epoch) for fold in folds]
        seen = [spectra for spectra, _ in trained]
        training_comparisons = [_compare(plan, x, with_null) for x in seen]
        probed = [fold.probe(epoch) for fold in folds] if with_null else []
        held_out = [x for x in probed if x is not None]
        shown = _EpochOfFolds([*enumerate(seen), *enumerate(held_out)])
        if epoch == plan.config.training.epochs - 1:
            last = [r for r in shown.to_records() if r.source == "train"]
        metrics = _epoch_metrics(plan, [loss for _, loss in trained], said)
        together = _on_probe(plan, held_out)[0]
        metrics |= _headlines(plan, together, "divergence/{}")
        if held_out:
            along[epoch] = [x for x in together if x.grouping == plan.primary]
        best = [fold.best_epoch for fold in folds]
        history.add(epoch, shown.to_records(), metrics, best, plan.primary)
        tracker.log(shown, metrics)
        if untrained:  # after the first epoch, whose keys open a run's page
            before = _EpochOfFolds([*enumerate(untrained)])
            tracker.log(before, _headlines(plan, init, "init/divergence_{}"))
            untrained = []
        if on_epoch is not None:
            on_epoch(epoch, metrics)
    found = _finish(
        plan, tracker, folds, last, training_comparisons, init, progress, history
    )
    rows = to_divergences(average(init_folds))
    return replace(
        found,
        init=[row for row in rows if row.grouping == plan.primary],
        trajectories=trajectory_table(along),
        coverage=_coverage(folds),
        gaps=_gaps(folds),
        history=history,
    )


def _finish(
    plan: Plan,
    tracker: Tracker,
    folds: list[FoldRun],
    last: list[EpochRecord],
    training_comparisons: list[list[Comparison]],
    init: list[Comparison],
    progress: Progress | None,
    history: History,
) -> RunResult:
    """Measure the checkpoints chosen by validation loss."""
    for fold in folds:
        fold.restore_best()
    said = [fold.validate(fold.best_epoch) for fold in folds]
    held_out = [x for fold in folds if (x := fold.probe(fold.best_epoch)) is not None]
    together, each_fold = _on_probe(plan, held_out)
    metrics = _headlines(plan, together, "final/divergence_{}")
    compared = each_fold or training_comparisons
    predicted = [p for fold in folds if (p := fold.predict_probe()) is not None]
    validation = Predictions.join(said)
    aucs = [x.auc for x in said]
    metrics |= {
        "final/auc": float(np.mean(aucs)),
        "final/auc_sd": float(np.std(aucs)),
        "final/loss": validation.loss,
        "final/balanced_accuracy": float(np.mean([x.balanced_accuracy for x in said])),
    }
    if predicted:
        metrics["final/probe_auc"] = float(np.mean([x.auc for x in predicted]))
        metrics["final/probe_loss"] = float(np.mean([x.loss for x in predicted]))
    gaps = [max((f.monitor.additivity or {"": np.nan}).values()) for f in folds]
    metrics["final/additivity"] = float(np.max(gaps))
    verdict, table = "", None
    if held_out:
        about = plan.primary_quantity, plan.primary
        primary = outcome_of(together, *about)
        verdict = primary.sentence(*about, plan.config.controls.level)
        metrics["final/primary_p"] = primary.p
        if plan.config.controls.run:
            controls = Controls(plan, folds, primary, outcome_of(init, *about))
            rows = controls.rows(progress)
            table = controls_table(primary, rows)
            verdict += "\n" + verdict_of(plan, primary, rows)
            metrics |= {
                f"controls/{safe_name(row.name)}": row.outcome.z for row in rows
            }
    metrics |= history.metrics()
    tracker.log_metrics(metrics, step=plan.config.training.epochs - 1)
    divergences = to_divergences(average(compared))
    return RunResult(
        metrics=metrics,
        last_epoch=last,
        divergences=[x for x in divergences if x.grouping == plan.primary],
        validation=validation,
        groups=validation.per_group(
            plan.labels(plan.cohort.rows(validation.ids))[plan.primary]
        ),
        fold_auc=aucs,
        best_epochs=[fold.best_epoch for fold in folds],
        additivity=metrics["final/additivity"],
        weights=[fold.best_weights for fold in folds],
        scalers=[fold.scaler for fold in folds],
        init=[],
        controls=table,
        verdict=verdict,
        directions=[x for f in folds if f.details for x in f.details.directions],
        influence=[x for f in folds if f.details for x in f.details.influence],
    )


def _compare(
    plan: Plan,
    spectra: EpochSpectra,
    with_null: bool,
    relabel: Literal["pair", "everyone"] = "pair",
) -> list[Comparison]:
    settings = plan.config.comparison
    return spectra.comparisons(
        settings.permutations if with_null else 0,
        seed=settings.seed,
        divergence=settings.divergence,
        relabel=relabel,
    )


def _on_probe(
    plan: Plan, held_out: list[EpochSpectra]
) -> tuple[list[Comparison], list[list[Comparison]]]:
    """Compare groups on the probe.

    Returns:
        With everyone's labels moving together, averaged over folds; and with those of
        each pair alone, which is what is recorded, per fold.
    """
    everyone = [_compare(plan, x, True, "everyone") for x in held_out]
    together = average(everyone)
    primary = [item for item in together if item.grouping == plan.primary]
    if len(plan.groupings) > 1 or len(_groups(primary)) > 2:
        return together, [_compare(plan, x, True) for x in held_out]
    return together, everyone


def _headlines(plan: Plan, together: list[Comparison], name: str) -> dict[str, float]:
    """The one number per quantity: z over layers, averaged over folds first."""
    primary = [item for item in together if item.grouping == plan.primary]
    if not primary:
        return {}
    return {
        name.format(quantity): headline(primary, quantity)
        for quantity in plan.quantities
    }


def _groups(comparisons: list[Comparison]) -> set[str]:
    return {group for item in comparisons for group in (item.group_a, item.group_b)}


def _epoch_metrics(
    plan: Plan, losses: list[float], said: list[Predictions]
) -> dict[str, float]:
    """Loss and accuracy of one epoch: means over folds; per group, over people."""
    joined = Predictions.join(said)
    labels = plan.labels(plan.cohort.rows(joined.ids))[plan.primary]
    table = joined.per_group(labels).set_index("group").drop("all")
    groups: dict[str, dict[str, float]] = table.to_dict("index")  # type: ignore[assignment]
    metrics = {
        "train/loss": float(np.mean(losses)),
        "val/loss": float(np.mean([x.loss for x in said])),
        "val/auc": float(np.mean([x.auc for x in said])),
        "val/balanced_accuracy": float(np.mean([x.balanced_accuracy for x in said])),
    }
    profile, names = PROFILES.get(plan.config.tracking.profile), dict[str, str]()
    for group in groups:
        names[group] = safe_name(group, names.values())
    largest = table["n"].nlargest(profile.charted_groups).index
    for curve in profile.group_curves:
        for group in (group for group in groups if group in largest):
            value = groups[group][CURVES[curve]]
            # of one class the balanced accuracy is the recall, which has its own key
            double = curve == "bacc" and np.isfinite(groups[group]["recall"])
            if np.isfinite(value) and not double:
                metrics[f"val_{curve}/{names[group]}"] = value
    return metrics


def _coverage(folds: list[FoldRun]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"fold": fold.number, **row._asdict()}
            for fold in folds
            for row in fold.monitor.coverage or ()
        ]
    )


def _gaps(folds: list[FoldRun]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"fold": fold.number, "parameter": parameter, "gap": gap}
            for fold in folds
            for parameter, gap in (fold.monitor.additivity or {}).items()
        ]
    )
