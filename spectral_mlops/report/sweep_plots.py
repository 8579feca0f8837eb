"""Plots of a study as images, which MLflow's page shows beside each other."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spectral_mlops.report.colours import GROUP_COLOURS, POOLED_COLOUR
from spectral_mlops.report.figure_style import SETTINGS, TWO_COLUMNS, Page
from spectral_mlops.report.sweep_page import StudyPage, importance_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 8
"""Settings in one image."""
DECADES = 1.5
"""A setting whose values span more is drawn on a logarithmic axis."""
NAME = 24  # characters of a name in an image


def write_study_plots(study: StudyPage, folder: Path) -> list[Path]:
    """Draw what a study's page draws, but for contours.

    Args:
        study: What its page shows.
        folder: Made if it is not there.

    Returns:
        ``tradeoff.png``, ``importances.png`` and ``slices.png``, those of them that
        have something to show.
    """
    from matplotlib import style

    finished = study.trials[study.trials["state"] == "COMPLETE"]
    right = finished[study.accuracy].astype(float)
    known = finished[np.isfinite(right)]
    folder.mkdir(parents=True, exist_ok=True)
    draws: dict[str, tuple[bool, Callable[[StudyPage, pd.DataFrame], Figure]]] = {
        "tradeoff": (bool(np.isfinite(known["divergence"]).any()), _tradeoff),
        "importances": (len(study.importances) > 0, _importances),
        "slices": (len(known) > 0 and len(study.parameters) > 0, _slices),
    }
    written = []
    for name, (drawn, draw) in draws.items():
        if not drawn:
            continue
        with style.context(["default", SETTINGS]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            path = folder / f"{name}.png"
            draw(study, known).savefig(path, dpi=150, metadata={"Software": None})
        written.append(path)
    return written


def _tradeoff(study: StudyPage, trials: pd.DataFrame) -> "Figure":
    """Draw accuracy against divergence; trials that are not allowed are hollow."""
    figure, axes = Page(TWO_COLUMNS).panels(1, 1, 90.0)
    panel: Axes = axes[0, 0]
    allowed = trials["allowed"].astype(bool)
    for rows, fill, label in (
        (trials[~allowed], "none", "not allowed"),
        (trials[allowed], GROUP_COLOURS[0], "allowed"),
    ):
        panel.scatter(
            rows["divergence"],
            rows[study.accuracy],
            s=16,
            facecolors=fill,
            edgecolors=GROUP_COLOURS[0],
            label=label,
        )
    best = trials[trials["front"].astype(bool)].sort_values("divergence")
    colour = GROUP_COLOURS[1]
    panel.plot(best["divergence"], best[study.accuracy], color=colour, label="front")
    for row in best.to_dict("records"):
        at = row["divergence"], row[study.accuracy]
        panel.annotate(str(row["trial"]), at, (3, 3), textcoords="offset points")
    panel.axvline(study.detected, color=POOLED_COLOUR, linestyle=":")
    panel.set_xlabel(f"divergence, z of {study.quantity} on the probe")
    panel.set_ylabel(study.measures.words)
    if np.isfinite(study.confounds):
        panel.axhline(study.confounds, color=POOLED_COLOUR, linestyle="--")
        said = f"dashed: {study.measures.words} of confounds alone; dotted: z detected"
        panel.set_title(said)
    panel.legend()
    return figure


def _importances(study: StudyPage, trials: pd.DataFrame) -> "Figure":
    """Draw what drives accuracy and what divergence, a panel per method."""
    del trials
    table = importance_table(study.importances).set_index("setting")[::-1][-MOST:]
    methods = list(dict.fromkeys(study.importances["evaluator"]))
    order = list(dict.fromkeys(study.importances["target"]))
    height = 12.0 + 9 * len(table)
    figure, axes = Page(TWO_COLUMNS).panels(1, len(methods), height, sharey=True)
    at = np.arange(len(table))
    for panel, method in zip(axes[0], methods, strict=True):
        targets = [name for name in order if f"{name}, {method}" in table]
        thick = 0.8 / len(targets)
        for number, name in enumerate(targets):
            panel.barh(
                at - number * thick,
                table[f"{name}, {method}"],
                thick,
                color=GROUP_COLOURS[order.index(name)],
                label=name,
            )
        panel.set_yticks(at, [_short(name) for name in table.index])
        panel.set_title(method)
        panel.set_xlabel("importance")
    lines, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names))
    return figure


def _slices(study: StudyPage, trials: pd.DataFrame) -> "Figure":
    """Draw accuracy and divergence against each setting."""
    names = list(study.parameters)
    if len(study.importances):
        told = importance_table(study.importances)["setting"]
        names.sort(key=lambda name: [*told, name].index(name))
    names = names[:MOST]
    figure, axes = Page(TWO_COLUMNS).panels(2, len(names), 42.0, sharey="row")
    targets = ((study.accuracy, study.measures.words), ("divergence", "z"))
    for row, (column, words) in zip(axes, targets, strict=True):
        row[0].set_ylabel(words)
        for panel, name in zip(row, names, strict=True):
            used = trials[trials[name].notna()]
            values = _positions(used[name], panel)
            panel.scatter(values, used[column], s=9, color=GROUP_COLOURS[0], alpha=0.7)
            panel.set_xlabel(_short(name))
    return figure


def _positions(values: pd.Series, panel: "Axes") -> Any:
    """Return where values stand on a panel's axis, which is made for them."""
    if not all(_is_number(value) for value in values):
        words = sorted({str(value) for value in values})
        panel.set_xticks(range(len(words)), [_short(word) for word in words])
        panel.set_xlim(-0.5, len(words) - 0.5)
        return [words.index(str(value)) for value in values]
    known = values.astype(float)
    low, high = known.min(), known.max()
    if len(known) and low > 0 and np.log10(high / low) > DECADES:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")  # powers would need mathtext
    return known


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _short(name: str) -> str:
    """Return the end of a name, which tells most."""
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"
