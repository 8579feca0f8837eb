"""The statistic of one training: how far groups are apart, without any null.

It is computed by the code of the run itself (`FoldRun`, `SpectralMonitor`): on the
watched training batches of the last epoch, and on the probe at the checkpoint
chosen by validation loss, averaged over folds.
"""

from typing import NamedTuple

import torch

from spectral_mlops.inference.comparison import Comparison, average
from spectral_mlops.monitor import SpectralMonitor
from spectral_mlops.schedule import EvenlySpaced
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.plan import Plan


class Cell(NamedTuple):
    """What one number is about."""

    source: str
    grouping: str
    layer: str
    quantity: str
    group_a: str
    group_b: str


Statistic = dict[Cell, float]


class Measured(NamedTuple):
    """One training, measured.

    Attributes:
        values: The divergences.
        reasons: Why a divergence is missing.
        weights: State dict of each fold's chosen checkpoint.
    """

    values: Statistic
    reasons: dict[Cell, str]
    weights: list[dict[str, torch.Tensor]]


def measure_training(plan: Plan, device: str = "cpu") -> Measured:
    """Train all folds of a plan and measure them.

    Only the last epoch is watched; watching changes nothing, so these are the
    networks of the run.

    Args:
        plan: The run.
        device: Where tensors live.
    """
    last = plan.config.training.epochs - 1
    trained: list[list[Comparison]] = []
    probed: list[list[Comparison]] = []
    weights = []
    for number in range(len(plan.folds)):
        fold = FoldRun(plan, number, torch.device(device))
        fold.monitor = _last_epoch_monitor(fold, last)
        for epoch in range(last + 1):
            seen, _ = fold.train_epoch(epoch)
            fold.validate(epoch)
        divergence = plan.config.comparison.divergence
        trained.append(seen.comparisons(permutations=0, divergence=divergence))
        fold.restore_best()
        held_out = fold.probe(fold.best_epoch)
        if held_out is not None:
            probed.append(held_out.comparisons(permutations=0, divergence=divergence))
        weights.append(fold.best_weights)
    rows = [*average(trained), *average(probed)]
    values = {_cell(row): float(row.values[0]) for row in rows}
    reasons = {_cell(row): row.reason for row in rows if row.values[0] != row.values[0]}
    return Measured(values, reasons, weights)


def _cell(row: Comparison) -> Cell:
    return Cell(
        row.source, row.grouping, row.layer, row.quantity, row.group_a, row.group_b
    )


def _last_epoch_monitor(fold: FoldRun, last: int) -> SpectralMonitor:
    """The monitor of the run, watching one epoch and keeping nothing for a null."""
    spectra = fold.plan.config.spectra
    return SpectralMonitor(
        fold.model,
        quantities=fold.plan.quantities,
        schedule=EvenlySpaced(spectra.batches_per_epoch),
        layers=spectra.layers,
        reduction="mean",
        missing="group",
        pooled=False,
        null_batches=0,
        epochs={last},
    )
