"""Small pictures of one epoch, for the cards with a slider on a run's page.

All pictures of one kind have one scale and one place for everything, so that moving the
slider shows change and nothing else.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

WIDTH, HEIGHT = 400, 300  # pixels
UNKNOWN = "0.9"
"""Grey of what is not known."""
LABELS, NUMBERS = 12, 6
"""Names, or numbers, that fit beside an axis; of more, evenly spaced ones."""
CUT = 14  # characters of a name


def draw_map(
    panels: Mapping[str, Array],
    rows: Sequence[str],
    columns: Sequence[str],
    limits: Mapping[str, tuple[float, float]],
    title: str,
    path: Path,
    *,
    diverging: bool = False,
) -> Path:
    """Draw arrays side by side as colours.

    Args:
        panels: Name to values, shape ``[rows, columns]``; NaN is grey.
        rows: Names, from above.
        columns: Names, from the left.
        limits: Where each panel's scale begins and ends.
        title: Above all.
        path: Ending in ``.png``.
        diverging: Whether zero is the middle of the colours (red and blue); else
            they go from dark to bright (viridis).

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    colours = "RdBu_r" if diverging else "viridis"
    for place, (name, values) in enumerate(panels.items()):
        panel = axes[place]
        image = _draw(panel, values, colours, limits[name])
        panel.set_title(name, fontsize=8)
        _ticks(panel, rows if place == 0 else (), columns)
        bar = figure.colorbar(image, ax=panel, location="bottom", fraction=0.05)
        bar.ax.tick_params(labelsize=6, length=2)
        bar.ax.locator_params(nbins=3)
    figure.suptitle(_plain(title), fontsize=9)
    figure.subplots_adjust(left=0.22, right=0.97, top=0.84, bottom=0.12, wspace=0.15)
    figure.savefig(path, metadata={"Software": None})
    return path


def limits_of(
    panels: Sequence[Mapping[str, Array]], *, diverging: bool = False
) -> dict[str, tuple[float, float]]:
    """Return one scale for every panel, over all pictures."""
    limits = {}
    for name in panels[0]:
        values = np.concatenate([each[name].ravel() for each in panels])
        known = values[np.isfinite(values)]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        if diverging:
            high = max(abs(low), abs(high), 1e-9)
            low = -high
        limits[name] = float(low), float(high if high > low else low + 1.0)
    return limits


def _draw(
    panel: "Axes", values: Array, colours: str, limits: tuple[float, float]
) -> Any:
    import matplotlib

    return panel.imshow(
        np.ma.masked_invalid(values),
        cmap=matplotlib.colormaps[colours].with_extremes(bad=UNKNOWN),
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
        aspect="auto",
    )


def _ticks(panel: "Axes", rows: Sequence[str], columns: Sequence[str]) -> None:
    """Write names beside the axes, as many as fit."""
    upright = any(len(str(name)) > 3 for name in columns)
    most = LABELS if upright else NUMBERS
    for axis, names, room in (
        (panel.yaxis, rows, LABELS),
        (panel.xaxis, columns, most),
    ):
        count = min(len(names), room)
        places = np.linspace(0, len(names) - 1, count).round().astype(int)
        axis.set_ticks(places, [_plain(_end(names[i]), CUT) for i in places])
    panel.tick_params(labelsize=6, length=2)
    panel.tick_params(axis="x", labelrotation=40 if upright else 0)


def _end(name: str) -> str:
    """Return the last parts of a layer's path that fit."""
    parts = str(name).split(".")
    while len(parts) > 1 and len(".".join(parts)) > CUT:
        del parts[0]
    return ".".join(parts)


def _plain(text: str, length: int = 80) -> str:
    """Return a name that is drawn as it is: no formula, no line breaks, not long."""
    words = "".join(c if c.isprintable() else " " for c in str(text))
    cut = words if len(words) <= length else f"{words[: length - 1]}…"
    return cut.replace("$", r"\$")
