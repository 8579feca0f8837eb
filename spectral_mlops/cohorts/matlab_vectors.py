"""Connectivity of MATLAB files: vectors or whole matrices, whose ids stand elsewhere.

GIFT's ``fnc_corrs_all`` holds a matrix a person (Fisher z, zero diagonal) and no ids:
they come from a text array of the same file or from a table in the order of its rows.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.columns import find_column
from spectral_mlops.cohorts.delimited import read_table
from spectral_mlops.cohorts.matlab import choose_array, read_matlab
from spectral_mlops.cohorts.triangles import Order
from spectral_mlops.errors import InputError

VARIABLES = ("fnc_corrs_all", "fnc_corrs", "sFNC", "FNC", "fnc", "features")
IDS = ("ids", "id", "subjects", "subject_ids", "participant_id", "SUBID")
SYMMETRIC = 1e-6


def read_matlab_vectors(
    path: Path,
    order: Order,
    variable: str | None = None,
    row_ids: Path | None = None,
) -> tuple[tuple[str, ...], NDArray[np.float64], str]:
    """Read connections as row-major triangles.

    Args:
        path: MATLAB file.
        order: Triangle to take of whole matrices; what vectors are said to be.
        variable: Array to read; the usual or only one if not given.
        row_ids: Table with a person a row, in the order of the array.

    Returns:
        Ids, values ``[people, n(n-1)/2]``, and a note on what was read.

    Raises:
        InputError: If there are no ids, more or fewer than people, or the axis of
            people cannot be told.
    """
    arrays = read_matlab(path)
    name, array = choose_array(arrays, variable, VARIABLES, (2, 3, 4), path)
    ids = _ids(arrays, path, row_ids)
    values = np.asarray(array, dtype=np.float64)
    if values.ndim == 3:
        vectors = _of_matrices(values, len(ids), order, f"{path}: {name}")
        return ids, vectors, f"{name}: the {order} triangle of matrices, row by row"
    if values.ndim != 2 or len(ids) not in values.shape:
        raise InputError(
            f"{path}: {name} has shape {array.shape} for {len(ids)} ids; expected "
            "[people, connections] or [people, n, n] (one session)."
        )
    if values.shape[0] == values.shape[1]:
        raise InputError(
            f"{path}: {name} has shape {array.shape} for {len(ids)} ids: which axis is "
            "people cannot be told; save [people, n, n]."
        )
    people_first = values.shape[0] == len(ids)
    turned = "" if people_first else " (turned: people were columns)"
    return ids, values if people_first else values.T, f"{name}: vectors{turned}"


def _ids(
    arrays: dict[str, NDArray[Any]], path: Path, row_ids: Path | None
) -> tuple[str, ...]:
    """Return ids in the order of the rows."""
    if row_ids is not None:
        table = read_table(row_ids)
        return tuple(table.column(find_column(table, "id", None)))
    for name in IDS:
        held = arrays.get(name)
        if held is not None and held.dtype.kind in "Uiu":
            return tuple(str(who).strip() for who in held.ravel().tolist())
    raise InputError(
        f"{path} names no people (no text array {', '.join(IDS[:3])}); set row_ids= to "
        "a table with one row a person in the order of the file."
    )


def _of_matrices(
    values: NDArray[np.float64], people: int, order: Order, where: str
) -> NDArray[np.float64]:
    """Take the triangles of symmetric matrices, whichever axis people are."""
    candidates = []
    for axis in range(3):
        stacked = np.moveaxis(values, axis, 0)
        square = stacked.shape[1] == stacked.shape[2] and len(stacked) == people
        if square and np.allclose(
            stacked, stacked.swapaxes(1, 2), rtol=0, atol=SYMMETRIC, equal_nan=True
        ):
            candidates.append(stacked)
    if len(candidates) != 1:
        raise InputError(
            f"{where} has shape {values.shape} for {people} ids: "
            f"{'several axes' if candidates else 'no axis'} could be people with "
            "symmetric matrices; save [people, n, n]."
        )
    n = candidates[0].shape[1]
    rows, columns = (
        np.triu_indices(n, 1) if order == "upper" else np.tril_indices(n, -1)
    )
    return np.asarray(candidates[0][:, rows, columns])
