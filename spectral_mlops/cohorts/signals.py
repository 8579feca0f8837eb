"""Simulated time courses of networks, whose correlation is known exactly.

``x_t = φ x_{t−1} + √(1 − φ²) L_i e_t`` with ``e_t`` standard normal, ``L_i`` the
Cholesky factor of the person's correlation matrix ``C_i``, and ``x_0`` from the
stationary law. All networks share one ``φ``, so space and time part: at every time the
networks' population correlation is ``C_i``, and any network's with itself ``k`` steps
later is ``φ^k``. There is no haemodynamic response. ``φ`` is the lag-1 autocorrelation
seen in published resting-state time courses at a repetition time of two seconds.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AUTOCORRELATION = 0.36
REPETITION_TIME = 2.0  # seconds
TIMEPOINTS = 150


def draw_signals(
    correlations: Array, timepoints: int, seed: Sequence[int]
) -> Iterator[Array]:
    """Draw each person's time courses, one at a time.

    Args:
        correlations: Positive definite, unit diagonal, shape ``[people, C, C]``.
        timepoints: ``T``, at least 1.
        seed: Entropy of the people's random streams; a person's does not depend on
            who else is drawn after them.

    Yields:
        Unit variance, zero mean in the population, shape ``[T, C]``.
    """
    for number, matrix in enumerate(correlations):
        rng = np.random.default_rng([*seed, number])
        mixed = (
            rng.normal(size=(timepoints, len(matrix))) @ np.linalg.cholesky(matrix).T
        )  # [T, C], white in time
        mixed[1:] *= np.sqrt(1 - AUTOCORRELATION**2)
        for t in range(1, timepoints):
            mixed[t] += AUTOCORRELATION * mixed[t - 1]
        yield mixed
