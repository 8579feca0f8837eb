"""What made each person's features: several pipelines are not pooled silently.

The same people, processed twice, may agree to 0.6 only. Three things tell a pipeline: a
column of the table, entities in the names of files, and the card of derivatives
(``dataset_description.json``) nearest to a file. Where no card says anything, several
folders that only a wild card found may be several pipelines; a user who names them by a
column (``{site}/…``) knows what they are.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from spectral_mlops.cohorts.bids_files import parse_name
from spectral_mlops.cohorts.cohort import listed
from spectral_mlops.cohorts.columns import plain
from spectral_mlops.cohorts.patterns import unnamed_folder
from spectral_mlops.cohorts.phenotype import made_by
from spectral_mlops.errors import InputError

COLUMNS = ("pipeline", "pipelineversion", "preprocessing", "preproc")
"""Columns that tell, without case, blanks and underscores."""
ENTITIES = ("space", "res", "den", "desc", "label", "seg", "atlas")
"""Entities of file names that tell what was done; ``ses`` or ``run`` do not."""
CARD = "dataset_description.json"
UNSTATED = "a pipeline not stated"


def check_pipelines(
    people: pd.DataFrame, paths: Mapping[str, Path], where: object, pool: bool
) -> tuple[str, ...]:
    """Refuse or accept people who come from several pipelines.

    Args:
        people: Those of the cohort, index of ids.
        paths: File by id, where everyone has one.
        where: What was read, for the message; files by the pattern that found them.
        pool: Whether that is accepted.

    Returns:
        A note if several were accepted.

    Raises:
        InputError: If there are several and they are not: names them and their people.
    """
    told = _told(people, paths, str(where))
    differing = [column for column in told if told[column].nunique() > 1]
    if not differing:
        return ()
    spelt = told[differing].agg(" ".join, axis=1)
    groups = spelt.groupby(spelt).groups
    shown = _listed({str(name): [*ids] for name, ids in groups.items()})
    if pool:
        return (f"{len(groups)} pipelines pooled (pool_pipelines=true): {shown}",)
    way_out = "so take one of them"
    if differing == ["card"] and spelt.str.startswith(UNSTATED).all():
        way_out = "so name one folder, or have a column name it ('{site}/…')"
    raise InputError(
        f"{where}: people come from {len(groups)} pipelines, {shown}; pipelines differ "
        f"as groups of people do, {way_out}, or set pool_pipelines=true."
    )


def _listed(people_of: Mapping[str, list[str]]) -> str:
    """Say how many people each pipeline has, and who, the largest first."""
    sizes = sorted(people_of.items(), key=lambda item: (-len(item[1]), item[0]))
    return " and ".join(
        f"{len(ids)} of {name} ({listed(map(str, ids))})" for name, ids in sizes
    )


def _told(
    people: pd.DataFrame, paths: Mapping[str, Path], pattern: str
) -> pd.DataFrame:
    """Return what is known of each person's pipeline, a text a cell."""
    told = {
        str(name): [
            f"{name} not stated" if pd.isna(value) else f"{name}={value}"
            for value in people[name].astype(object)
        ]
        for name in people.columns
        if plain(str(name)) in COLUMNS
    }
    files = [paths[str(who)] for who in people.index if str(who) in paths]
    if len(files) == len(people):
        found = [parse_name(path.name)[0] for path in files]
        for name in ENTITIES:
            told[f"file {name}"] = [
                f"{name}-{own[name]}" if name in own else f"no {name}" for own in found
            ]
        cards: dict[Path, str] = {}
        told["card"] = [
            _card(path.parent, cards) or _unstated(unnamed_folder(pattern, path))
            for path in files
        ]
    return pd.DataFrame(told, index=people.index, dtype=object)


def _unstated(folder: str) -> str:
    """Say that nothing tells a file's pipeline, and where it was found by chance."""
    return f"{UNSTATED} (no {CARD}) in {folder}" if folder else UNSTATED


def _card(folder: Path, known: dict[Path, str]) -> str:
    """Return what made the files below a folder, by the nearest card that says so."""
    if folder not in known:
        made = made_by(folder / CARD)
        if not made and folder.parent != folder:
            made = _card(folder.parent, known)
        known[folder] = made
    return known[folder]
