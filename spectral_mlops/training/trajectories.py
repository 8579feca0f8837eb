"""When along training groups differ: the probe's epochs under the same relabellings.

Every epoch with a null was compared under the same relabellings of the same people,
so that the largest value over epochs and layers, and the heaviest cluster of
neighbouring epochs, have a null of their own (`inference.trajectories`).
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.inference.trajectories import cluster_test, max_t_test

THRESHOLD = 2.0
"""SD over relabellings above which epochs form clusters."""
COLUMNS = (
    "quantity",
    "group_a",
    "group_b",
    "layer",
    "epoch",
    "t",
    "p_max",
    "cluster_mass",
    "cluster_p",
    "reason",
)


def trajectory_table(
    epochs: Mapping[int, Sequence[Comparison]], threshold: float = THRESHOLD
) -> pd.DataFrame:
    """Adjust over epochs and layers together, for each quantity and pair of groups.

    Args:
        epochs: Comparisons of each epoch, averaged over folds, of one grouping, with
            the same relabellings of the same people.
        threshold: Of clusters, in SD over relabellings; neighbours are epochs that
            follow each other among those given.

    Returns:
        One row per quantity, pair, layer and epoch: ``t`` (observed value standardised
        over relabellings), ``p_max`` (max-T over epochs and layers), mass and p of the
        cluster that the epoch is in, if it is in one, and why something is missing.
    """
    cells = {
        (epoch, item.quantity, item.group_a, item.group_b, item.layer): item
        for epoch, items in epochs.items()
        for item in items
        if item.testable and item.has_null
    }
    families = dict.fromkeys(key[1:4] for key in cells)
    rows: list[tuple[object, ...]] = []
    for family in families:
        layers = list(dict.fromkeys(k[4] for k in cells if k[1:4] == family))
        own = [cells[key] for key in cells if key[1:4] == family]
        if len({(item.null, len(item.values)) for item in own}) > 1:
            why = "epochs were relabelled in different ways"
            rows += [
                (*family, layer, epoch, *(np.nan,) * 4, why)
                for layer, epoch in product(layers, epochs)
            ]
            continue
        blank = np.full(len(own[0].values), np.nan)
        values = np.stack(
            [
                np.stack(
                    [
                        getattr(cells.get((epoch, *family, layer)), "values", blank)
                        for layer in layers
                    ],
                    axis=1,
                )
                for epoch in epochs
            ],
            axis=1,
        )  # [P + 1, epochs, layers]
        single, together = max_t_test(values), cluster_test(values, threshold)
        for (i, layer), (e, epoch) in product(enumerate(layers), enumerate(epochs)):
            inside = [
                cluster
                for cluster in together.clusters
                if cluster.layer == i and cluster.start <= e < cluster.stop
            ]
            mass, p = (inside[0].mass, inside[0].p) if inside else (np.nan, np.nan)
            numbers = (single.t[e, i], single.p[e, i], mass, p)
            rows.append((*family, layer, epoch, *numbers, str(single.reason[e, i])))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def sentences(table: pd.DataFrame, level: float = 0.05) -> list[str]:
    """Say per quantity and pair where along training the groups differ most."""
    said: list[str] = []
    if table.empty:
        return said
    for (quantity, a, b), rows in table.groupby(
        ["quantity", "group_a", "group_b"], sort=False
    ):
        known = rows.dropna(subset=["p_max"])
        if known.empty:
            continue
        best = known.iloc[int(known["t"].to_numpy().argmax())]
        text = (
            f"{quantity}, {a} and {b}: most apart in epoch {best['epoch']} at "
            f"{best['layer']} (z = {best['t']:.2f}, p = {best['p_max']:.3f} over "
            f"{rows['epoch'].nunique()} epochs and {rows['layer'].nunique()} layers)"
        )
        clusters = rows[rows["cluster_p"] <= level]
        for (layer, p), run in clusters.groupby(["layer", "cluster_p"], sort=False):
            first, last = run["epoch"].min(), run["epoch"].max()
            text += f"; a cluster at {layer}, epochs {first} to {last}, p = {p:.3f}"
        said.append(text + ".")
    return said
