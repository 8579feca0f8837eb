"""Simulated grey matter: the MNI template, aged, individual, and locally thinned.

``v_i = T · (1 + age + sex + individual) · (1 − (effect · g_i + a_i) · atrophy) +
field_i + site``, cut to 0–1. ``T`` is nilearn's MNI152 grey-matter template on the grid
asked for, smoothed with 8 mm; ``atrophy`` is 4 % everywhere and up to 9 % more at
six foci that meta-analyses of schizophrenia agree on; ``field_i`` is a Gaussian
random field of FWHM 12 mm; ``a_i`` is normal variation along the atrophy itself.
Nothing here knows where or how images are stored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]

FOCI = {
    "insula": ((-38, 6, 0), (38, 6, 0)),
    "medial prefrontal": ((0, 50, 10),),
    "superior temporal": ((-56, -14, 2), (56, -14, 2)),
    "thalamus": ((0, -18, 8),),
}
"""Centres of focal atrophy, in mm of MNI space."""
FOCUS_MM = 10.0  # SD of a focus
GLOBAL_LOSS, FOCAL_LOSS = 0.04, 0.09
TEMPLATE_FWHM, FIELD_FWHM = 8.0, 12.0  # mm
AGE_SLOPE, MEAN_AGE = -0.005, 38.0  # per year, from the mean age
SEX_SHIFT = 0.02  # men above, women below the mean
INDIVIDUAL_SD = 0.05
ALONG_ATROPHY = 0.8  # SD of normal variation along atrophy, in units of effect 1
FIELD_SD = 0.06
SITE_SD = 0.016  # of each site's field; 1 to 2 % of the variance of a median voxel
FWHM_TO_SD = 1 / np.sqrt(8 * np.log(2))


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The template on the grid of a cohort, and where atrophy strikes.

    Attributes:
        template: Smoothed grey-matter probability, shape ``[X, Y, Z]``.
        atrophy: Share of grey matter lost at effect 1, shape ``[X, Y, Z]``.
        affine: Voxel to MNI mm, RAS, shape ``[4, 4]``.
        voxel_mm: Edge of a voxel.
    """

    template: Array
    atrophy: Array
    affine: Array
    voxel_mm: float


def load_anatomy(voxel_mm: float = 4.5) -> Anatomy:
    """Resample the template that comes with nilearn to cubes of ``voxel_mm``."""
    from nilearn.datasets import load_mni152_gm_template
    from nilearn.image import resample_img
    from scipy.ndimage import gaussian_filter

    whole = load_mni152_gm_template(resolution=2)
    extent = np.asarray(whole.shape) * 2.0  # mm; the 2 mm grid covers the brain
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = whole.affine[:3, 3] + (voxel_mm - 2.0) / 2  # same outer corner
    resampled = resample_img(
        whole,
        target_affine=affine,
        target_shape=tuple(int(n) for n in np.ceil(extent / voxel_mm)),
        interpolation="continuous",
        copy_header=True,
        force_resample=True,
    )
    grey = np.asarray(resampled.get_fdata(dtype=np.float32), dtype=np.float64)
    grey = gaussian_filter(grey, TEMPLATE_FWHM * FWHM_TO_SD / voxel_mm)
    grey = np.where(grey < 0.01, 0.0, np.clip(grey, 0.0, 1.0))
    return Anatomy(grey, _atrophy(grey.shape, affine), affine, voxel_mm)


def draw_volumes(
    anatomy: Anatomy, people: pd.DataFrame, effect: float, seed: Sequence[int]
) -> Iterator[Array]:
    """Draw each person's grey-matter map, one at a time.

    Args:
        anatomy: Template, atrophy and grid.
        people: With columns ``group``, ``age``, ``sex`` and ``site``.
        effect: Multiplier of the atrophy of patients.
        seed: Entropy of the random stream; the same noise whatever the effect.

    Yields:
        Shape ``[X, Y, Z]``, between 0 and 1, zero outside the template.
    """
    rng = np.random.default_rng(list(seed))
    brain = anatomy.template > 0
    sites = {
        site: SITE_SD * _field(rng, anatomy) for site in sorted(set(people["site"]))
    }
    for _, person in people.iterrows():
        growth = 1 + AGE_SLOPE * (person["age"] - MEAN_AGE)
        growth += SEX_SHIFT if person["sex"] == "M" else -SEX_SHIFT
        growth += INDIVIDUAL_SD * rng.normal()
        amount = ALONG_ATROPHY * rng.normal() + effect * (person["group"] == "patient")
        noise = FIELD_SD * _field(rng, anatomy) + sites[person["site"]]
        volume = (
            anatomy.template * growth * (1 - amount * anatomy.atrophy) + brain * noise
        )
        yield np.clip(volume, 0.0, 1.0)


def _field(rng: np.random.Generator, anatomy: Anatomy) -> Array:
    """Draw a Gaussian random field with unit SD, shape ``[X, Y, Z]``."""
    from scipy.ndimage import gaussian_filter

    sd = FIELD_FWHM * FWHM_TO_SD / anatomy.voxel_mm
    field = gaussian_filter(rng.normal(size=anatomy.template.shape), sd, mode="wrap")
    return np.asarray(field / field.std())


def _atrophy(shape: tuple[int, ...], affine: Array) -> Array:
    """Return the share of grey matter that patients lose, shape ``shape``."""
    index = np.indices(shape).reshape(3, -1)
    mm = affine[:3, :3] @ index + affine[:3, 3:]  # [3, voxels]
    loss = np.full(index.shape[1], GLOBAL_LOSS)
    for centres in FOCI.values():
        for centre in centres:
            squared = ((mm - np.asarray(centre, dtype=float)[:, None]) ** 2).sum(axis=0)
            loss += FOCAL_LOSS * np.exp(-squared / (2 * FOCUS_MM**2))
    return np.asarray(np.minimum(loss, GLOBAL_LOSS + FOCAL_LOSS).reshape(shape))
