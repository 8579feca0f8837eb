"""Angles between the groups' leading subspaces: how far apart they pull the network.

An angle depends on the groups' sizes, and two groups of one kind are never at angle 0:
what it means is read off the angles of relabelled people.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations, groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.inference.comparison import Comparison, average, to_divergences
from spectral_mlops.records import POOLED, QUANTITIES, Direction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Key = tuple[object, ...]

CELL = ("epoch", "source", "fold", "layer", "quantity", "grouping")
PAIR = ("group_a", "group_b")
OBSERVED = ("rank", "smallest_degrees", "largest_degrees")
TESTED = (
    "angle_degrees",
    "null_mean",
    "null_sd",
    "null_05",
    "null_95",
    "z",
    "p",
    "reason",
)
MEAN = "mean"
"""What stands for the fold where folds are averaged."""
UNTESTED = "descriptive: only held-out people are relabelled"
COLOURS = ("#2166ac", "#b2182b", "#4d9221", "#762a83", "#b35806", "#35978f")


class RelabelledAngle(NamedTuple):
    """The largest angle of two groups in one fold, under every relabelling."""

    epoch: int
    fold: int
    angle: Comparison


def angle_table(
    directions: Iterable[Direction], tested: Sequence[RelabelledAngle] = ()
) -> pd.DataFrame:
    """Principal angles between the groups' leading subspaces, and their null.

    Args:
        directions: Records of any epochs, folds, layers and groupings.
        tested: The statistic ``principal_angle`` of some of them, in radians, under
            the same relabellings in all folds.

    Returns:
        One row per pair of groups: ``epoch, source, fold, layer, quantity, grouping,
        group_a, group_b, rank`` (dimension of both subspaces, the smaller number of
        directions that the two have), ``smallest_degrees, largest_degrees``; NaN where
        rows were not finite. Then what was tested: ``angle_degrees`` (the largest
        angle, of three-dimensional subspaces or fewer where a group has no more under
        some relabelling), mean, SD, 5th and 95th percentile of it under relabelling,
        z, p, and why there is none. Where several folds were tested there are rows of
        their mean (fold ``mean``; relabelling by relabelling, then z and p).
    """
    rows: dict[Key, list[object]] = {}
    chosen = sorted(
        (d for d in directions if d.grouping != POOLED),
        key=lambda d: (*_cell(d), d.group, d.index),
    )
    for cell, records in groupby(chosen, key=_cell):
        spaces: dict[str, list[NDArray[np.float32]]] = {}
        for record in records:
            spaces.setdefault(record.group, []).append(record.vector)
        for a, b in combinations(sorted(spaces), 2):
            rank = min(len(spaces[a]), len(spaces[b]))
            u, v = (np.array(spaces[g][:rank], dtype=np.float64) for g in (a, b))
            angles = np.degrees(_angles(u, v))
            rows[*cell, a, b] = [rank, angles.min(), angles.max()]
    found = _tested(tested)
    for key in found:
        if key[2] == MEAN:
            folds = [x for k, x in rows.items() if (*k[:2], MEAN, *k[3:]) == key]
            if folds:
                ranks, small, large = zip(*folds, strict=True)
                rows[key] = [min(ranks), np.mean(small), np.mean(large)]
    nothing = [*(np.nan,) * (len(TESTED) - 1), UNTESTED]
    return pd.DataFrame(
        [(*key, *row, *found.get(key, nothing)) for key, row in rows.items()],
        columns=[*CELL, *PAIR, *OBSERVED, *TESTED],
    )


def angle_figure(table: pd.DataFrame, grouping: str, title: str = "") -> "Figure":
    """Draw the tested angle along training, with what relabelled people give.

    A panel per quantity, a colour per pair of groups: dots are the mean over folds
    (filled where p ≤ 0.05), the band holds nine of ten relabellings, thin lines are
    single folds.

    Args:
        table: From `angle_table`.
        grouping: Whose groups.
        title: Above all panels.

    Returns:
        The figure, not shown.
    """
    from matplotlib.figure import Figure

    shown = table[(table["grouping"] == grouping) & table["angle_degrees"].notna()]
    quantities = [name for name in QUANTITIES if name in set(shown["quantity"])]
    width = max(1, len(quantities))
    figure = Figure(figsize=(4.2 * width + 0.6, 4.2), layout="constrained")
    axes = figure.subplots(1, width, squeeze=False, sharey=True)[0]
    pairs = list(shown[[*PAIR]].drop_duplicates().itertuples(index=False, name=None))
    for panel, quantity in zip(axes, quantities, strict=False):
        for number, (a, b) in enumerate(pairs):
            here = (shown["quantity"] == quantity) & (shown["group_a"] == a)
            rows = shown[here & (shown["group_b"] == b)]
            colour = COLOURS[number % len(COLOURS)]
            _draw(panel, rows, colour, f"{a} – {b}")
        panel.set_title(quantity, fontsize=10)
        panel.set_xlabel("epoch")
        panel.set_xticks([1 + epoch for epoch in sorted(set(shown["epoch"]))])
        panel.margins(x=0.1)
        panel.grid(axis="y", color="0.9", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("largest principal angle (degrees)")
    axes[0].legend(fontsize=8, frameon=False, loc="best")
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    words = (
        "Dots: mean over folds, filled where p ≤ 0.05 (p above, not adjusted). Band, "
        "dashes: 5 to 95 % and mean of relabelled people. Thin: single folds.\n"
        "Activations are those that enter the layer: of the first one the inputs."
    )
    figure.supxlabel(words, fontsize=7.5, color="0.35")
    return figure


def _draw(panel: "Axes", rows: pd.DataFrame, colour: str, label: str) -> None:
    """Draw one pair of groups."""
    together = rows[rows["fold"] == MEAN]
    single = rows[rows["fold"] != MEAN]
    if together.empty:  # of one fold
        together = single
    else:
        for _, fold in single.groupby("fold"):
            line: Any = (1 + fold["epoch"], fold["angle_degrees"])
            panel.plot(*line, color=colour, linewidth=0.6, alpha=0.35)
    epochs = (1 + together["epoch"]).to_numpy()
    angles = together["angle_degrees"].to_numpy()
    low, high = (together[name].to_numpy() for name in ("null_05", "null_95"))
    panel.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    means = together["null_mean"].to_numpy()
    panel.plot(epochs, means, color=colour, linewidth=0.8, linestyle="--")
    panel.plot(epochs, angles, color=colour, linewidth=1.4, label=label)
    for epoch, angle, p in zip(epochs, angles, together["p"], strict=True):
        face = colour if p <= 0.05 else "white"
        panel.plot(epoch, angle, "o", color=colour, markerfacecolor=face, markersize=6)
        if p == p:
            panel.annotate(
                f"{p:.3f}",
                (epoch, angle),
                xytext=(0, 7),
                textcoords="offset points",
                fontsize=7,
                ha="center",
                color=colour,
            )


def _tested(tested: Sequence[RelabelledAngle]) -> dict[Key, list[object]]:
    """Form the columns `TESTED` of every fold, and of the mean over them."""
    by_epoch: dict[int, dict[int, list[Comparison]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for epoch, fold, angle in tested:
        degrees = replace(angle, values=np.degrees(angle.values))
        by_epoch[epoch][fold].append(degrees)
    found: dict[Key, list[object]] = {}
    for epoch, folds in by_epoch.items():
        named: list[tuple[object, list[Comparison]]] = [*folds.items()]
        if len(folds) > 1:
            named.append((MEAN, average(list(folds.values()))))
        for name, angles in named:
            for item in angles:
                key = (epoch, item.source, name, item.layer, item.quantity)
                pair = (item.grouping, item.group_a, item.group_b)
                found[*key, *pair] = _columns(item)
    return found


def _columns(item: Comparison) -> list[object]:
    (row,) = to_divergences([item])
    null = item.values[1:][np.isfinite(item.values[1:])]
    ends = np.percentile(null, [5, 95]) if len(null) else (np.nan, np.nan)
    return [row.value, row.null_mean, row.null_sd, *ends, row.z, row.p, row.reason]


def _cell(record: Direction) -> tuple[int, str, int, str, str, str]:
    return (
        record.epoch,
        record.source,
        record.fold,
        record.layer,
        record.quantity,
        record.grouping,
    )


def _angles(u: Array, v: Array) -> Array:
    """Angles between the spans of orthonormal rows, by sines where they are small."""
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        return np.full(len(u), np.nan)
    u, v = (np.linalg.qr(x.T)[0] for x in (u, v))  # float32 is not quite orthonormal
    overlap = u.T @ v
    cosines = np.linalg.svd(overlap, compute_uv=False).clip(0, 1)
    sines = np.linalg.svd(v - u @ overlap, compute_uv=False).clip(0, 1)[::-1]
    angles: Array = np.where(cosines**2 < 0.5, np.arccos(cosines), np.arcsin(sines))
    return angles
