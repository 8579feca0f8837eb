"""Tables beside NIAK's images: confounds to regress, and frames that were censored.

Nothing in NIAK's release is regressed or left out: a column ``scrub`` is 1 for frames
of much motion. ``Frames OK``, in the table of people, counts those that are 0.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.columns import plain
from spectral_mlops.cohorts.delimited import Table, is_missing, read_table
from spectral_mlops.errors import InputError

Censored = Literal["raise", "drop", "keep"]
COLUMNS = ("scrub", "scrubbed", "scrubbing", "censor", "censored")
FRAMES = "framesok"
"""Column of the table of people, without case, blanks and underscores."""


class Beside:
    """Loads what stands beside an image, as `atlas.atlas_extractor` wants it.

    Args:
        regress: Whether all columns but that of censored frames are regressed out.
        censored: What is done about censored frames.
        frames: How many frames of a person are fit for use, by id without zeros.

    Attributes:
        people: How many people had censored frames.
        left: How many frames those were.
        seen: Of how many.
    """

    def __init__(
        self, regress: bool, censored: Censored, frames: Mapping[str, int]
    ) -> None:
        self._regress, self._censored, self._frames = regress, censored, frames
        self.people = self.left = self.seen = 0

    def __call__(self, path: Path) -> tuple[Any, Any]:
        """Return confounds ``[T, k]`` and the time points kept, None for all."""
        place = path.with_name(path.name.replace(".nii", ".tsv"))
        if not self._regress and self._censored != "drop" and not place.is_file():
            return None, None
        table = read_table(place)
        values = _numbers(table)
        names = [name for name in table.header if plain(name) in COLUMNS]
        marked = self._marked(table, names, values)
        kept = None
        if marked.any():
            self.people += 1
            self.left += int(marked.sum())
            kept = np.flatnonzero(~marked) if self._censored == "drop" else None
        self.seen += len(values)
        if self._censored == "drop":
            self._check_count(path, place, int((~marked).sum()))
        others = [name not in names for name in table.header]
        return (values[:, others] if self._regress else None), kept

    @property
    def note(self) -> str:
        """What was done about censored frames."""
        if not self.left:
            return "no frames are marked as censored"
        did = "left out" if self._censored == "drop" else "kept"
        return (
            f"censored='{self._censored}': {self.left} of {self.seen} frames, of "
            f"{self.people} people, are marked as censored and {did}"
        )

    def _marked(
        self, table: Table, names: list[str], values: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Return which frames are censored; refuse them where nothing is to be done."""
        if not names:
            if self._censored == "drop":
                raise InputError(
                    f"{table.path} has no column of censored frames "
                    f"({', '.join(COLUMNS)}), so censored='drop' would do nothing; "
                    "leave it out."
                )
            return np.zeros(len(values), dtype=bool)
        marks = values[:, table.header.index(names[0])]
        if not np.isin(marks, (0, 1)).all():
            raise InputError(
                f"{table.path}: column '{names[0]}' must be 1 for censored frames and "
                "0 for others; repair it."
            )
        found = marks == 1
        if found.any() and self._censored == "raise":
            raise InputError(
                f"{table.path}: {int(found.sum())} of {len(found)} frames are marked "
                f"as censored ('{names[0]}'); set censored='drop' to leave such frames "
                "out, or 'keep'."
            )
        if found.all() and self._censored == "drop":
            raise InputError(
                f"{table.path}: every frame is marked as censored ('{names[0]}'); "
                "leave the person out of the table."
            )
        return found

    def _check_count(self, path: Path, place: Path, left: int) -> None:
        """Refuse marks that contradict the table of people: they may be inverted."""
        who = path.name.split(".")[0].rpartition("_")[2].lstrip("0")
        said = self._frames.get(who)
        if said is not None and said != left:
            raise InputError(
                f"{place} leaves {left} frames and the table of people says "
                f"{said} ('Frames OK'); find out which is right (1 means censored), or "
                "set censored='keep'."
            )


def frames_of(table: Table, ids: str) -> dict[str, int]:
    """Return how many frames of each person are fit for use, where it is said.

    Args:
        table: Of people.
        ids: Its column of ids.

    Returns:
        Numbers by id without leading zeros.
    """
    found = [name for name in table.header if plain(name) == FRAMES]
    if not found:
        return {}
    cells = zip(table.column(ids), table.column(found[0]), strict=True)
    return {
        who.lstrip("0"): int(float(cell))
        for who, cell in cells
        if not is_missing(cell) and cell.replace(".", "", 1).isdigit()
    }


def _numbers(table: Table) -> NDArray[np.float64]:
    """Return all columns, gaps at their mean."""
    try:
        values = np.array(
            [[np.nan if is_missing(c) else float(c) for c in row] for row in table.rows]
        )
    except ValueError as error:
        raise InputError(f"{table.path}: {error}; expected numbers only.") from error
    known = np.isfinite(values)
    mean = np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, values, mean)
