"""Splits as files that others can read, check and publish."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from spectral_mlops.cohorts.cohort import listed
from spectral_mlops.cohorts.delimited import read_table
from spectral_mlops.cohorts.families import families_of
from spectral_mlops.cohorts.splits import Fold, Probe
from spectral_mlops.errors import InputError

INDEX = "splits.json"
COLUMN = "participant_id"


def write_splits(folder: Path, probe: Probe | None, folds: Sequence[Fold]) -> None:
    """Write ``probe.tsv``, ``fold-<k>/train.tsv``, ``…/validation.tsv``, an index.

    Args:
        folder: Made if absent.
        probe: Written if there is one.
        folds: At least one, counted from 0.

    Raises:
        InputError: If other splits stand there: a run that goes on must not mix
            people who trained with people who validate.
    """
    if (folder / INDEX).exists() and read_splits(folder) != (probe, list(folds)):
        raise InputError(
            f"{folder} holds other splits; name another folder, or keep those."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if probe is not None:
        _write_ids(folder / "probe.tsv", probe.ids)
    for number, fold in enumerate(folds):
        place = folder / f"fold-{number}"
        place.mkdir(exist_ok=True)
        _write_ids(place / "train.tsv", fold.train_ids)
        _write_ids(place / "validation.tsv", fold.validation_ids)
    index = {
        "probe": probe and {"digest": probe.digest, "strata": probe.strata},
        "folds": [{"strata": fold.strata, "note": fold.note} for fold in folds],
    }
    text = json.dumps(index, indent=2, ensure_ascii=False)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def read_splits(folder: Path) -> tuple[Probe | None, list[Fold]]:
    """Read what `write_splits` wrote.

    Args:
        folder: Of the splits.

    Returns:
        The probe, if there is one, and the folds.

    Raises:
        InputError: If a file is missing or damaged, the probe is not the one that
            was written, or a person stands in two parts.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        folds = [
            Fold(
                _read_ids(folder / f"fold-{number}" / "train.tsv"),
                _read_ids(folder / f"fold-{number}" / "validation.tsv"),
                tuple(entry["strata"]),
                entry["note"],
            )
            for number, entry in enumerate(index["folds"])
        ]
        stored = index["probe"]
        probe = stored and Probe(
            _read_ids(folder / "probe.tsv"), tuple(stored["strata"])
        )
        unchanged = not probe or probe.digest == stored["digest"]
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is damaged; write the splits anew.") from error
    if not unchanged:
        raise InputError(
            f"{folder / 'probe.tsv'} is not the probe that was set aside (its digest "
            "differs); restore it."
        )
    _check_apart(folder, probe, folds)
    return probe, folds


def reuse_splits(
    folder: Path, people: pd.DataFrame, target: str | None
) -> tuple[Probe | None, list[Fold]]:
    """Read splits for a cohort, such as those of another run (``RUN/splits``).

    Args:
        folder: Written by `write_splits`.
        people: Of the cohort, index of ids.
        target: Column of classes that is predicted; none if a number is.

    Returns:
        The probe, if there is one, and the folds.

    Raises:
        InputError: If the splits know other people than the cohort, a fold's training
            people lack a label, relatives are apart, or `read_splits` refuses them.
    """
    probe, folds = read_splits(folder)
    ids = [str(who) for who in people.index]
    aside = set(probe.ids) if probe else set()
    if not folds:
        raise InputError(f"{folder} holds no fold; write the splits anew.")
    for number, fold in enumerate(folds):
        placed = {*aside, *fold.train_ids, *fold.validation_ids}
        if strangers := sorted(placed - set(ids)):
            raise InputError(
                f"{folder}, fold {number}: {len(strangers)} people are not in the "
                f"cohort ({listed(strangers)}); use the splits of these people."
            )
        if left := [who for who in ids if who not in placed]:
            raise InputError(
                f"{folder}, fold {number}: {len(left)} people of the cohort are in no "
                f"part ({listed(left)}); place them, or leave them out of the cohort."
            )
        _check_fold(folder, number, fold, people, target, aside)
    return probe, folds


def check_unseen(ids: Iterable[str], run: Path) -> None:
    """Refuse people who trained or chose checkpoints in a run, as new ones.

    Numbers of a run's networks on people who helped to make them say nothing about
    anybody else. The run's probe is not among those.

    Args:
        ids: Of the people that the networks are to be tried on.
        run: Folder of the run.

    Raises:
        InputError: Naming some of them, or if the run has no splits.
    """
    _, folds = read_splits(run / "splits")
    used = {who for fold in folds for who in (*fold.train_ids, *fold.validation_ids)}
    asked = dict.fromkeys(str(who) for who in ids)
    if known := [who for who in asked if who in used]:
        raise InputError(
            f"{len(known)} of {len(asked)} people ({listed(known)}) trained or chose "
            f"checkpoints in {run}: they are not new to its networks; leave them out."
        )


def _check_fold(
    folder: Path,
    number: int,
    fold: Fold,
    people: pd.DataFrame,
    target: str | None,
    aside: set[str],
) -> None:
    """Refuse a fold that cannot learn every label, or parts relatives."""
    lacking: set[str] = set()
    if target is not None:
        lacking = {str(x) for x in people[target]}
        lacking -= {str(x) for x in people.loc[list(fold.train_ids), target]}
    if lacking:
        raise InputError(
            f"{folder}, fold {number}: nobody in training has {target}="
            f"{min(lacking)}; a network cannot learn what it never sees."
        )
    families = families_of(people)
    if families is None:
        return
    parts = (fold.train_ids, fold.validation_ids, aside)
    names = [set(families[list(part)]) for part in parts]
    both = (names[0] & names[1]) | (names[0] & names[2]) | (names[1] & names[2])
    if both:
        raise InputError(
            f"{folder}, fold {number}: family '{min(both)}' stands in two of training, "
            "validation and probe; relatives belong to one."
        )


def _check_apart(folder: Path, probe: Probe | None, folds: Sequence[Fold]) -> None:
    """Refuse a person who stands in two parts of one split."""
    aside = set(probe.ids) if probe else set()
    for number, fold in enumerate(folds):
        train, held = set(fold.train_ids), set(fold.validation_ids)
        twice = sorted((train & held) | (aside & (train | held)))
        if twice:
            raise InputError(
                f"{folder}, fold {number}: {twice[0]} stands in two of training, "
                "validation and probe; each person belongs to one."
            )


def _write_ids(path: Path, ids: Sequence[str]) -> None:
    """Write a table of ids alone."""
    path.write_text("\n".join([COLUMN, *ids]) + "\n", encoding="utf-8")


def _read_ids(path: Path) -> tuple[str, ...]:
    """Read a table of ids."""
    return tuple(read_table(path).column(COLUMN))
