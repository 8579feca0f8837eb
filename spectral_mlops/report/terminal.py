"""What all tables for a terminal have in common."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

NOTHING = "–"
JUDGED = ("null", "z", "p", "p max")
"""Heads of the last cells of `judged`."""


def plain_table(title: str, tight: bool = True) -> Table:
    """Return an empty table, as narrow as can be if ``tight``."""
    padding = 0 if tight else (0, 1)  # the box leaves a space between columns
    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=padding
    )


def formatted(value: float, form: str) -> str:
    """Format a number; NaN is a dash."""
    return NOTHING if value != value else format(value, form)


def cell(value: object) -> str:
    """Format anything: three digits of a float, a dash for what is missing."""
    if value is None or value != value:
        return NOTHING
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def judged(row: Mapping[Hashable, Any], name: str) -> list[str]:
    """Format a divergence (×10³), its null, z, p and p max.

    Args:
        row: Of a table with ``null_mean, null_sd, z, p, p_max``.
        name: Column of the divergence itself.
    """
    value, mean, sd = (
        formatted(1e3 * row[column], ".2f") for column in (name, "null_mean", "null_sd")
    )
    return [
        value,
        NOTHING if mean == NOTHING else f"{mean}±{sd}",
        formatted(row["z"], "+.2f"),
        formatted(row["p"], ".3f"),
        formatted(row["p_max"], ".3f"),
    ]


def show_reasons(console: Console, reasons: Iterable[str]) -> None:
    """Print what stands below such a table: what p max is, and why some are missing."""
    console.print("  p max: adjusted over layers (max-T)", style="dim")
    for reason in dict.fromkeys(reason for reason in reasons if reason):
        console.print(f"  – {reason}", style="dim", highlight=False, markup=False)
