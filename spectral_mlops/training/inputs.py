"""What a network is given of people: a tensor, or volumes read when they are asked for.

Many volumes do not fit into memory once per network; of those, only a batch is scaled
at a time, from the cohort's own array, which may lie on disk.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral_mlops.cohorts import Adjustment, Cohort, FeatureScaler

IN_MEMORY = 256 * 2**20
"""Bytes of one network's volumes up to which they are scaled once and kept."""


class ScaledPeople:
    """Some people's inputs, scaled whenever they are asked for.

    Args:
        cohort: Everybody.
        scaler: Fitted on training people.
        rows: Which people, positions in the cohort.
        device: Where tensors are put.
        adjustment: What is taken out before they are scaled.
    """

    def __init__(
        self,
        cohort: Cohort,
        scaler: FeatureScaler,
        rows: NDArray[np.intp],
        device: torch.device,
        adjustment: Adjustment,
    ) -> None:
        self._cohort, self._scaler, self._rows = cohort, scaler, rows
        self._device, self._adjustment = device, adjustment

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the inputs of the people at some positions, a row a person."""
        rows = self._rows[index.numpy()]
        lengths = lengths_of(self._cohort, rows)
        features = self._adjustment.apply(self._cohort, rows)
        scaled = self._scaler.transform(features, lengths)
        return torch.from_numpy(scaled).to(self._device)

    def whole(self) -> Tensor:
        """Return everybody's inputs."""
        return self[torch.arange(len(self))]


Inputs = Tensor | ScaledPeople


def inputs_of_people(
    cohort: Cohort,
    scaler: FeatureScaler,
    rows: NDArray[np.intp],
    device: torch.device,
    adjustment: Adjustment,
) -> Inputs:
    """Scale people's features, now or later.

    Args:
        cohort: Everybody.
        scaler: Fitted on training people.
        rows: Which people.
        device: Where tensors are put.
        adjustment: What is taken out before they are scaled.
    """
    people = ScaledPeople(cohort, scaler, rows, device, adjustment)
    size = 4 * cohort.features[0].size * len(cohort.features)
    if scaler.layout == "volume" and size > IN_MEMORY:
        return people
    return people.whole()


def pieces(inputs: Inputs, size: int) -> Iterator[Tensor]:
    """Yield all people's inputs: at once, or ``size`` at a time where they are read."""
    if isinstance(inputs, Tensor):
        yield inputs
        return
    for index in torch.arange(len(inputs)).split(size):
        yield inputs[index]


def lengths_of(cohort: Cohort, rows: NDArray[np.intp]) -> NDArray[np.intp] | None:
    """Return how many time points people have, where they differ."""
    lengths: NDArray[np.intp] | None = getattr(cohort, "lengths", None)
    return None if lengths is None else lengths[rows]
