"""Runs as a folder would give them back, of any size and with any names."""

from itertools import combinations

import numpy as np
import pandas as pd

from spectral_mlops.records import Divergence, EpochRecord, Influence, Spectrum
from spectral_mlops.report.stored import StoredRun
from spectral_mlops.tracking.shards import table_of

HOSTILE = "</script><script>window.hit=1</script>&\"'<img src=x onerror='window.hit=2'>"


def spectrum(layer, quantity, grouping, group, values, samples=5, step=0, **more):
    values = np.asarray(values, dtype=np.float64)
    total = values.sum()
    summaries = {
        "effective_rank": float(np.count_nonzero(values)),
        "frobenius_norm": float(np.sqrt((values**2).sum())),
        "leading_share": float(values[0] / total) if total else float("nan"),
    }
    known = {
        "rows": 2 * samples,
        "batch_samples": 3 * samples,
        "subjects": samples,
        "loss_scale": 0.25,
        "shape": (7, 4),
        "route": "gram",
        "floor": 0.0,
        "below_floor": 0,
        "status": "ok",
        "summaries": summaries,
    }
    return Spectrum(
        layer=layer, quantity=quantity, grouping=grouping, group=group, values=values,
        samples=samples, step=step, **(known | more),
    )  # fmt: skip


def divergence(layer, quantity, grouping, a, b, value=0.1, **more):
    known = {
        "null_mean": 0.05,
        "null_sd": 0.02,
        "excess": value - 0.05,
        "z": (value - 0.05) / 0.02,
        "p": 0.04,
        "p_max": 0.04,
        "reason": "",
    }
    return Divergence(
        layer=layer, quantity=quantity, grouping=grouping, group_a=a, group_b=b,
        divergence="js", value=value, n_a=5, n_b=5, subjects_a=5, subjects_b=5,
        source="probe", null="19 relabellings", strata="site", valid_for="",
        **(known | more),
    )  # fmt: skip


def stored(
    groups=("control", "patient"),
    layers=("hidden.0", "out"),
    epochs=3,
    folds=2,
    probe=True,
    grouping="diagnosis",
    name="run",
    quantities=("gradient", "activation", "adjoint"),
    seed=0,
    **more,
):
    """A run with random numbers; keywords replace what it has."""
    rng = np.random.default_rng(seed)
    parts = [("all", "all"), *((grouping, group) for group in groups)]
    records = []

    def values():
        return np.sort(rng.gamma(1.0, size=4))[::-1]

    for epoch in range(-1 if probe else 0, epochs):
        for fold in range(folds):
            for source in ("train", "probe") if probe else ("train",):
                if epoch < 0 and source == "train":
                    continue
                spectra = [
                    spectrum(layer, quantity, part, group, values(), 4 + len(group) % 3)
                    for layer in layers
                    for quantity in quantities
                    for part, group in parts
                ]
                pairs = [
                    divergence(layer, quantity, grouping, a, b, float(rng.random()))
                    for layer in layers
                    for quantity in quantities
                    for a, b in combinations(groups, 2)
                ]
                records.append(
                    EpochRecord(epoch, source, tuple(spectra), tuple(pairs), fold)
                )
    metrics = [
        (key, step, float(rng.random()), step)
        for key in ("val/auc", "val/loss", "val_acc/control", "cost/tracking_s")
        for step in range(epochs)
    ]
    influence = [
        Influence(e, "train", f, "all layers", grouping, a, b, -0.1, 0.5, 0.01)
        for e in range(epochs)
        for f in range(folds)
        for a in groups
        for b in groups
    ]
    found = {
        "name": name,
        "config": {"comparison": {"groupings": [grouping]}, "note": name},
        "spectra": table_of(records, "spectra").to_pandas(),
        "divergences": table_of(records, "divergences").to_pandas(),
        "metrics": pd.DataFrame(metrics, columns=["key", "step", "value", "time"]),
        "final": {"final/auc": 0.7, "final/divergence_activation": 1.5},
        "tables": {},
        "verdict": "p = .2: nothing is shown.\nVerdict: nothing to explain.",
        "directions": [],
        "influence": influence,
    }
    return StoredRun(**(found | more))
