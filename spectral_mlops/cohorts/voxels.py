"""Loader ``volumes``: one image a person and a table of people, by id."""

from pathlib import Path

from pydantic import Field

from spectral_mlops.cohorts.cache import cached_volumes
from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.loaders import Progress, register_cohort
from spectral_mlops.cohorts.patterns import find_files, has_place
from spectral_mlops.cohorts.people_settings import (
    PeopleSettings,
    positive_of,
    read_labelled,
)
from spectral_mlops.cohorts.pipelines import check_pipelines
from spectral_mlops.cohorts.space import FeatureSpace
from spectral_mlops.cohorts.tables import People
from spectral_mlops.cohorts.volumes import Grid, gather_volumes, read_volume
from spectral_mlops.config import Settings
from spectral_mlops.errors import InputError

FIRST = "first"
"""Value of ``resample_to`` that means the grid of the first person."""


class VoxelSettings(Settings):
    """What is done with volumes, wherever they are found."""

    coarsen: int = Field(1, ge=1, description="average blocks of this edge")
    resample_to: str | None = Field(
        None, description="image whose grid all are brought to, or 'first'"
    )
    cache: Path = Field(Path("cohort/cache"), description="folder of memory maps")
    in_memory: bool = Field(False, description="read everything, write no cache")


class VolumeSettings(VoxelSettings, PeopleSettings):
    """Settings of the loader ``volumes``; relative paths are below the work folder."""

    images: str = Field(description="a file a person: 'gm/{participant_id}/mwp1*.nii'")
    labels: Path = Field(description="CSV or TSV table of people")


@register_cohort("volumes", VolumeSettings)
def load_volumes(
    settings: VolumeSettings, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """Load one volume a person and labels from files.

    Args:
        settings: Which files, and how they are to be read.
        workdir: Folder that relative paths are below.
        progress: Told about people read.

    Returns:
        The cohort, features ``[people, x, y, z]``, memory-mapped unless
        ``in_memory``.

    Raises:
        InputError: If the pattern names no column, or a file is refused.
    """
    if not has_place(settings.images):
        raise InputError(
            f"images='{settings.images}' names one file for everyone; name a column of "
            "the table in it: 'gm/{participant_id}.nii.gz'."
        )
    people = read_labelled(settings, workdir / settings.labels)
    paths, matched = find_files(
        settings.images, workdir, people.frame, settings.labels, settings.unmatched
    )
    table = workdir / settings.labels
    frame = people.frame.loc[list(paths)]
    pooled = check_pipelines(frame, paths, settings.images, settings.pool_pipelines)
    positive, chosen = positive_of(settings, people, paths, table)
    notes = (*people.notes, chosen, matched, *pooled)
    return build_volumes(
        paths, people, positive, settings, workdir, settings.images, notes, progress
    )


def build_volumes(
    paths: dict[str, Path],
    people: People,
    positive: str,
    settings: VoxelSettings,
    workdir: Path,
    source: str,
    notes: tuple[str, ...],
    progress: Progress | None,
) -> Cohort:
    """Read volumes, through the cache unless told otherwise.

    Args:
        paths: File by id.
        people: Table with at least these people.
        positive: Label counted as positive.
        settings: What is done with volumes.
        workdir: Folder that relative paths are below.
        source: Where they came from, for records.
        notes: Of what happened before.
        progress: Told about people read.

    Returns:
        The cohort, in the order of ``paths``.

    Raises:
        InputError: If a file is refused, or the cache cannot be written.
    """
    grid = _grid(settings.resample_to, workdir, paths)
    if settings.in_memory:
        features, affine, told = gather_volumes(paths, settings.coarsen, progress, grid)
    else:
        folder = workdir / settings.cache
        features, affine, told = cached_volumes(
            paths, folder, settings.coarsen, grid, progress
        )
    return Cohort(
        people=people.frame.loc[list(paths)],
        features=features,
        modality="volume",
        target=people.target,
        positive=positive,
        source=source,
        notes=(*notes, *told),
        space=FeatureSpace(affine=affine),
    )


def _grid(
    resample_to: str | None, workdir: Path, paths: dict[str, Path]
) -> Grid | None:
    """Return the grid to resample to, if any is asked for."""
    if resample_to is None:
        return None
    path = next(iter(paths.values())) if resample_to == FIRST else workdir / resample_to
    voxels, affine = read_volume(path)
    return Grid(voxels.shape, affine)
