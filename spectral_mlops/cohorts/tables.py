"""Tables of people: who they are, which group they belong to, what else is known.

Columns are found by the names seen in published data (`columns.ALIASES`), in any case
and with or without blanks and underscores; what was found is always echoed.
Ids stay text, so that leading zeros survive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from spectral_mlops.cohorts.cohort import listed
from spectral_mlops.cohorts.columns import concept_of, find_column, rename
from spectral_mlops.cohorts.delimited import Table, is_missing, read_table
from spectral_mlops.cohorts.labels import (
    are_measurements,
    relabel,
    written_twice,
)
from spectral_mlops.errors import InputError
from spectral_mlops.registry import nearest

NUMERIC = ("age", "fd")
"""Columns read as numbers where every known cell is one; all others stay text."""


@dataclass(frozen=True, eq=False)
class People:
    """A table of people as a cohort wants it.

    Attributes:
        frame: Index ``participant_id``, columns by concept where one was found,
            else by their own name; unknown cells are missing values.
        target: Column of ``frame`` with the labels.
        label_column: What the file calls that column.
        notes: The mapping found, and the number of people per label.
    """

    frame: pd.DataFrame
    target: str
    label_column: str
    notes: tuple[str, ...]


def read_people(
    path: Path,
    id_column: str | None = None,
    label_column: str | None = None,
    label_names: Mapping[str, str] | None = None,
    keep: Sequence[str] | None = None,
    drop_unlabelled: bool = False,
) -> People:
    """Read a table of people with a label each.

    A label column that is no alias of age, sex or site is filed as ``group``.

    Args:
        path: CSV or TSV file.
        id_column: Column of ids; found by alias if not given.
        label_column: Column of labels; found by alias of ``group`` if not given.
        label_names: New name of every label, such as ``{"0": "control"}``.
        keep: Labels (new names) of the people wanted; everyone if not given.
        drop_unlabelled: Leave people without a label out, instead of refusing them.

    Returns:
        The table, its target column and notes on what was found.

    Raises:
        InputError: If an id or label is missing, an id repeats (with the same or
            another label), everyone has the same label, or a label to keep is
            nobody's.
    """
    table = read_table(path)
    ids = find_column(table, "id", id_column)
    labels = find_column(table, "group", label_column)
    known = [not is_missing(label) for label in table.column(labels)]
    unlabelled = known.count(False) if drop_unlabelled else 0
    if unlabelled == len(known):
        raise InputError(f"{path}: nobody has a label in column '{labels}'.")
    if unlabelled:
        table = _rows(table, known)
    _check_ids(table, ids, labels)
    concept = concept_of(labels)
    target = concept if concept in ("age", "sex", "site") else "group"
    names, doubts = rename(table.header, ids, labels, target)

    frame = pd.DataFrame(
        {
            new: [None if is_missing(cell) else cell for cell in table.column(old)]
            for old, new in names.items()
            if old != ids
        },
        index=pd.Index(table.column(ids), name="participant_id", dtype=object),
    )
    frame[target] = relabel(table.column(labels), label_names, table.path, labels)
    frame, others_out = _only(frame, target, keep, table.path)
    # Of those who stay: who left a study may have words in the place of an age.
    numeric = [name for name in frame if name in NUMERIC and name != target]
    frame = frame.assign(**{name: _values(frame[name]) for name in numeric})
    counts = frame[target].value_counts().sort_index()
    if len(counts) < 2:
        raise InputError(
            f"{path}: everyone has {labels}={counts.index[0]}; comparing groups needs "
            "at least two labels."
        )
    left_out = [f"unlabelled: {unlabelled} people left out"] if unlabelled else []
    left_out.extend(others_out)
    found = ", ".join(f"{new} = '{old}'" for old, new in names.items() if old != ids)
    shown = ", ".join(f"{count} {label}" for label, count in counts.items())
    if are_measurements(counts.index):
        numbers = sorted(map(float, counts.index))
        shown = f"{len(frame)} numbers, {numbers[0]:g} to {numbers[-1]:g}"
    notes = (
        f"{path.name}: id = '{ids}', {found}",
        f"{target}: {shown}",
        *left_out,
        *doubts,
        *_written_twice(frame, target),
    )
    return People(frame, target, labels, notes)


def _written_twice(frame: pd.DataFrame, target: str) -> tuple[str, ...]:
    """Say of sexes and sites that two may be one."""
    found = {
        name: written_twice(map(str, frame[name].dropna()))
        for name in ("sex", "site")
        if name in frame and name != target
    }
    return tuple(
        f"{name}: '{twice[0]}' and '{twice[1]}' may be one label written in two ways"
        for name, twice in found.items()
        if twice is not None
    )


def _rows(table: Table, kept: Sequence[bool]) -> Table:
    """Return a table with some of its rows."""
    rows = tuple(row for row, keep in zip(table.rows, kept, strict=True) if keep)
    lines = tuple(line for line, keep in zip(table.lines, kept, strict=True) if keep)
    return Table(table.path, table.header, rows, lines)


def _only(
    frame: pd.DataFrame, target: str, keep: Sequence[str] | None, path: Path
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Keep the people of some labels, and say how many others there were."""
    if keep is None:
        return frame, ()
    known = sorted(set(frame[target]))
    unknown = [label for label in keep if label not in known]
    if unknown:
        raise InputError(
            f"{path}: keep names '{unknown[0]}', which is no label of '{target}'; its "
            f"labels are {', '.join(known)}.{nearest(unknown[0], known)}"
        )
    kept = frame[frame[target].isin(list(keep))]
    return kept, (f"keep: {len(frame) - len(kept)} people of other labels left out",)


def _check_ids(table: Table, ids: str, labels: str) -> None:
    """Refuse missing ids and labels, and ids that stand twice."""
    first: dict[str, int] = {}
    unlabelled = []
    for row, (who, label) in enumerate(
        zip(table.column(ids), table.column(labels), strict=True)
    ):
        line = table.lines[row]
        if is_missing(who):
            raise InputError(
                f"{table.path}, line {line}: the id in column '{ids}' is missing; "
                "every row needs one."
            )
        if who in first:
            earlier = first[who]
            before = table.column(labels)[earlier]
            if before != label:
                what = f"contradict each other ({labels}={before} and {labels}={label})"
            elif table.rows[row] == table.rows[earlier]:
                what = "are identical"
            else:
                what = "differ in other columns"
            raise InputError(
                f"{table.path}: id {who} stands on lines {table.lines[earlier]} and "
                f"{line}, and the two rows {what}; keep the right one only."
            )
        first[who] = row
        if is_missing(label):
            unlabelled.append(f"{who} (line {line})")
    if unlabelled:
        raise InputError(
            f"{table.path}: '{labels}' is missing for {listed(unlabelled)}; label them "
            "or delete their rows."
        )


def _values(cells: "pd.Series[str]") -> "pd.Series[float] | pd.Series[str]":
    """Return a column as numbers, if all that are known are some."""
    try:
        return cells.map(lambda cell: float("nan") if cell is None else float(cell))
    except ValueError:
        return cells  # "89+"
