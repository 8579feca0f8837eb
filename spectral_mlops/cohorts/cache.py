"""Volumes of a cohort on disk as one memory-mapped array, keyed by content.

The key is a hash of every file's bytes, in order, and of all that is done to them:
renaming, copying or touching files changes nothing, changing one voxel does. Pages
come into memory as batches ask for them and leave when memory is short.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.loaders import Progress
from spectral_mlops.cohorts.volumes import Grid, Volume, gather_volumes
from spectral_mlops.errors import InputError

FORMAT = 1
"""Goes up whenever reading changes what comes out."""


def cached_volumes(
    paths: Mapping[str, Path],
    folder: Path,
    coarsen: int = 1,
    grid: Grid | None = None,
    progress: Progress | None = None,
) -> tuple[Volume, NDArray[np.float64], tuple[str, ...]]:
    """Return everyone's volumes as a read-only memory map, written first if need be.

    Args:
        paths: Person to file, in the order of the rows wanted.
        folder: Of the cache; made if it is absent.
        coarsen: Edge, in voxels, of the cubes averaged into one; 1 keeps all.
        grid: Resample every volume that is on another grid to this one.
        progress: Told about hashing and reading.

    Returns:
        Float32 memory map ``[people, x, y, z]``, the affine of its grid, and notes.

    Raises:
        InputError: If a file is refused by `gather_volumes`, the disk has too little
            room, or the folder cannot be written.
    """
    key = _key(paths, coarsen, grid, progress)
    place, card = folder / f"{key}.npy", folder / f"{key}.json"
    known = _open(place, card)
    if known is not None:
        return (*known[:2], (*known[2], f"read from the cache {place}"))
    draft = folder / f"{key}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        features, affine, notes = gather_volumes(
            paths, coarsen, progress, grid, partial(_allocate, draft)
        )
        assert isinstance(features, np.memmap)
        features.flush()
        content = {"affine": affine.tolist(), "notes": notes}
        os.replace(draft, place)
        draft.write_text(json.dumps(content), encoding="utf-8")
        os.replace(draft, card)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        draft.unlink(missing_ok=True)
    fresh = _open(place, card)
    assert fresh is not None
    return (*fresh[:2], (*fresh[2], f"cached as {place}"))


def _unwritable(folder: Path, error: OSError) -> InputError:
    """Say that a cache cannot be written, and why."""
    return InputError(
        f"The cache {folder} cannot be written ({error.strerror}); set cache= to a "
        "folder that can."
    )


def _key(
    paths: Mapping[str, Path],
    coarsen: int,
    grid: Grid | None,
    progress: Progress | None,
) -> str:
    """Hash all files and what is done to them."""
    hashes = []
    for done, path in enumerate(paths.values(), start=1):
        try:
            with path.open("rb") as stream:
                hashes.append(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise InputError(f"There is no image {path}.") from error
        if progress:
            progress("hashing volumes", done, len(paths))
    spec = {
        "format": FORMAT,
        "coarsen": coarsen,
        "grid": None if grid is None else [grid.shape, grid.affine.tolist()],
        "files": hashes,
    }
    return hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:32]


def _allocate(path: Path, shape: tuple[int, ...]) -> Volume:
    """Make a memory map to write into, if the disk has room for it."""
    needed = int(np.prod(shape, dtype=object)) * 4
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        # NOTE a full disk kills a process that writes to a sparse map.
        raise InputError(
            f"The cache {path.parent} needs {needed / 1e9:.1f} GB and the disk has "
            f"{free / 1e9:.1f} GB free; make room, set cache= to another place, or "
            "coarsen= to average voxels."
        )
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def _open(
    place: Path, card: Path
) -> tuple[Volume, NDArray[np.float64], tuple[str, ...]] | None:
    """Open an entry of the cache, None where it is absent or damaged."""
    try:
        said = json.loads(card.read_text(encoding="utf-8"))
        features = np.load(place, mmap_mode="r")
        return features, np.array(said["affine"]), tuple(said["notes"])
    except (OSError, ValueError, KeyError, EOFError):
        return None
