"""Frames as HTML tables that a reader can search and sort."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from spectral_mlops.config import flatten

ROWS = 1000
"""Longer tables are cut in the page, and say so."""
WORDS = {
    "groups": "Validation people at the end, per group of the primary grouping.",
    "controls": "What the primary outcome was held against. Beyond: trained less "
    "control.",
    "layers": "Per layer at the end. p max is adjusted over layers (max-T). Effective "
    "ranks depend on how many people of a group are in a batch.",
    "epochs": "The probe over training. p max is adjusted over epochs and layers.",
    "trends": "How far the groups' effective ranks (absolute difference) and norms of "
    "gradients (absolute log ratio of unbiased squares) are apart on the probe, with 5 "
    "and 95 % of relabelled values. p max is adjusted over epochs and layers.",
    "effects": "How large the differences are, at a common number of people.",
    "coverage": "Every parameter, how it was watched, or why not.",
    "additivity": "How exactly the groups' gradients add up to the gradient, relative "
    "gap.",
}
"""Tables of a page, in order, and what stands above them."""


def table_html(frame: pd.DataFrame, caption: str = "") -> str:
    """Return a frame as a table; everything in it is escaped.

    Args:
        frame: Any; numbers are shown with four digits, p with three decimals, NaN as a
            dash.
        caption: Above it.
    """
    head = "".join(f"<th>{escape(str(name))}</th>" for name in frame.columns)
    columns = [_cells(frame[name]) for name in frame.columns]
    rows = [
        f"<tr>{''.join(cells)}</tr>" for cells in zip(*columns, strict=True)
    ][:ROWS]  # fmt: skip
    more = ""
    if len(frame) > ROWS:
        more = f"<p class='note'>The first {ROWS} of {len(frame)} rows.</p>"
    said = f"<p class='note'>{escape(caption)}</p>" if caption else ""
    return (
        f"{said}<div class='table'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{more}"
    )


def tables_section(tables: Mapping[str, pd.DataFrame]) -> str:
    """Return all tables of a run behind a line each, and what is absent."""
    shown, absent = [], []
    for name, words in WORDS.items():
        table = tables.get(name)
        if table is None or table.empty:
            absent.append(name)
            continue
        first = " open" if name == "controls" else ""
        shown.append(
            f"<details{first}><summary>{name} <span>{len(table)} rows</span></summary>"
            f"{table_html(table, words)}</details>"
        )
    lacking = ""
    if absent:
        lacking = f"<p class='note'>This run has no table {', '.join(absent)}.</p>"
    return "".join(shown) + lacking


def settings_html(config: Mapping[str, object]) -> str:
    """Return flat settings as a table."""
    flat = flatten(config)
    values = [str(value) for value in flat.values()]
    return table_html(pd.DataFrame({"setting": list(flat), "value": values}))


def number(value: float, form: str = ".3g") -> str:
    """Return a number as text, a dash if there is none; a true minus sign."""
    return "–" if not np.isfinite(value) else format(value, form).replace("-", "−")


def _cells(column: "pd.Series[Any]") -> list[str]:
    """Return the cells of one column."""
    if not pd.api.types.is_numeric_dtype(column) or column.dtype == bool:
        texts = ["–" if pd.isna(x) else str(x) for x in column]
        return [f"<td>{escape(text)}</td>" for text in texts]
    whole = pd.api.types.is_integer_dtype(column)
    name = str(column.name)
    p = name in ("p", "p_max") or name.endswith("_p")
    form = "d" if whole else ".3f" if p else ".4g"
    return [
        f"<td class='n' data-v='{x}'>{number(x, form)}</td>" for x in column.tolist()
    ]
