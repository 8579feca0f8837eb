"""What a run found."""

from dataclasses import dataclass, field

import pandas as pd
import torch

from spectral_mlops.cohorts import Adjustment, FeatureScaler
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.records import Direction, Divergence, EpochRecord, Influence
from spectral_mlops.report.angles import RelabelledAngle
from spectral_mlops.training.history import History
from spectral_mlops.training.performance import Said
from spectral_mlops.training.task import TargetScale


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
