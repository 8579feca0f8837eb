"""Loader ``timecourses``: everyone's time courses and a table of people, by id."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from spectral_mlops.cohorts.atlas import AtlasKind, Confounds, atlas_extractor
from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.fmriprep import (
    ConfoundSettings,
    confounds_note,
    confounds_of,
)
from spectral_mlops.cohorts.joining import check_matched
from spectral_mlops.cohorts.lengths import Lengths, check_equal, crop, pad, windows
from spectral_mlops.cohorts.loaders import Progress, register_cohort
from spectral_mlops.cohorts.measure import Estimator, Kind, connectivity_of
from spectral_mlops.cohorts.missing_series import Dead, repair
from spectral_mlops.cohorts.orientation import Orientation, orient
from spectral_mlops.cohorts.patterns import find_files, has_place
from spectral_mlops.cohorts.people_settings import (
    PeopleSettings,
    positive_of,
    read_labelled,
)
from spectral_mlops.cohorts.pipelines import check_pipelines
from spectral_mlops.cohorts.series_files import (
    Extract,
    Series,
    read_numpy,
    read_series,
)
from spectral_mlops.cohorts.space import FeatureSpace
from spectral_mlops.cohorts.tables import People
from spectral_mlops.cohorts.triangles import Order
from spectral_mlops.errors import InputError


class SeriesSettings(ConfoundSettings):
    """What is done with time courses, whatever they are read from."""

    components: int | None = Field(None, ge=1, description="how many, if known")
    timepoints: int | None = Field(None, ge=1, description="how many, if known")
    orientation: Orientation = Field(
        "auto", description="of arrays without names; 'auto' decides or refuses"
    )
    lengths: Lengths = Field("raise", description="what to do where they are unequal")
    window: int | None = Field(None, ge=1, description="time points of one window")
    stride: int | None = Field(None, ge=1, description="window if not given")
    dead: Dead = Field("raise", description="about constant components and gaps")
    connectivity: Kind | None = Field(
        None, description="compute it and use it instead of the time courses"
    )
    estimator: Estimator = Field(
        "empirical", description="of covariance; nilearn's own default: 'ledoit-wolf'"
    )
    fisher_z: bool = Field(False, description="artanh of the correlations")
    order: Order = Field("upper", description="triangle of computed connectivity")
    atlas: Path | None = Field(
        None, description="NIfTI of regions, maps or a mask that images are read with"
    )
    atlas_kind: AtlasKind = Field("labels", description="what the atlas holds")
    resample: bool = Field(False, description="let nilearn bring the atlas to images")


class TimecourseSettings(SeriesSettings, PeopleSettings):
    """Settings of the loader ``timecourses``; relative paths: below the work folder."""

    series: str = Field(
        description="NPZ of everyone, or a file a person: 'ts/{participant_id}.tsv'"
    )
    labels: Path = Field(description="CSV or TSV table of people")
    variable: str | None = Field(None, description="array of an NPZ or MATLAB file")


@register_cohort("timecourses", TimecourseSettings)
def load_timecourses(
    settings: TimecourseSettings,
    workdir: Path,
    progress: Progress | None = None,
    confounds: Confounds | None = None,
) -> Cohort:
    """Load time courses and labels from files.

    Args:
        settings: Which files, and how they are to be read.
        workdir: Folder that relative paths are below.
        progress: Told about people read.
        confounds: Regressed out of images instead of those of fMRIPrep.

    Returns:
        Modality ``timecourses``, features ``[people, T, C]`` (with ``lengths`` where
        padded) or ``[people, windows, T, C]``; with ``connectivity`` set modality
        ``fnc``, features ``[people, C(C-1)/2]``.
    """
    check_series(settings, images=settings.atlas is not None)
    people = read_labelled(settings, workdir / settings.labels)
    paths: Mapping[str, Path] = {}
    if has_place(settings.series):
        paths, matched = find_files(
            settings.series,
            workdir,
            people.frame,
            settings.labels,
            settings.unmatched,
        )
        extract = extractor(settings, workdir, confounds)
        series = read_files(paths, settings.variable, extract, progress)
    else:
        place = workdir / settings.series
        series, matched = _from_archive(settings, place, people.frame)
    table = workdir / settings.labels
    frame = people.frame.loc[list(series)]
    pooled = check_pipelines(frame, paths, settings.series, settings.pool_pipelines)
    positive, chosen = positive_of(settings, people, series, table)
    images = settings.atlas is not None and confounds is None
    denoised = (confounds_note(settings),) if images else ()
    notes = (*people.notes, chosen, matched, *pooled, *denoised)
    return build_cohort(series, people, positive, settings, settings.series, notes)


def check_series(settings: SeriesSettings, images: bool) -> None:
    """Refuse settings that would do nothing: whoever set them believes otherwise.

    Args:
        settings: What is done with time courses.
        images: Whether they are read from images.

    Raises:
        InputError: For the first of them.
    """
    derived = settings.fisher_z or settings.estimator != "empirical"
    idle = {
        "window= and stride= need lengths='window'": bool(
            settings.window or settings.stride
        )
        and settings.lengths != "window",
        "fisher_z= and estimator= need connectivity=": derived
        and settings.connectivity is None,
        "confounds= are regressed out of images read through atlas=; tables of time "
        "courses are taken as they are": bool(settings.confounds) and not images,
    }
    for reason, unused in idle.items():
        if unused:
            raise InputError(f"These settings would do nothing: {reason}.")


def extractor(
    settings: SeriesSettings, workdir: Path, confounds: Confounds | None = None
) -> Extract | None:
    """Return what turns images into time courses, if an atlas is set.

    Args:
        settings: Atlas, and confounds of fMRIPrep.
        workdir: Folder that relative paths are below.
        confounds: Instead of those of fMRIPrep.

    Returns:
        None without an atlas.
    """
    if settings.atlas is None:
        return None
    return atlas_extractor(
        workdir / settings.atlas,
        settings.atlas_kind,
        settings.resample,
        confounds or confounds_of(settings),
    )


def build_cohort(
    series: Mapping[str, Series],
    people: People,
    positive: str,
    settings: SeriesSettings,
    source: str,
    notes: tuple[str, ...],
) -> Cohort:
    """Orient, repair and stack time courses, or compute connectivity from them.

    Args:
        series: As read, by id.
        people: Table with at least these people.
        positive: Label counted as positive.
        settings: What is done with them.
        source: Where they came from, for messages and records.
        notes: Of what happened before.

    Returns:
        The cohort, in the order of ``series``.

    Raises:
        InputError: If a policy refuses what it meets.
    """
    turned, names, told = orient(
        series, settings.components, settings.timepoints, settings.orientation
    )
    said = [told]
    if settings.lengths == "crop":
        turned, told = crop(turned)
        said.append(told)
    elif settings.lengths == "raise":
        check_equal(turned, source)
    finite, told_missing = repair(turned, settings.dead, names, source)
    said.extend(told_missing)
    frame = people.frame.loc[list(finite)]
    if len(frame) < len(series):
        counts = frame[people.target].value_counts().sort_index()
        left = ", ".join(f"{count} {label}" for label, count in counts.items())
        said.append(f"{people.target} of those left: {left}")
    lengths, space, modality = None, FeatureSpace(None, names), "timecourses"
    if settings.connectivity is not None:
        features, told = _connectivity(finite, settings, source)
        space, modality = FeatureSpace(settings.order, names), "fnc"
    elif settings.lengths == "window":
        features, told = windows(finite, settings.window, settings.stride, source)
    else:
        features, lengths, told = pad(finite)
    return Cohort(
        people=frame,
        features=features,
        modality=modality,
        target=people.target,
        positive=positive,
        source=source,
        notes=(*notes, *said, told),
        space=space,
        lengths=lengths,
    )


def _connectivity(
    series: Mapping[str, np.ndarray], settings: SeriesSettings, source: str
) -> tuple[np.ndarray, str]:
    """Compute connectivity, each person's from all time points there are."""
    if settings.lengths == "window":
        raise InputError(
            "connectivity= takes one matrix a person from all time points; set lengths="
            "'crop' (equal precision) or 'pad' (each one's own length), not 'window'."
        )
    if settings.dead == "zero":
        raise InputError(
            "connectivity= cannot correlate components set to zero; choose "
            "dead='drop_subject' or 'impute_mean'."
        )
    kind = settings.connectivity
    assert kind is not None
    features, told = connectivity_of(
        series, kind, settings.estimator, settings.fisher_z, settings.order, source
    )
    counts = {len(one) for one in series.values()}
    return features, f"{told}, {min(counts)} to {max(counts)} time points a person"


def read_files(
    paths: Mapping[str, Path],
    variable: str | None = None,
    extract: Extract | None = None,
    progress: Progress | None = None,
) -> dict[str, Series]:
    """Read one file a person.

    Args:
        paths: By id.
        variable: Which array of an NPZ or MATLAB file.
        extract: What makes time courses of an image.
        progress: Told about people read.

    Returns:
        Time courses by id, in the same order.
    """
    series = {}
    for done, (who, path) in enumerate(paths.items(), start=1):
        series[who] = read_series(path, variable, extract)
        if progress:
            progress("reading time courses", done, len(paths))
    return series


def _from_archive(
    settings: TimecourseSettings, path: Path, frame: pd.DataFrame
) -> tuple[dict[str, Series], str]:
    """Take everyone's arrays from one NPZ: by id, or with an array ``ids``."""
    if path.suffix != ".npz":
        raise InputError(
            f"series='{settings.series}' is one file for everyone, which must be an "
            "NPZ; for one file a person name a column: 'ts/{participant_id}.tsv'."
        )
    arrays = read_numpy(path)
    if {"ids", "timecourses"} <= set(arrays):
        ids, stacked = arrays["ids"], arrays["timecourses"]
        if stacked.ndim != 3 or ids.shape != stacked.shape[:1]:
            raise InputError(
                f"{path}: ids have shape {ids.shape} and timecourses {stacked.shape}; "
                "expected [people] and three axes, people first."
            )
        names = [str(who).strip() for who in ids.tolist()]
        repeated = [who for k, who in enumerate(names) if who in names[:k]]
        if repeated:
            raise InputError(f"{path}: id {repeated[0]} stands more than once in ids.")
        arrays = dict(zip(names, stacked, strict=True))
    for who, array in arrays.items():
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise InputError(
                f"{path}: '{who}' has shape {array.shape} and type {array.dtype}; "
                "expected an array of numbers with two axes a person, named by id, or "
                "the arrays 'ids' and 'timecourses'."
            )
    listed_ids = [str(who) for who in frame.index]
    joined = [who for who in arrays if who in set(listed_ids)]
    told = check_matched(
        len(joined),
        [who for who in arrays if who not in set(listed_ids)],
        [who for who in listed_ids if who not in arrays],
        (path.name, settings.labels.name),
        f"{path} and {settings.labels}",
        settings.unmatched,
    )
    series = {
        who: Series(f"{path}: {who}", arrays[who].astype(np.float64)) for who in joined
    }
    return series, told
