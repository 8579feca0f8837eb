"""Public sets by name, from a data folder as nilearn's fetchers leave it.

Nothing is downloaded unless ``download=true`` asks for it. People whose files are not
in the folder are left out and counted: a folder usually holds a part of a set.
"""

import glob
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.columns import find_column
from spectral_mlops.cohorts.delimited import read_table
from spectral_mlops.cohorts.joining import Unmatched
from spectral_mlops.cohorts.loaders import Progress, register_cohort
from spectral_mlops.cohorts.niak import Beside, Censored, frames_of
from spectral_mlops.cohorts.people_settings import PeopleSettings
from spectral_mlops.cohorts.timecourses import (
    SeriesSettings,
    TimecourseSettings,
    load_timecourses,
)
from spectral_mlops.cohorts.voxels import VolumeSettings, VoxelSettings, load_volumes
from spectral_mlops.config import Settings
from spectral_mlops.errors import InputError


class FolderSettings(Settings):
    """Where nilearn's data are."""

    data_dir: Path | None = Field(None, description="nilearn's own if not given")


class FetchSettings(FolderSettings):
    """Whether nilearn may download."""

    download: bool = Field(False, description="let nilearn fetch what is missing")
    n_subjects: int | None = Field(None, ge=2, description="to download, all if not")


class AbideSettings(SeriesSettings, PeopleSettings, FetchSettings):
    """Settings of the loader ``abide_pcp``."""

    pipeline: Literal["cpac", "css", "dparsf", "niak"] = Field("cpac")
    band_pass_filtering: bool = Field(False, description="of the pipeline")
    global_signal_regression: bool = Field(False, description="of the pipeline")
    derivative: str = Field("rois_cc200", description="time courses of which regions")
    id_column: str | None = "SUB_ID"
    label_column: str | None = "DX_GROUP"
    label_names: dict[str, str] | None = Field(
        default_factory=lambda: {"1": "autism", "2": "control"}
    )
    positive: str | None = "autism"
    unmatched: Unmatched = "drop"

    @property
    def strategy(self) -> str:
        """Return the name of the folder that the two switches of the pipeline give."""
        filtered = "filt" if self.band_pass_filtering else "nofilt"
        regressed = "global" if self.global_signal_regression else "noglobal"
        return f"{filtered}_{regressed}"


class DevelopmentSettings(SeriesSettings, PeopleSettings, FetchSettings):
    """Settings of the loader ``development_fmri``; images need ``atlas``."""

    label_column: str | None = "Child_Adult"
    positive: str | None = "child"
    unmatched: Unmatched = "drop"


class OasisSettings(VoxelSettings, PeopleSettings, FetchSettings):
    """Settings of the loader ``oasis_vbm``: grey matter, by dementia rating."""

    dartel_version: bool = Field(True, description="as in nilearn's fetcher")
    label_column: str | None = "CDR"
    unlabelled: Literal["raise", "drop"] = "drop"
    unmatched: Unmatched = "drop"


class CobreSettings(SeriesSettings, PeopleSettings, FolderSettings):
    """Settings of the loader ``cobre``: NIAK's release; images need ``atlas``."""

    regress: bool = Field(False, description="the confounds beside each image")
    censored: Censored = Field(
        "raise", description="about frames marked for motion: 'drop' or 'keep' them"
    )
    label_column: str | None = "Subject Type"
    keep: tuple[str, ...] | None = ("Control", "Patient")
    positive: str | None = "Patient"
    unmatched: Unmatched = "drop"


@register_cohort("abide_pcp", AbideSettings)
def load_abide(
    settings: AbideSettings, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """Load time courses of ABIDE (Preprocessed Connectomes Project).

    Args:
        settings: Which pipeline and regions, and what is done with them.
        workdir: Folder that relative paths are below.
        progress: Told about people read.

    Returns:
        As `timecourses.load_timecourses`; the pipeline stands in notes and source.
    """

    def fetch(datasets: Any, folder: str | None) -> None:
        datasets.fetch_abide_pcp(
            data_dir=folder,
            n_subjects=settings.n_subjects,
            pipeline=settings.pipeline,
            band_pass_filtering=settings.band_pass_filtering,
            global_signal_regression=settings.global_signal_regression,
            derivatives=[settings.derivative],
            verbose=0,
        )

    root = data_folder(
        settings, workdir, "ABIDE_pcp", fetch if settings.download else None
    )
    files = f"{{FILE_ID}}_{settings.derivative}.1D"
    pattern = f"{_exact(root / settings.pipeline / settings.strategy)}/{files}"
    table = root / "Phenotypic_V1_0b_preprocessed1.csv"
    cohort = load_timecourses(
        as_settings(TimecourseSettings, settings, series=pattern, labels=table),
        workdir,
        progress,
    )
    made = f"{settings.pipeline}, {settings.strategy}, {settings.derivative}"
    return named(cohort, f"abide_pcp ({made})")


@register_cohort("development_fmri", DevelopmentSettings)
def load_development(
    settings: DevelopmentSettings, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """Load children and adults watching a film, through an atlas.

    Args:
        settings: Which atlas and confounds, and what is done with time courses.
        workdir: Folder that relative paths are below.
        progress: Told about people read.

    Returns:
        As `timecourses.load_timecourses`.
    """

    def fetch(datasets: Any, folder: str | None) -> None:
        # Whole confounds: those reduced by nilearn are no longer fMRIPrep's files.
        datasets.fetch_development_fmri(
            n_subjects=settings.n_subjects,
            reduce_confounds=False,
            data_dir=folder,
            verbose=0,
        )

    download = fetch if settings.download else None
    root = data_folder(settings, workdir, "development_fmri", download)
    pattern = f"{_exact(root)}/{{participant_id}}_task-pixar_*_bold.nii.gz"
    cohort = load_timecourses(
        as_settings(
            TimecourseSettings,
            settings,
            series=pattern,
            labels=root / "participants.tsv",
        ),
        workdir,
        progress,
    )
    return named(cohort, "development_fmri")


@register_cohort("oasis_vbm", OasisSettings)
def load_oasis(
    settings: OasisSettings, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """Load grey-matter maps of OASIS 1.

    Args:
        settings: Which version, and what is done with volumes.
        workdir: Folder that relative paths are below.
        progress: Told about people read.

    Returns:
        As `voxels.load_volumes`.
    """

    def fetch(datasets: Any, folder: str | None) -> None:
        datasets.fetch_oasis_vbm(
            n_subjects=settings.n_subjects,
            dartel_version=settings.dartel_version,
            data_dir=folder,
            verbose=0,
        )

    root = data_folder(
        settings, workdir, "oasis1", fetch if settings.download else None
    )
    prefix = "mwrc1" if settings.dartel_version else "mwc1"
    images = f"{_exact(root)}/{{participant_id}}/{prefix}*.nii.gz"
    table = root / "oasis_cross-sectional.csv"
    cohort = load_volumes(
        as_settings(VolumeSettings, settings, images=images, labels=table),
        workdir,
        progress,
    )
    return named(cohort, f"oasis_vbm ({prefix})")


@register_cohort("cobre", CobreSettings)
def load_cobre(
    settings: CobreSettings, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """Load COBRE as NIAK released it, from a folder; there is no fetcher any more.

    Ids of the table may have lost their zeros. Who left the study is not kept.

    Args:
        settings: Which atlas, and what is done with time courses.
        workdir: Folder that relative paths are below.
        progress: Told about people read.

    Returns:
        As `timecourses.load_timecourses`.

    Raises:
        InputError: If the folder has no table, fMRIPrep confounds are asked for, or
            frames are censored and nothing is said about them.
    """
    if settings.confounds:
        raise InputError(
            "cobre: its confounds are not fMRIPrep's; set regress=true to regress all "
            "columns of the tables beside the images."
        )
    root = data_folder(settings, workdir, "cobre", None)
    tables = sorted(root.glob("phenotypic_data.*"))
    if not tables:
        raise InputError(f"{root} has no phenotypic_data.tsv.gz; copy it there.")
    people = read_table(tables[0])
    ids = find_column(people, "id", settings.id_column)
    beside = Beside(settings.regress, settings.censored, frames_of(people, ids))
    pattern = f"{_exact(root)}/fmri_*{{participant_id}}.nii.gz"
    cohort = load_timecourses(
        as_settings(TimecourseSettings, settings, series=pattern, labels=tables[0]),
        workdir,
        progress,
        beside,
    )
    cohort = replace(cohort, notes=(beside.note, *cohort.notes))
    told = "confounds beside images regressed" if settings.regress else "not denoised"
    return named(cohort, f"cobre (NIAK, {told})")


def data_folder(
    settings: FolderSettings,
    workdir: Path,
    name: str,
    fetch: Callable[[Any, str | None], None] | None,
) -> Path:
    """Return the folder of a set; let nilearn fill it first if that is asked for."""
    from nilearn import datasets

    given = None if settings.data_dir is None else str(workdir / settings.data_dir)
    if fetch is not None:
        try:
            fetch(datasets, given)
        except OSError as error:
            raise InputError(f"{name} cannot be downloaded: {error}.") from error
    places = [Path(place) for place in datasets.get_data_dirs(given)]
    for place in places:
        if (place / name).is_dir():
            return place / name
    raise InputError(
        f"There is no folder {name} in {' or '.join(map(str, places))}; set data_dir= "
        "to nilearn's data folder"
        + (", or download=true." if isinstance(settings, FetchSettings) else ".")
    )


def as_settings(kind: type[Any], settings: Settings, **more: object) -> Any:
    """Return what a set's settings say as settings of a general loader."""
    shared = settings.model_dump(include=set(kind.model_fields))
    return kind(**(shared | more))


def named(cohort: Cohort, source: str) -> Cohort:
    """Return the cohort under the name of its set."""
    return replace(cohort, source=source, notes=(source, *cohort.notes))


def _exact(path: Path) -> str:
    """Return a path as a pattern that means just it."""
    return glob.escape(str(path))
