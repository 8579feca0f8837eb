"""Loader ``fnc``: vectorised connectivity and a table of labels, joined by id."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.joining import Unmatched, check_matched
from spectral_mlops.cohorts.labels import choose_positive
from spectral_mlops.cohorts.loaders import Progress, register_cohort
from spectral_mlops.cohorts.matlab_vectors import read_matlab_vectors
from spectral_mlops.cohorts.pipelines import check_pipelines
from spectral_mlops.cohorts.space import FeatureSpace, networks_of
from spectral_mlops.cohorts.tables import read_people
from spectral_mlops.cohorts.triangles import (
    Order,
    check_order,
    kept_diagonal,
    size_of,
)
from spectral_mlops.cohorts.vectors import Vectors, checked, read_vectors
from spectral_mlops.config import Settings
from spectral_mlops.errors import InputError


class FncSettings(Settings):
    """Settings of the loader ``fnc``; relative paths are below the work folder."""

    features: Path = Field(description="CSV, TSV, NPZ or MATLAB file of connections")
    labels: Path = Field(description="CSV or TSV table of people")
    order: Order = Field(
        description="row-major 'upper' (GIFT) or 'lower' (nilearn) triangle"
    )
    variable: str | None = Field(None, description="array of a MATLAB file")
    row_ids: Path | None = Field(
        None, description="of a MATLAB file without ids: a table in its order of rows"
    )
    check_order: bool = Field(True, description="by positive definiteness")
    id_column: str | None = Field(None, description="found by alias if not given")
    label_column: str | None = Field(None, description="found by alias if not given")
    label_names: dict[str, str] | None = Field(None, description="0 = 'control', …")
    positive: str | None = Field(None, description="label counted as positive")
    missing: Literal["raise", "drop_subject"] = Field(
        "raise", description="what to do about people with missing connections"
    )
    unmatched: Unmatched = Field(
        "raise", description="what to do about people in only one of the files"
    )
    pool_pipelines: bool = Field(
        False, description="accept people whose files were made differently"
    )


@register_cohort("fnc", FncSettings)
def load_fnc(
    settings: FncSettings, workdir: Path, progress: Progress | None = None
) -> Cohort:
    """Load connectivity vectors and labels from files.

    Values stay as they are: Fisher z is recognised for the check of the order
    only, and columns keep their order. Rows follow the features file.

    Args:
        settings: Which files, and how they are to be read.
        workdir: Folder that relative paths are below.
        progress: Not used: two small files.

    Returns:
        The cohort, features ``[people, n(n-1)/2]``.
    """
    del progress
    vectors, told = _read(settings, workdir)
    people = read_people(
        workdir / settings.labels,
        settings.id_column,
        settings.label_column,
        settings.label_names,
    )
    size = size_of(vectors.values.shape[1], vectors.path)
    keep, joined = _join(
        vectors, list(people.frame.index), workdir / settings.labels, settings
    )
    keep, dropped = _without_missing(vectors, keep, settings.missing)
    values = vectors.values[keep]
    connections = [*_measure(values, size, settings, vectors.path)]
    frame = people.frame.loc[[vectors.ids[row] for row in keep]]
    pooled = check_pipelines(frame, {}, settings.labels, settings.pool_pipelines)
    positive, chosen = choose_positive(
        [str(label) for label in frame[people.target]],
        settings.positive,
        people.label_column,
        workdir / settings.labels,
    )
    return Cohort(
        people=frame,
        features=values.astype(np.float32),
        modality="fnc",
        target=people.target,
        positive=positive,
        source=str(settings.features),
        notes=(*people.notes, chosen, *told, *joined, *dropped, *pooled, *connections),
        space=FeatureSpace(settings.order, networks_of(vectors.names, settings.order)),
    )


def _read(settings: FncSettings, workdir: Path) -> tuple[Vectors, tuple[str, ...]]:
    """Read the connections, and say what a MATLAB file held."""
    path = workdir / settings.features
    if path.suffix.lower() != ".mat":
        return read_vectors(path, settings.id_column), ()
    ids, values, told = read_matlab_vectors(
        path,
        settings.order,
        settings.variable,
        None if settings.row_ids is None else workdir / settings.row_ids,
    )
    names = tuple(f"#{k + 1}" for k in range(values.shape[1]))
    return checked(Vectors(path, ids, names, values)), (told,)


def _join(
    vectors: Vectors, labelled: list[str], labels: Path, settings: FncSettings
) -> tuple[list[int], tuple[str, ...]]:
    """Return the rows of people that stand in both files, and what was left out."""
    known, featured = set(labelled), set(vectors.ids)
    keep = [row for row, who in enumerate(vectors.ids) if who in known]
    told = check_matched(
        len(keep),
        [who for who in vectors.ids if who not in known],
        [who for who in labelled if who not in featured],
        (vectors.path.name, labels.name),
        f"{vectors.path} and {labels}",
        settings.unmatched,
    )
    return keep, (told,)


def _without_missing(
    vectors: Vectors, keep: list[int], missing: str
) -> tuple[list[int], tuple[str, ...]]:
    """Refuse or leave out people with a value that is not finite."""
    bad = ~np.isfinite(vectors.values[keep])
    if not bad.any():
        return keep, ()
    good = [bool(row.all()) for row in ~bad]
    affected = [
        vectors.ids[row] for row, fine in zip(keep, good, strict=True) if not fine
    ]
    row, column = (int(i) for i in np.argwhere(bad)[0])
    if missing == "raise":
        raise InputError(
            f"{vectors.path}: {int(bad.sum())} values of {len(affected)} people are "
            f"missing or not finite, the first that of {vectors.ids[keep[row]]} in "
            f"column '{vectors.names[column]}'; repair them, or set "
            "missing='drop_subject' to leave these people out."
        )
    if len(affected) == len(keep):
        raise InputError(
            f"{vectors.path}: everyone has a missing value, so missing='drop_subject' "
            f"leaves nobody; column '{vectors.names[column]}' is one to look at."
        )
    rest = [row for row, fine in zip(keep, good, strict=True) if fine]
    note = f"missing='drop_subject' left out {len(affected)}: {', '.join(affected)}"
    return rest, (note,)


def _measure(
    values: np.ndarray, size: int, settings: FncSettings, path: Path
) -> tuple[str, ...]:
    """Check triangle and order; say whether the values are r or Fisher z."""
    networks = kept_diagonal(values)
    if networks is not None:
        raise InputError(
            f"{path}: {values.shape[1]} columns are {networks}({networks}+1)/2, and "
            f"those on the diagonal of {networks} networks are the same for everyone: "
            f"the diagonal was kept; leave it out, {networks * (networks - 1) // 2} "
            "columns remain."
        )
    fisher = bool((np.abs(values) > 1 + 1e-6).any())
    measure = (
        "Fisher z (some values exceed 1; kept as they are)"
        if fisher
        else "correlations (no value exceeds 1)"
    )
    notes = (f"{values.shape[1]} connections of {size} networks, {measure}",)
    if not settings.check_order:
        return (*notes, f"order {settings.order}: not checked (check_order=false)")
    correlations = np.tanh(values) if fisher else values
    return (*notes, check_order(correlations, settings.order, path))
