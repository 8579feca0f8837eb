"""All networks, epoch by epoch, so that one run has one curve per number.

Folds, and seeds within folds, share the probe and its relabellings; their statistics
are averaged relabelling by relabelling before z is formed (`networks`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from spectral_mlops.errors import InputError
from spectral_mlops.inference.comparison import (
    Comparison,
    to_divergences,
)
from spectral_mlops.monitor import EpochSpectra
from spectral_mlops.records import EpochRecord
from spectral_mlops.schedule import NullEpochs
from spectral_mlops.tracking import Tracker
from spectral_mlops.tracking.metrics import safe_name
from spectral_mlops.training.baselines import baseline_metrics, judge
from spectral_mlops.training.checkpoint import Checkpoints
from spectral_mlops.training.controls import Controls
from spectral_mlops.training.distributed import Team
from spectral_mlops.training.effects import effects_table
from spectral_mlops.training.epoch_metrics import epoch_metrics, means_of, per_group
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.history import History
from spectral_mlops.training.networks import (
    by_fold,
    by_seed,
    mean_comparisons,
    start_networks,
)
from spectral_mlops.training.on_probe import (
    compare,
    headline_metrics,
    on_probe,
    spread_over_networks,
)
from spectral_mlops.training.outcome import outcome_of
from spectral_mlops.training.plan import Plan
from spectral_mlops.training.result import RunResult
from spectral_mlops.training.trajectories import trajectory_table
from spectral_mlops.training.trends import only, trend_table
from spectral_mlops.training.verdict import controls_table, verdict_of

OnEpoch = Callable[[int, Mapping[str, float]], None]
Progress = Callable[[str, int, int], None]

UNTRAINED = -1
"""Epoch of what the probe shows before training."""


class _EpochOfNetworks:
    """What all networks showed in one epoch, as trackers take it."""

    def __init__(self, shown: list[tuple[FoldRun, EpochSpectra]]) -> None:
        self._shown = shown

    def to_records(self) -> list[EpochRecord]:
        """Records of every network and source."""
        return [
            replace(record, fold=network.number, seed=network.seed)
            for network, spectra in self._shown
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
    clock: Callable[[], float] = time.perf_counter,
    checkpoints: Checkpoints | None = None,
    team: Team | None = None,
) -> RunResult:
    """Train every fold's networks, watch them, and log each epoch.

    Args:
        plan: The run.
        tracker: Open; it is not closed here.
        on_epoch: Called with the epoch and its metrics after they are logged; what
            it raises ends the run.
        device: Where tensors live.
        progress: Told ``(what, done, total)`` while controls are computed.
        clock: Seconds; decides how many epochs have a null (`schedule.NullEpochs`).
        checkpoints: Where the run goes on from, if it was interrupted, and what it
            leaves on the way; none if not given.
        team: The processes that train together, of which this is the first; the
            others `assist`.

    Returns:
        What was found.

    Raises:
        InputError: If a network's validation loss is a finite number in no epoch;
            what was tracked until then stays.
    """
    team = team or Team()
    networks = _start(plan, device, team)
    null_epochs, history = plan.null_epochs(), History()
    last: list[EpochRecord] = []
    training_comparisons: list[list[Comparison]] = []
    untrained = [x for one in networks if (x := one.probe(UNTRAINED)) is not None]
    init = on_probe(plan, networks, untrained)
    first, along = 0, dict[int, list[Comparison]]()
    if checkpoints is not None:
        first, along = checkpoints.load(networks, null_epochs, history)
    team.begin(networks, first)
    for epoch in range(first, plan.config.training.epochs):
        began = clock()
        trained = [one.train_epoch(epoch) for one in networks]
        said = [one.validate(epoch) for one in networks]
        ending = epoch == plan.config.training.epochs - 1
        ending = team.tell(ending or all(one.stopped for one in networks))
        with_null = ending or epoch in null_epochs
        seen = [spectra for spectra, _ in trained]
        learned = clock()
        training_comparisons = [compare(plan, x, with_null) for x in seen]
        probed = [one.probe(epoch) for one in networks] if with_null else []
        held_out = [x for x in probed if x is not None]
        found_now = on_probe(plan, networks, held_out)
        together = found_now.together
        if with_null:
            null_epochs.decide(clock() - learned, learned - began)
        shown = _EpochOfNetworks(
            [*zip(networks, seen, strict=True), *zip(networks, held_out, strict=False)]
        )
        if ending:
            last = [r for r in shown.to_records() if r.source == "train"]
        losses = [loss for _, loss in trained]
        metrics = epoch_metrics(plan, losses, by_seed(networks, said), said)
        metrics |= headline_metrics(plan, together, "divergence/{}")
        if epoch == 0:
            metrics |= _null_cost(null_epochs)
        if held_out:
            every = (*together, *found_now.trends)
            along[epoch] = [x for x in every if x.grouping == plan.primary]
        best = {(one.number, one.seed): one.best_epoch for one in networks}
        history.add(epoch, shown.to_records(), metrics, best, plan.primary)
        tracker.log(shown, metrics)
        if untrained:  # after the first epoch, whose keys open a run's page
            before = _EpochOfNetworks([*zip(networks, untrained, strict=True)])
            tracker.log(
                before, headline_metrics(plan, init.together, "init/divergence_{}")
            )
            untrained = []
        if checkpoints and not ending and checkpoints.due() and tracker.durable:
            checkpoints.save(epoch, networks, null_epochs, along, history)
        if on_epoch is not None:
            on_epoch(epoch, metrics)
        if ending:
            break
    found = _finish(
        plan,
        tracker,
        networks,
        last,
        training_comparisons,
        init.together,
        progress,
        epoch + 1,
        history,
    )
    rows = to_divergences(init.pairs)
    return replace(
        found,
        metrics=found.metrics | _null_cost(null_epochs),
        init=[row for row in rows if row.grouping == plan.primary],
        trajectories=trajectory_table(only(along, plan.config.comparison.divergence)),
        trends=trend_table(along),
        coverage=_coverage(networks),
        gaps=_gaps(networks),
        history=history,
    )


def assist(plan: Plan, device: str, team: Team) -> None:
    """Pass this process's shares of the batches of a run that the first one trains.

    Args:
        plan: The run.
        device: Where tensors of this process live.
        team: The processes; this is not the first.
    """
    networks = _start(plan, device, team)
    first = team.begin(networks, 0)
    for epoch in range(first, plan.config.training.epochs):
        for one in networks:
            one.train_epoch(epoch)
        if team.tell(False):
            break


def _start(plan: Plan, device: str, team: Team) -> list[FoldRun]:
    team.check_plan(plan)
    with team.together():
        return start_networks(plan, torch.device(device), team)


def _finish(
    plan: Plan,
    tracker: Tracker,
    networks: list[FoldRun],
    last: list[EpochRecord],
    training_comparisons: list[list[Comparison]],
    init: list[Comparison],
    progress: Progress | None,
    epochs: int,
    history: History,
) -> RunResult:
    """Measure the checkpoints chosen by validation loss."""
    _refuse_diverged(networks)
    for one in networks:
        one.restore_best()
    said = [one.validate(one.best_epoch) for one in networks]
    held_out = [x for one in networks if (x := one.probe(one.best_epoch)) is not None]
    probed = on_probe(plan, networks, held_out)
    together = probed.together
    metrics = headline_metrics(plan, together, "final/divergence_{}")
    measures = plan.task.measures
    headlines = [getattr(x, measures.headline) for x in said]
    metrics |= spread_over_networks(plan, networks, probed, headlines)
    compared = probed.pairs or mean_comparisons(networks, training_comparisons)
    predicted = [p for one in networks if (p := one.predict_probe()) is not None]
    validation = by_seed(networks, said)
    over_folds = np.std(np.mean(by_fold(networks, headlines), axis=1))
    metrics |= means_of(said, measures.overall, "final/")
    metrics[f"final/{measures.headline}_sd"] = float(over_folds)
    metrics |= means_of(validation, ["loss"], "final/")
    if predicted:
        metrics |= means_of(predicted, [*measures.judged, "loss"], "final/probe_")
    performance = judge(plan, said, predicted)
    metrics |= baseline_metrics(performance, measures.judged)
    gaps = [max((x.monitor.additivity or {"": np.nan}).values()) for x in networks]
    metrics["final/additivity"] = float(np.max(gaps))
    verdict, table, effects = "", None, pd.DataFrame()
    if held_out:
        effects = effects_table(plan, networks, held_out, probed.everyone)
        about = plan.primary_quantity, plan.primary
        primary = outcome_of(together, *about)
        verdict = primary.sentence(*about, plan.config.controls.level)
        metrics["final/primary_p"] = primary.p
        if plan.config.controls.run:
            controls = Controls(plan, networks, primary, outcome_of(init, *about))
            rows = controls.rows(progress)
            table = controls_table(primary, rows)
            verdict += "\n" + verdict_of(plan, primary, rows)
            metrics |= {
                f"controls/{safe_name(row.name)}": row.outcome.z for row in rows
            }
    if plan.config.training.patience is not None:
        metrics["final/epochs"] = float(epochs)
    metrics |= history.metrics()
    metrics = dict(sorted(metrics.items(), key=lambda item: _beside(item[0])))
    tracker.log_metrics(metrics, step=epochs - 1)
    divergences = to_divergences(compared)
    return RunResult(
        metrics=metrics,
        last_epoch=last,
        divergences=[x for x in divergences if x.grouping == plan.primary],
        networks=[(one.number, one.seed) for one in networks],
        validation=validation,
        groups=per_group(plan, validation),
        headline=headlines,
        best_epochs=[one.best_epoch for one in networks],
        additivity=metrics["final/additivity"],
        weights=[one.best_weights for one in networks],
        scalers=[fold[0].scaler for fold in by_fold(networks, networks)],
        adjustments=[fold[0].adjustment for fold in by_fold(networks, networks)],
        targets=[
            fold[0].scale for fold in by_fold(networks, networks) if plan.cohort.numeric
        ],
        init=[],
        controls=table,
        verdict=verdict,
        directions=[x for f in networks if f.details for x in f.details.directions],
        angles=[x for f in networks if f.details for x in f.details.angles],
        influence=[x for f in networks if f.details for x in f.details.influence],
        effects=effects,
        null=together,
        null_pairs=[] if probed.pairs is together else probed.pairs,
        performance=performance,
    )


def _refuse_diverged(networks: Sequence[FoldRun]) -> None:
    """Refuse to measure networks of which no epoch can be chosen.

    Raises:
        InputError: Naming the first fold.
    """
    lost = [one for one in networks if one.best_epoch < 0]
    if lost:
        raise InputError(
            f"Training diverged: the validation loss of {len(lost)} of {len(networks)} "
            f"networks (the first: fold {lost[0].number}) was a finite number in no "
            "epoch; lower training.learning_rate, or set training.clip_norm."
        )


def _beside(key: str) -> bool:
    """Tell what stands beside the headline numbers: a run with few keys drops it."""
    return "_sd" in key or key.startswith(("baseline/", "controls/"))


def _null_cost(null_epochs: NullEpochs) -> dict[str, float]:
    every = null_epochs.every
    return {} if every is None else {"cost/null_every": float(every)}


def _coverage(networks: list[FoldRun]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"fold": one.number, "seed": one.seed, **row._asdict()}
            for one in networks
            for row in one.monitor.coverage or ()
        ]
    )


def _gaps(networks: list[FoldRun]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"fold": one.number, "seed": one.seed, "parameter": parameter, "gap": gap}
            for one in networks
            for parameter, gap in (one.monitor.additivity or {}).items()
        ]
    )
