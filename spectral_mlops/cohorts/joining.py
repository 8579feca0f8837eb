"""People of a table and people with features: joined by id, never by position."""

from collections.abc import Collection, Sequence
from typing import Literal

from spectral_mlops.cohorts.cohort import listed
from spectral_mlops.errors import InputError

Unmatched = Literal["raise", "drop"]


def check_matched(
    joined: int,
    extra: Sequence[str],
    without: Sequence[str],
    names: tuple[str, str],
    where: str,
    unmatched: Unmatched,
) -> str:
    """Refuse or accept people who stand on one side only, and say how many.

    Args:
        joined: How many stand on both sides.
        extra: Ids (or files) with features but no row in the table.
        without: Ids in the table without features.
        names: What the side of the features and that of the table are called.
        where: What both are, for the message.
        unmatched: ``raise``, or ``drop`` to go on with those joined.

    Returns:
        A note with the counts.

    Raises:
        InputError: If somebody is unmatched under ``raise``, or nobody is joined.
    """
    told = f"{joined} people joined by id"
    sides = [
        f"{len(ids)} only in {name} ({listed(ids)})"
        for ids, name in zip((extra, without), names, strict=True)
        if ids
    ]
    if not sides:
        return told
    told += f", {' and '.join(sides)}"
    if unmatched == "drop" and joined:
        return f"{told}: left out as unmatched='drop' asks"
    same = _bare(extra) & _bare(without)
    way_out = (
        f"{len(same)} of them agree but for 'sub-', leading zeros and a final '.0': "
        "write them alike"
        if same
        else "make both list the same people, or set unmatched='drop'"
        if joined
        else "nobody stands on both sides: check how people and files are named"
    )
    raise InputError(f"{where}: {told}; {way_out}.")


def _bare(ids: Collection[str]) -> set[str]:
    """Return ids without what spreadsheets take or add, to explain a mismatch."""
    return {who.removeprefix("sub-").lstrip("0").removesuffix(".0") for who in ids}
