"""Time courses of regions, maps or voxels of a 4-D image, by nilearn's maskers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spectral_mlops.cohorts.damage import reason_of
from spectral_mlops.cohorts.series_files import Array, Extract
from spectral_mlops.cohorts.volumes import check_sum, open_image
from spectral_mlops.errors import InputError

AtlasKind = Literal["labels", "maps", "mask"]
Confounds = Callable[[Path], tuple[Any, Any]]
"""Of an image: confounds ``[T, k]`` and the time points kept, either may be None."""


def atlas_extractor(
    atlas: Path, kind: AtlasKind, resample: bool, confounds: Confounds | None = None
) -> Extract:
    """Return a function from a 4-D image to time courses.

    Nothing is standardised, filtered or detrended beyond what regressing confounds
    does.

    Args:
        atlas: 3-D labels or mask, or 4-D maps.
        kind: Which of these.
        resample: Bring the atlas to the image's grid where it has another; refused
            otherwise.
        confounds: What is regressed out of an image, and which time points stay.

    Returns:
        Function of a path; gives ``[T, C]`` and names of components.
    """
    from nilearn import maskers

    open_image(atlas)
    target: dict[str, Any] = {f"{kind}_img": str(atlas)}
    if kind != "mask":
        target["resampling_target"] = "data" if resample else None
    masker_of = {
        "labels": maskers.NiftiLabelsMasker,
        "maps": maskers.NiftiMapsMasker,
        "mask": maskers.NiftiMasker,
    }[kind]

    def extract(path: Path) -> tuple[Array, tuple[str, ...]]:
        image = open_image(path)
        if len(image.shape) != 4 or image.shape[3] < 2:
            raise InputError(
                f"{path} has shape {image.shape}; time courses need a 4-D image with "
                "two time points or more."
            )
        check_sum(path)
        image = _finite(image, path)
        if not resample:
            _check_grid(atlas, path, image)
        regressors, kept = confounds(path) if confounds else (None, None)
        masker = masker_of(**target, standardize=None, reports=False)
        try:
            values = masker.fit_transform(image, confounds=regressors, sample_mask=kept)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(
                f"{path} gives no time courses through {atlas}: {reason_of(error)}."
            ) from error
        values = np.asarray(values, dtype=np.float64)
        return values, _names(masker, kind, values.shape[1])

    return extract


def _finite(image: Any, path: Path) -> Any:
    """Return the image with its values read; nilearn would write 0 for NaN."""
    import nibabel

    try:
        values = image.get_fdata(dtype=np.float32, caching="unchanged")
    except (OSError, EOFError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a NIfTI image: {reason_of(error)}; copy it anew."
        ) from error
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise InputError(
            f"{path} holds values that are not finite ({len(bad)}, the first at voxel "
            f"{tuple(bad[0].tolist())}); repair the image or leave the person out."
        )
    return nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        values, image.affine
    )


def _names(masker: Any, kind: AtlasKind, width: int) -> tuple[str, ...]:
    """Name components by their label in the atlas, or by number."""
    if kind == "labels":
        ids = [key for key in masker.region_ids_ if key != "background"]
        labels = [str(masker.region_ids_[key]) for key in ids]
        if len(labels) == width:
            return tuple(labels)
    return tuple(f"{kind}{number + 1}" for number in range(width))


def _check_grid(atlas: Path, path: Path, image: Any) -> None:
    """Refuse an atlas on another grid than the image."""
    other = open_image(atlas)
    if other.shape[:3] != image.shape[:3] or not np.allclose(
        other.affine, image.affine, rtol=0, atol=1e-3
    ):
        raise InputError(
            f"{path} has shape {image.shape[:3]} and the atlas {atlas} "
            f"{other.shape[:3]}, or their affines differ; bring them to one grid, or "
            "set resample=true to resample the atlas."
        )
