"""Sidecars and further tables of a BIDS folder: meanings of codes, scores by id."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spectral_mlops.cohorts.columns import find_column
from spectral_mlops.cohorts.delimited import is_missing, read_table
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.registry import nearest


def read_pipeline(folder: Path) -> str:
    """Say what made a folder of derivatives: pipelines are not to be pooled.

    Args:
        folder: With ``dataset_description.json``, if there is one.

    Returns:
        A note: names and versions, or that they are not stated.

    Raises:
        InputError: If the card is damaged.
    """
    made = made_by(folder / "dataset_description.json")
    if not made:
        return f"{folder.name}: the pipeline is not stated (no GeneratedBy)"
    return f"{folder.name}: made by {made}"


def made_by(card: Path) -> str:
    """Return names and versions of the tools that a data set's card names.

    Args:
        card: ``dataset_description.json``; it may be absent.

    Returns:
        Empty if none are named.

    Raises:
        InputError: If the card is damaged.
    """
    made = _read_json(card).get("GeneratedBy") or []
    tools = [tool for tool in made if isinstance(tool, dict) and "Name" in tool]
    names = (f"{tool['Name']} {tool.get('Version', '')}".strip() for tool in tools)
    return ", ".join(names)


def read_sidecar(path: Path) -> dict[str, dict[str, Any]]:
    """Read what a table's columns mean.

    Args:
        path: JSON beside the table; it may be absent.

    Returns:
        Description by column; columns that have none are left out.

    Raises:
        InputError: If it is damaged or no mapping.
    """
    content = _read_json(path)
    return {name: item for name, item in content.items() if isinstance(item, dict)}


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({error}); repair or remove it."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must map names to descriptions; repair it.")
    return content


def levels_of(sidecar: dict[str, dict[str, Any]], column: str) -> dict[str, str]:
    """Return the meaning of each code of a column, none where nobody said."""
    levels = sidecar.get(column, {}).get("Levels", {})
    if not isinstance(levels, dict):
        return {}
    return {
        str(code): str(
            said.get("Description", code) if isinstance(said, dict) else said
        )
        for code, said in levels.items()
    }


def echo_levels(
    sidecar: dict[str, dict[str, Any]], column: str, cells: Sequence[str]
) -> tuple[str, ...]:
    """Say what the labels of a column mean, and which have no stated meaning."""
    levels = levels_of(sidecar, column)
    if not levels:
        return ()
    known = sorted(set(cells))
    said = [f"{code} = {levels[code]}" for code in known if code in levels]
    unknown = [code for code in known if code not in levels]
    notes = [f"'{column}' as described: {'; '.join(said) or 'none of its labels'}"]
    if unknown:
        notes.append(f"'{column}': no description of {', '.join(unknown)}")
    return tuple(notes)


def join_phenotype(
    frame: pd.DataFrame, folder: Path, tools: Sequence[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Add the columns of ``phenotype/<tool>.tsv``, joined by id.

    A column keeps its name where that is free, else it becomes ``tool.name``.
    Columns of numbers become numbers unless the sidecar gives their codes meanings.

    Args:
        frame: Table of people, index of ids.
        folder: Of the data set.
        tools: Names of the tables.

    Returns:
        A wider table of the same people, and notes with counts.

    Raises:
        UnknownNameError: If there is no such table; lists those there are.
        InputError: If an id stands twice in one, or nobody is in it.
    """
    notes = []
    for tool in tools:
        path = folder / "phenotype" / f"{tool}.tsv"
        if not path.is_file():
            known = sorted(one.stem for one in path.parent.glob("*.tsv"))
            raise UnknownNameError(
                f"{path.parent} has no table '{tool}'; it has "
                f"{', '.join(known) or 'none'}.{nearest(tool, known)}"
            )
        added = _read_tool(path)
        together = added.index.intersection(frame.index)
        if not len(together):
            raise InputError(
                f"{path} has none of the {len(frame)} people, whose ids look like "
                f"{frame.index[0]}; its own look like {added.index[0]}."
            )
        taken = set(map(str, frame.columns))
        names = {old: f"{tool}.{old}" if old in taken else old for old in added.columns}
        frame = frame.join(added.rename(columns=names))
        notes.append(
            f"{path.name}: {len(added.columns)} columns for {len(together)} of "
            f"{len(frame)} people, {len(added) - len(together)} others not used"
        )
    return frame, tuple(notes)


def _read_tool(path: Path) -> pd.DataFrame:
    """Read one table, index of ids."""
    table = read_table(path)
    ids = find_column(table, "id", None)
    who = table.column(ids)
    repeated = [one for row, one in enumerate(who) if one in who[:row]]
    if repeated:
        raise InputError(
            f"{path}: id {repeated[0]} stands more than once; keep one row a person."
        )
    sidecar = read_sidecar(path.with_suffix(".json"))
    columns = {
        name: _values(table.column(name), bool(levels_of(sidecar, name)))
        for name in table.header
        if name != ids
    }
    return pd.DataFrame(columns, index=pd.Index(who, dtype=object))


def _values(cells: list[str], coded: bool) -> list[float] | list[str | None]:
    """Return numbers where every known cell is one and none is a code, else text."""
    known = [None if is_missing(cell) else cell for cell in cells]
    if coded or not any(known):
        return known
    try:
        return [float("nan") if cell is None else float(cell) for cell in known]
    except ValueError:
        return known
