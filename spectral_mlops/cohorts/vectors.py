"""Files of one feature vector a person: delimited text or NPZ."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.cohort import listed
from spectral_mlops.cohorts.columns import concept_of, find_column
from spectral_mlops.cohorts.damage import reason_of
from spectral_mlops.cohorts.delimited import Table, is_missing, read_table
from spectral_mlops.errors import InputError


@dataclass(frozen=True, eq=False)
class Vectors:
    """Feature vectors with their ids.

    Attributes:
        path: The file.
        ids: One id a row, each once.
        names: One name a column.
        values: Shape ``[people, features]``; NaN where the file has none.
    """

    path: Path
    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: NDArray[np.float64]


def read_vectors(path: Path, id_column: str | None = None) -> Vectors:
    """Read feature vectors from CSV, TSV or NPZ.

    Args:
        path: Text with an id column and otherwise features only, or an NPZ with
            the arrays ``ids`` (text or integers) and ``features`` (a row each).
        id_column: Name of the id column of a text file; found by alias where the
            file has no column of that name.

    Returns:
        The vectors in the order of the file.

    Raises:
        InputError: If a cell is no number, a column is no feature, an id is
            missing or repeats, or the NPZ holds other arrays than those two.
    """
    if path.suffix.lower() == ".npz":
        vectors = _read_npz(path)
    else:
        table = read_table(path)
        named = id_column if id_column in table.header else None
        vectors = _from_table(table, find_column(table, "id", named))
    return checked(vectors)


def checked(vectors: Vectors) -> Vectors:
    """Hand vectors on if every row has an id of its own.

    Args:
        vectors: As read.

    Returns:
        The same.

    Raises:
        InputError: If an id is missing or repeats.
    """
    path = vectors.path
    seen: set[str] = set()
    for row, who in enumerate(vectors.ids):
        if is_missing(who):
            raise InputError(f"{path}: row {row + 1} has no id; every row needs one.")
        if who in seen:
            raise InputError(
                f"{path}: id {who} stands more than once (again in row {row + 1}); "
                "keep one row a person."
            )
        seen.add(who)
    return vectors


def _from_table(table: Table, ids: str) -> Vectors:
    """Turn the cells of a text file into numbers."""
    at = table.header.index(ids)
    names = (*table.header[:at], *table.header[at + 1 :])
    known = [(name, concept_of(name)) for name in names if concept_of(name)]
    if known:
        name, concept = known[0]
        raise InputError(
            f"{table.path}: the column '{name}' looks like {concept}, not like a "
            "feature; move it to the table of labels."
        )
    values = np.empty((len(table.rows), len(names)))
    for row, cells in enumerate(table.rows):
        cells = [*cells[:at], *cells[at + 1 :]]
        try:
            values[row] = np.array(cells, dtype=np.float64)
        except ValueError:
            values[row] = [
                _number(cell, f"{table.path}, line {table.lines[row]}, column '{name}'")
                for cell, name in zip(cells, names, strict=True)
            ]
    return Vectors(table.path, tuple(table.column(ids)), names, values)


def _number(cell: str, where: str) -> float:
    """Return a cell's number, NaN where it says that there is none."""
    if is_missing(cell):
        return float("nan")
    try:
        return float(cell)
    except ValueError as error:
        raise InputError(
            f"{where}: '{cell}' is not a number; expected a connection, or n/a."
        ) from error


def _read_npz(path: Path) -> Vectors:
    """Read the arrays ``ids`` and ``features``, executing nothing."""
    expected = "expected the arrays 'ids' (one text a row) and 'features' (a row each)"
    if path.is_file() and not is_zipfile(path):
        raise InputError(f"{path} is not an NPZ file; {expected}.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            keys = list(archive.files)
            if not {"ids", "features"} <= set(keys):
                raise InputError(
                    f"{path} holds {listed(keys) or 'nothing'}; {expected}."
                )
            ids, values = archive["ids"], archive["features"]
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} holds Python objects, which are not loaded because that would run "
            "code; save ids with np.array(ids, dtype=str) and features as floats."
        ) from error
    except Exception as error:  # of a damaged file NumPy raises any kind there is
        raise InputError(
            f"{path} is damaged ({reason_of(error)}); copy it anew."
        ) from error
    if ids.dtype.kind == "S":
        try:
            ids = np.char.decode(ids, "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: the bytes of an id are no UTF-8 text; save ids with "
                "np.array(ids, dtype=str)."
            ) from error
    if ids.dtype.kind not in "Uiu" or values.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: ids are {ids.dtype} and features {values.dtype}; {expected}, as "
            "text or integers and as numbers."
        )
    if ids.ndim != 1 or values.ndim != 2 or len(ids) != len(values):
        raise InputError(
            f"{path}: ids have shape {ids.shape} and features {values.shape}; expected "
            "[people] and [people, features]."
        )
    names = tuple(f"#{k + 1}" for k in range(values.shape[1]))
    who = tuple(str(one).strip() for one in ids)
    return Vectors(path, who, names, values.astype(np.float64))
