"""What one trial showed on its way, kept beside it also if it is pruned or fails."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spectral_mlops.sweeps.familywise import TrialNull

POINTS = 40
"""Of a trajectory: user attributes are rows of a database."""


class Seen:
    """Numbers of a trial so far.

    Args:
        quantities: What is watched.
        primary: Whose divergence counts.
        headline: What accuracy is measured by, ``auc`` or ``r2``.
    """

    def __init__(
        self, quantities: Sequence[str], primary: str, headline: str = "auc"
    ) -> None:
        self.quantities, self.primary, self.headline = quantities, primary, headline
        self.accuracy = math.nan
        self.p = math.nan
        self.latest: dict[str, float] = {}
        self.trajectory: dict[str, list[tuple[int, float]]] = {}
        self.null: TrialNull | None = None

    @property
    def divergence(self) -> float:
        """Z of the primary quantity: at the end, else the latest; NaN if unknown."""
        return self.latest.get(self.primary, math.nan)

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Take an epoch's numbers; some epochs have no divergence."""
        self.accuracy = metrics.get(f"val/{self.headline}", self.accuracy)
        if math.isfinite(self.accuracy):
            points = self.trajectory.setdefault(self.headline, [])
            points.append((epoch, self.accuracy))
        for quantity, value in self._known(metrics, "divergence/").items():
            self.latest[quantity] = value
            self.trajectory.setdefault(quantity, []).append((epoch, value))

    def end(self, metrics: Mapping[str, float], null: TrialNull | None = None) -> None:
        """Take a finished run's numbers, at the checkpoints chosen by its loss."""
        self.null = null
        self.accuracy = metrics[f"final/{self.headline}"]
        self.p = metrics.get("final/primary_p", math.nan)
        # None is kept of the last epoch's where there is none at the checkpoints.
        self.latest = self._known(metrics, "final/divergence_")

    def attributes(self) -> dict[str, Any]:
        """Return the user attributes of a trial."""
        found: dict[str, Any] = {
            f"divergence.{quantity}": value for quantity, value in self.latest.items()
        }
        for quantity, points in self.trajectory.items():
            found[f"trajectory.{quantity}"] = [
                [epoch, round(value, 4)] for epoch, value in thinned(points)
            ]
        beside = {self.headline: self.accuracy, "p": self.p}
        found |= {name: x for name, x in beside.items() if math.isfinite(x)}
        return found | (self.null.attributes() if self.null else {})

    def _known(self, metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
        values = {q: metrics.get(f"{prefix}{q}", math.nan) for q in self.quantities}
        return {q: x for q, x in values.items() if math.isfinite(x)}


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most `POINTS` of them, evenly spaced, the first and the last too."""
    if len(points) <= POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (POINTS - 1))] for i in range(POINTS)]
