"""Arrays of MATLAB files: version 5 by SciPy, version 7.3 (HDF5) by h5py."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.cohort import listed
from spectral_mlops.cohorts.damage import reason_of
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.registry import nearest

HDF5 = b"\x89HDF\r\n\x1a\n"
HDF5_STARTS = (0, 512)  # MATLAB writes 512 bytes of its own before


def read_matlab(path: Path) -> dict[str, NDArray[Any]]:
    """Read the numeric arrays and texts of a ``.mat`` file, axes as MATLAB has them.

    Args:
        path: Version 5, 6, 7 or 7.3.

    Returns:
        Numbers as stored; char arrays and cells of text as arrays of ``str``, one a
        row. Structures, other cells and sparse matrices are left out.

    Raises:
        InputError: If the file is missing or damaged, or is of version 7.3 and
            h5py is not installed.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(HDF5_STARTS[-1] + len(HDF5))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    new = any(start[at : at + len(HDF5)] == HDF5 for at in HDF5_STARTS)
    return _read_new(path) if new else _read_old(path)


def choose_array(
    arrays: dict[str, NDArray[Any]],
    named: str | None,
    likely: tuple[str, ...],
    axes: tuple[int, ...],
    path: Path,
) -> tuple[str, NDArray[Any]]:
    """Choose one array of a file: the one named, else a usual name, else the only one.

    Args:
        arrays: Of the file, by name.
        named: The user's choice (setting ``variable``).
        likely: Usual names, the most usual first.
        axes: How many axes it may have, not counting those of length 1.
        path: The file, for messages.

    Returns:
        Its name, and the array without axes of length 1.

    Raises:
        UnknownNameError: If there is no array of the name given.
        InputError: If it has other axes, or which one is meant cannot be told.
    """
    if named is not None and named not in arrays:
        raise UnknownNameError(
            f"{path} has no array '{named}'; it has {listed(arrays) or 'none'}."
            f"{nearest(named, list(arrays))}"
        )
    fitting = [
        name
        for name, array in arrays.items()
        if array.squeeze().ndim in axes and array.dtype.kind in "fiu" and array.size
    ]
    usual = [name for name in likely if name in fitting]
    chosen = [named] if named is not None else (usual[:1] or fitting)
    if len(chosen) == 1 and chosen[0] in fitting:
        return chosen[0], arrays[chosen[0]].squeeze()
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    wanted = " or ".join(str(number) for number in axes)
    raise InputError(
        f"{path} holds {shapes or 'no arrays'}; expected one array of numbers with "
        f"{wanted} axes: name it with variable=."
    )


def _read_old(path: Path) -> dict[str, NDArray[Any]]:
    """Read version 5 (also 4), whatever it was compressed with."""
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except Exception as error:  # of a damaged file SciPy raises any kind there is
        raise InputError(
            f"{path} cannot be read as a MATLAB file ({reason_of(error)}); copy it "
            "anew."
        ) from error
    arrays = {name: _plain(array) for name, array in content.items() if name[0] != "_"}
    return {name: array for name, array in arrays.items() if array is not None}


def _plain(array: Any) -> NDArray[Any] | None:
    """Return numbers and texts; None for anything else."""
    if not isinstance(array, np.ndarray) or array.dtype.kind in "fiuU":
        return array if isinstance(array, np.ndarray) else None
    if array.dtype.kind != "O" or not array.size:
        return None
    cells = [np.asarray(cell) for cell in array.ravel()]
    if all(cell.dtype.kind == "U" and cell.size == 1 for cell in cells):
        return np.array([str(cell.item()) for cell in cells])
    return None


def _read_new(path: Path) -> dict[str, NDArray[Any]]:
    """Read version 7.3, where HDF5 shows the axes of MATLAB in reverse."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise InputError(
            f"{path} is a MATLAB file of version 7.3, which h5py reads: install "
            "spectral-mlops[mat73], or save it with '-v7'."
        ) from error
    try:
        with h5py.File(path, "r") as file:
            return dict(_datasets(file, h5py))
    except Exception as error:  # of a damaged file h5py raises any kind there is
        raise InputError(
            f"{path} cannot be read as a MATLAB file ({reason_of(error)}); copy it "
            "anew."
        ) from error


def _datasets(file: Any, h5py: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the numbers and texts at the top of an HDF5 file."""
    for name, item in file.items():
        if name[0] == "#" or not isinstance(item, h5py.Dataset):
            continue
        kind = item.attrs.get("MATLAB_class", b"")
        if item.attrs.get("MATLAB_empty", 0):
            continue
        if kind == b"cell":
            texts = [_text(file[reference]) for reference in item[()].T.ravel()]
            if all(text is not None for text in texts):
                yield name, np.array(texts)
        elif kind == b"char":
            yield name, np.array([_letters(row) for row in item[()].T])
        elif item.dtype.kind in "fiu":
            yield name, np.asarray(item[()]).T


def _text(item: Any) -> str | None:
    """Return the text of a cell, None where it holds something else."""
    if item.attrs.get("MATLAB_class") != b"char":
        return None
    return _letters(np.asarray(item[()]).T.ravel())


def _letters(codes: NDArray[Any]) -> str:
    """Return the text of UTF-16 codes."""
    return "".join(map(chr, codes.tolist())).rstrip()
