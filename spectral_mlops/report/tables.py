"""End-of-run tables, from records alone."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from spectral_mlops.records import (
    POOLED,
    Divergence,
    EpochRecord,
    Quantity,
    Spectrum,
)


def layer_table(
    watched: Iterable[EpochRecord], divergences: Sequence[Divergence], grouping: str
) -> pd.DataFrame:
    """One row per layer, quantity and pair of groups.

    Args:
        watched: Records whose spectra are averaged: watched batches of one epoch,
            all folds.
        divergences: Of the probe, or of the watched batches where there is none.
        grouping: Whose groups have columns.

    Returns:
        Columns ``layer, quantity, erank_<group> …, erank_all, pair, divergence,
        null_mean, null_sd, z, p, p_max, n, reason``. Effective ranks are means over
        watched batches and folds, and depend on the group's size in a batch.
    """
    ranks = _effective_ranks(watched, grouping)
    groups = sorted({group for cell in ranks.values() for group in cell} - {POOLED})
    rows = []
    for row in divergences:
        if row.grouping != grouping:
            continue
        cell = ranks.get((row.layer, row.quantity), {})
        rows.append(
            {
                "layer": row.layer,
                "quantity": row.quantity,
                **{f"erank_{g}": cell.get(g, np.nan) for g in (*groups, POOLED)},
                "pair": f"{row.group_a} – {row.group_b}",
                "divergence": row.value,
                "null_mean": row.null_mean,
                "null_sd": row.null_sd,
                "z": row.z,
                "p": row.p,
                "p_max": row.p_max,
                "n": f"{row.subjects_a} + {row.subjects_b}",
                "reason": row.reason,
            }
        )
    return pd.DataFrame(rows)


def _effective_ranks(
    watched: Iterable[EpochRecord], grouping: str
) -> dict[tuple[str, Quantity], dict[str, float]]:
    """Mean effective rank per layer and quantity, by group."""
    found: dict[tuple[str, Quantity], dict[str, list[float]]] = {}
    for spectrum in (s for record in watched for s in record.spectra):
        if spectrum.grouping in (grouping, POOLED) and _usable(spectrum):
            cell = found.setdefault((spectrum.layer, spectrum.quantity), {})
            rank = spectrum.summaries["effective_rank"]
            cell.setdefault(spectrum.group, []).append(rank)
    return {
        key: {group: float(np.mean(ranks)) for group, ranks in cell.items()}
        for key, cell in found.items()
    }


def _usable(spectrum: Spectrum) -> bool:
    return spectrum.status == "ok" and np.isfinite(spectrum.summaries["effective_rank"])
