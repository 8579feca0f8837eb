"""What all figures for papers share: sizes in mm, letters as text, colours."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.errors import InputError
from spectral_mlops.records import POOLED
from spectral_mlops.registry import Registry
from spectral_mlops.report.colours import group_styles
from spectral_mlops.report.html_data import Frame, frame_of, thinned
from spectral_mlops.report.stored import StoredRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Draw = Callable[[StoredRun, "Page"], "Figure"]

FIGURES: Registry[str, Draw] = Registry("figure")
"""Every figure by its name."""
ONE_COLUMN, TWO_COLUMNS = 90.0, 180.0  # mm, as most journals have them
NARROW = 120.0
"""Below so many mm a figure has fewer panels."""
LEVEL = 0.05
"""At or below this p a point is marked."""
SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a group may be called "$x$"
    "pdf.fonttype": 42,  # letters stay letters, which editors can change
    "svg.fonttype": "none",
    "svg.hashsalt": "spectral",
    "savefig.dpi": 300,
}
_STROKES = {"solid": "-", "dash": "--", "dot": ":"}
_NAME = 24  # characters of a name in a figure


@dataclass(frozen=True)
class Page:
    """The place a figure has.

    Attributes:
        width: mm.
    """

    width: float

    @property
    def narrow(self) -> bool:
        """Whether there is room for few panels only."""
        return self.width < NARROW

    def panels(
        self, rows: int, columns: int, row_height: float, **more: Any
    ) -> tuple["Figure", NDArray[Any]]:
        """Return a figure and its axes ``[rows, columns]``.

        Args:
            rows: Of panels.
            columns: Of panels.
            row_height: mm.
            **more: As matplotlib's ``subplots`` takes it.
        """
        from matplotlib.figure import Figure

        size = self.width / 25.4, (row_height * rows + 12) / 25.4
        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **more)


@dataclass(frozen=True)
class Shown:
    """What there is to draw in a run.

    Attributes:
        frame: Layers, quantities, groupings, epochs.
        primary: The primary grouping; empty if there is none.
        styles: Group of it to colour and stroke; the same in every figure.
    """

    frame: Frame
    primary: str
    styles: Mapping[str, tuple[str, str]]

    def layers(self, most: int) -> list[str]:
        """Return at most so many layers, evenly spaced in depth."""
        return thinned(self.frame.layers, most)


def shown_of(stored: StoredRun) -> Shown:
    """Find what there is to draw.

    Raises:
        InputError: If the run has no spectra and no divergences.
    """
    order = stored.config.get("comparison", {}).get("groupings", ())
    frame = frame_of(stored.spectra, stored.divergences, order)
    if not frame.layers:
        raise InputError(
            f"Run {stored.name} holds no spectra: there is nothing to draw."
        )
    styles = group_styles(frame.groupings)
    primary = next(iter(frame.groupings), "")
    own = {
        group: (colour, _STROKES[stroke])
        for group, (colour, stroke) in styles.get(primary, {}).items()
    }
    return Shown(frame, primary, own)


def plain(text: str, length: int = _NAME) -> str:
    """Return a name as it can be drawn: one line, not long."""
    words = "".join(c if c.isprintable() else " " for c in str(text))
    return words if len(words) <= length else f"{words[: length - 1]}…"


def plain_layer(layer: str, length: int = _NAME) -> str:
    """Return a layer's name as it can be drawn; its end tells it from others."""
    words = plain(layer, len(layer))
    return words if len(words) <= length else f"…{words[1 - length :]}"


def numbers(values: Iterable[float | None]) -> Array:
    """Return numbers as an array, None as NaN."""
    return np.array(list(values), dtype=np.float64)


def significant(stored: StoredRun, layer: str, quantity: str) -> list[int]:
    """Return the epochs at which any pair of groups differs, adjusted (max-T)."""
    table = stored.tables.get("epochs", pd.DataFrame())
    if not {"layer", "quantity", "epoch", "p_max"} <= set(table.columns):
        return []
    own = table[(table["layer"] == layer) & (table["quantity"] == quantity)]
    return sorted({int(e) for e in own.loc[own["p_max"] <= LEVEL, "epoch"]})


def legend(figure: "Figure", axes: "Axes", most: int = 6) -> None:
    """Draw one legend above all panels, of the lines of one panel."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside upper left", ncols=min(len(labels), most)
        )


def label_panels(
    axes: NDArray[Any], columns: Sequence[str], rows: Sequence[str], below: str
) -> None:
    """Write what columns are, which layers rows are, and what the x axis is."""
    for place, name in enumerate(columns):
        axes[0, place].set_title(plain(name))
        axes[-1, place].set_xlabel(below)
    for place, name in enumerate(rows):
        axes[place, 0].set_ylabel(plain_layer(name))


def group_label(group: str) -> str:
    """Return a group's name in a legend."""
    return "everyone" if group == POOLED else label_of(group)


def label_of(*groups: str) -> str:
    """Return a curve's label; matplotlib leaves out those that begin with ``_``."""
    words = " – ".join(plain(group) for group in groups)
    return f" {words}" if words.startswith("_") else words


def say_nothing(panel: "Axes") -> None:
    """Say in a panel that there is nothing to draw."""
    panel.text(0.5, 0.5, "none", color="0.5", ha="center", transform=panel.transAxes)
    panel.set_yticks([])


def whole_ticks(axes: "Axes", count: int = 5) -> None:
    """Mark whole numbers only: there is no half an epoch."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(count, integer=True, min_n_ticks=1))
