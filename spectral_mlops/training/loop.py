"""All networks, epoch by epoch, so that one run has one curve per number.

Folds, and seeds within folds, share the probe and its relabellings; their statistics
are averaged relabelling by relabelling before z is formed (`networks`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from spectral_mlops.cohorts import Adjustment, FeatureScaler
from spectral_mlops.inference.comparison import (
    Comparison,
    headline,
    to_divergences,
)
from spectral_mlops.monitor import EpochSpectra
from spectral_mlops.records import Direction, Divergence, EpochRecord, Influence
from spectral_mlops.report.angles import RelabelledAngle
from spectral_mlops.schedule import NullEpochs
from spectral_mlops.tracking import Tracker
from spectral_mlops.tracking.metrics import safe_name
from spectral_mlops.tracking.profiles import PROFILES
from spectral_mlops.training.baselines import baseline_metrics, judge
from spectral_mlops.training.checkpoint import Checkpoints
from spectral_mlops.training.controls import Controls
from spectral_mlops.training.distributed import Team
from spectral_mlops.training.effects import effects_table
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.history import History
from spectral_mlops.training.networks import (
    by_fold,
    by_seed,
    mean_comparisons,
    spread_metrics,
    start_networks,
)
from spectral_mlops.training.outcome import outcome_of
from spectral_mlops.training.performance import Said
from spectral_mlops.training.plan import Plan
from spectral_mlops.training.task import TargetScale
from spectral_mlops.training.trajectories import trajectory_table
from spectral_mlops.training.trends import compare_everyone, only, trend_table
from spectral_mlops.training.verdict import controls_table, verdict_of

OnEpoch = Callable[[int, Mapping[str, float]], None]
Progress = Callable[[str, int, int], None]

UNTRAINED = -1
"""Epoch of what the probe shows before training."""


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run found.

    Attributes:
        metrics: Final numbers, ``final/…``; NaN where there is no probe. Where a budget
            decided it, ``cost/null_every``: every so many epochs had a null. With
            patience, ``final/epochs``: how many were run.
        last_epoch: Records of the last epoch's watched batches, all networks.
        divergences: On the probe at the chosen checkpoints, averaged over seeds, then
            folds; from the last epoch's training batches where there is no probe.
        networks: Fold and seed of each network, fold by fold; what follows ``of each
            network`` is in this order.
        validation: Out-of-fold predictions at the chosen checkpoints, of each seed.
        groups: How well each group's validation people are predicted
            (`Said.per_group`), means over seeds.
        headline: Validation AUC of each network; R² where a number is predicted.
        best_epochs: The checkpoint chosen by validation loss, of each network.
        additivity: Largest relative gap between the sum over groups and what
            reached a parameter, on the first watched batch of every network.
        weights: State dict of the chosen checkpoint, of each network.
        scalers: What each fold's features were scaled with before the network.
        adjustments: What was taken out of each fold's features before that.
        targets: In what each fold's network learned the target, if it is a number.
        init: On the probe at the untrained networks, averaged like ``divergences``.
        controls: What the primary outcome was held against (`controls_table`), if
            it was.
        verdict: What the primary outcome means, and what the controls leave of it;
            empty where there is no probe.
        trajectories: Epochs of the probe adjusted over epochs and layers, and their
            clusters (`trajectory_table`).
        trends: How far groups' ranks and norms are apart there (`trend_table`).
        directions: Of the first layer at chosen epochs, all networks.
        angles: Between groups there, under the relabellings of the probe.
        influence: Of each group's steps on each group's loss, all epochs and networks.
        effects: Size of the differences on the probe at a fixed number of people
            (`effects_table`).
        null: Every final statistic on the probe under every relabelling of everyone,
            averaged like ``divergences``; empty where there is no probe.
        null_pairs: The same with relabellings of each pair's people alone, where that
            is not the same.
        coverage: How every parameter of each network is watched (`CoverageRow`).
        gaps: Relative gap of each parameter (see ``additivity``), columns ``fold,
            seed, parameter, gap``.
        history: Curves and mean spectra.
        performance: Of the networks and of simple models, with intervals
            (`intervals.performance_table`).
    """

    metrics: dict[str, float]
    last_epoch: list[EpochRecord]
    divergences: list[Divergence]
    networks: list[tuple[int, int]]
    validation: list[Said]
    groups: pd.DataFrame
    headline: list[float]
    best_epochs: list[int]
    additivity: float
    weights: list[dict[str, torch.Tensor]]
    scalers: list[FeatureScaler]
    init: list[Divergence]
    controls: pd.DataFrame | None
    verdict: str
    trajectories: pd.DataFrame = field(default_factory=pd.DataFrame)
    trends: pd.DataFrame = field(default_factory=pd.DataFrame)
    directions: list[Direction] = field(default_factory=list)
    angles: list[RelabelledAngle] = field(default_factory=list)
    influence: list[Influence] = field(default_factory=list)
    effects: pd.DataFrame = field(default_factory=pd.DataFrame)
    null: list[Comparison] = field(default_factory=list)
    null_pairs: list[Comparison] = field(default_factory=list)
    coverage: pd.DataFrame = field(default_factory=pd.DataFrame)
    gaps: pd.DataFrame = field(default_factory=pd.DataFrame)
    history: History = field(default_factory=History)
    performance: pd.DataFrame = field(default_factory=pd.DataFrame)
    adjustments: list[Adjustment] = field(default_factory=list)
    targets: list[TargetScale] = field(default_factory=list)


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
    """
    team = team or Team()
    networks = _start(plan, device, team)
    null_epochs, history = plan.null_epochs(), History()
    last: list[EpochRecord] = []
    training_comparisons: list[list[Comparison]] = []
    untrained = [x for one in networks if (x := one.probe(UNTRAINED)) is not None]
    init = _on_probe(plan, networks, untrained)
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
        training_comparisons = [_compare(plan, x, with_null) for x in seen]
        probed = [one.probe(epoch) for one in networks] if with_null else []
        held_out = [x for x in probed if x is not None]
        found_now = _on_probe(plan, networks, held_out)
        together = found_now.together
        if with_null:
            null_epochs.decide(clock() - learned, learned - began)
        shown = _EpochOfNetworks(
            [*zip(networks, seen, strict=True), *zip(networks, held_out, strict=False)]
        )
        if ending:
            last = [r for r in shown.to_records() if r.source == "train"]
        losses = [loss for _, loss in trained]
        metrics = _epoch_metrics(plan, losses, by_seed(networks, said), said)
        metrics |= _headlines(plan, together, "divergence/{}")
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
            tracker.log(before, _headlines(plan, init.together, "init/divergence_{}"))
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
    for one in networks:
        one.restore_best()
    said = [one.validate(one.best_epoch) for one in networks]
    held_out = [x for one in networks if (x := one.probe(one.best_epoch)) is not None]
    probed = _on_probe(plan, networks, held_out)
    together = probed.together
    metrics = _headlines(plan, together, "final/divergence_{}")
    measures = plan.task.measures
    headlines = [getattr(x, measures.headline) for x in said]
    metrics |= _spread(plan, networks, probed, headlines)
    compared = probed.pairs or mean_comparisons(networks, training_comparisons)
    predicted = [p for one in networks if (p := one.predict_probe()) is not None]
    validation = by_seed(networks, said)
    over_folds = np.std(np.mean(by_fold(networks, headlines), axis=1))
    metrics |= _means(said, measures.overall, "final/")
    metrics[f"final/{measures.headline}_sd"] = float(over_folds)
    metrics |= _means(validation, ["loss"], "final/")
    if predicted:
        metrics |= _means(predicted, [*measures.judged, "loss"], "final/probe_")
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
        groups=_per_group(plan, validation),
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


def _beside(key: str) -> bool:
    """Tell what stands beside the headline numbers: a run with few keys drops it."""
    return "_sd" in key or key.startswith(("baseline/", "controls/"))


def _compare(plan: Plan, spectra: EpochSpectra, with_null: bool) -> list[Comparison]:
    settings = plan.config.comparison
    return spectra.comparisons(
        settings.permutations if with_null else 0,
        seed=settings.seed,
        divergence=settings.divergence,
    )


class _OnProbe(NamedTuple):
    """Groups compared on the probe, means over seeds, then folds.

    Attributes:
        together: With everyone's labels moving together.
        pairs: With those of each pair alone, which is what is recorded; the very same
            list where there is one pair.
        everyone: ``together`` of each network.
        trends: Like ``together``, by other statistics (`trends.TRENDS`).
    """

    together: list[Comparison]
    pairs: list[Comparison]
    everyone: list[list[Comparison]]
    trends: list[Comparison]


def _on_probe(
    plan: Plan, networks: list[FoldRun], held_out: list[EpochSpectra]
) -> _OnProbe:
    """Compare groups on the probe; nothing where there is none."""
    if not held_out:
        return _OnProbe([], [], [], [])
    everyone, others = compare_everyone(plan, held_out)
    together = mean_comparisons(networks, everyone)
    trends = mean_comparisons(networks, others)
    primary = [item for item in together if item.grouping == plan.primary]
    if len(plan.groupings) > 1 or len(_groups(primary)) > 2:
        pairs = [_compare(plan, x, True) for x in held_out]
        return _OnProbe(together, mean_comparisons(networks, pairs), everyone, trends)
    return _OnProbe(together, together, everyone, trends)


def _means(said: list[Said], names: Sequence[str], prefix: str) -> dict[str, float]:
    """Mean over networks of each number."""
    values = {name: [getattr(one, name) for one in said] for name in names}
    return {f"{prefix}{name}": float(np.mean(x)) for name, x in values.items()}


def _spread(
    plan: Plan, networks: list[FoldRun], probed: _OnProbe, headlines: list[float]
) -> dict[str, float]:
    """Tell how much single networks vary: in AUC or R², and in z, one null for all."""
    values = {f"final/{plan.task.measures.headline}": headlines}
    each = [_headlines(plan, x, "final/divergence_{}") for x in probed.everyone]
    for name in each[0] if each else ():
        values[name] = [one.get(name, np.nan) for one in each]
    return spread_metrics(networks, values)


def _headlines(plan: Plan, together: list[Comparison], name: str) -> dict[str, float]:
    """The one number per quantity: z over layers of what was averaged first."""
    primary = [item for item in together if item.grouping == plan.primary]
    if not primary:
        return {}
    return {
        name.format(quantity): headline(primary, quantity)
        for quantity in plan.quantities
    }


def _null_cost(null_epochs: NullEpochs) -> dict[str, float]:
    every = null_epochs.every
    return {} if every is None else {"cost/null_every": float(every)}


def _groups(comparisons: list[Comparison]) -> set[str]:
    return {group for item in comparisons for group in (item.group_a, item.group_b)}


def _per_group(plan: Plan, validation: list[Said]) -> pd.DataFrame:
    """How well each group's people are predicted, means over seeds."""
    tables = []
    for said in validation:
        labels = plan.labels(plan.cohort.rows(said.ids))[plan.primary]
        tables.append(said.per_group(labels))
    repeats = len(validation[0].ids) // len({*validation[0].ids})
    numbers = tables[0].columns.drop(["group", "n"])
    means = {name: np.mean([t[name] for t in tables], axis=0) for name in numbers}
    return tables[0].assign(n=tables[0]["n"] // repeats, **means)


def _epoch_metrics(
    plan: Plan,
    losses: list[float],
    validation: list[Said],
    said: list[Said],
) -> dict[str, float]:
    """Loss and the like of one epoch: means over networks; per group, over people."""
    table = _per_group(plan, validation).set_index("group").drop("all")
    groups: dict[str, dict[str, float]] = table.to_dict("index")  # type: ignore[assignment]
    measures = plan.task.measures
    metrics = {"train/loss": float(np.mean(losses))}
    metrics |= _means(said, ["loss", *measures.overall], "val/")
    profile, names = PROFILES.get(plan.config.tracking.profile), dict[str, str]()
    for group in groups:
        names[group] = safe_name(group, names.values())
    largest = table["n"].nlargest(profile.charted_groups).index
    for curve in (name for name in profile.group_curves if name in measures.groups):
        for group in (group for group in groups if group in largest):
            value = groups[group][measures.groups[curve]]
            # of one class the balanced accuracy is the recall, which has its own key
            double = curve == "bacc" and np.isfinite(groups[group]["recall"])
            if np.isfinite(value) and not double:
                metrics[f"val_{curve}/{names[group]}"] = value
    return metrics


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
