"""Files of one person's time courses: text, NumPy, MATLAB, or images through an atlas.

A file says its own orientation where columns have names (they are components) or an
image was read (its last axis is time); an array alone does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.damage import reason_of
from spectral_mlops.cohorts.delimited import is_missing
from spectral_mlops.cohorts.matlab import choose_array, read_matlab
from spectral_mlops.cohorts.volumes import read_table_image
from spectral_mlops.errors import InputError

Array = NDArray[np.float64]
TEXT = {".tsv": "\t", ".csv": ",", ".1D": None, ".txt": None}
"""Ending to separator; None is any white space."""
IMAGES = (".nii", ".nii.gz")
VARIABLES = ("tc", "timecourses", "timecourse", "tcs", "TC")
"""Usual names of an array of time courses; GIFT's is ``tc``."""

Extract = Callable[[Path], tuple[Array, tuple[str, ...]]]
"""Turns a 4-D image into time courses ``[T, C]`` and names of components."""


@dataclass(frozen=True, eq=False)
class Series:
    """Time courses as one file has them.

    Attributes:
        path: The file, or where else they came from.
        values: Shape ``[T, C]`` or ``[C, T]``; NaN where the file has none.
        names: Of the components, none where nobody said.
        time_first: Whether time is known to be the first axis.
    """

    path: str
    values: Array
    names: tuple[str, ...] = ()
    time_first: bool = False


def read_series(
    path: Path, variable: str | None = None, extract: Extract | None = None
) -> Series:
    """Read one person's time courses.

    Args:
        path: ``.tsv``, ``.csv``, ``.1D`` or ``.txt`` (columns are components if the
            first line names them), ``.npy``, ``.npz``, ``.mat``, ``.nii[.gz]`` (of two
            axes, as GIFT writes time courses, or four).
        variable: Which array of an NPZ or MATLAB file; the usual or only one if not
            given.
        extract: What makes time courses of an image.

    Returns:
        The numbers as they stand.

    Raises:
        InputError: If the file is missing, damaged, ragged, of another kind, holds
            no two-dimensional array, or is an image of people's brains and there is
            no atlas.
    """
    if path.name.endswith(IMAGES):
        if extract is None:
            table = read_table_image(path)
            if table is not None:
                return Series(str(path), table)
            raise InputError(
                f"{path} is an image; say with atlas= which regions, maps or mask turn "
                "it into time courses."
            )
        values, names = extract(path)
        return Series(str(path), values, names, time_first=True)
    if path.suffix in TEXT:
        values, names = _read_text(path, TEXT[path.suffix])
        return Series(str(path), values, names, time_first=bool(names))
    if path.suffix == ".mat":
        arrays = read_matlab(path)
    elif path.suffix in (".npy", ".npz"):
        arrays = read_numpy(path)
    else:
        raise InputError(
            f"{path}: '{path.suffix}' is no known kind of time courses; give "
            f"{', '.join(TEXT)}, .npy, .npz, .mat or {' or '.join(IMAGES)}."
        )
    _, values = choose_array(arrays, variable, VARIABLES, (2,), path)
    return Series(str(path), values.astype(np.float64))


def read_numpy(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of a NPY or NPZ file by name, executing nothing.

    Raises:
        InputError: If the file is missing, damaged, holds Python objects, or says that
            it holds more than there is memory for.
    """
    try:
        with path.open("rb") as stream:  # np.load leaves what it refuses open
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return {path.stem: content}
            with content:
                return {name: content[name] for name in content.files}
    except MemoryError as error:
        raise InputError(
            f"{path} says that it holds more than memory does ({reason_of(error)}); "
            "copy it anew."
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"Cannot read {path}: {reason}.") from error
    except ValueError as error:
        raise InputError(
            f"{path} is no NumPy file of plain arrays ({reason_of(error)}); save "
            "numbers with np.savez, and ids with np.array(ids, dtype=str)."
        ) from error
    except Exception as error:  # of a damaged file NumPy raises any kind there is
        raise InputError(
            f"{path} is damaged ({reason_of(error)}); copy it anew."
        ) from error


def _read_text(path: Path, separator: str | None) -> tuple[Array, tuple[str, ...]]:
    """Read numbers, one time point a line, and names where the first line has any."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    names: tuple[str, ...] = ()
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip().strip('"') for cell in line.split(separator)]
        if not line.strip():
            continue
        commented = separator is None and line.lstrip().startswith("#")
        if not rows and not names and (commented or not all(map(_numeric, cells))):
            names = _names(cells, path)
            continue
        if commented:
            continue
        if rows and len(cells) != len(rows[0]):
            raise InputError(
                f"{path}, line {number}: {len(cells)} cells where the first row has "
                f"{len(rows[0])}; every time point needs one value a component."
            )
        rows.append([_value(cell, path, number) for cell in cells])
    if not rows:
        raise InputError(f"{path} holds no numbers; expected one time point a line.")
    if names and len(names) != len(rows[0]):
        if separator is not None:
            raise InputError(
                f"{path}: {len(names)} names over {len(rows[0])} columns; check "
                "separators."
            )
        names = ()  # a remark, not a header
    return np.array(rows), names


def _names(cells: list[str], path: Path) -> tuple[str, ...]:
    """Return the names of a header; refuse one that counts rows."""
    if cells[0] == "" or cells[0].startswith("Unnamed:"):
        raise InputError(
            f"{path}: the first column has no name, so it counts rows; save the time "
            "courses without an index."
        )
    return tuple(cells)


def _numeric(cell: str) -> bool:
    """Tell whether a cell is a number, or says that there is none."""
    try:
        float(cell)
    except ValueError:
        return is_missing(cell)
    return True


def _value(cell: str, path: Path, number: int) -> float:
    """Return a cell's number, NaN where it says that there is none."""
    if is_missing(cell):
        return float("nan")
    try:
        return float(cell)
    except ValueError as error:
        raise InputError(
            f"{path}, line {number}: '{cell}' is not a number; expected a time point's "
            "value, or n/a."
        ) from error
