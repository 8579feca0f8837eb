"""Groups compared on the probe: means over networks, and the one number a quantity."""

from typing import NamedTuple

import numpy as np

from spectral_mlops.epoch_spectra import EpochSpectra
from spectral_mlops.inference.comparison import Comparison, headline
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.networks import mean_comparisons, spread_metrics
from spectral_mlops.training.plan import Plan
from spectral_mlops.training.trends import compare_everyone


class OnProbe(NamedTuple):
    """Groups compared on the probe, means over seeds, then folds.

    Attributes:
        together: With everyone's labels moving together.
        pairs: With those of each pair alone, which is what is recorded; the very same
            list where there is one pair.
        everyone: ``together`` of each network.
        trends: Like ``together``, by other statistics (`trends.TRENDS`).
    """

    together: list[Comparison]
    pairs: list[Comparison]
    everyone: list[list[Comparison]]
    trends: list[Comparison]


def on_probe(
    plan: Plan, networks: list[FoldRun], held_out: list[EpochSpectra]
) -> OnProbe:
    """Compare groups on the probe; nothing where there is none."""
    if not held_out:
        return OnProbe([], [], [], [])
    everyone, others = compare_everyone(plan, held_out)
    together = mean_comparisons(networks, everyone)
    trends = mean_comparisons(networks, others)
    primary = [item for item in together if item.grouping == plan.primary]
    if len(plan.groupings) > 1 or len(_groups(primary)) > 2:
        pairs = [compare(plan, x, True) for x in held_out]
        return OnProbe(together, mean_comparisons(networks, pairs), everyone, trends)
    return OnProbe(together, together, everyone, trends)


def spread_over_networks(
    plan: Plan, networks: list[FoldRun], probed: OnProbe, headlines: list[float]
) -> dict[str, float]:
    """Tell how much single networks vary: in AUC or R², and in z, one null for all."""
    values = {f"final/{plan.task.measures.headline}": headlines}
    each = [headline_metrics(plan, x, "final/divergence_{}") for x in probed.everyone]
    for name in each[0] if each else ():
        values[name] = [one.get(name, np.nan) for one in each]
    return spread_metrics(networks, values)


def headline_metrics(
    plan: Plan, together: list[Comparison], name: str
) -> dict[str, float]:
    """The one number per quantity: z over layers of what was averaged first."""
    primary = [item for item in together if item.grouping == plan.primary]
    if not primary:
        return {}
    return {
        name.format(quantity): headline(primary, quantity)
        for quantity in plan.quantities
    }


def compare(plan: Plan, spectra: EpochSpectra, with_null: bool) -> list[Comparison]:
    """Compare the groups of one network, as the run's settings say."""
    settings = plan.config.comparison
    return spectra.comparisons(
        settings.permutations if with_null else 0,
        seed=settings.seed,
        divergence=settings.divergence,
    )


def _groups(comparisons: list[Comparison]) -> set[str]:
    return {group for item in comparisons for group in (item.group_a, item.group_b)}
