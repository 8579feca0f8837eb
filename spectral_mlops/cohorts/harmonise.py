"""Sites brought to one mean and one spread: ComBat, fitted on training people.

Each feature ``x`` of a person at site ``s`` is modelled as ``α + γ_s + δ_s ε``, with
``α`` the mean over people and ``ε`` of the pooled variance ``σ²`` within sites.
Estimates of ``γ_s`` and ``δ_s²`` are shrunk, over features of a site, towards a normal
and an inverse gamma prior whose moments they give themselves (Johnson, Li & Rabinovic,
2007; Fortin et al., 2018, for images). The target takes no part: where groups go with
sites, preserving it would need the labels of people who are held out, and not
preserving it takes the groups out with the sites. Known packages for this need an older
NumPy than this project does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.cohort import listed
from spectral_mlops.errors import InputError

Array = NDArray[np.float64]

FEWEST = 2
"""Training people a site needs for a variance."""
TOLERANCE, MOST_STEPS = 1e-6, 200
"""Of the iteration: largest relative change of any estimate, and when to stop."""


@dataclass(frozen=True, eq=False)
class ComBat:
    """What each site's training people have more, and how much more they vary.

    Attributes:
        column: What the sites' column is called.
        sites: Sorted; ``S`` of them.
        mean: Of training people over all sites, each site by its share, ``[features]``.
        spread: Pooled SD within sites, ``[features]``; 1 where nothing varies.
        shift: ``γ`` in units of ``spread``, shape ``[S, features]``.
        scale: ``δ²``, shape ``[S, features]``.
    """

    column: str
    sites: tuple[str, ...]
    mean: Array
    spread: Array
    shift: Array
    scale: Array

    @classmethod
    def fit(
        cls, features: NDArray[np.floating], sites: Sequence[str], column: str = "site"
    ) -> "ComBat":
        """Fit on training people.

        Args:
            features: Shape ``[people, *shape]``.
            sites: Of each person.
            column: What they are called, for messages.

        Raises:
            InputError: If there is one site, or one with fewer than two people.
        """
        flat = np.asarray(features, dtype=np.float64).reshape(len(features), -1)
        labels = np.asarray(sites, dtype=np.str_)
        names, counts = np.unique(labels, return_counts=True)
        if len(names) < 2:
            raise InputError(
                f"confounds.harmonise='{column}': all {len(labels)} training people of "
                f"a fold are of {column}={names[0]}; there is nothing to harmonise."
            )
        if counts.min() < FEWEST:
            raise InputError(
                f"confounds.harmonise='{column}': {column}={names[counts.argmin()]} "
                f"has {counts.min()} person in the training part of a fold; ComBat "
                f"needs {FEWEST} or more of each."
            )
        means = np.stack([flat[labels == name].mean(axis=0) for name in names])
        mean = counts @ means / len(flat)
        within = flat - means[np.searchsorted(names, labels)]
        spread = np.sqrt((within**2).mean(axis=0))
        spread[spread == 0] = 1.0
        z = (flat - mean) / spread
        posterior = [_posterior(z[labels == name]) for name in names]
        shift, scale = (np.stack(part) for part in zip(*posterior, strict=True))
        return cls(column, tuple(names.tolist()), mean, spread, shift, scale)

    def transform(
        self, features: NDArray[np.floating], sites: Sequence[str]
    ) -> NDArray[np.float32]:
        """Bring anyone to the common mean and spread.

        Args:
            features: Shape ``[people, *shape]``.
            sites: Of each person.

        Returns:
            A new float32 array of the same shape.

        Raises:
            InputError: If a site was not in training.
        """
        labels = np.asarray(sites, dtype=np.str_)
        if new := sorted(set(labels.tolist()) - set(self.sites)):
            raise InputError(
                f"confounds.harmonise='{self.column}': nobody of {self.column}="
                f"{listed(new)} is in training, so its shift is not known there; use "
                "training.split='stratified', or do not harmonise."
            )
        flat = np.asarray(features, dtype=np.float64).reshape(len(labels), -1)
        place = np.searchsorted(self.sites, labels)
        z = (flat - self.mean) / self.spread
        z = (z - self.shift[place]) / np.sqrt(self.scale[place])
        harmonised = z * self.spread + self.mean
        return harmonised.reshape(features.shape).astype(np.float32)


def _posterior(z: Array) -> tuple[Array, Array]:
    """Shrink one site's means and variances over features.

    Conditional posterior means, in turn until they settle:
    ``γ = (n τ² m + δ² g) / (n τ² + δ²)`` and
    ``δ² = (θ + ½ Σ (z − γ)²) / (λ + n/2 − 1)``, with the prior N(g, τ²) of means and
    the inverse gamma (λ, θ) of variances from the moments over features.

    Args:
        z: Standardised features of the site's people, shape ``[n, features]``.

    Returns:
        ``γ`` and ``δ²``, each of shape ``[features]``.
    """
    count = len(z)
    means, variances = z.mean(axis=0), z.var(axis=0, ddof=1)
    varying = variances > 0
    if varying.sum() < 2:  # no prior over features to learn
        return means, np.where(varying, variances, 1.0)
    prior, about = means[varying].mean(), means[varying].var(ddof=1)
    middle, width = variances[varying].mean(), variances[varying].var(ddof=1)
    if about == 0 or width == 0:
        return means, np.where(varying, variances, 1.0)
    shape = middle**2 / width + 2
    rate = middle * (shape - 1)
    shift, scale = means.copy(), np.where(varying, variances, 1.0)
    for _ in range(MOST_STEPS):
        new_shift = (count * about * means + scale * prior) / (count * about + scale)
        squares = ((z - new_shift) ** 2).sum(axis=0)
        new_scale = (rate + squares / 2) / (count / 2 + shape - 1)
        change = max(
            np.abs((new_shift - shift) / np.where(shift == 0, 1, shift)).max(),
            np.abs((new_scale - scale) / scale).max(),
        )
        shift, scale = new_shift, new_scale
        if change < TOLERANCE:
            break
    shift, scale = np.where(varying, shift, means), np.where(varying, scale, 1.0)
    return shift, scale
