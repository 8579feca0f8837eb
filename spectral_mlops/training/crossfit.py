"""Cross-fitting, where a cohort is too small to set a probe aside.

Everyone is held out once: the run is made as many times as there are parts, each with
another part as its probe, and the parts' p are combined by twice their mean, which
holds however they depend on each other (`inference.crossfit`).
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from spectral_mlops.cohorts import crossfit_probes
from spectral_mlops.errors import InputError
from spectral_mlops.inference.crossfit import combine_folds
from spectral_mlops.training.outcome import p_text
from spectral_mlops.training.plan import Plan, draw_folds, strata_of
from spectral_mlops.training.result import RunResult


def crossfit_plans(plan: Plan, parts: int) -> list[Plan]:
    """Return the plans of all parts: same settings, other people held out.

    Args:
        plan: Of the whole cohort.
        parts: At least 2.

    Raises:
        InputError: If a group, or what is left to train on, is too small for that, or
            the settings name splits.
    """
    if plan.config.training.splits is not None:
        raise InputError(
            "--crossfit holds everyone out once, and training.splits says who is held "
            "out; use one of them."
        )
    people, strata = strata_of(plan.config, plan.cohort, plan.primary)
    probes = crossfit_probes(
        people,
        parts,
        plan.primary,
        strata,
        plan.config.comparison.probe_seed,
    )
    plans = []
    for number, probe in enumerate(probes):
        folds = draw_folds(plan.config, plan.cohort, probe, plan.primary)
        note = f"Part {number + 1} of {parts}: {len(probe.ids)} people held out."
        plans.append(replace(plan, probe=probe, probe_note=note, folds=tuple(folds)))
    return plans


def crossfit_table(
    plan: Plan, parts: Sequence[Plan], results: Sequence[RunResult]
) -> tuple[pd.DataFrame, str]:
    """Put the parts' primary outcomes together.

    Args:
        plan: Of the whole cohort.
        parts: See `crossfit_plans`.
        results: Of their runs.

    Returns:
        One row per part (people held out, z, p, AUC or R² on them), and one sentence.
    """
    z = f"final/divergence_{plan.primary_quantity}"
    headline, none = plan.task.measures.headline, float("nan")
    table = pd.DataFrame(
        {
            "part": range(1, len(parts) + 1),
            "held_out": [len(part.probe.ids) if part.probe else 0 for part in parts],
            "z": [result.metrics.get(z, none) for result in results],
            "p": [result.metrics.get("final/primary_p", none) for result in results],
            headline: [r.metrics.get(f"final/probe_{headline}", none) for r in results],
        }
    )
    together = combine_folds(table["p"].tolist())
    about = f"{plan.primary_quantity} between groups of {plan.primary}"
    if together.reason:
        return table, f"No test of {about} over the parts: {together.reason}."
    return table, (
        f"{p_text(together.p)} for {about}, twice the mean p of {together.folds} parts "
        "in which everyone was held out once: valid however the parts depend on each "
        "other, and conservative."
    )
