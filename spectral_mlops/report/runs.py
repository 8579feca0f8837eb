"""Finished runs side by side, from the files in their folders.

Folds and seeds are no people: their spread is shown as variability and never
tested. Values of two runs may be compared where both were measured on the same
probe and the same relabellings, and nowhere else.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectral_mlops.config import RunConfig, flatten, validate
from spectral_mlops.errors import InputError
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.records import QUANTITIES
from spectral_mlops.tracking.details import read_null
from spectral_mlops.tracking.measures import CLASSIFICATION, MEASURES, WORDS

SPREAD = "SD over folds"
SPREADS = {
    one.task: SPREAD if one is CLASSIFICATION else f"{SPREAD}, {one.words}"
    for one in MEASURES.values()
}
"""Heads of the SD over folds of a task's headline number."""
METRICS = {
    **{
        head: key
        for one in MEASURES.values()
        for head, key in (
            (one.words, f"final/{one.headline}"),
            (SPREADS[one.task], f"final/{one.headline}_sd"),
            *((WORDS[name], f"final/{name}") for name in one.judged[1:]),
        )
    },
    "loss": "final/loss",
    **{
        f"probe {WORDS[name]}": f"final/probe_{name}"
        for one in MEASURES.values()
        for name in one.judged
    },
    **{f"z {quantity}": f"final/divergence_{quantity}" for quantity in QUANTITIES},
}
SEED = "training.seed"
KEYS = ["layer", "quantity", "pair"]
EFFECTS = ["quantity", "layer", "group_a", "group_b", "effect", "low", "high", "m"]


@dataclass(frozen=True, eq=False)
class StoredRun:
    """What a finished run left in its folder.

    Attributes:
        name: Of the folder.
        config: Its settings.
        final: Final numbers by key.
        layers: The end-of-run table per layer.
        probe: Digest of the held-out people, or empty.
        null: Its final statistics on the probe under every relabelling of everyone;
            empty where there is no probe, or in runs of earlier versions.
        null_pairs: The same with relabellings of each pair's people alone, where that
            is not the same.
        effects: Effect sizes at a fixed number of people; empty likewise.
    """

    name: str
    config: RunConfig
    final: dict[str, float]
    layers: pd.DataFrame
    probe: str
    null: list[Comparison] = field(default_factory=list)
    null_pairs: list[Comparison] = field(default_factory=list)
    effects: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def yardstick(self) -> tuple[str, ...]:
        """What must be equal for values to be comparable, beside the probe."""
        one = self.config.comparison
        groupings = "-".join(one.groupings)
        return (groupings, one.divergence, str(one.permutations), str(one.seed))

    @property
    def settings(self) -> dict[str, Any]:
        """Flat settings, where results are kept left out."""
        return flatten(self.config.model_dump(mode="json", exclude={"tracking"}))


def read_run_config(run: Path, *, finished: bool = True) -> RunConfig:
    """Read the settings of a run.

    Args:
        run: Its folder.
        finished: Whether it must have come to its end.

    Raises:
        InputError: If the folder is no run, or not a finished one.
    """
    if not (run / "config.json").is_file():
        raise InputError(
            f"{run} is no run: there is no config.json in it; name a folder that "
            "spectral-mlops train left in runs/."
        )
    if finished and not (run / "final.json").is_file():
        raise InputError(
            f"{run} is a run that was not finished: there is no final.json in it; "
            f"'spectral-mlops train --resume {run}' goes on with it."
        )
    path = run / "config.json"
    return validate(RunConfig, _read_json(path), str(path))


def read_run(run: Path, name: str = "") -> StoredRun:
    """Read a finished run.

    Args:
        run: Its folder.
        name: What it is called; as the folder if not given.

    Raises:
        InputError: If the folder is no finished run, or a file is damaged.
    """
    config = read_run_config(run)
    name = name or run.resolve().name
    if not (run / "splits" / "splits.json").is_file():
        raise InputError(
            f"{name} does not say who its probe is: there is no splits/splits.json, "
            "which runs of earlier versions left in their folder alone."
        )
    layers = _read_table(run / "layers.tsv", [*KEYS, "divergence", "z"])
    index = _read_json(run / "splits" / "splits.json")
    probe = str((index.get("probe") or {}).get("digest", ""))
    final = _read_json(run / "final.json")
    null, pairs = (
        read_null(path) if path.exists() else []
        for path in (run / "null.parquet", run / "null_pairs.parquet")
    )
    effects = pd.DataFrame()
    if (run / "effects.tsv").exists():
        effects = _read_table(run / "effects.tsv", EFFECTS)
    return StoredRun(name, config, final, layers, probe, null, pairs, effects)


def runs_table(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """One row per run: what differs in its settings, and its final numbers.

    Returns:
        Columns ``#`` (from 1), ``run``, one per setting that differs, and those of
        `METRICS` that a run has; NaN where another has not.
    """
    settings = [run.settings for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    differ = [name for name in names if len({str(s.get(name)) for s in settings}) > 1]
    heads = [h for h, key in METRICS.items() if any(key in r.final for r in runs)]
    rows = [
        {
            "#": number,
            "run": run.name,
            **{name: _text(one.get(name)) for name in differ},
            **{head: run.final.get(METRICS[head], np.nan) for head in heads},
        }
        for number, (run, one) in enumerate(zip(runs, settings, strict=True), start=1)
    ]
    return pd.DataFrame(rows)


def of_one_kind(runs: Sequence[StoredRun]) -> list[dict[int, StoredRun]]:
    """Return the sets of runs that differ in their seed alone, by number from 1.

    Left out are single runs, and sets that hold a seed twice.
    """
    kinds: dict[str, dict[int, StoredRun]] = {}
    for number, run in enumerate(runs, start=1):
        rest = {name: x for name, x in run.settings.items() if name != SEED}
        kinds.setdefault(json.dumps(rest, sort_keys=True), {})[number] = run
    return [
        same
        for same in kinds.values()
        if len({run.config.training.seed for run in same.values()}) == len(same) > 1
    ]


def over_seeds(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """Mean, SD and range over runs that differ in their seed alone.

    Of final numbers and of each layer's divergence, which are means over folds.

    Returns:
        Columns ``runs`` (their numbers), ``seeds, value, mean, sd, lowest,
        highest``; empty where no two runs are of one kind.
    """
    rows = []
    for same in of_one_kind(runs):
        final = {
            head: [x.final.get(key, np.nan) for x in same.values()]
            for head, key in METRICS.items()
            if head not in SPREADS.values()
        }
        layers = layers_table(list(same.values()))
        names = (layers["layer"] + " " + layers["quantity"] + " ×10³").tolist()
        divergences = layers.filter(like="×10³").to_numpy().tolist()
        shaped = dict(zip(names, divergences, strict=True))
        for head, found in (final | shaped).items():
            values = np.array(found)
            if np.isfinite(values).all():
                rows.append(
                    {
                        "runs": ", ".join(map(str, same)),
                        "seeds": len(same),
                        "value": head,
                        "mean": values.mean(),
                        "sd": values.std(ddof=1),
                        "lowest": values.min(),
                        "highest": values.max(),
                    }
                )
    return pd.DataFrame(rows)


def layers_table(runs: Sequence[StoredRun]) -> pd.DataFrame:
    """Divergence and z of every layer, one pair of columns per run.

    Returns:
        Columns ``layer, quantity, pair``, then ``#1 ×10³`` (the divergence) and
        ``#1 z``, and so on; rows without any value are left out.
    """
    if not runs:
        raise InputError("There are no runs to compare.")
    columns = []
    for number, run in enumerate(runs, start=1):
        rows = run.layers.set_index(KEYS)
        columns.append((1e3 * rows["divergence"]).rename(f"#{number} ×10³"))
        columns.append(rows["z"].rename(f"#{number} z"))
    joined: pd.DataFrame = pd.concat(columns, axis="columns", sort=False)
    return joined.dropna(how="all").reset_index()


def comparability(runs: Sequence[StoredRun]) -> str:
    """Say in one sentence whether the runs' divergences may be compared."""
    if len(runs) < 2:
        return (
            "Name several runs to see them side by side; --retrain 99 tests this one."
        )
    probes = list(dict.fromkeys(run.probe for run in runs))
    if probes == [""]:
        return (
            "No run has a probe: divergences are of training batches, describe each "
            "run alone, and may not be compared between runs."
        )
    if len(probes) > 1:
        shown = ", ".join(probe[:8] or "none" for probe in probes)
        return (
            f"The runs have different probes ({shown}): divergences and z of one may "
            "not be compared with those of another."
        )
    if len({run.yardstick for run in runs}) > 1:
        return (
            f"The runs share the probe {probes[0][:8]}, but not its groupings, "
            "divergence or relabellings: z may not be compared between them, nor may "
            "they be tested together."
        )
    return (
        f"The runs share the probe {probes[0][:8]} and its relabellings: z may be "
        "compared; raw divergences only between networks of one architecture."
    )


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a table that has at least some columns; empty cells are NaN."""
    try:
        table = pd.read_csv(path, sep="\t", keep_default_na=False, na_values=[""])
        table[columns]  # KeyError if absent
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged.") from error
    return table


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: it is no table of keys and values.")
    return values
