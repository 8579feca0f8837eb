"""What a page draws of performance, cost, groups' influence, and places of features."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from spectral_mlops.records import ALL_LAYERS, POOLED, Influence
from spectral_mlops.report.brain import CLIPPED, domains_of
from spectral_mlops.report.html_data import Frame, rounded, thinned
from spectral_mlops.report.input_maps import InputMaps
from spectral_mlops.tracking.measures import CLASSIFICATION, WORDS, Measures
from spectral_mlops.tracking.metrics import safe_name

NETWORKS = 120
"""Matrices of more networks are shown as the picture that the run left."""


def curves(
    metrics: pd.DataFrame, sections: Sequence[str], most: int = 300
) -> dict[str, list[list[Any]]]:
    """Return points of the metrics whose key is, or begins with, one of some names.

    Args:
        metrics: From `load_metrics`.
        sections: Whole keys, or beginnings that end in a slash or an underscore.
        most: At most so many points of each.

    Returns:
        Key to ``[steps, values]``; of a step logged twice the last.
    """
    found: dict[str, list[list[Any]]] = {}
    for key, rows in metrics.groupby("key", sort=False):
        name = str(key)
        if any(name == s or (s[-1] in "/_" and name.startswith(s)) for s in sections):
            last = rows.groupby("step")["value"].last()
            steps = thinned(last.index.tolist(), most)
            found[name] = [steps, rounded(last[steps])]
    return found


def performance(
    metrics: pd.DataFrame, groups: Sequence[str], measures: Measures = CLASSIFICATION
) -> dict[str, Any]:
    """Loss and the like over epochs, overall and of the primary groups.

    Args:
        metrics: From `load_metrics`.
        groups: Of the primary grouping.
        measures: Of the run's task.

    Returns:
        ``overall``: key to points; ``groups``: kind (``loss``, ``acc``, whatever the
        run has in ``val_<kind>/``) to group to points; ``words`` of each kind;
        ``told``: the measure that bars show, its ``kind`` and ``words``, and whether
        it is ``bounded`` by 0 and 1.
    """
    names: dict[str, str] = {}
    for group in sorted(groups):
        names[safe_name(group, names)] = group
    kinds: dict[str, dict[str, Any]] = {}
    for key, points in curves(metrics, ["val_"]).items():
        section, _, name = key.partition("/")
        kind = section.removeprefix("val_")
        kinds.setdefault(kind, {})[names.get(name, name)] = points
    overall = ["train/loss", *(f"val/{k}" for k in ("loss", *measures.overall))]
    kind = next(k for k, name in measures.groups.items() if name == measures.told)
    return {
        "overall": curves(metrics, overall),
        "groups": kinds,
        "words": {kind: WORDS[name] for kind, name in measures.groups.items()},
        "told": {
            "name": measures.told,
            "kind": kind,
            "words": WORDS[measures.told],
            "bounded": measures.bounded,
        },
    }


def influence_maps(influence: Sequence[Influence], frame: Frame) -> dict[str, Any]:
    """Group-by-group influence of the primary grouping, means over folds.

    Returns:
        ``groups, layers, epochs``, and ``value`` and ``cosine`` of shape
        ``[layers, epochs, group_a, group_b]`` (whose step, whose loss); empty without
        records.
    """
    primary = next(iter(frame.groupings), "")
    rows = pd.DataFrame([one for one in influence if one.grouping == primary])
    if rows.empty:
        return {}
    groups = sorted({*rows["group_a"], *rows["group_b"]})
    there = rows["layer"].unique()
    layers = [name for name in (ALL_LAYERS, *frame.layers) if name in there]
    epochs = thinned(sorted(rows["epoch"].unique().tolist()), 24)
    places = pd.MultiIndex.from_product([layers, epochs, groups, groups])
    shape = (len(layers), len(epochs), len(groups), len(groups))
    means = rows.groupby(["layer", "epoch", "group_a", "group_b"])
    found: dict[str, Any] = {"groups": groups, "layers": layers, "epochs": epochs}
    for name in ("value", "cosine"):
        grid = means[name].mean().reindex(places).to_numpy(float)
        short = np.array(rounded(grid, 3), dtype=object).reshape(shape)
        found[name] = short.tolist()
    return found


def connectomes(maps: InputMaps | None) -> dict[str, Any]:
    """Matrices of directions, with the borders of domains.

    Returns:
        ``names`` of networks, ``domains`` ``[name, start, stop]``, and per quantity
        ``title``, ``limit`` (where the scale ends) and ``groups``: name, shares,
        matrices ``[k, n, n]``; empty where there is none to draw.
    """
    if maps is None or maps.affine is not None or not maps.vectors:
        return {}
    n = next(iter(next(iter(maps.vectors.values())).values())).shape[-1]
    if n > NETWORKS:
        return {}
    quantities = {}
    for quantity, groups in maps.vectors.items():
        known = np.concatenate([np.abs(x[np.isfinite(x)]) for x in groups.values()])
        quantities[quantity] = {
            "title": maps.titles[quantity],
            "limit": float(np.percentile(known, CLIPPED)) if len(known) else 1.0,
            "groups": [
                {
                    "name": group,
                    "shares": rounded(maps.shares[quantity][group], 3),
                    "matrices": [[rounded(row, 3) for row in one] for one in stack],
                }
                for group, stack in groups.items()
            ],
        }
    return {
        "names": list(maps.networks),
        "size": n,
        "domains": [list(one) for one in domains_of(maps.networks)],
        "quantities": quantities,
    }


def inlined(pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Return pictures as addresses that hold them."""
    return {
        name: f"data:image/png;base64,{base64.b64encode(data).decode()}"
        for name, data in pictures.items()
    }


def people_of(table: pd.DataFrame | None, measures: Measures) -> list[dict[str, Any]]:
    """Rows of the table ``groups`` (what was reached at the end), pooled last."""
    needed = ["group", "n", "loss", measures.told]
    if table is None or not {*needed} <= set(table.columns):
        return []
    more = [name for name in measures.groups.values() if name in table]
    kept = table[[*dict.fromkeys([*needed, *more])]].copy()
    kept["pooled"] = kept["group"] == POOLED
    ordered = kept.sort_values("pooled", kind="stable")
    return [
        {str(key): value for key, value in row.items()}
        for row in ordered.to_dict("records")
    ]
