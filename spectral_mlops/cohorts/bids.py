"""Loader ``bids``: ``participants.tsv`` and derivatives of a BIDS-style folder."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from spectral_mlops.cohorts.bids_files import find_derivatives, wanted_entities
from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.fmriprep import confounds_note
from spectral_mlops.cohorts.joining import check_matched
from spectral_mlops.cohorts.loaders import Progress, register_cohort
from spectral_mlops.cohorts.people_settings import (
    PeopleSettings,
    positive_of,
    read_labelled,
)
from spectral_mlops.cohorts.phenotype import (
    echo_levels,
    join_phenotype,
    read_pipeline,
    read_sidecar,
)
from spectral_mlops.cohorts.pipelines import check_pipelines
from spectral_mlops.cohorts.series_files import Extract
from spectral_mlops.cohorts.tables import People
from spectral_mlops.cohorts.timecourses import (
    SeriesSettings,
    build_cohort,
    check_series,
    extractor,
    read_files,
)
from spectral_mlops.cohorts.voxels import VoxelSettings, build_volumes
from spectral_mlops.errors import InputError

IMAGES = (".nii", ".nii.gz")
TABLES = (".tsv",)
SUFFIX = {"volume": "probseg", "timecourses": "timeseries"}


class BidsFiles(SeriesSettings, VoxelSettings, PeopleSettings):
    """Which derivatives of a BIDS folder, and what is done with them."""

    modality: Literal["volume", "timecourses"] = Field(
        "volume", description="one map a person, or time courses"
    )
    suffix: str | None = Field(
        None, description="'probseg' or 'timeseries' if not given; 'bold' with atlas="
    )
    entities: dict[str, str] = Field(
        default_factory=dict, description="space = 'MNI…', label = 'GM', session = '1'"
    )
    phenotype: tuple[str, ...] = Field((), description="tables to join by id")


class BidsSettings(BidsFiles):
    """Settings of the loader ``bids``; relative paths are below the work folder."""

    folder: Path = Field(description="with participants.tsv")
    derivatives: Path | None = Field(None, description="where files are, if elsewhere")


@register_cohort("bids", BidsSettings)
def load_bids(
    settings: BidsSettings, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """Load people and one derivative each from a BIDS-style folder.

    Args:
        settings: Which folder and files, and how they are to be read.
        workdir: Folder that relative paths are below.
        progress: Told about people read.

    Returns:
        Features ``[people, x, y, z]`` or those of `timecourses.load_timecourses`.

    Raises:
        InputError: If people and files differ under ``raise``, or a file is refused.
    """
    _check(settings)
    people, notes = read_bids_people(settings, workdir)
    suffix = settings.suffix or SUFFIX[settings.modality]
    images = settings.modality == "volume" or suffix == "bold"
    extract = _extract(settings, workdir) if suffix == "bold" else None
    root = workdir / (settings.derivatives or settings.folder)
    found = find_derivatives(
        root,
        suffix,
        IMAGES if images else TABLES,
        wanted_entities(settings.entities, "cohort 'bids'"),
    )
    paths = {str(who): found[who] for who in people.frame.index if who in found}
    told = check_matched(
        len(paths),
        [who for who in found if who not in paths],
        [str(who) for who in people.frame.index if who not in paths],
        (f"{root.name} (*_{suffix})", "participants.tsv"),
        f"{root} and {settings.folder / 'participants.tsv'}",
        settings.unmatched,
    )
    frame = people.frame.loc[list(paths)]
    pooled = check_pipelines(frame, paths, root, settings.pool_pipelines)
    table = settings.folder / "participants.tsv"
    positive, chosen = positive_of(settings, people, paths, table)
    notes = (*notes, chosen, told, read_pipeline(root), *pooled)
    source = str(settings.folder)
    if settings.modality == "volume":
        return build_volumes(
            paths, people, positive, settings, workdir, source, notes, progress
        )
    if suffix == "bold":
        notes = (*notes, confounds_note(settings))
    series = read_files(paths, extract=extract, progress=progress)
    return build_cohort(series, people, positive, settings, source, notes)


def read_bids_people(
    settings: BidsSettings, workdir: Path
) -> tuple[People, tuple[str, ...]]:
    """Read ``participants.tsv``, its sidecar, and phenotype tables.

    Args:
        settings: Which folder and tables.
        workdir: Folder that relative paths are below.

    Returns:
        The table and notes on what was found and joined.
    """
    folder = workdir / settings.folder
    people = read_labelled(settings, folder / "participants.tsv")
    notes = people.notes
    if not settings.label_names:
        labels = [str(label) for label in people.frame[people.target]]
        sidecar = read_sidecar(folder / "participants.json")
        notes = (*notes, *echo_levels(sidecar, people.label_column, labels))
    frame, joined = join_phenotype(people.frame, folder, settings.phenotype)
    notes = (*notes, *joined)
    return People(frame, people.target, people.label_column, notes), notes


def _check(settings: BidsSettings) -> None:
    """Refuse settings that would do nothing."""
    if settings.modality == "timecourses":
        check_series(settings, images=settings.suffix == "bold")
        return
    others = settings.model_fields_set & set(SeriesSettings.model_fields)
    if others and settings.suffix != "bold":
        raise InputError(
            f"{', '.join(sorted(others))} would do nothing with modality='volume'; set "
            "modality='timecourses', or leave them out."
        )


def _extract(settings: BidsSettings, workdir: Path) -> Extract | None:
    """Return what turns preprocessed images into time courses."""
    if settings.atlas is None or settings.modality == "volume":
        raise InputError(
            "suffix='bold' needs modality='timecourses' and atlas=, the regions, maps "
            "or mask that images are read with."
        )
    return extractor(settings, workdir)
