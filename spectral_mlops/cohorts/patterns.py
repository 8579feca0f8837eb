"""One file a person, found by a pattern that names columns of the table of people."""

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from spectral_mlops.cohorts.joining import Unmatched, check_matched
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.registry import nearest

PLACE = re.compile(r"\{(\w+)\}")


def has_place(pattern: str) -> bool:
    """Tell whether a pattern names a column, ``{participant_id}``."""
    return PLACE.search(pattern) is not None


def find_files(
    pattern: str, workdir: Path, frame: pd.DataFrame, table: Path, unmatched: Unmatched
) -> tuple[dict[str, Path], str]:
    """Find each person's file; count people without one and files without a person.

    Args:
        pattern: ``ts/{file_id}_*.tsv``: columns in braces, otherwise wild cards.
        workdir: Folder that a relative pattern is below.
        frame: Table of people, index of ids.
        table: Its file, for messages.
        unmatched: What is done about either kind.

    Returns:
        Path by id, in the order of the table, and a note.

    Raises:
        UnknownNameError: If a column does not exist.
        InputError: If more than one file could be a person's, or people and files
            differ under ``raise``.
    """
    place = str(Path(glob.escape(str(workdir))) / pattern)
    paths = {
        str(who): _file_of(place, {"participant_id": who, "id": who} | row.to_dict())
        for who, row in frame.iterrows()
    }
    found = {who: path for who, path in paths.items() if path is not None}
    _check_apart(found)
    everything = PLACE.sub("*", place)
    claimed = {str(path) for path in found.values()}
    extra = sorted(set(glob.glob(everything)) - claimed)
    told = check_matched(
        len(found),
        [Path(path).name for path in extra],
        [who for who in paths if who not in found],
        (f"files {Path(everything).name}", "the table"),
        f"{pattern} and {table}",
        unmatched,
    )
    return found, told


def unnamed_folder(pattern: str, path: Path) -> str:
    """Return the folder of all people's files, where a wild card alone led to it.

    Args:
        pattern: That found the file: of ``deriv-*/func/{participant_id}.tsv`` it is
            ``deriv-1/func``; none of ``{site}/{participant_id}.tsv``, a column names
            it, nor of ``{participant_id}/ses-*/t.tsv``, which is below one person.
        path: The file.

    Returns:
        The folders that the pattern's own stand for; empty if it names them.
    """
    parts = Path(pattern).parts
    first = next((k for k, part in enumerate(parts) if has_place(part)), 0)
    if not any(map(glob.has_magic, parts[:first])):
        return ""
    end = len(path.parts) - (len(parts) - first)
    return str(Path(*path.parts[end - first : end]))


def _file_of(pattern: str, known: Mapping[Any, object]) -> Path | None:
    """Return the one file that a person's values in the pattern lead to, if any."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in known:
            raise UnknownNameError(
                f"{pattern}: the table of people has no column '{name}'; it has "
                f"{', '.join(map(str, known))}.{nearest(name, list(known))}"
            )
        value = known[name]
        return "\0" if value is None or value != value else glob.escape(str(value))

    filled = PLACE.sub(fill, pattern)
    if "\0" in filled:
        return None  # the person's cell is empty
    files = sorted(glob.glob(filled))
    if len(files) > 1:
        raise InputError(
            f"{filled} is more than one file ({files[0]}, {files[1]}); make the "
            "pattern name one a person."
        )
    return Path(files[0]) if files else None


def _check_apart(found: Mapping[str, Path]) -> None:
    """Refuse two people with one file."""
    owner: dict[Path, str] = {}
    for who, path in found.items():
        if path in owner:
            raise InputError(
                f"{path} would be the file of both {owner[path]} and {who}; make the "
                "pattern name one a person."
            )
        owner[path] = who
