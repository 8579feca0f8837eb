"""Vectors of connections and the symmetric matrices they were cut from.

Two orders are in use: the row-major *upper* triangle (GIFT, MLSP 2014) and the
row-major *lower* one (nilearn). Nothing in a file says which, and a network
learns from either; but only the right one rebuilds correlation matrices, which
have no negative eigenvalue.
"""

from math import isqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.errors import InputError

Order = Literal["upper", "lower"]
Array = NDArray[np.float64]

ENOUGH = 0.95
"""Share of people whose matrix must be right for an order to be believed."""
TOLERANCE = 1e-4
"""A matrix counts as right if its least eigenvalue is above minus this times n."""


def size_of(connections: int, where: object) -> int:
    """Return the ``n`` with ``n(n-1)/2`` connections.

    Raises:
        InputError: If there is none; says so where the diagonal was kept.
    """
    root = isqrt(8 * connections + 1)
    if root * root == 8 * connections + 1 and connections > 0:
        return (1 + root) // 2
    raise InputError(
        f"{where}: {connections} columns are not the n(n-1)/2 connections of n "
        f"networks; the nearest fits are {_nearest(connections)}; check for columns "
        "that are no connections."
    )


def kept_diagonal(features: Array) -> int | None:
    """Return ``n`` if the vectors look like triangles with their diagonal.

    ``n(n+1)/2`` is also the number of connections of ``n + 1`` networks, so the
    count alone says nothing: the columns where a diagonal would stand must hold
    one value for everybody (1 for correlations, 0 or infinity for Fisher z).

    Args:
        features: Shape ``[people, connections]``.

    Returns:
        The number of networks, or None if the diagonal was left out.
    """
    n = size_of(features.shape[1], "features") - 1
    if n < 2 or len(features) < 2:
        return None
    for rows, columns in (np.triu_indices(n), np.tril_indices(n)):
        diagonal = features[:, rows == columns]
        others = features[:, rows != columns]
        if np.ptp(diagonal) < 1e-6 and np.ptp(others) > 1e-3:
            return n
    return None


def rebuild(vectors: Array, order: Order) -> Array:
    """Put vectors back into symmetric matrices with unit diagonal.

    Args:
        vectors: Shape ``[people, n(n-1)/2]``.
        order: Row-major ``upper`` or ``lower`` triangle.

    Returns:
        Shape ``[people, n, n]``.
    """
    n = size_of(vectors.shape[1], "vectors")
    upper, lower = np.triu_indices(n, 1), np.tril_indices(n, -1)
    rows, columns = upper if order == "upper" else lower
    matrices = np.tile(np.eye(n), (len(vectors), 1, 1))
    matrices[:, rows, columns] = vectors
    matrices[:, columns, rows] = vectors
    return matrices


def count_right(vectors: Array, order: Order) -> int:
    """Count the people whose rebuilt matrix has no negative eigenvalue."""
    matrices = rebuild(vectors, order)
    least = np.linalg.eigvalsh(matrices)[:, 0]
    return int((least >= -TOLERANCE * matrices.shape[1]).sum())


def check_order(correlations: Array, order: Order, where: object) -> str:
    """Check a stated order against the matrices it rebuilds.

    Args:
        correlations: Finite, between -1 and 1, shape ``[people, n(n-1)/2]``.
        order: What the user says.
        where: The file, for messages.

    Returns:
        A note on what was found, also where it could not be told.

    Raises:
        InputError: If only the other order fits, or neither does.
    """
    people, n = len(correlations), size_of(correlations.shape[1], where)
    if n <= 3:
        return f"order {order}: with {n} networks both orders are the same"
    if people <= 2:
        return f"order {order}: not checked, {people} people are too few to tell"
    other: Order = "lower" if order == "upper" else "upper"
    stated = count_right(correlations, order)
    opposite = count_right(correlations, other)
    found = f"{stated} of {people} matrices are positive semi-definite"
    if stated >= ENOUGH * people:
        if opposite >= ENOUGH * people:
            return f"order {order}: {found}, but as many with '{other}': cannot be told"
        return f"order {order}: {found} ({opposite} with '{other}')"
    if opposite >= ENOUGH * people:
        raise InputError(
            f"{where}: with order='{order}' only {found}, with order='{other}' "
            f"{opposite}; the columns are most likely the {other} triangle, row by "
            f"row: set order='{other}'."
        )
    raise InputError(
        f"{where}: with order='{order}' only {found}, with order='{other}' {opposite}; "
        "neither order gives correlation matrices; if these are other measures "
        "(partial, regularised, thresholded), set check_order=false."
    )


def _nearest(connections: int) -> str:
    """Name the two triangular numbers around a count."""
    n = (1 + isqrt(8 * connections + 1)) // 2
    return " and ".join(f"{k * (k - 1) // 2} (n={k})" for k in (n, n + 1))
