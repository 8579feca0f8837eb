"""Figure of ranks and norms apart along training, in the band of their null."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spectral_mlops.errors import InputError
from spectral_mlops.report.colours import GROUP_COLOURS
from spectral_mlops.report.figure_style import (
    FIGURES,
    LEVEL,
    Page,
    label_of,
    label_panels,
    legend,
    numbers,
    say_nothing,
    shown_of,
    whole_ticks,
)
from spectral_mlops.report.stored import StoredRun
from spectral_mlops.report.trends import trend_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NORM = "norm, gradient"
PAIRS = 3
"""Pairs of groups in a panel, at most: bands of more hide each other."""


@FIGURES.register("trends")
def draw_trends(stored: StoredRun, page: Page) -> "Figure":
    """Groups' effective ranks and norms apart on the probe, a row per layer.

    Absolute differences of effective ranks, a column per quantity, and in the last
    column the larger norm of the gradient over the smaller. Bands are 5 to 95 % of
    relabelled values; filled points are adjusted to p ≤ 0.05 (max-T over epochs and
    layers).
    """
    table = stored.tables.get("trends", pd.DataFrame())
    if table.empty:
        raise InputError(
            f"Run {stored.name} has no table trends (no probe, or an older version): "
            "nothing to draw."
        )
    shown = shown_of(stored)
    cells, _ = trend_cells(table, shown.frame)
    layers = shown.layers(3 if page.narrow else 4)
    columns = [*shown.frame.quantities, NORM]
    figure, axes = page.panels(len(layers), len(columns), 30, sharex=True)
    for row, layer in enumerate(layers):
        for place, column in enumerate(columns):
            own = [c for c in cells if c["layer"] == layer and _column(c) == column]
            for number, cell in enumerate(own[:PAIRS]):
                _curve(axes[row, place], cell, GROUP_COLOURS[number])
            whole_ticks(axes[row, place])
            if not own:
                say_nothing(axes[row, place])
    label_panels(axes, columns, layers, "epoch")
    figure.supylabel("|difference of effective ranks|; ratio of norms", fontsize=7)
    full = next((panel for panel in axes.ravel() if panel.lines), axes[0, 0])
    legend(figure, full, most=3)
    return figure


def _column(cell: dict[str, Any]) -> str:
    """Say which column a cell is in."""
    if cell["statistic"] == "unbiased_norm_ratio":
        return NORM
    return str(cell["quantity"])


def _curve(panel: "Axes", cell: dict[str, Any], colour: str) -> None:
    epochs = np.array(cell["epochs"])
    value, low, high, p = (
        numbers(cell[name]) for name in ("value", "null_05", "null_95", "p_max")
    )
    label = label_of(cell["group_a"], cell["group_b"])
    panel.plot(epochs, value, color=colour, label=label)
    panel.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    for place in np.flatnonzero(np.isfinite(value)):
        face = colour if p[place] <= LEVEL else "white"
        panel.plot(epochs[place], value[place], "o", color=colour, markerfacecolor=face)
