"""Figures of spectra: ridges, and effective ranks along training."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spectral_mlops.errors import InputError
from spectral_mlops.report.figure_style import (
    FIGURES,
    Array,
    Page,
    Shown,
    group_label,
    label_panels,
    legend,
    numbers,
    shown_of,
    significant,
    whole_ticks,
)
from spectral_mlops.report.html_data import spectra_cells, thinned, trajectory_cells
from spectral_mlops.report.stored import StoredRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECADES = (0.5, 4.0)
"""Fewest and most powers of ten, below the largest value of a panel, that it shows."""
OVERLAP = 1.7
"""Height of a ridge, in distances between ridges."""


@FIGURES.register("spectra")
def draw_spectra(stored: StoredRun, page: Page) -> "Figure":
    """Ridges of the groups' mean spectra: a row per layer, an epoch per ridge.

    Of watched training batches, scale ``mean``; the mean by rank position is for
    drawing only, and the shape of a spectrum depends on the size of its group.
    """
    shown = shown_of(stored)
    layers = shown.layers(2 if page.narrow else 3)
    cells = spectra_cells(_train(stored), shown.frame)
    quantities = shown.frame.quantities
    figure, axes = page.panels(len(layers), len(quantities), 42)
    for row, layer in enumerate(layers):
        for column, quantity in enumerate(quantities):
            own = _own(cells, shown, layer, quantity)
            _ridges(axes[row, column], own, shown, 4 if page.narrow else 6)
    label_panels(axes, quantities, layers, "rank position")
    figure.supylabel("epoch; height: log σ, each panel on its own scale", fontsize=7)
    legend(figure, axes[0, 0])
    return figure


@FIGURES.register("erank")
def draw_effective_ranks(stored: StoredRun, page: Page) -> "Figure":
    """Effective rank of each group along training, a row per layer.

    Mean over watched training batches, then folds; shaded is the SD over folds, which
    is variability and no evidence. Stars mark epochs at which spectra of groups differ
    on the probe (adjusted over epochs and layers, max-T). Effective ranks depend on
    the size of a group.
    """
    shown = shown_of(stored)
    layers = shown.layers(3 if page.narrow else 4)
    cells = trajectory_cells(_train(stored), shown.frame)
    quantities = shown.frame.quantities
    figure, axes = page.panels(len(layers), len(quantities), 30, sharex=True)
    for row, layer in enumerate(layers):
        for column, quantity in enumerate(quantities):
            panel = axes[row, column]
            for cell in _own(cells, shown, layer, quantity):
                if "effective_rank" in cell:
                    _trajectory(panel, cell, shown)
            _keep_range(panel)
            _stars(panel, significant(stored, layer, quantity))
            whole_ticks(panel)
    label_panels(axes, quantities, layers, "epoch")
    figure.supylabel("effective rank", fontsize=7)
    legend(figure, axes[0, 0])
    return figure


def _train(stored: StoredRun) -> pd.DataFrame:
    """Spectra of watched training batches; else those there are.

    Raises:
        InputError: If there is none.
    """
    if stored.spectra.empty:
        raise InputError(f"Run {stored.name} holds no spectra: nothing to draw.")
    train = stored.spectra[stored.spectra["source"] == "train"]
    return train if len(train) else stored.spectra


def _own(
    cells: list[dict[str, Any]], shown: Shown, layer: str, quantity: str
) -> list[dict[str, Any]]:
    """Cells of one panel: the groups of the primary grouping, in their order."""
    found = [
        cell
        for cell in cells
        if (cell["layer"], cell["quantity"], cell["grouping"])
        == (layer, quantity, shown.primary)
    ]
    return sorted(found, key=lambda cell: list(shown.styles).index(cell["group"]))


def _ridges(
    panel: "Axes", cells: list[dict[str, Any]], shown: Shown, most: int
) -> None:
    """Draw one ridge per epoch, the first at the bottom, groups over each other."""
    epochs = thinned(sorted({e for cell in cells for e in cell["epochs"]}), most)
    panel.set_yticks(range(len(epochs)), [str(e) for e in epochs])
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    whole_ticks(panel)
    known = [_values(cell, epoch) for cell in cells for epoch in epochs]
    positive = np.concatenate([np.zeros(0), *(v[v > 0] for v in known)])
    if not len(positive):
        return
    top = float(positive.max())
    decades = float(np.clip(np.log10(top / positive.min()), *DECADES))
    for place, epoch in reversed(list(enumerate(epochs))):
        panel.axhline(place, color="0.85", linewidth=0.4, zorder=-2 * place)
        for cell in cells:
            values = _values(cell, epoch)
            if not len(values):
                continue
            with np.errstate(divide="ignore"):
                height = 1 + np.log10(values / top) / decades
            height = place + OVERLAP * np.clip(height, 0, 1)
            colour, stroke = shown.styles[cell["group"]]
            ranks = cell["ranks"]
            panel.fill_between(ranks, place, height, color="white", alpha=0.5, lw=0)
            label = group_label(cell["group"]) if place == 0 else None
            panel.plot(ranks, height, stroke, color=colour, linewidth=0.8, label=label)


def _values(cell: dict[str, Any], epoch: int) -> Array:
    if epoch not in cell["epochs"]:
        return np.zeros(0)
    return numbers(cell["values"][cell["epochs"].index(epoch)])


def _trajectory(panel: "Axes", cell: dict[str, Any], shown: Shown) -> None:
    epochs = cell["epochs"]
    mean, spread = (numbers(part) for part in cell["effective_rank"])
    colour, stroke = shown.styles[cell["group"]]
    marker = "o" if len(epochs) == 1 else None
    panel.plot(
        epochs,
        mean,
        linestyle=stroke,
        color=colour,
        marker=marker,
        label=group_label(cell["group"]),
    )
    panel.fill_between(
        epochs, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0
    )


def _keep_range(panel: "Axes", least: float = 0.2) -> None:
    """Keep rounding from filling a panel: a rank of 1 stays a straight line."""
    low, high = panel.get_ylim()
    if high - low < least:
        middle = (low + high) / 2
        panel.set_ylim(middle - least / 2, middle + least / 2)
    panel.ticklabel_format(axis="y", useOffset=False)


def _stars(panel: "Axes", epochs: list[int]) -> None:
    """Mark epochs at the upper edge."""
    for epoch in epochs:
        panel.annotate(
            "*",
            (epoch, 1.0),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="top",
            fontsize=8,
        )
