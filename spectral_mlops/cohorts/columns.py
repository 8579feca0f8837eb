"""Column names of published tables of people, and the concepts behind them."""

from collections.abc import Sequence

from spectral_mlops.cohorts.delimited import Table
from spectral_mlops.errors import InputError, UnknownNameError

ALIASES: dict[str, tuple[str, ...]] = {
    "id": (
        *("participant_id", "ID", "SUB_ID", "SUBID", "subject_id", "subject"),
        *("FILE_ID", "niftifile", "filename", "freesurferfile", "", "Unnamed: 0"),
    ),
    "group": (
        *("group", "diagnosis", "dx", "DX_GROUP", "condit", "condition", "Class"),
        *("Cat", "Subject Type", "isControl", "sz"),
    ),
    "age": ("age", "Current Age", "AGE_AT_SCAN"),
    "sex": ("sex", "gender", "gen", "M/F"),
    "site": ("site", "SITE_ID", "ScannerSerialNumber"),
    "fd": ("fd", "FD Scrubbed", "func_mean_fd", "fd_mean", "mean_fd"),
}
"""Concept (the column's name in a cohort) to names seen in real tables."""


def plain(name: str) -> str:
    """Return a column name without case, blanks, underscores and hyphens."""
    return "".join(char for char in name.casefold() if char not in " _-")


def concept_of(name: str) -> str | None:
    """Return the concept that a column name stands for, if any."""
    for concept, aliases in ALIASES.items():
        if plain(name) in map(plain, aliases):
            return concept
    return None


def find_column(table: Table, concept: str, named: str | None) -> str:
    """Return the column for ``id`` or ``group``: the one named, else by alias.

    Args:
        table: The file.
        concept: ``id`` or ``group``.
        named: The user's own choice (setting ``id_column`` or ``label_column``).

    Returns:
        A name in the header.

    Raises:
        UnknownNameError: If the one named does not exist, or none was found.
        InputError: If several columns could be meant.
    """
    setting = {"id": "id_column", "group": "label_column"}[concept]
    if named is not None:
        table.column(named)
        return named
    found = [name for name in table.header if concept_of(name) == concept]
    if concept == "id":
        bids = [name for name in found if plain(name) == "participantid"]
        found = bids or found
    if len(found) > 1:
        raise InputError(
            f"{table.path}: {' and '.join(map(repr, found))} could each be the "
            f"{concept} column; name one with {setting}=."
        )
    if not found:
        raise UnknownNameError(
            f"{table.path}: no column looks like the {concept} (known names: "
            f"{', '.join(filter(None, ALIASES[concept]))}); name one of "
            f"{', '.join(table.header)} with {setting}=."
        )
    return found[0]


def rename(
    header: Sequence[str], ids: str, labels: str, target: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Map a file's column names to a cohort's; keep a name where in doubt.

    Args:
        header: All column names.
        ids: The column of ids.
        labels: The column of labels.
        target: What a cohort calls the labels.

    Returns:
        Old name to new name, and a note for each concept left in doubt.
    """
    names = {name: name or "unnamed" for name in header}
    names[labels] = target
    notes = []
    others = [name for name in header if name not in (ids, labels)]
    for concept in ALIASES:
        found = [name for name in others if concept_of(name) == concept]
        exact = [name for name in found if plain(name) == concept]
        chosen = exact or found
        if len(chosen) == 1 and concept not in ("id", target):
            names[chosen[0]] = concept
        elif len(chosen) > 1:
            spelt = ", ".join(name or "unnamed" for name in found)
            notes.append(f"{concept}: {spelt} keep their own names")
    for name in others:  # a column cannot take the target's place
        if names[name] == target:
            names[name] = f"{name} (own)"
    return names, tuple(notes)
