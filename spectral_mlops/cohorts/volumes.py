"""Volumes of a cohort, read from NIfTI: one grid, native floats, nothing silent."""

import gzip
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.damage import reason_of
from spectral_mlops.errors import InputError

Volume = NDArray[np.float32]
GZIP_RATIO = 1032
"""DEFLATE never packs more than this many bytes into one."""


def open_image(path: Path) -> Any:
    """Open an image without reading its voxels; refuse a header that cannot be true.

    A header may promise terabytes. What the file could hold at most is known from
    its size, so nothing is allocated for a promise that it cannot keep. Complex values
    and colours are no numbers of a map, and would lose a part on the way to one.

    Args:
        path: A NIfTI file, compressed or not.

    Returns:
        The image of nibabel, voxels still on disk.

    Raises:
        InputError: If the file is missing, no image, too small for its header, not of
            real numbers, or without a place in space.
    """
    import nibabel

    try:
        image: Any = nibabel.load(path)
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise InputError(f"There is no image {path}.") from error
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
    ) as error:
        raise _unreadable(path, error) from error
    shape = tuple(int(length) for length in image.shape)
    promised = math.prod(shape) * image.get_data_dtype().itemsize
    most = size * GZIP_RATIO if path.suffix == ".gz" else size
    if min(shape, default=0) < 1 or promised > most:
        raise _unreadable(
            path,
            f"its header promises {'x'.join(map(str, shape))} voxels, {promised} "
            f"bytes, and the file cannot hold more than {most}",
        )
    kind = image.get_data_dtype()
    if kind.kind not in "biuf":
        raise InputError(
            f"{path} holds values of type {kind}, which are not real numbers; take a "
            "magnitude, or one channel of colours, first."
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    somewhere = np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) > 2
    if len(shape) > 2 and not somewhere:  # of two axes it is a table
        raise InputError(
            f"{path}: its affine {_spell(affine)} gives voxels no place in space; "
            "repair its header (sform or qform)."
        )
    return image


def read_table_image(path: Path) -> NDArray[np.float64] | None:
    """Read an image of two axes, as which GIFT writes time courses.

    Args:
        path: A NIfTI file, compressed or not.

    Returns:
        Numbers as they stand, two axes; None if the image has more.

    Raises:
        InputError: If the file is missing, or no usable image.
    """
    image = open_image(path)
    axes = [length for length in image.shape if length > 1]
    if len(axes) > 2:
        return None
    check_sum(path)
    try:
        values = image.get_fdata(dtype=np.float64, caching="unchanged")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _unreadable(path, error) from error
    return np.asarray(values).reshape(axes if len(axes) == 2 else (len(values), -1))


def _unreadable(path: Path, reason: object) -> InputError:
    """Say that a file is no usable image, and why, on one line."""
    why = reason_of(reason)
    return InputError(f"{path} cannot be read as a NIfTI image: {why}; copy it anew.")


def read_volume(path: Path) -> tuple[Volume, NDArray[np.float64]]:
    """Read one image as float32, axes turned to the nearest RAS order.

    Scaling (``scl_slope``), byte order and axis flips of the file are undone;
    nothing is resampled, so an oblique grid stays oblique.

    Args:
        path: A NIfTI file, compressed or not.

    Returns:
        C-contiguous voxels ``[X, Y, Z]`` in native byte order, and the affine
        from voxels to mm ``[4, 4]``.

    Raises:
        InputError: If the file is missing, is no image, is not three-dimensional,
            holds NaN or infinity, or zeros only; names the file.
    """
    import nibabel

    image = open_image(path)
    check_sum(path)
    try:
        turned = nibabel.as_closest_canonical(  # type: ignore[no-untyped-call]
            image
        )
        # Unscaled through the data object: the header's own slope reads NaN.
        data = turned.get_fdata(dtype=np.float32, caching="unchanged")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _unreadable(path, error) from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise InputError(
            f"{path} has shape {data.shape}: a volume has three axes; reduce a series "
            "to one map per person first."
        )
    bad = ~np.isfinite(data)
    if bad.any():
        voxel = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{path} holds {int(bad.sum())} values that are not finite (NaN or "
            f"infinite), the first at voxel {voxel}; repair the map or leave the "
            "person out."
        )
    if not data.any():
        raise InputError(
            f"{path} holds zeros only; repair the map or leave the person out."
        )
    # NOTE a flipped axis has a negative stride, which torch refuses.
    return np.ascontiguousarray(data, dtype=np.float32), np.asarray(turned.affine)


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels stand.

    Attributes:
        shape: Voxels along each axis.
        affine: Voxels to mm, RAS, shape ``[4, 4]``.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]


def _in_memory(shape: tuple[int, ...]) -> Volume:
    """Return an empty array."""
    return np.empty(shape, dtype=np.float32)


def read_volumes(
    paths: Mapping[str, Path],
    coarsen: int = 2,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Volume, NDArray[np.float64]]:
    """Read everyone's volume into memory: `gather_volumes` without its notes."""
    features, affine, _ = gather_volumes(paths, coarsen, progress)
    return features, affine


def gather_volumes(
    paths: Mapping[str, Path],
    coarsen: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
    grid: Grid | None = None,
    allocate: Callable[[tuple[int, ...]], Volume] = _in_memory,
) -> tuple[Volume, NDArray[np.float64], tuple[str, ...]]:
    """Read everyone's volume, one at a time; all share one shape and one affine.

    Args:
        paths: Person to file, in the order of the rows wanted.
        coarsen: Edge, in voxels, of the cubes averaged into one; 1 keeps all.
        progress: Called with what is done, how many are, and how many there are.
        grid: Resample every volume that is on another grid to this one, linearly by
            nilearn, zero outside; another grid is refused if not given.
        allocate: Makes the float32 array of a shape that is written into.

    Returns:
        Float32 ``[people, x, y, z]``, the affine of the coarse grid, and notes.

    Raises:
        InputError: If two files differ in grid (names both), or `read_volume`
            refuses one.
    """
    if not paths:
        raise InputError("No volumes to read: the table of people is empty.")
    first = next(iter(paths.values()))
    example, affine = read_volume(first)
    target = grid or Grid(example.shape, affine)
    coarse = tuple(-(-length // max(coarsen, 1)) for length in target.shape)
    kept: Volume | None = None
    moved = 0
    for row, path in enumerate(paths.values()):
        voxels, affine = read_volume(path) if row else (example, affine)
        if grid is None:
            _check_grid(first, target.shape, target.affine, path, voxels.shape, affine)
        elif not _same_grid(target, voxels.shape, affine):
            voxels = resampled(voxels, affine, target)
            moved += 1
        averaged = block_average(voxels, coarsen)
        if kept is None:
            kept = allocate((len(paths), *coarse))
        kept[row] = averaged
        if progress:
            progress("reading volumes", row + 1, len(paths))
    assert kept is not None
    edges = np.round(np.linalg.norm(target.affine[:3, :3], axis=0) * coarsen, 2)
    notes = [
        f"volumes {'x'.join(map(str, coarse))}, voxels of {edges.tolist()} mm "
        f"(coarsen={coarsen})"
    ]
    if grid is not None:
        notes.append(f"{moved} of {len(paths)} volumes resampled linearly by nilearn")
    return kept, _coarse_affine(target.affine, coarsen), tuple(notes)


def resampled(voxels: Volume, affine: NDArray[np.float64], grid: Grid) -> Volume:
    """Return a volume on another grid, linearly interpolated, zero outside."""
    import nibabel
    from nilearn.image import resample_img

    image = nibabel.Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call]
    moved = resample_img(
        image,
        target_affine=grid.affine,
        target_shape=grid.shape,
        interpolation="linear",
        copy_header=True,
        force_resample=True,
    )
    return np.ascontiguousarray(moved.get_fdata(dtype=np.float32))


def block_average(voxels: Volume, factor: int) -> Volume:
    """Average cubes of ``factor`` voxels an edge into one voxel.

    Where an axis does not divide, its last block holds what is left and is the
    average of just that: nothing is padded, nothing is cut off.

    Args:
        voxels: Shape ``[X, Y, Z]``.
        factor: At least 1; 1 changes nothing.

    Returns:
        Float32, shape ``[ceil(X / factor), ceil(Y / factor), ceil(Z / factor)]``.

    Raises:
        InputError: If the factor is below 1.
    """
    if factor < 1:
        raise InputError(f"coarsen={factor}: give a block edge of 1 voxel or more.")
    averaged = np.asarray(voxels, dtype=np.float64)
    for axis, length in enumerate(voxels.shape):
        starts = np.arange(0, length, factor)
        sums = np.add.reduceat(averaged, starts, axis=axis)
        counts = np.minimum(factor, length - starts)
        averaged = sums / np.expand_dims(counts, tuple({0, 1, 2} - {axis}))
    return averaged.astype(np.float32)


def check_sum(path: Path) -> None:
    """Read a compressed file to its end, where its check sum stands.

    nibabel stops at the last voxel and would hand on damaged values.

    Raises:
        InputError: If it is cut off or damaged.
    """
    if path.suffix != ".gz":
        return
    try:
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _coarse_affine(affine: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Return the affine of the block grid: centres of (whole) blocks."""
    step = np.diag([factor, factor, factor, 1.0])
    step[:3, 3] = (factor - 1) / 2
    return affine @ step


def _check_grid(
    first: Path,
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    path: Path,
    other_shape: tuple[int, ...],
    other_affine: NDArray[np.float64],
) -> None:
    """Refuse a second grid, naming both files and what they say."""
    way_out = (
        "bring all images to one grid first, or set resample_to=; nothing is resampled "
        "silently."
    )
    if _same_grid(Grid(shape, affine), other_shape, other_affine):
        return
    if shape != other_shape:
        raise InputError(
            f"{path} has shape {other_shape} but {first} has {shape}: {way_out}"
        )
    raise InputError(
        f"{path} has affine {_spell(other_affine)} but {first} has "
        f"{_spell(affine)} (RAS mm): {way_out}"
    )


def _same_grid(grid: Grid, shape: tuple[int, ...], affine: NDArray[np.float64]) -> bool:
    """Tell whether voxels stand at the same places, to a thousandth of a mm."""
    return grid.shape == shape and np.allclose(grid.affine, affine, rtol=0, atol=1e-3)


def _spell(affine: NDArray[np.float64]) -> str:
    """Write the upper rows of an affine on one line."""
    return str(np.round(affine[:3], 4).tolist())
