"""The primary outcome of whole runs, from the people to p, over sizes of effect.

Splits, scaling, checkpoints, probe, relabellings and p are the package's own; only
the steps of training are taken for several networks at once (`stack`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.power import planted
from experiments.power.stack import train_stack
from spectral_mlops.config import RunConfig, merge, read_toml, validate
from spectral_mlops.inference.comparison import average
from spectral_mlops.inference.crossfit import combine_folds
from spectral_mlops.training.crossfit import crossfit_plans
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.outcome import outcome_of
from spectral_mlops.training.performance import Predictions
from spectral_mlops.training.plan import Plan, make_plan

HERE = Path(__file__).parent
PARTS = 3
"""Of a cross-fit, where there is no probe."""

assert planted.load_planted  # the import registers the loader
Row = dict[str, Any]


def plan_of(
    people: int,
    share: float,
    effect: float,
    seed: int,
    changes: dict[str, Any] | None = None,
) -> Plan:
    """Settle one run: people, probe and folds drawn from one seed."""
    own = {
        "cohort": {"settings": {"people": people, "effect": effect, "seed": seed}},
        "training": {"seed": seed},
        "comparison": {"seed": seed, "probe_seed": seed, "probe_fraction": share},
    }
    config = HERE / "config.toml"
    settings = merge(merge(read_toml(config), own), changes or {})
    return make_plan(validate(RunConfig, settings, str(config)), HERE)


def outcomes(plans: Sequence[Plan]) -> list[Row]:
    """Train runs of the same people with different effects, and test each.

    Args:
        plans: With a probe; they differ in features alone.

    Returns:
        ``p_<quantity>``, ``z_<quantity>`` and ``probe_auc`` of each.
    """
    compared: list[list[Any]] = [[] for _ in plans]
    aucs: list[list[float]] = [[] for _ in plans]
    for number in range(len(plans[0].folds)):
        runs = [
            FoldRun(plan, number, torch.device("cpu"), watched=False) for plan in plans
        ]
        train_stack(runs)
        for i, run in enumerate(runs):
            shown, said = run.probe(run.best_epoch), run.predict_probe()
            assert shown is not None
            assert isinstance(said, Predictions)
            settings = run.plan.config.comparison
            compared[i].append(
                shown.comparisons(
                    settings.permutations,
                    seed=settings.seed,
                    divergence=settings.divergence,
                    relabel="everyone",
                )
            )
            aucs[i].append(said.auc)
    return [
        numbers(plan, folds) | {"probe_auc": float(np.mean(auc))}
        for plan, folds, auc in zip(plans, compared, aucs, strict=True)
    ]


def numbers(plan: Plan, folds: list[Any]) -> Row:
    """Z and p of every quantity, averaged over folds as a run does."""
    together = average(folds)
    row: Row = {}
    for quantity in plan.quantities:
        found = outcome_of(together, quantity, plan.primary)
        row |= {f"z_{quantity}": found.z, f"p_{quantity}": found.p}
    return row


def data_sets(
    people: int,
    share: float | None,
    effects: Sequence[float],
    seed: int,
    changes: dict[str, Any] | None = None,
) -> Iterator[Row]:
    """One data set per effect, of the same people.

    Args:
        people: Their number.
        share: Held out; ``None`` for a cross-fit.
        effects: Sizes of the planted difference.
        seed: Of everything.
        changes: Settings laid over the config file.

    Yields:
        One row per effect; with the reason as ``refused`` where the package sets no
        probe aside.
    """
    plans = [plan_of(people, share or 0.3, e, seed, changes) for e in effects]
    if share is None:
        parts = [crossfit_plans(plan, PARTS) for plan in plans]
        found = combined([outcomes(list(part)) for part in zip(*parts, strict=True)])
    elif plans[0].probe is None:
        found = [{"refused": plan.probe_note} for plan in plans]
    else:
        found = outcomes(plans)
    for effect, row in zip(effects, found, strict=True):
        about = {"people": people, "share": share, "effect": effect, "seed": seed}
        yield about | row


def combined(parts: Sequence[list[Row]]) -> list[Row]:
    """Combine the p of all parts, effect by effect."""
    rows = []
    for several in zip(*parts, strict=True):
        row: Row = {"probe_auc": float(np.mean([x["probe_auc"] for x in several]))}
        for key in several[0]:
            if key.startswith("p_"):
                row[key] = combine_folds([x[key] for x in several]).p
        rows.append(row)
    return rows
