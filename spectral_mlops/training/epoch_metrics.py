"""How well people are predicted, as the numbers that charts are made of."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spectral_mlops.tracking.metrics import safe_name
from spectral_mlops.tracking.profiles import PROFILES
from spectral_mlops.training.performance import Said
from spectral_mlops.training.plan import Plan


def means_of(said: list[Said], names: Sequence[str], prefix: str) -> dict[str, float]:
    """Mean over networks of each number."""
    values = {name: [getattr(one, name) for one in said] for name in names}
    return {f"{prefix}{name}": float(np.mean(x)) for name, x in values.items()}


def per_group(plan: Plan, validation: list[Said]) -> pd.DataFrame:
    """How well each group's people are predicted, means over seeds."""
    tables = []
    for said in validation:
        labels = plan.labels(plan.cohort.rows(said.ids))[plan.primary]
        tables.append(said.per_group(labels))
    repeats = len(validation[0].ids) // len({*validation[0].ids})
    numbers = tables[0].columns.drop(["group", "n"])
    means = {name: np.mean([t[name] for t in tables], axis=0) for name in numbers}
    return tables[0].assign(n=tables[0]["n"] // repeats, **means)


def epoch_metrics(
    plan: Plan,
    losses: list[float],
    validation: list[Said],
    said: list[Said],
) -> dict[str, float]:
    """Loss and the like of one epoch: means over networks; per group, over people."""
    table = per_group(plan, validation).set_index("group").drop("all")
    groups: dict[str, dict[str, float]] = table.to_dict("index")  # type: ignore[assignment]
    measures = plan.task.measures
    metrics = {"train/loss": float(np.mean(losses))}
    metrics |= means_of(said, ["loss", *measures.overall], "val/")
    profile, names = PROFILES.get(plan.config.tracking.profile), dict[str, str]()
    for group in groups:
        names[group] = safe_name(group, names.values())
    largest = table["n"].nlargest(profile.charted_groups).index
    for curve in (name for name in profile.group_curves if name in measures.groups):
        for group in (group for group in groups if group in largest):
            value = groups[group][measures.groups[curve]]
            # of one class the balanced accuracy is the recall, which has its own key
            double = curve == "bacc" and np.isfinite(groups[group]["recall"])
            if np.isfinite(value) and not double:
                metrics[f"val_{curve}/{names[group]}"] = value
    return metrics
