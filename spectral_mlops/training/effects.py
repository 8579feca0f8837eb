"""How large the difference is at a fixed number of people, and how much it varies.

A p says how rare, z how detectable. The *effect* is the divergence of the spectra of
``m`` people of each group, less the mean divergence of relabelled groups of ``m``
people: zero on average where groups do not differ. It is of these people and
networks, and compares with others at the same ``m`` only (`inference.effects`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from spectral_mlops.common_size import Cell, Draws, Subsampled
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.inference.effects import interval_of, run_spread, spread
from spectral_mlops.inference.relabel import spread_over_runs
from spectral_mlops.inference.significance import Array
from spectral_mlops.monitor import EpochSpectra
from spectral_mlops.records import ALL_LAYERS
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.networks import by_fold
from spectral_mlops.training.plan import Plan

COLUMNS = (
    "quantity",
    "layer",
    "group_a",
    "group_b",
    "divergence",
    "effect",
    "low",
    "high",
    "chance",
    "m",
    "n",
    "draws",
    "sd_folds",
    "sd_seeds",
    "reason",
)


class _Layer(NamedTuple):
    """One layer, quantity and pair of groups.

    Attributes:
        observed: Divergence of all people, ``[folds, seeds]``.
        values: Of all people, then of every subsample; means over networks.
        chance: Likewise of relabelled groups, after the first.
        reason: Why something is missing, or empty.
    """

    observed: Array
    values: Array
    chance: Array
    reason: str


def effects_table(
    plan: Plan,
    networks: Sequence[FoldRun],
    held_out: Sequence[EpochSpectra],
    compared: Sequence[Sequence[Comparison]],
) -> pd.DataFrame:
    """Describe the size of every difference of the primary grouping on the probe.

    The same subsamples pass through all networks; their divergences are averaged over
    seeds, then folds, draw by draw.

    Args:
        plan: The run.
        networks: With the weights of the chosen checkpoints.
        held_out: What the probe showed in each.
        compared: Groups compared in each, with everyone's relabellings.

    Returns:
        One row per quantity, layer and pair, layer `ALL_LAYERS` being the mean over
        those with a value: ``divergence`` (of all people), ``effect`` (mean over
        draws), ``low`` and ``high`` (2.5 and 97.5 % of draws), ``chance`` (what was
        taken off), ``m`` and ``n`` (people of each group drawn; in the smallest),
        ``draws`` that gave a value, ``sd_folds`` and ``sd_seeds`` of ``divergence``
        over networks, and why something is missing.
    """
    settings = plan.config.comparison
    drawn = [
        seen.subsampled(
            plan.primary,
            settings.effect_people,
            settings.effect_draws,
            settings.seed,
            settings.divergence,
        )
        for seen in held_out
    ]
    tables = [
        {_cell(item): item for item in one if item.grouping == plan.primary}
        for one in compared
    ]
    layers = {cell: _layer(cell, networks, tables, drawn) for cell in tables[0]}
    families: dict[tuple[str, str, str], list[_Layer]] = {}
    for (_, *family), one in layers.items():
        if np.isfinite(one.values[0]):
            families.setdefault((family[0], family[1], family[2]), []).append(one)
    means = {(ALL_LAYERS, *family): _over(some) for family, some in families.items()}
    sizes = drawn[0].m, drawn[0].n
    rows = [
        (quantity, layer, a, b, *_numbers(one, *sizes), one.reason)
        for (layer, quantity, a, b), one in (layers | means).items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _layer(
    cell: Cell,
    networks: Sequence[FoldRun],
    tables: Sequence[Mapping[Cell, Comparison]],
    drawn: Sequence[Subsampled],
) -> _Layer:
    items = [table[cell] for table in tables]
    tested = next((item for item in items if item.has_null), None)
    observed = [float(item.values[0]) for item in items]
    values = _mean(networks, observed, [x.values for x in drawn], cell)
    chance = _mean(networks, observed, [x.chance for x in drawn], cell)
    if tested is None:  # labels cannot move: what they show is no zero
        chance = np.full_like(chance, np.nan)
    reason = items[0].reason if tested is None else drawn[0].reason
    return _Layer(np.array(by_fold(networks, observed)), values, chance, reason)


def _over(layers: Sequence[_Layer]) -> _Layer:
    """Average layers, draw by draw."""
    return _Layer(
        np.mean([one.observed for one in layers], axis=0),
        np.mean([one.values for one in layers], axis=0),
        np.mean([one.chance for one in layers], axis=0),
        layers[0].reason,
    )


def _mean(
    networks: Sequence[FoldRun],
    observed: Sequence[float],
    drawn: Sequence[Draws],
    cell: Cell,
) -> Array:
    """Average one cell over seeds, then folds; networks without a value are out."""
    length = max((len(x) for draws in drawn for x in draws.values()), default=0)
    nothing = np.full(length, np.nan)
    values = [
        np.concatenate([[one], draws.get(cell, nothing)])
        for one, draws in zip(observed, drawn, strict=True)
    ]
    return spread_over_runs(np.array(by_fold(networks, values)))


def _numbers(one: _Layer, m: int, n: int) -> tuple[float, ...]:
    """Numbers of one row, from ``divergence`` to ``sd_seeds``."""
    variability = run_spread(one.observed)
    zero = spread(one.chance[1:].tolist()).mean
    effects = one.values[1:] - zero
    found = interval_of(effects, m, n)
    return (
        float(one.values[0]),
        spread(effects.tolist()).mean,
        found.low,
        found.high,
        zero,
        found.m,
        found.n,
        found.draws,
        variability.folds.sd,
        variability.seeds.sd,
    )


def _cell(item: Comparison) -> Cell:
    return item.layer, item.quantity, item.group_a, item.group_b
