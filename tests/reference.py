"""Slow and obviously right: what the fast code is compared with."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from torch import Tensor

Array = NDArray[np.float64]


def as_array(tensor: Tensor) -> Array:
    return tensor.detach().to(torch.float64).cpu().numpy()


def reference_singular_values(matrix: Tensor | Array) -> Array:
    """All singular values, by a float64 SVD of the matrix as it is."""
    if isinstance(matrix, Tensor):
        matrix = as_array(matrix)
    return np.linalg.svd(matrix, compute_uv=False)


def reference_gradient_values(activation: Tensor, adjoint: Tensor) -> Array:
    """Singular values of the formed matrix, as many as its rank can be."""
    matrix = as_array(activation).T @ as_array(adjoint)
    return reference_singular_values(matrix)[: min(len(activation), *matrix.shape)]


def padded(values: Sequence[float], length: int) -> Array:
    return np.array([*values, *[0.0] * (length - len(values))])


def reference_js(a: Sequence[float], b: Sequence[float]) -> float:
    """Jensen-Shannon divergence in bits of two spectra; NaN if one is all zero."""
    if not sum(a) or not sum(b):
        return float("nan")
    length = max(len(a), len(b))
    return float(jensenshannon(padded(a, length), padded(b, length), base=2)) ** 2


def rows_of(owner: Sequence[int], labels: Sequence[int], group: int) -> list[int]:
    """Rows of the people who have a label, one by one."""
    return [row for row, person in enumerate(owner) if labels[person] == group]


def relabelled_values(
    quantity: str, activation: Tensor, adjoint: Tensor, rows: list[int]
) -> Array:
    """Spectrum of the chosen rows, from the matrix formed anew."""
    a, d = as_array(activation)[rows], as_array(adjoint)[rows]
    matrix = {"activation": a, "adjoint": d, "gradient": a.T @ d}[quantity]
    return reference_singular_values(matrix)


def all_relabellings(
    labels: Sequence[int], strata: Sequence[str]
) -> set[tuple[int, ...]]:
    """Every different labelling that keeps the labels within their strata."""
    kept = set()
    for order in permutations(range(len(labels))):
        if all(strata[i] == strata[j] for i, j in enumerate(order)):
            kept.add(tuple(labels[i] for i in order))
    return kept
