"""What a page draws of spectra and divergences: means, thinned where there are many.

Averages are formed as everywhere: batches first, then folds; the spread over folds is
variability, no evidence. Mean spectra by rank position are for drawing only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.records import POOLED, QUANTITIES

Array = NDArray[np.float64]

SUMMARIES = {
    "effective_rank": "effective rank",
    "frobenius_norm": "Frobenius norm (scale mean)",
    "stable_rank": "stable rank",
    "leading_share": "share of the leading value",
}
SCALED = ("frobenius_norm",)
"""Summaries that have a scale; they are brought to ``mean``."""
FIELDS = ("value", "null_mean", "null_sd", "excess", "z")
LAYERS = 60
"""At most so many layers are drawn, evenly spaced in depth."""
RANKS = 48
"""At most so many singular values of a spectrum are drawn."""
EPOCHS = 60
"""At most so many epochs are drawn."""
NUMBERS = 250_000
"""About so many numbers at most of spectra, of summaries, and of divergences are in a
page, 1.5 MB each; where there would be more, epochs and layers are thinned."""
FEWEST = 4
"""Epochs that spectra are drawn of in any case; layers are thinned before."""
CELL = ["source", "layer", "quantity", "grouping", "group"]


@dataclass(frozen=True)
class Frame:
    """What there is to choose from in a page.

    Attributes:
        layers: In order of depth, thinned.
        quantities: In their fixed order.
        groupings: Grouping to its groups, the primary first; not the pooled one.
        epochs: From −1, where the untrained network was measured; thinned.
        notes: What was left out, one sentence each.
    """

    layers: tuple[str, ...]
    quantities: tuple[str, ...]
    groupings: dict[str, tuple[str, ...]]
    epochs: tuple[int, ...]
    notes: tuple[str, ...]


def frame_of(
    spectra: pd.DataFrame, divergences: pd.DataFrame, primary: Sequence[str] = ()
) -> Frame:
    """Find what there is to draw.

    Args:
        spectra: From `load_run`.
        divergences: Likewise.
        primary: Groupings in the order of the settings.
    """
    both = [frame for frame in (spectra, divergences) if len(frame)]
    layers = _unique(frame["layer"] for frame in both)
    found = set(_unique(frame["quantity"] for frame in both))
    named = _unique(frame["grouping"] for frame in both)
    order = [g for g in primary if g in named]
    order += [g for g in named if g not in order and g != POOLED]
    groupings = {name: _groups(spectra, divergences, name) for name in order}
    epochs = sorted({int(e) for frame in both for e in frame["epoch"].unique()})
    tested = divergences.loc[divergences["null_sd"].notna(), "epoch"].unique()
    cells = max(1, 2 * len(found) * (1 + sum(map(len, groupings.values()))))
    room = max(4, NUMBERS // (cells * RANKS * FEWEST))
    kept_layers = thinned(layers, min(LAYERS, room))
    kept_epochs = thinned(epochs, EPOCHS, keep=[int(e) for e in tested])
    notes = []
    if len(kept_layers) < len(layers):
        notes.append(
            f"Drawn are {len(kept_layers)} of {len(layers)} layers, evenly spaced in "
            "depth; tables and files have all."
        )
    if len(kept_epochs) < len(epochs):
        notes.append(
            f"Drawn are {len(kept_epochs)} of {len(epochs)} epochs; files have all."
        )
    quantities = tuple(q for q in QUANTITIES if q in found)
    return Frame(
        tuple(kept_layers), quantities, groupings, tuple(kept_epochs), tuple(notes)
    )


def spectra_cells(spectra: pd.DataFrame, frame: Frame) -> list[dict[str, Any]]:
    """Mean spectra by rank position, one cell per source, layer, quantity and group.

    Singular values are brought to the scale ``mean`` (divided by ``c·n_g``, rows of
    factors by ``√(n_g·S)``); a batch whose group has fewer rows counts as zero beyond
    them.

    Args:
        spectra: From `load_run`.
        frame: What is drawn.

    Returns:
        ``source, layer, quantity, grouping, group`` (the middle and last names, ``all``
        for the pooled), ``ranks`` (from 1), ``epochs`` and ``values``
        ``[epochs, ranks]``.
    """
    chosen = _chosen(spectra, frame)
    epochs = _affordable(chosen, frame, RANKS)
    cells = []
    chosen = chosen[chosen["epoch"].isin(epochs)]
    for key, rows in chosen.groupby(CELL, sort=False):
        length = max(map(len, rows["values"]))
        if length == 0:
            continue
        ranks = rank_positions(length)
        there, means = _mean_spectra(rows, length)
        cells.append(
            {
                **dict(zip(CELL, key, strict=True)),
                "ranks": ranks.tolist(),
                "epochs": there,
                "values": [rounded(mean[ranks - 1]) for mean in means],
            }
        )
    return cells


def trajectory_cells(spectra: pd.DataFrame, frame: Frame) -> list[dict[str, Any]]:
    """Summaries of each group over epochs: mean and SD over folds.

    Returns:
        Keys as in `spectra_cells`, then ``epochs``, ``samples`` (mean size of the group
        in a batch) and per summary ``[mean], [SD over folds]``, SD null for one fold.
    """
    chosen = _chosen(spectra, frame)
    names = [name for name in SUMMARIES if name in chosen]
    epochs = _affordable(chosen, frame, 2 * len(names) + 1)
    chosen = chosen[chosen["epoch"].isin(epochs)].copy()
    factor = mean_scale(chosen)
    for name in SCALED:
        if name in names:
            chosen[name] *= factor
    folds = chosen.groupby([*CELL, "epoch", "fold"], sort=False)
    by_fold = folds[[*names, "samples"]].mean().reset_index()
    over = by_fold.groupby([*CELL, "epoch"])
    means = over[[*names, "samples"]].mean()
    spreads = {name: over[name].std(ddof=1).to_numpy() for name in names}
    numbers = {name: means[name].to_numpy() for name in (*names, "samples")}
    at = means.index.to_frame(index=False)
    epoch = at["epoch"].to_numpy()
    groups: dict[Any, Any] = at.groupby(CELL, sort=False).indices
    return [
        {
            **dict(zip(CELL, key, strict=True)),
            "epochs": epoch[rows].tolist(),
            "samples": float(f"{numbers['samples'][rows].mean():.3g}"),
            **{
                name: [rounded(numbers[name][rows]), rounded(spreads[name][rows])]
                for name in names
            },
        }
        for key, rows in groups.items()
    ]


def divergence_maps(
    divergences: pd.DataFrame, joint: pd.DataFrame, frame: Frame
) -> tuple[list[dict[str, Any]], list[str]]:
    """Layer × epoch maps of each pair of groups.

    Values, and means and SD of their nulls, are means over folds. Where the run tested
    all folds together (``epochs.tsv``, the probe and the primary grouping), z and p are
    those; of a single fold its own; of several folds without a joint test z is the mean
    over folds, and there is no p.

    Args:
        divergences: From `load_run`.
        joint: The table ``epochs``; may be empty.
        frame: What is drawn.

    Returns:
        Maps: ``source, quantity, grouping, group_a, group_b, divergence, epochs``,
        ``tested`` (how), ``reasons``, and per field of `FIELDS`, ``p_max`` and
        ``cluster_p`` an array ``[layers, epochs]``; and sentences about what was left
        out.
    """
    if divergences.empty:
        return [], []
    kinds = list(divergences["divergence"].unique())
    rows = divergences[divergences["divergence"] == kinds[0]]
    rows = rows[rows["epoch"].isin(frame.epochs) & rows["layer"].isin(frame.layers)]
    notes = []
    if len(kinds) > 1:
        notes.append(f"Drawn is the divergence {kinds[0]}; files have {kinds[1:]} too.")
    keys = ["source", "quantity", "grouping", "group_a", "group_b"]
    families = list(rows.groupby(keys, sort=False))
    each = max(1, len(frame.layers) * len(frame.epochs) * (len(FIELDS) + 2))
    room = max(6, NUMBERS // each)
    if room < len(families):
        notes.append(
            f"Drawn are {room} of {len(families)} maps of pairs, in their order; files "
            "have all."
        )
    primary = next(iter(frame.groupings), "")
    return [
        _map(dict(zip(keys, key, strict=True)), part, joint, primary, frame)
        for key, part in families[:room]
    ], notes


def _map(
    key: dict[str, str],
    rows: pd.DataFrame,
    joint: pd.DataFrame,
    primary: str,
    frame: Frame,
) -> dict[str, Any]:
    """One map; see `divergence_maps`."""
    epochs = sorted({int(e) for e in rows["epoch"]})
    found = _means(rows, FIELDS, frame, epochs)
    blank = np.full((len(frame.layers), len(epochs)), np.nan)
    found |= {"p_max": blank, "cluster_p": blank}
    tested = "folds"
    if rows["fold"].nunique() == 1:
        found |= _means(rows, ["p_max"], frame, epochs)
        tested = "one"
    own = _joint_rows(key, joint) if key["grouping"] == primary else joint[:0]
    if len(own):
        own = own[own["epoch"].isin(epochs) & own["layer"].isin(frame.layers)]
        at = _means(own, ["t", "p_max", "cluster_p"], frame, epochs)
        z = at.pop("t")
        found["z"] = np.where(np.isnan(z), found["z"] if tested == "one" else z, z)
        found |= at
        tested = "joint"
    reasons = [str(r) for r in rows["reason"].unique() if isinstance(r, str) and r]
    return {
        **key,
        "divergence": str(rows["divergence"].iloc[0]),
        "epochs": epochs,
        "tested": tested,
        "reasons": reasons[:3],
        **{name: [rounded(row) for row in grid] for name, grid in found.items()},
    }


def _joint_rows(key: Mapping[str, str], joint: pd.DataFrame) -> pd.DataFrame:
    """Rows of the table ``epochs`` that tell of a map of the probe."""
    needed = {"quantity", "group_a", "group_b", "layer", "epoch"}
    needed |= {"t", "p_max", "cluster_p"}
    if key["source"] != "probe" or not needed <= set(joint.columns):
        return joint[:0]
    same = joint["quantity"] == key["quantity"]
    for side in ("group_a", "group_b"):
        same &= joint[side].astype(str) == key[side]
    if "grouping" in joint:
        same &= joint["grouping"].astype(str) == key["grouping"]
    return joint[same]


def mean_scale(spectra: pd.DataFrame) -> Array:
    """What singular values and norms are multiplied by to reach the scale ``mean``.

    The same as `records.Spectrum.factor_of`, of many rows at once.

    Args:
        spectra: From `load_run`.

    Returns:
        Shape ``[rows]``.
    """
    activation = (spectra["quantity"] == "activation").to_numpy()
    gradient = (spectra["quantity"] == "gradient").to_numpy()
    loss = np.where(activation, 1.0, 1.0 / spectra["loss_scale"].to_numpy(float))
    size = np.where(gradient, spectra["samples"], np.sqrt(spectra["rows"].to_numpy()))
    factor: Array = loss / size
    return factor


def rank_positions(length: int, most: int = RANKS) -> NDArray[np.int64]:
    """Positions from 1 that are drawn: all, or the first and then ever fewer."""
    if length <= most:
        return np.arange(1, length + 1)
    steps = np.geomspace(1, length, 4 * most).round().astype(np.int64)
    unique = np.unique(steps)
    return np.array(thinned(unique.tolist(), most), dtype=np.int64)


def thinned(items: Sequence[Any], most: int, keep: Iterable[Any] = ()) -> list[Any]:
    """Return at most about ``most`` items, evenly spaced, ends among them.

    Args:
        items: In order.
        most: How many; those of ``keep`` are not counted.
        keep: Items that stay in any case.
    """
    if len(items) <= most:
        return list(items)
    places = np.linspace(0, len(items) - 1, max(most, 2)).round().astype(int)
    stay = {items[place] for place in places} | set(keep)
    return [item for item in items if item in stay]


def rounded(values: Iterable[float], digits: int = 4) -> list[float | None]:
    """Round to significant digits, so that a page stays small; NaN is None."""
    return [
        float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values
    ]


def _chosen(spectra: pd.DataFrame, frame: Frame) -> pd.DataFrame:
    """Usable rows of the layers that are drawn."""
    usable = (spectra["status"] == "ok") & spectra["layer"].isin(frame.layers)
    return spectra[usable]


def _affordable(chosen: pd.DataFrame, frame: Frame, each: int) -> list[int]:
    """Epochs of which there is room for so many numbers a cell, ends among them."""
    cells = chosen.groupby(CELL, sort=False).ngroups
    return thinned(frame.epochs, max(FEWEST, NUMBERS // max(1, cells * each)))


def _mean_spectra(rows: pd.DataFrame, length: int) -> tuple[list[int], Array]:
    """Epochs, and mean over batches, then over folds, ``[epochs, length]``."""
    padded = np.zeros((len(rows), length))
    for row, values in zip(padded, rows["values"], strict=True):
        row[: len(values)] = values
    padded *= mean_scale(rows)[:, None]
    epochs, at = np.unique(rows["epoch"], return_inverse=True)
    folds, fold = np.unique(rows["fold"], return_inverse=True)
    total = np.zeros((len(epochs), len(folds), length))
    count = np.zeros((len(epochs), len(folds), 1))
    np.add.at(total, (at, fold), padded)
    np.add.at(count, (at, fold), 1.0)
    by_fold = total / np.maximum(count, 1.0)
    means: Array = by_fold.sum(axis=1) / (count > 0).sum(axis=1)
    return epochs.tolist(), means


def _means(
    rows: pd.DataFrame, fields: Sequence[str], frame: Frame, epochs: Sequence[int]
) -> dict[str, Array]:
    """Mean of finite values by layer and epoch, ``[layers, epochs]``; else NaN."""
    at = (
        pd.Index(frame.layers).get_indexer(pd.Index(rows["layer"])),
        np.searchsorted(np.asarray(epochs), rows["epoch"].to_numpy()),
    )
    found = {}
    for field in fields:
        values = rows[field].to_numpy(float)
        known = np.isfinite(values)
        places = tuple(part[known] for part in at)
        total = np.zeros((len(frame.layers), len(epochs)))
        count = np.zeros_like(total)
        np.add.at(total, places, values[known])
        np.add.at(count, places, 1.0)
        found[field] = np.where(count > 0, total / np.maximum(count, 1.0), np.nan)
    return found


def _groups(
    spectra: pd.DataFrame, divergences: pd.DataFrame, grouping: str
) -> tuple[str, ...]:
    """All groups of a grouping, sorted."""
    found: set[str] = set()
    if len(spectra):
        found |= set(spectra.loc[spectra["grouping"] == grouping, "group"])
    own = divergences[divergences["grouping"] == grouping]
    for side in ("group_a", "group_b"):
        found |= set(own[side])
    return tuple(sorted(found))


def _unique(columns: Iterable["pd.Series[Any]"]) -> list[str]:
    """Distinct values in order of appearance."""
    return list(dict.fromkeys(str(x) for column in columns for x in column.unique()))
