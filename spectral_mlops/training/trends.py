"""Ranks and norms of groups along training, against the same relabellings.

Effective ranks and norms depend on how many people a group has, so their levels say
nothing by themselves; how far two groups are apart in them does, beside what
relabelling the same held-out people gives.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from spectral_mlops.inference.comparison import Comparison, to_divergences
from spectral_mlops.monitor import EpochSpectra
from spectral_mlops.spectra.statistics import STATISTICS
from spectral_mlops.training.plan import Plan
from spectral_mlops.training.trajectories import trajectory_table

TRENDS = ("effective_rank_difference", "unbiased_norm_ratio")
"""Statistics that are followed along training beside the run's divergence."""
BAND = (0.05, 0.95)
"""Quantiles of relabelled values, the edges of the band of the null."""
COLUMNS = (
    "epoch",
    "statistic",
    "quantity",
    "layer",
    "group_a",
    "group_b",
    "value",
    "null_mean",
    "null_sd",
    "null_05",
    "null_95",
    "z",
    "p",
    "p_max",
    "reason",
)


def compare_everyone(
    plan: Plan, held_out: Sequence[EpochSpectra]
) -> tuple[list[list[Comparison]], list[list[Comparison]]]:
    """Compare groups on the probe of each network, everyone's labels moving together.

    Args:
        plan: The run.
        held_out: What the probe showed, one per network.

    Returns:
        By the run's divergence, and by those of `TRENDS` that it is not, one list per
        network each.
    """
    settings = plan.config.comparison
    names = settings.divergence, *TRENDS
    found = [
        one.comparisons_by(names, settings.permutations, settings.seed)
        for one in held_out
    ]
    others = [name for name in TRENDS if name != settings.divergence]
    return (
        [by[settings.divergence] for by in found],
        [[item for name in others for item in by[name]] for by in found],
    )


def only(
    along: Mapping[int, Sequence[Comparison]], statistic: str
) -> dict[int, list[Comparison]]:
    """Choose the comparisons of one statistic, epoch by epoch."""
    return {
        epoch: [item for item in items if item.divergence == statistic]
        for epoch, items in along.items()
    }


def trend_table(along: Mapping[int, Sequence[Comparison]]) -> pd.DataFrame:
    """Say how far groups' ranks and norms are apart, epoch by epoch.

    Args:
        along: Comparisons of each epoch with a null, of one grouping, averaged over
            networks, with the same relabellings of the same people.

    Returns:
        One row per epoch, statistic, quantity, layer and pair: ``value`` (the absolute
        difference of effective ranks; the absolute log ratio of unbiased squared
        norms), mean, SD and 5 and 95 % of relabelled values, ``z``, ``p``, ``p_max``
        (max-T over epochs and layers of a statistic, quantity and pair) and why
        something is missing.
    """
    rows = []
    for statistic in TRENDS:
        quantities = STATISTICS.get(statistic).quantities
        own = {
            epoch: [item for item in items if item.quantity in quantities]
            for epoch, items in only(along, statistic).items()
        }
        adjusted = {
            (row.quantity, row.group_a, row.group_b, row.layer, row.epoch): row
            for row in trajectory_table(own).itertuples()
        }
        for epoch, items in own.items():
            for item, said in zip(items, to_divergences(items), strict=True):
                pair = item.group_a, item.group_b
                joint = adjusted.get((item.quantity, *pair, item.layer, epoch))
                low, high = _band(item)
                rows.append(
                    {
                        "epoch": epoch,
                        "statistic": statistic,
                        "quantity": item.quantity,
                        "layer": item.layer,
                        "group_a": item.group_a,
                        "group_b": item.group_b,
                        "value": said.value,
                        "null_mean": said.null_mean,
                        "null_sd": said.null_sd,
                        "null_05": low,
                        "null_95": high,
                        "z": said.z,
                        "p": said.p,
                        "p_max": joint.p_max if joint else np.nan,
                        "reason": said.reason
                        or (joint.reason if joint else "")
                        or _lacking(item),
                    }
                )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _band(item: Comparison) -> tuple[float, float]:
    """Return the edges of the null; NaN without one, or beside no observed value."""
    null = item.values[1:]
    known = null[np.isfinite(null)]
    if not len(known) or not np.isfinite(item.values[0]):
        return np.nan, np.nan
    low, high = np.quantile(known, BAND)
    return float(low), float(high)


def _lacking(item: Comparison) -> str:
    """Say how many relabellings have no value: the band is without them, p is not."""
    null = item.values[1:]
    lacking = int((~np.isfinite(null)).sum())
    if not lacking or not np.isfinite(item.values[0]):
        return ""
    return f"{lacking} of {len(null)} relabellings have no value, and count as as far"
