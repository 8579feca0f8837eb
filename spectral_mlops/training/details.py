"""What a fold keeps beside spectra: directions, and groups' influence on each other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from spectral_mlops.hooks import InfluenceMeans, capture, leading_directions
from spectral_mlops.hooks.directions import QUANTITIES
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.monitor import SpectralMonitor
from spectral_mlops.probe import ProbeBatch, margin, undisturbed
from spectral_mlops.records import Direction, Influence
from spectral_mlops.report.angles import RelabelledAngle
from spectral_mlops.training.kept import plain, rebuilt
from spectral_mlops.training.plan import Plan


def direction_epochs(epochs: int) -> set[int]:
    """The first, the middle and the last epoch."""
    return {0, (epochs - 1) // 2, epochs - 1}


class FoldDetails:
    """Keeps what the settings say of one fold; changes nothing of its training.

    Args:
        plan: The run.
        fold: Which fold, counted from 0.
        seed: Which of its networks, counted from 0.

    Attributes:
        directions: Of the first layer with rows, at chosen epochs.
        angles: Between groups there, under the relabellings of the probe.
        influence: Means over the watched batches of every epoch.
    """

    def __init__(self, plan: Plan, fold: int, seed: int = 0) -> None:
        config = plan.config
        self.angles: list[RelabelledAngle] = []
        self.directions: list[Direction] = []
        self.influence: list[Influence] = []
        self._plan, self._fold, self._seed = plan, fold, seed
        self._k = config.spectra.directions
        self._steps = InfluenceMeans() if config.spectra.influence else None
        self._epochs = direction_epochs(config.training.epochs)
        self._last: capture | None = None

    def step(self, seen: capture, optimizer: torch.optim.Optimizer) -> None:
        """Take in a watched batch, after its backward pass."""
        self._last = seen
        if self._steps is not None:
            self._steps.add(seen, optimizer)

    def end_epoch(
        self, epoch: int, model: nn.Module, probe: Sequence[ProbeBatch]
    ) -> None:
        """Keep what the epoch showed.

        Directions are those of the held-out people and margin adjoints, as
        `SpectralMonitor.probe` passes them; of the last watched batch where there are
        none.

        Args:
            epoch: Counted from 0.
            model: As it is after the epoch.
            probe: The held-out people, if there are any, a part at a time.
        """
        if self._steps is not None:
            found = self._steps.records(epoch, fold=self._fold)
            self.influence += [replace(one, seed=self._seed) for one in found]
        seen, self._last, source = self._last, None, "train"
        if not self._k or epoch not in self._epochs:
            return
        if probe:
            seen, source = _pass(model, probe), "probe"
        if seen is not None and seen.reached_layers():
            leading = leading_directions(
                seen, k=self._k, epoch=epoch, source=source, fold=self._fold
            )
            self.directions += [replace(one, seed=self._seed) for one in leading]
            if probe and leading:
                angles = _relabelled(self._plan, model, probe, leading[0].layer)
                here = epoch, self._fold, self._seed
                self.angles += [RelabelledAngle(*here, one) for one in angles]

    def state_dict(self) -> dict[str, list[Any]]:
        """What resuming needs, after an epoch: all that was kept so far."""
        return {
            "directions": plain(self.directions),
            "influence": plain(self.influence),
            "angles": plain(one.angle for one in self.angles),
            "epochs": [one.epoch for one in self.angles],
        }

    def load_state_dict(self, state: Mapping[str, list[Any]]) -> None:
        """Go on where `state_dict` was taken."""
        self.directions = rebuilt(state["directions"], Direction)
        self.influence = rebuilt(state["influence"], Influence)
        angles = rebuilt(state["angles"], Comparison)
        self.angles = [
            RelabelledAngle(epoch, self._fold, self._seed, angle)
            for epoch, angle in zip(state["epochs"], angles, strict=True)
        ]


def _relabelled(
    plan: Plan, model: nn.Module, batches: Sequence[ProbeBatch], layer: str
) -> list[Comparison]:
    """Compare leading subspaces at a layer, with the relabellings of the run."""
    settings = plan.config.comparison
    monitor = SpectralMonitor(
        model,
        quantities=QUANTITIES,
        missing="group",
        pooled=False,
        strata=plan.strata(),
        families=plan.families,
    )
    seen = monitor.probe(batches)
    seen.spectra = [s for s in seen.spectra if s.layer == layer]
    return seen.comparisons(
        settings.permutations, seed=settings.seed, divergence="principal_angle"
    )


def _pass(model: nn.Module, batches: Sequence[ProbeBatch]) -> capture:
    """Pass held-out people for their factors; nothing of the model changes."""
    trained = [p for p in model.parameters() if p.requires_grad]
    with (
        undisturbed(model),
        torch.enable_grad(),
        capture(
            model,
            batches[0].groups,
            subjects=batches[0].subjects,
            reduction="sum",
            missing="group",
            additivity=False,
        ) as seen,
    ):
        for number, batch in enumerate(batches):
            if number:
                seen.relabel(batch.groups, batch.subjects)
            scalar = margin(model(batch.inputs)).sum()
            torch.autograd.grad(scalar, trained, allow_unused=True)
    return seen
