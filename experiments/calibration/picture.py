"""A picture of the stored rates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.calibration.joint import PACKAGE
from experiments.calibration.trained import QUANTITIES

ALPHA = 0.05
MARKERS = dict(zip(QUANTITIES, "os^", strict=True))


def draw(parts: Mapping[str, Any], path: Path) -> None:
    """A line per cell and method, a mark per quantity, and where rates should lie.

    Args:
        parts: Stored results by name; those that are not there are left out.
        path: Of the PNG.
    """
    rows = [row for part in parts.values() if part for row in part["rows"]]
    lines = list(dict.fromkeys((row["title"], row["method"]) for row in rows))
    figure = Figure(figsize=(10.5, 2 + 0.25 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        at = len(lines) - 1 - lines.index((row["title"], row["method"]))
        own = row["method"].startswith(PACKAGE)
        low, high = row["accepted"]
        axes.plot([low, high], [at, at], color="0.85", linewidth=7, zorder=0)
        axes.plot(
            row["rate"],
            at,
            MARKERS[row["quantity"]],
            color="C0" if own else "C3",
            markersize=4,
            alpha=0.8,
        )
    axes.axvline(ALPHA, color="0.5", linewidth=0.8)
    axes.set_yticks(
        range(len(lines)),
        [f"{title} – {method}" for title, method in reversed(lines)],
        fontsize="x-small",
    )
    axes.set_xscale("symlog", linthresh=0.1)
    ticks = [0, 0.05, 0.1, 0.2, 0.5, 1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of data sets without a difference in which p ≤ .05")
    for quantity, marker in MARKERS.items():
        axes.plot([], [], marker, color="0.4", markersize=4, label=quantity)
    axes.plot([], [], "o", color="C0", markersize=4, label="the package")
    axes.plot([], [], "o", color="C3", markersize=4, label="other ways")
    axes.plot([], [], color="0.85", linewidth=7, label="99 % of rates of an exact test")
    figure.legend(fontsize="x-small", loc="outside upper center", ncols=6)
    figure.savefig(path, dpi=100)
