"""Directions of several groups and folds, put side by side."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Joined(NamedTuple):
    """Directions of several folds as one set.

    Attributes:
        vectors: Shape ``[k, d]``, NaN where all folds have it.
        shares: Mean share of energy in the folds, shape ``[k]``.
    """

    vectors: Array
    shares: Array


def join_folds(folds: Sequence[tuple[Array, Array]]) -> Joined:
    """Join the directions of folds: those of their mean projector, by energy.

    Signs and the order of directions may differ from fold to fold; the mean over
    folds of ``Σ share · u uᵀ`` knows of neither. Of one fold it gives that back.

    Args:
        folds: ``(vectors [k, d], shares [k])`` of each, NaN where a fold lacks a
            feature.

    Returns:
        As many directions as the fold with most has; the largest absolute loading of
        each is positive.
    """
    known = [(np.nan_to_num(v), v, s) for v, s in folds if len(v)]
    k = max(len(s) for _, _, s in known)
    stacked = np.concatenate(
        [filled * np.sqrt(shares / len(known))[:, None] for filled, _, shares in known]
    )
    _, values, vectors = np.linalg.svd(stacked, full_matrices=False)
    vectors, shares = vectors[:k], values[:k] ** 2
    largest = np.abs(vectors).argmax(axis=1)
    vectors *= np.sign(vectors[np.arange(len(vectors)), largest])[:, None]
    lacking = np.all([np.isnan(v).all(axis=0) for _, v, _ in known], axis=0)
    vectors[:, lacking] = np.nan
    return Joined(vectors, shares)


def face_alike(vectors: Array, like: Array) -> Array:
    """Turn the sign of each vector to that of another set, direction by direction.

    Args:
        vectors: Shape ``[k, d]``.
        like: Shape ``[m, d]``; directions beyond it stay.

    Returns:
        Shape ``[k, d]``.
    """
    turned = vectors.copy()
    for i in range(min(len(vectors), len(like))):
        if np.nansum(vectors[i] * like[i]) < 0:
            turned[i] *= -1
    return turned
