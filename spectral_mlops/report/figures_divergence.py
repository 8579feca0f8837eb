"""Figures of how far groups are apart: maps over layers and epochs, and curves."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spectral_mlops.errors import InputError
from spectral_mlops.report.colours import GROUP_COLOURS
from spectral_mlops.report.figure_style import (
    FIGURES,
    LEVEL,
    Array,
    Page,
    Shown,
    label_of,
    label_panels,
    legend,
    numbers,
    plain,
    plain_layer,
    say_nothing,
    shown_of,
    whole_ticks,
)
from spectral_mlops.report.html_data import divergence_maps
from spectral_mlops.report.stored import StoredRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNKNOWN = "0.9"
"""Grey of what is not known: degenerate layers, epochs without a null."""
NAMES = 12
"""Names of layers that fit beside a map; of more, evenly spaced ones."""
PAIRS = 6
"""Pairs of groups in a panel of curves, at most."""


@FIGURES.register("divergence")
def draw_divergence(stored: StoredRun, page: Page) -> "Figure":
    """Layer × epoch maps: training batches above, the probe below.

    Training batches describe: the value of the divergence. The probe infers: z under
    relabellings of people, with a star where it is adjusted to p ≤ 0.05 (max-T). Of
    several pairs of groups it is the first.
    """
    shown = shown_of(stored)
    maps = _maps(stored, shown)
    first = maps[0]["group_a"], maps[0]["group_b"]
    chosen = [m for m in maps if (m["group_a"], m["group_b"]) == first]
    sources = [s for s in ("train", "probe") if any(m["source"] == s for m in chosen)]
    quantities = shown.frame.quantities
    height = min(60.0, max(24.0, 8 + 4.0 * len(shown.frame.layers)))
    figure, axes = page.panels(len(sources), len(quantities), height + 6)
    for row, source in enumerate(sources):
        found = {m["quantity"]: m for m in chosen if m["source"] == source}
        own = _known_epochs(found) if source == "probe" else found
        _map_row(figure, axes[row], own, shown, source)
    label_panels(axes, quantities, (), "epoch")
    pairs = len({(m["group_a"], m["group_b"]) for m in maps})
    more = f", 1 of {pairs} pairs" if pairs > 1 else ""
    title = f"{plain(first[0])} – {plain(first[1])}{more}"
    figure.suptitle(title, fontsize=7, x=0.01, ha="left")
    return figure


@FIGURES.register("trajectories")
def draw_trajectories(stored: StoredRun, page: Page) -> "Figure":
    """Divergence along training with the band of its null, a row per layer.

    On the probe where there is one, else of training batches. The band is the mean of
    the null ± 2 SD, means over folds; filled points are adjusted to p ≤ 0.05 (max-T
    over epochs and layers).
    """
    shown = shown_of(stored)
    maps = _maps(stored, shown)
    probe = [m for m in maps if m["source"] == "probe"]
    maps = probe or maps
    layers = shown.layers(3 if page.narrow else 4)
    quantities = shown.frame.quantities
    figure, axes = page.panels(len(layers), len(quantities), 30, sharex=True)
    for row, layer in enumerate(layers):
        for column, quantity in enumerate(quantities):
            own = [m for m in maps if m["quantity"] == quantity][:PAIRS]
            panel, place = axes[row, column], shown.frame.layers.index(layer)
            for number, one in enumerate(own):
                _curve(panel, one, place, GROUP_COLOURS[number])
            if panel.has_data():
                whole_ticks(panel)
            else:
                say_nothing(panel)
    label_panels(axes, quantities, layers, "epoch")
    people = "probe" if probe else "training batches"
    words = f"divergence ({plain(maps[0]['divergence'])}), {people}"
    figure.supylabel(words, fontsize=7)
    legend(figure, axes[0, 0], most=3)
    return figure


def _maps(stored: StoredRun, shown: Shown) -> list[dict[str, Any]]:
    """Maps of the primary grouping's pairs.

    Raises:
        InputError: If there is none.
    """
    joint = stored.tables.get("epochs", pd.DataFrame())
    maps, _ = divergence_maps(stored.divergences, joint, shown.frame)
    own = [m for m in maps if m["grouping"] == shown.primary]
    if not own:
        raise InputError(f"Run {stored.name} holds no divergences: nothing to draw.")
    return own


def _map_row(
    figure: "Figure", axes: Any, own: dict[str, Any], shown: Shown, source: str
) -> None:
    """Draw one source's maps on one scale."""
    field = "z" if source == "probe" else "value"
    grids = {q: _grid(m, field) for q, m in own.items()}
    everything = np.concatenate([grid.ravel() for grid in grids.values()])
    known = everything[np.isfinite(everything)]
    if field == "z":
        high = max(float(np.abs(known).max(initial=0.0)), 2.0)
        low, colours, label = -high, "RdBu_r", "probe, z"
    else:
        low, high = 0.0, float(known.max(initial=0.0)) or 1.0
        kind = next(iter(own.values()))["divergence"]
        colours, label = "viridis", f"training batches, {plain(kind)}"
    image = None
    for column, quantity in enumerate(shown.frame.quantities):
        panel = axes[column]
        if quantity in own:
            image = _image(panel, grids[quantity], colours, (low, high))
            _marks(panel, own[quantity], grids[quantity], high)
            _epoch_ticks(panel, own[quantity]["epochs"])
        else:
            panel.set_axis_off()
        _layer_ticks(panel, shown.frame.layers if column == 0 else ())
    if image is not None:
        bar = figure.colorbar(image, ax=list(axes), shrink=0.8, aspect=18, pad=0.01)
        bar.set_label(label)


def _known_epochs(maps: dict[str, Any]) -> dict[str, Any]:
    """Leave out epochs that were not tested at all, such as the untrained network's."""
    fields = ("value", "z", "p_max")
    known = np.any([np.isfinite(_grid(m, "z")).any(0) for m in maps.values()], axis=0)
    if not known.any():
        return maps
    return {
        quantity: one
        | {"epochs": [e for e, k in zip(one["epochs"], known, strict=True) if k]}
        | {field: _grid(one, field)[:, known].tolist() for field in fields}
        for quantity, one in maps.items()
    }


def _image(
    panel: "Axes", grid: Array, colours: str, limits: tuple[float, float]
) -> Any:
    import matplotlib

    return panel.imshow(
        np.ma.masked_invalid(grid),
        cmap=matplotlib.colormaps[colours].with_extremes(bad=UNKNOWN),
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
        aspect="auto",
    )


def _marks(panel: "Axes", one: dict[str, Any], values: Array, high: float) -> None:
    """Put a star on cells that are significant, white where the cell is dark."""
    for layer, epoch in np.argwhere(_grid(one, "p_max") <= LEVEL):
        dark = abs(values[layer, epoch]) > 0.6 * high
        panel.annotate(
            "*",
            (epoch, layer),
            ha="center",
            va="center_baseline",
            fontsize=9,
            color="white" if dark else "black",
        )


def _curve(panel: "Axes", one: dict[str, Any], layer: int, colour: str) -> None:
    epochs = one["epochs"]
    value, mean, spread, p = (
        _grid(one, field)[layer] for field in ("value", "null_mean", "null_sd", "p_max")
    )
    if not np.isfinite(value).any():
        return
    label = label_of(one["group_a"], one["group_b"])
    panel.plot(epochs, value, color=colour, label=label)
    low = mean - 2 * spread
    if np.nanmin([*value, 0.0]) >= 0:  # no divergence of this kind is negative
        low = np.maximum(low, 0.0)
    panel.fill_between(
        epochs, low, mean + 2 * spread, color=colour, alpha=0.15, linewidth=0
    )
    few = np.isfinite(value) if len(epochs) <= 30 else p <= LEVEL
    for place in np.flatnonzero(few):
        face = colour if p[place] <= LEVEL else "white"
        panel.plot(epochs[place], value[place], "o", color=colour, markerfacecolor=face)


def _grid(one: dict[str, Any], field: str) -> Array:
    """Return a field as an array ``[layers, epochs]``."""
    return np.stack([numbers(row) for row in one[field]])


def _layer_ticks(panel: "Axes", layers: Any) -> None:
    count = min(len(layers), NAMES)
    places = np.linspace(0, len(layers) - 1, count).round().astype(int)
    panel.set_yticks(places, [plain_layer(layers[i], 18) for i in places])


def _epoch_ticks(panel: "Axes", epochs: list[int]) -> None:
    places = np.linspace(0, len(epochs) - 1, min(len(epochs), 5)).round().astype(int)
    panel.set_xticks(places, [str(epochs[i]) for i in places])
    for side in ("top", "right"):
        panel.spines[side].set_visible(True)
