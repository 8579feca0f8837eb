"""Figures for papers, drawn from a stored run: letters as text, widths in mm."""

import warnings
from pathlib import Path
from typing import Any

from spectral_mlops.errors import InputError
from spectral_mlops.report import (
    figures_divergence,
    figures_people,
    figures_spectra,
    figures_trends,
)
from spectral_mlops.report.figure_style import FIGURES, SETTINGS, TWO_COLUMNS, Page
from spectral_mlops.report.stored import StoredRun

__all__ = ["FIGURES", "FORMATS", "draw_figure"]

FORMATS = ("pdf", "svg", "png")
WIDTHS = (40.0, 400.0)
"""Narrowest and widest figure, mm."""
PARTS = (figures_spectra, figures_divergence, figures_trends, figures_people)
"""Where figures are; imported, they stand in `FIGURES`."""
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}


def draw_figure(
    stored: StoredRun,
    name: str,
    path: str | Path,
    format: str = "pdf",
    width: float = TWO_COLUMNS,
) -> Path:
    """Draw a figure for a paper.

    Letters stay letters: fonts are embedded in PDF (type 42), and SVG names them. The
    same run gives the same bytes with the same version of matplotlib. Letters that the
    font lacks (it has Latin, Greek, Cyrillic) are drawn as boxes in PDF and PNG, and
    are right in SVG.

    Args:
        stored: The run, from `read_stored`.
        name: One of `FIGURES`.
        path: Where to; folders are made.
        format: ``pdf``, ``svg`` or ``png`` (300 dpi).
        width: mm; 90 is one column of most journals, 180 are two.

    Returns:
        The path.

    Raises:
        UnknownNameError: If there is no figure of that name.
        InputError: If the format or the width cannot be, or the run lacks what is to
            be drawn.
    """
    draw = FIGURES.get(name)
    if format not in FORMATS:
        raise InputError(f"format='{format}': choose one of {', '.join(FORMATS)}.")
    if not WIDTHS[0] <= width <= WIDTHS[1]:
        raise InputError(f"width={width}: from {WIDTHS[0]:g} to {WIDTHS[1]:g} mm.")
    from matplotlib import style

    target = Path(path)
    with style.context(["default", SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = draw(stored, Page(width))
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, format=format, metadata=_METADATA[format])
    return target
