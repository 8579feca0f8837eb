"""Directions of several groups and folds, put side by side."""

from collections.abc import Iterable, Sequence
from itertools import combinations, groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.records import POOLED, Direction

Array = NDArray[np.float64]

COLUMNS = (
    "epoch",
    "source",
    "fold",
    "seed",
    "layer",
    "quantity",
    "grouping",
    "group_a",
    "group_b",
    "rank",
    "smallest_degrees",
    "largest_degrees",
)


def angle_table(directions: Iterable[Direction]) -> pd.DataFrame:
    """Principal angles between the groups' leading subspaces.

    Descriptive: like every comparison of groups they depend on the groups' sizes; a
    null is formed by relabelling (`report.angles.with_null`).

    Args:
        directions: Records of any epochs, folds, layers and groupings.

    Returns:
        One row per pair of groups: ``epoch, source, fold, seed, layer, quantity,
        grouping, group_a, group_b, rank`` (dimension of both subspaces, the smaller
        number of directions that the two have), ``smallest_degrees,
        largest_degrees``; NaN where rows were not finite.
    """
    rows = []
    chosen = sorted(
        (d for d in directions if d.grouping != POOLED),
        key=lambda d: (*_cell(d), d.group, d.index),
    )
    for cell, records in groupby(chosen, key=_cell):
        spaces: dict[str, list[NDArray[np.float32]]] = {}
        for record in records:
            spaces.setdefault(record.group, []).append(record.vector)
        for a, b in combinations(sorted(spaces), 2):
            rank = min(len(spaces[a]), len(spaces[b]))
            u, v = (np.array(spaces[g][:rank], dtype=np.float64) for g in (a, b))
            angles = np.degrees(_angles(u, v))
            rows.append((*cell, a, b, rank, angles.min(), angles.max()))
    return pd.DataFrame(rows, columns=list(COLUMNS))


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


def _cell(record: Direction) -> tuple[int, str, int, int, str, str, str]:
    return (
        record.epoch,
        record.source,
        record.fold,
        record.seed,
        record.layer,
        record.quantity,
        record.grouping,
    )


def _angles(u: Array, v: Array) -> Array:
    """Angles between the spans of orthonormal rows, by sines where they are small."""
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        return np.full(len(u), np.nan)
    u, v = (np.linalg.qr(x.T)[0] for x in (u, v))  # float32 is not quite orthonormal
    overlap = u.T @ v
    cosines = np.linalg.svd(overlap, compute_uv=False).clip(0, 1)
    sines = np.linalg.svd(v - u @ overlap, compute_uv=False).clip(0, 1)[::-1]
    angles: Array = np.where(cosines**2 < 0.5, np.arccos(cosines), np.arcsin(sines))
    return angles
