"""Loader ``bids``: ``participants.tsv`` and derivatives of a BIDS-style folder."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from spectral_mlops.cohorts.atlas import Confounds, atlas_extractor
from spectral_mlops.cohorts.bids_files import find_derivatives, wanted_entities
from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.joining import Unmatched, check_matched
from spectral_mlops.cohorts.labels import choose_positive
from spectral_mlops.cohorts.loaders import Progress, register_cohort
from spectral_mlops.cohorts.phenotype import echo_levels, join_phenotype, read_sidecar
from spectral_mlops.cohorts.series_files import Extract
from spectral_mlops.cohorts.tables import People, read_people
from spectral_mlops.cohorts.timecourses import (
    SeriesSettings,
    build_cohort,
    read_files,
)
from spectral_mlops.cohorts.voxels import VoxelSettings, build_volumes
from spectral_mlops.errors import InputError

Strategy = Literal[
    "motion",
    "high_pass",
    "wm_csf",
    "global_signal",
    "compcor",
    "scrub",
    "ica_aroma",
    "non_steady_state",
]
IMAGES = (".nii", ".nii.gz")
TABLES = (".tsv",)
SUFFIX = {"volume": "probseg", "timecourses": "timeseries"}


class BidsSettings(SeriesSettings, VoxelSettings):
    """Settings of the loader ``bids``; relative paths are below the work folder."""

    folder: Path = Field(description="with participants.tsv")
    derivatives: Path | None = Field(None, description="where files are, if elsewhere")
    modality: Literal["volume", "timecourses"] = Field(
        "volume", description="one map a person, or time courses"
    )
    suffix: str | None = Field(
        None, description="'probseg' or 'timeseries' if not given; 'bold' with atlas="
    )
    entities: dict[str, str] = Field(
        default_factory=dict, description="space = 'MNI…', label = 'GM', session = '1'"
    )
    confounds: tuple[Strategy, ...] = Field(
        (), description="of fMRIPrep, regressed out of bold images"
    )
    motion: Literal["basic", "power2", "derivatives", "full"] = Field(
        "full", description="which motion parameters"
    )
    fd_threshold: float = Field(0.5, gt=0, description="mm; scrub frames above")
    std_dvars_threshold: float = Field(1.5, gt=0, description="scrub frames above")
    scrub: int = Field(5, ge=0, description="drop shorter stretches between them")
    phenotype: tuple[str, ...] = Field((), description="tables to join by id")
    id_column: str | None = Field(None, description="found by alias if not given")
    label_column: str | None = Field(None, description="found by alias if not given")
    label_names: dict[str, str] | None = Field(None, description="0 = 'control', …")
    keep: tuple[str, ...] | None = Field(None, description="labels to keep, all if not")
    positive: str | None = Field(None, description="label counted as positive")
    unmatched: Unmatched = Field(
        "raise", description="what to do about people without files, and the reverse"
    )


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
    positive, chosen = choose_positive(
        [str(label) for label in people.frame.loc[list(paths), people.target]],
        settings.positive,
        people.label_column,
        settings.folder / "participants.tsv",
    )
    notes = (*notes, chosen, told)
    source = str(settings.folder)
    if settings.modality == "volume":
        return build_volumes(
            paths, people, positive, settings, workdir, source, notes, progress
        )
    if suffix == "bold":
        notes = (*notes, _confounds_note(settings))
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
    people = read_people(
        folder / "participants.tsv",
        settings.id_column,
        settings.label_column,
        settings.label_names,
        settings.keep,
    )
    notes = people.notes
    if not settings.label_names:
        labels = [str(label) for label in people.frame[people.target]]
        sidecar = read_sidecar(folder / "participants.json")
        notes = (*notes, *echo_levels(sidecar, people.label_column, labels))
    frame, joined = join_phenotype(people.frame, folder, settings.phenotype)
    notes = (*notes, *joined)
    return People(frame, people.target, people.label_column, notes), notes


def _extract(settings: BidsSettings, workdir: Path) -> Extract:
    """Return what turns preprocessed images into time courses."""
    if settings.atlas is None or settings.modality == "volume":
        raise InputError(
            "suffix='bold' needs modality='timecourses' and atlas=, the regions, maps "
            "or mask that images are read with."
        )
    confounds = _confounds(settings) if settings.confounds else None
    return atlas_extractor(
        workdir / settings.atlas, settings.atlas_kind, settings.resample, confounds
    )


def _confounds(settings: BidsSettings) -> Confounds:
    """Return what loads an image's confounds, every threshold passed by name."""
    from nilearn.interfaces.fmriprep import load_confounds

    options: dict[str, Any] = {"motion": settings.motion}
    if "scrub" in settings.confounds:
        # NOTE nilearn's own thresholds changed from release to release.
        options |= {
            "fd_threshold": settings.fd_threshold,
            "std_dvars_threshold": settings.std_dvars_threshold,
            "scrub": settings.scrub,
        }

    def load(path: Path) -> tuple[Any, Any]:
        try:
            confounds, kept = load_confounds(
                str(path), strategy=settings.confounds, **options
            )
        except (ValueError, OSError, KeyError) as error:
            raise InputError(
                f"{path}: its fMRIPrep confounds cannot be loaded: "
                f"{' '.join(str(error).split()).rstrip('.')}."
            ) from error
        return confounds, kept

    return load


def _confounds_note(settings: BidsSettings) -> str:
    """Say what was regressed out of images."""
    if not settings.confounds:
        return "no confounds regressed (confounds=[])"
    said = f"fMRIPrep confounds regressed: {', '.join(settings.confounds)}"
    if "motion" in settings.confounds:
        said += f" (motion={settings.motion})"
    if "scrub" in settings.confounds:
        said += (
            f"; frames left out above FD {settings.fd_threshold} mm or standardised "
            f"DVARS {settings.std_dvars_threshold}, stretches up to {settings.scrub}"
        )
    return said
