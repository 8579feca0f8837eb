"""Epochs: when along training do groups differ, from the same relabellings at each.

A trajectory is one statistic over epochs under one relabelling. Because the same
relabellings hold at every epoch and layer, the maximum over them (max-T) and the
largest cluster mass have a null of their own, whatever the dependence over epochs.
Axis 0 is the relabelling, the observed labels first. Large values speak against the
null; there is no lower tail, as a divergence has none.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.errors import InputError
from spectral_mlops.inference.significance import Array, p_value, standardise

Family = Literal["epochs", "epochs_and_layers"]
FAMILIES: tuple[Family, ...] = ("epochs", "epochs_and_layers")

NO_VALUE = "no observed value at this epoch"
NO_SPREAD = "no relabelling changes the value at this epoch"


@dataclass(frozen=True, eq=False)
class MaxTTest:
    """Each epoch of each layer by itself, adjusted over its family.

    Attributes:
        t: Observed values standardised over all relabellings, ``[epochs, layers]``.
        p: Family-wise p, ``[epochs, layers]``; NaN where there is no test.
        reason: Why not, ``[epochs, layers]``; empty where there is one.
    """

    t: Array
    p: Array
    reason: NDArray[np.str_]


@dataclass(frozen=True)
class Cluster:
    """Neighbouring epochs of one layer that lie above the threshold.

    Attributes:
        layer: Its place among the layers.
        start: First epoch.
        stop: One past the last epoch.
        mass: Sum of the standardised values, in SD over relabellings.
        p: Family-wise p of a cluster as heavy. It is about the cluster as a whole:
            it does not say that the difference begins at ``start`` or ends at
            ``stop`` (Sassenhagen & Draschkow 2019, Psychophysiology 56, e13335).
    """

    layer: int
    start: int
    stop: int
    mass: float
    p: float


@dataclass(frozen=True, eq=False)
class ClusterTest:
    """Every cluster of the observed trajectories, and what they are judged by.

    Attributes:
        clusters: By layer, then by epoch; none where nothing is above the threshold.
        threshold: On standardised values, in SD over relabellings.
        max_mass: Heaviest cluster under every relabelling, ``[P + 1, layers]`` (the
            same in all layers for the family ``epochs_and_layers``); zero where a
            relabelling has no cluster.
        reason: Why an epoch is in no cluster, if it could not be, ``[epochs, layers]``.
    """

    clusters: tuple[Cluster, ...]
    threshold: float
    max_mass: Array
    reason: NDArray[np.str_]


def max_t_test(values: Array, family: Family = "epochs_and_layers") -> MaxTTest:
    """Family-wise p of every epoch by the maximum of the standardised statistic.

    Westfall & Young 1993; Nichols & Holmes 2002 (Human Brain Mapping 15, 1-25).
    Epochs without an observed value, or that no relabelling changes, have no p and
    take no part in the maximum. A relabelling that is NaN at an epoch that takes
    part counts as reaching every value.

    Args:
        values: Shape ``[P + 1, epochs, layers]``.
        family: What p is adjusted over: the epochs of a layer, or all layers too.

    Returns:
        p for each epoch and layer.
    """
    t, reason = _standardised(values, family)
    p = np.full(t.shape[1:], np.nan)
    eligible = reason == ""
    for layers in _families(t.shape[2], family):
        chosen = np.zeros_like(eligible)
        chosen[:, layers] = eligible[:, layers]
        if chosen.any():
            null = np.nan_to_num(t[1:, chosen], nan=np.inf).max(1)
            observed = t[0, chosen]
            repeated = np.repeat(null[:, None], len(observed), axis=1)
            p[chosen] = p_value(np.concatenate([observed[None], repeated]))
    return MaxTTest(t[0], p, reason)


def cluster_test(
    values: Array, threshold: float = 2.0, family: Family = "epochs_and_layers"
) -> ClusterTest:
    """Cluster-mass test over epochs.

    Maris & Oostenveld 2007 (Journal of Neuroscience Methods 164, 177-190). Values are
    standardised over relabellings epoch by epoch; neighbouring epochs of a layer with
    values above ``threshold`` form a cluster, whose mass is the sum of its values. A
    cluster's p compares its mass with the heaviest cluster of each relabelling.
    Clusters never join layers. The threshold decides what is looked for (low: long
    and weak, high: short and strong), not the error rate; choose it before looking.
    An epoch without an observed value, or that no relabelling changes, is above no
    threshold and parts clusters, also under relabelling. A relabelling that is NaN at
    any other epoch counts as heavier than everything.

    Args:
        values: Shape ``[P + 1, epochs, layers]``.
        threshold: In SD over relabellings, above zero.
        family: What p is adjusted over: the clusters of a layer, or all layers too.

    Returns:
        The clusters of the observed trajectories, each with its p.

    Raises:
        InputError: If the threshold is not above zero.
    """
    if not 0 < threshold < np.inf:
        raise InputError(f"{threshold=}: give a number of SD above zero.")
    t, reason = _standardised(values, family)
    t[1:] = np.nan_to_num(t[1:], nan=np.inf)
    t[:, reason != ""] = -np.inf
    heaviest = _heaviest(t, threshold)
    for layers in _families(t.shape[2], family):
        heaviest[:, layers] = heaviest[:, layers].max(1, keepdims=True, initial=0.0)
    clusters = []
    for layer in range(t.shape[2]):
        trajectory = t[0, :, layer]
        for start, stop in _runs(trajectory > threshold):
            mass = float(trajectory[start:stop].sum())
            p = float(p_value(np.concatenate([[mass], heaviest[1:, layer]])))
            clusters.append(Cluster(layer, start, stop, mass, p))
    return ClusterTest(tuple(clusters), threshold, heaviest, reason)


def _standardised(values: Array, family: Family) -> tuple[Array, NDArray[np.str_]]:
    """Standardise; say which epochs have no test, and why."""
    if values.ndim != 3 or family not in FAMILIES:
        raise InputError(
            f"values of shape {list(values.shape)}, family='{family}': give "
            "[P + 1, epochs, layers] and one of "
            f"{', '.join(map(repr, FAMILIES))}."
        )
    t = standardise(values)
    known = np.isfinite(values[0])
    reason = np.where(known, np.where(np.isnan(t[0]), NO_SPREAD, ""), NO_VALUE)
    return t, reason


def _families(layers: int, family: Family) -> list[list[int]]:
    """Layers that are adjusted together."""
    everything = list(range(layers))
    return [[x] for x in everything] if family == "epochs" else [everything]


def _heaviest(t: Array, threshold: float) -> Array:
    """Mass of the heaviest cluster of each trajectory, ``[P + 1, layers]``."""
    running = np.zeros((t.shape[0], t.shape[2]))
    heaviest = running.copy()
    for epoch in range(t.shape[1]):
        above = t[:, epoch] > threshold
        running = np.where(above, running + np.where(above, t[:, epoch], 0.0), 0.0)
        heaviest = np.maximum(heaviest, running)
    return heaviest


def _runs(above: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and stop of each run of true values."""
    edges = np.flatnonzero(np.diff(above, prepend=False, append=False))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
