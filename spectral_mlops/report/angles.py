"""Angles between the groups' leading subspaces: how far apart they pull the network.

An angle depends on the groups' sizes, and two groups of one kind are never at angle 0:
what it means is read off the angles of relabelled people.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from spectral_mlops.inference.comparison import Comparison, average, to_divergences
from spectral_mlops.records import QUANTITIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Key = tuple[object, ...]

CELL = ("epoch", "source", "fold", "seed", "layer", "quantity", "grouping")
PAIR = ("group_a", "group_b")
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
"""What stands for fold and seed where networks are averaged."""
UNTESTED = "descriptive: only held-out people are relabelled"
COLOURS = ("#2166ac", "#b2182b", "#4d9221", "#762a83", "#b35806", "#35978f")


class RelabelledAngle(NamedTuple):
    """The largest angle of two groups in one network, under every relabelling."""

    epoch: int
    fold: int
    seed: int
    angle: Comparison


def with_null(angles: pd.DataFrame, tested: Sequence[RelabelledAngle]) -> pd.DataFrame:
    """Set what relabelled people give beside observed angles.

    Args:
        angles: From `directions.angle_table`.
        tested: The statistic ``principal_angle`` of some of them, in radians, under
            the same relabellings in all networks.

    Returns:
        The rows of ``angles`` with further columns: ``angle_degrees`` (the largest
        angle, of three-dimensional subspaces or fewer where a group has no more under
        some relabelling), mean, SD, 5th and 95th percentile of it under relabelling,
        z, p, and why there is none. Where several networks were tested, rows of their
        mean (``mean`` for fold and seed; over seeds, then folds, relabelling by
        relabelling, then z and p) stand below, with the means of what was observed
        and the smallest rank.
    """
    if angles.empty:
        return angles.reindex(columns=[*angles.columns, *TESTED])
    found = _tested(tested)
    keys = [*CELL, *PAIR]
    rest = [name for name in keys if name not in ("fold", "seed")]
    ways = {"rank": "min", "smallest_degrees": "mean", "largest_degrees": "mean"}
    means = angles.groupby(rest, as_index=False, sort=False).agg(ways)
    means["fold"] = means["seed"] = MEAN
    kept = [tuple(row) in found for row in means[keys].to_numpy()]
    single = angles.astype({"fold": object, "seed": object})
    table = pd.concat([single, means[kept]], ignore_index=True)
    nothing = [*(np.nan,) * (len(TESTED) - 1), UNTESTED]
    columns = [found.get(tuple(row), nothing) for row in table[keys].to_numpy()]
    added = pd.DataFrame(columns, columns=list(TESTED))
    joined: pd.DataFrame = pd.concat([table, added], axis="columns")
    return joined


def angle_figure(table: pd.DataFrame, grouping: str, title: str = "") -> "Figure":
    """Draw the tested angle along training, with what relabelled people give.

    A panel per quantity, a colour per pair of groups: dots are the mean over networks
    (filled where p ≤ 0.05), the band holds nine of ten relabellings, thin lines are
    single networks.

    Args:
        table: From `with_null`.
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
            _draw(panel, rows, colour, f"{a} – {b}", len(pairs) == 1)
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
    above = "p above, " if len(pairs) == 1 else ""
    words = (
        f"Dots: mean over networks, filled where p ≤ 0.05 ({above}not adjusted). "
        "Band, dashes: 5 to 95 % and mean of relabelled people. Thin: one network.\n"
        "Activations are those that enter the layer: of the first one the inputs."
    )
    figure.supxlabel(words, fontsize=7.5, color="0.35")
    return figure


def _draw(
    panel: "Axes", rows: pd.DataFrame, colour: str, label: str, alone: bool
) -> None:
    """Draw one pair of groups; p is written where no other pair's could be near."""
    together = rows[rows["fold"] == MEAN]
    single = rows[rows["fold"] != MEAN]
    if together.empty:  # of one network
        together = single
    else:
        for _, network in single.groupby(["fold", "seed"]):
            line: Any = (1 + network["epoch"], network["angle_degrees"])
            panel.plot(*line, color=colour, linewidth=0.6, alpha=0.35)
    epochs = (1 + together["epoch"]).to_numpy()
    angles = together["angle_degrees"].to_numpy()
    low, high = (together[name].to_numpy() for name in ("null_05", "null_95"))
    panel.fill_between(epochs, low, high, color=colour, alpha=0.12, linewidth=0)
    means = together["null_mean"].to_numpy()
    panel.plot(epochs, means, color=colour, linewidth=0.8, linestyle="--")
    panel.plot(epochs, angles, color=colour, linewidth=1.4, label=label)
    for epoch, angle, p in zip(epochs, angles, together["p"], strict=True):
        face = colour if p <= 0.05 else "white"
        panel.plot(epoch, angle, "o", color=colour, markerfacecolor=face, markersize=6)
        if alone and p == p:
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
    """Form the columns `TESTED` of every network, and of the mean over them."""
    by_epoch: dict[int, dict[int, dict[int, list[Comparison]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for epoch, fold, seed, angle in tested:
        degrees = replace(angle, values=np.degrees(angle.values))
        by_epoch[epoch][fold][seed].append(degrees)
    found: dict[Key, list[object]] = {}
    for epoch, folds in by_epoch.items():
        named: list[tuple[object, object, list[Comparison]]] = [
            (fold, seed, items)
            for fold, seeds in folds.items()
            for seed, items in seeds.items()
        ]
        if len(named) > 1:
            over_seeds = [average(list(seeds.values())) for seeds in folds.values()]
            named.append((MEAN, MEAN, average(over_seeds)))
        for fold_name, seed_name, angles in named:
            for item in angles:
                where = (epoch, item.source, fold_name, seed_name)
                what = (item.layer, item.quantity, item.grouping)
                found[*where, *what, item.group_a, item.group_b] = _columns(item)
    return found


def _columns(item: Comparison) -> list[object]:
    (row,) = to_divergences([item])
    null = item.values[1:][np.isfinite(item.values[1:])]
    ends = np.percentile(null, [5, 95]) if len(null) else (np.nan, np.nan)
    return [row.value, row.null_mean, row.null_sd, *ends, row.z, row.p, row.reason]
