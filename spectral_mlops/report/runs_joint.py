"""Runs that differ in their seed alone, tested together.

What each run left of its probe under every relabelling (``null.parquet``) is averaged
over runs, relabelling by relabelling, and only then are z and p formed: one statistic
of the same people, under the same relabellings. Trainings are never units.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from spectral_mlops.inference.comparison import Comparison, average, to_divergences
from spectral_mlops.inference.effects import spread
from spectral_mlops.inference.significance import Array, combined_z, p_value
from spectral_mlops.report.runs import StoredRun, of_one_kind

Cell = tuple[str, str, str, str]


@dataclass(frozen=True, eq=False)
class Joint:
    """Some runs together, or why there is no test.

    Attributes:
        runs: Their numbers, from 1.
        overall: Per quantity: ``z`` and ``p`` of the mean over runs, all layers and
            pairs together, and ``lowest`` and ``highest`` z of single runs.
        layers: Per layer, quantity and pair: ``divergence`` (mean over runs), ``sd``
            over runs, ``z``, ``p``, ``p_max`` (max-T over layers).
        sentence: What it means, or why there is none.
    """

    runs: list[int]
    sentence: str
    overall: pd.DataFrame = field(default_factory=pd.DataFrame)
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)


def joint_tests(runs: Sequence[StoredRun]) -> list[Joint]:
    """Test every set of runs that differ in their seed alone.

    Args:
        runs: In the order of their numbers.

    Returns:
        One per set of two runs or more that has a probe.
    """
    return [
        _joint(list(same), list(same.values()))
        for same in of_one_kind(runs)
        if any(run.probe for run in same.values())
    ]


def _joint(numbers: list[int], runs: list[StoredRun]) -> Joint:
    if refusal := _refusal(runs):
        shown = ", ".join(map(str, numbers))
        return Joint(numbers, f"No joint test of runs {shown}: {refusal}.")
    settings = runs[0].config.comparison
    grouping = settings.groupings[0]
    overall = _overall(runs, grouping)
    layers = _layers([run.null_pairs or run.null for run in runs], grouping)
    primary = overall[overall["quantity"] == settings.primary_quantity]
    shown = ", ".join(map(str, numbers))
    p = float(primary["p"].iloc[0]) if len(primary) else np.nan
    about = f"{settings.primary_quantity} between groups of {grouping}"
    if np.isnan(p):
        said = f"Runs {shown} together: no test of {about}."
    else:
        said = (
            f"Runs {shown} together: p = {p:.3f} for {about} (the primary outcome), "
            f"averaged over {len(runs)} runs relabelling by relabelling. The people "
            "are the evidence: more runs make their average steadier, nothing else."
        )
    return Joint(numbers, said, overall, layers)


def _refusal(runs: Sequence[StoredRun]) -> str:
    """Say why some runs may not be averaged, if so."""
    if len({run.probe for run in runs}) > 1:
        return "they have different probes"
    for run in runs:
        if not run.null:
            return (
                f"{run.name} left no null.parquet (made by an earlier version); train "
                "it again"
            )
    for nulls in ([run.null for run in runs], [run.null_pairs for run in runs]):
        known: dict[Cell, set[str]] = {}
        for item in (one for null in nulls for one in null if one.has_null):
            _, cell = _key(item)
            known.setdefault(cell, set()).add(f"{item.null}, strata {item.strata}")
        for cell, found in known.items():
            if len(found) > 1:
                return (
                    f"{cell[0]} between {cell[2]} and {cell[3]} was relabelled in "
                    f"different ways ({'; '.join(sorted(found))})"
                )
    return ""


def _overall(runs: Sequence[StoredRun], grouping: str) -> pd.DataFrame:
    """All layers and pairs of a quantity together, as a single run's headline."""
    each = [run.null for run in runs]
    together = average(each)
    rows = []
    for quantity in dict.fromkeys(item.quantity for item in together):
        values = _z(together, quantity, grouping)
        single = spread([float(_z(null, quantity, grouping)[0]) for null in each])
        rows.append(
            {
                "quantity": quantity,
                "z": float(values[0]),
                "p": float(p_value(values)) if len(values) > 1 else np.nan,
                "lowest": single.low,
                "highest": single.high,
            }
        )
    return pd.DataFrame(rows)


def _z(comparisons: Sequence[Comparison], quantity: str, grouping: str) -> Array:
    """The combined z under every relabelling; ``[1]`` with NaN if there is none."""
    usable = [
        item.values
        for item in comparisons
        if (item.quantity, item.grouping) == (quantity, grouping)
        and item.testable
        and item.has_null
    ]
    return combined_z(np.stack(usable, axis=1)) if usable else np.array([np.nan])


def _layers(nulls: Sequence[Sequence[Comparison]], grouping: str) -> pd.DataFrame:
    observed: dict[tuple[str, Cell], list[float]] = {}
    for item in (one for null in nulls for one in null):
        observed.setdefault(_key(item), []).append(float(item.values[0]))
    chosen = [item for item in average(nulls) if item.grouping == grouping]
    return pd.DataFrame(
        [
            {
                "layer": item.layer,
                "quantity": item.quantity,
                "pair": f"{item.group_a} – {item.group_b}",
                "divergence": row.value,
                "sd": spread(observed[_key(item)]).sd,
                "z": row.z,
                "p": row.p,
                "p_max": row.p_max,
            }
            for item, row in zip(chosen, to_divergences(chosen), strict=True)
            if np.isfinite(row.value)
        ]
    )


def _key(item: Comparison) -> tuple[str, Cell]:
    return item.layer, (item.quantity, item.grouping, item.group_a, item.group_b)
