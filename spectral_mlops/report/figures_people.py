"""Figures of how well people are predicted, and of where in the brain."""

from typing import TYPE_CHECKING

import numpy as np

from spectral_mlops.errors import InputError
from spectral_mlops.report.brain import connectome_figure, volume_figure
from spectral_mlops.report.colours import GROUP_COLOURS, POOLED_COLOUR
from spectral_mlops.report.figure_style import (
    FIGURES,
    Page,
    Shown,
    group_label,
    shown_of,
    whole_ticks,
)
from spectral_mlops.report.stored import StoredRun
from spectral_mlops.tracking import safe_name
from spectral_mlops.tracking.measures import measures_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSSES = {"train/loss": "training", "val/loss": "validation"}
OVERALL: dict[str, dict[str, dict[str, str]]] = {
    "classification": {
        "loss (nats)": LOSSES,
        "AUC, balanced accuracy": {
            "val/auc": "AUC",
            "val/balanced_accuracy": "balanced accuracy",
        },
    },
    "regression": {
        "loss (SDs, squared)": LOSSES,
        "R², correlation": {"val/r2": "R²", "val/pearson": "correlation"},
    },
}
"""Panels of curves over all people: label of the axis, key and name of each curve."""
BY_GROUP: dict[str, dict[str, tuple[str, ...]]] = {
    "classification": {
        "loss (nats)": ("val_loss",),
        "AUC": ("val_auc",),
        "share told rightly": ("val_recall", "val_acc"),
    },
    "regression": {
        "mean absolute error": ("val_mae",),
        "R²": ("val_r2",),
        "correlation": ("val_pearson",),
    },
}
"""Panels of curves per group: label of the axis, sections of keys, the first that a run
has."""
WORDS = 1.1
"""Inches that titles and notes take of a figure's height, whatever its width."""
NOTE = (
    "Signs are arbitrary: the largest loading is positive. Directions depend on the "
    "size of the groups."
)


@FIGURES.register("performance")
def draw_performance(stored: StoredRun, page: Page) -> "Figure":
    """Loss, AUC and accuracy (or R² and errors) along training: overall, by group.

    Overall curves are means over folds of training and validation people; those of
    groups are over validation people of all folds together.
    """
    shown = shown_of(stored)
    keys = set(stored.metrics["key"])
    task = measures_of(stored.config).task
    overall = {label: own for label, own in OVERALL[task].items() if own.keys() & keys}
    grouped = {
        label: section
        for label, sections in BY_GROUP[task].items()
        for section in [
            next((s for s in sections if any(k.startswith(f"{s}/") for k in keys)), "")
        ]
        if section
    }
    count = len(overall) + len(grouped)
    if not count:
        raise InputError(
            f"Run {stored.name} keeps no curves of loss or accuracy: nothing to draw."
        )
    columns = min(count, 2 if page.narrow or count == 4 else 3)
    rows = -(-count // columns)
    figure, axes = page.panels(rows, columns, 40)
    panels = list(axes.ravel())
    for panel, (label, curves) in zip(panels, overall.items(), strict=False):
        _overall(panel, stored, curves)
        panel.set_ylabel(label)
    for panel, (label, section) in zip(
        panels[len(overall) :], grouped.items(), strict=False
    ):
        _grouped(panel, stored, section, shown)
        panel.set_ylabel(label)
    for panel in panels[:count]:
        panel.set_xlabel("epoch")
        whole_ticks(panel)
        if panel.has_data():
            panel.legend()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure


@FIGURES.register("directions")
def draw_directions(stored: StoredRun, page: Page) -> "Figure":
    """The gradient's leading input direction of each group, on the brain."""
    return _directions(stored, page, "gradient")


@FIGURES.register("directions-activation")
def draw_activation_directions(stored: StoredRun, page: Page) -> "Figure":
    """The activations' leading input direction of each group, on the brain."""
    return _directions(stored, page, "activation")


def _directions(stored: StoredRun, page: Page, quantity: str) -> "Figure":
    from matplotlib.text import Text

    maps = stored.maps
    if maps is None or quantity not in maps.vectors:
        raise InputError(
            f"Run {stored.name} keeps no {quantity} directions in the places of its "
            "features (directions/maps.npz): nothing to draw."
        )
    names = [group_label(group) for group in maps.vectors[quantity]]
    vectors, shares = (
        {
            name: np.asarray(stack, dtype=np.float64)[:1]
            for name, stack in zip(names, of[quantity].values(), strict=True)
        }
        for of in (maps.vectors, maps.shares)
    )
    told = None if page.narrow else shares
    note = NOTE.replace(". ", ".\n") if page.narrow else NOTE
    words = maps.titles[quantity], note
    if maps.affine is None:
        figure = connectome_figure(vectors, maps.networks, told, *words)
    else:
        affine = np.asarray(maps.affine, dtype=np.float64)
        figure = volume_figure(vectors, affine, told, *words)
    width, height = figure.get_size_inches()
    scale = page.width / 25.4 / width
    figure.set_size_inches(width * scale, (height - WORDS) * scale + WORDS)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        size = min(float(text.get_fontsize()), 7.0)
        text.set_fontsize(size * (0.75 if page.narrow else 1.0))
    return figure


def _overall(panel: "Axes", stored: StoredRun, curves: dict[str, str]) -> None:
    colours = (POOLED_COLOUR, GROUP_COLOURS[0])
    for colour, stroke, (key, name) in zip(
        colours, ("--", "-"), curves.items(), strict=True
    ):
        _curve(panel, stored, key, name, colour, stroke)


def _grouped(panel: "Axes", stored: StoredRun, section: str, shown: Shown) -> None:
    taken: list[str] = []
    for group, (colour, stroke) in shown.styles.items():
        taken.append(safe_name(group, taken))
        key = f"{section}/{taken[-1]}"
        _curve(panel, stored, key, group_label(group), colour, stroke)


def _curve(
    panel: "Axes", stored: StoredRun, key: str, name: str, colour: str, stroke: str
) -> None:
    own = stored.metrics[stored.metrics["key"] == key].sort_values("step")
    if len(own):
        marker = "o" if len(own) == 1 else None
        panel.plot(
            own["step"],
            own["value"],
            linestyle=stroke,
            color=colour,
            marker=marker,
            label=name,
        )
