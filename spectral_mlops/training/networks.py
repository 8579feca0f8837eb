"""The networks of a run: ``training.seeds`` of them in every fold, side by side.

All see the same probe under the same relabellings. What they show is averaged over a
fold's seeds, then over folds, relabelling by relabelling, before any z is formed.
Neither folds nor seeds are units: their spread says how much trainings vary, and
nothing about people.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

from spectral_mlops.inference.comparison import Comparison, average
from spectral_mlops.inference.effects import RunSpread, run_spread
from spectral_mlops.training.distributed import Team
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.performance import Said
from spectral_mlops.training.plan import Plan

T = TypeVar("T")


def start_networks(
    plan: Plan, device: torch.device, team: Team | None = None
) -> list[FoldRun]:
    """Make every fold's networks, fold by fold and seeds within.

    Side by side, so that one epoch of the run is one point of a curve; each network
    takes memory for its weights, four times, and for the people's inputs.
    """
    team = team or Team()
    return [
        FoldRun(plan, number, device, seed=seed, details=team.first, team=team)
        for number in range(len(plan.folds))
        for seed in range(plan.config.training.seeds)
    ]


def by_fold(networks: Sequence[FoldRun], found: Iterable[T]) -> list[list[T]]:
    """Put what each network gave together by fold, ``[folds][seeds]``.

    Args:
        networks: In any order.
        found: One per network, in that order.
    """
    folds: dict[int, list[T]] = {}
    for network, one in zip(networks, found, strict=True):
        folds.setdefault(network.number, []).append(one)
    return list(folds.values())


def by_seed(networks: Sequence[FoldRun], said: Iterable[Said]) -> list[Said]:
    """Join predictions over folds; everyone is in each seed's once."""
    seeds: dict[int, list[Said]] = {}
    for network, one in zip(networks, said, strict=True):
        seeds.setdefault(network.seed, []).append(one)
    return [Said.join(parts) for parts in seeds.values()]


def mean_comparisons(
    networks: Sequence[FoldRun], compared: Sequence[list[Comparison]]
) -> list[Comparison]:
    """Average over seeds, then folds, relabelling by relabelling (`average`)."""
    return average([average(seeds) for seeds in by_fold(networks, compared)])


def spread_of(networks: Sequence[FoldRun], values: Iterable[float]) -> RunSpread:
    """Part how much one number varies into folds and seeds.

    Args:
        networks: The run's.
        values: One per network; NaN where there is none.
    """
    return run_spread(np.array(by_fold(networks, values), dtype=np.float64))


def spread_metrics(
    networks: Sequence[FoldRun], values: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """Return ``<name>_sd_folds`` and, of several seeds, ``<name>_sd_seeds``.

    The SD over folds is that of means over seeds; the SD over seeds is that within
    folds. NaN where fewer than two have a value.

    Args:
        networks: The run's.
        values: Of each number, one per network.
    """
    metrics = {}
    for name, numbers in values.items():
        spread = spread_of(networks, numbers)
        metrics[f"{name}_sd_folds"] = spread.folds.sd
        if len(networks) > len({network.number for network in networks}):
            metrics[f"{name}_sd_seeds"] = spread.seeds.sd
    return metrics
