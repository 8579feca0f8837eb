"""Was it the training? The run's divergences against those of retrained networks.

The null hypothesis: given who is in which stratum, targets are exchangeable over
people, so that the network which learned the real ones is one among the networks
that learned permuted ones. Everything is trained again ``P`` times (the same
folds, seeds, schedule, first weights), each time on targets permuted over people
within site × what the split is balanced over × fold, and the same statistic is
taken. Where the grouping is the target (or one determines the other) the groups
are those of the permuted targets: both move together. Any other grouping stays
with its people, and only the targets move, within its groups
(`retrain_permute`); all groupings of the run are tested by the same retrainings.
Families keep together. With the real ones counted, ``p = (1 + #{null ≥ observed}) /
(1 + P)`` is exact.

What a small p does not say: that dynamics differ beyond the inputs. Groups whose
inputs differ give different spectra in a network that learned to tell them apart,
and also, less so, in one that did not.
"""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from spectral_mlops.errors import InputError
from spectral_mlops.inference.significance import p_max_t, p_value, standardise
from spectral_mlops.training.again import read_plan
from spectral_mlops.training.optimisation import check_precision
from spectral_mlops.training.plan import Plan
from spectral_mlops.training.retrain_log import RetrainLog, settings_of
from spectral_mlops.training.retrain_permute import TargetShuffle, shuffle_of
from spectral_mlops.training.retrain_statistic import (
    Cell,
    Statistic,
    measure_training,
)
from spectral_mlops.training.retrain_workers import retrainings

FEWEST = 19
"""Retrainings below which p could not reach 0.05."""
MEAN = "mean over layers"
FOLDER = "retrain"
RESULTS = ("result.tsv", "result.json")
SOURCES = {
    "train": "training batches of the last epoch",
    "probe": "the probe at the chosen checkpoint",
}
UNMOVED = "every retraining has the same value: no target tells in it"
CLOSE = 1e-3
"""Difference of weights above which a run counts as not reproduced."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Retrained:
    """The test of one run.

    Attributes:
        table: Columns ``source, grouping, quantity, layer, group_a, group_b,
            observed, null_mean, null_sd, z, p, p_max, reason``; the rows of layer
            `MEAN` are of the mean over those layers that have a value.
        permutations: ``P``.
        strata: What targets moved within.
        groupings: Whose groups are compared, the primary one first.
        moving: Those whose groups were those of the permuted targets.
        left_out: Groupings of the run within whose groups too little moves.
        sentences: What it means, in words.
        folder: Where it was written.
    """

    table: pd.DataFrame
    permutations: int
    strata: str
    groupings: tuple[str, ...]
    moving: tuple[str, ...]
    left_out: tuple[str, ...]
    sentences: list[str]
    folder: Path


def retrain_test(
    run: Path,
    permutations: int,
    workdir: Path,
    *,
    workers: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
    trust: bool = False,
) -> Retrained:
    """Test a finished run, going on where an earlier call stopped.

    Args:
        run: The folder of the run.
        permutations: How many there shall be in all, at least `FEWEST`.
        workdir: Folder that paths of the run's settings start from.
        workers: Processes, one thread each.
        device: Where tensors live; of one test always the same.
        progress: Told ``(what, done, total)``.
        trust: See `read_plan`.

    Returns:
        The test; also written into ``run/retrain``.

    Raises:
        InputError: If the run, its people or a setting cannot be used.
    """
    if permutations < FEWEST:
        raise InputError(
            f"--retrain {permutations}: ask for {FEWEST} or more; with fewer, p "
            "cannot be as small as 0.05."
        )
    if workers < 1:
        raise InputError(f"--workers {workers}: at least 1.")
    plan = read_plan(run, workdir, progress, trust=trust)
    if plan.config.training.patience is not None:
        raise InputError(
            "--retrain compares networks trained for equally many epochs, which "
            "training.patience does not give: train without it."
        )
    check_precision(plan.config.training, device)
    return retrain(
        plan, run, permutations, workers=workers, device=device, progress=progress
    )


def retrain(
    plan: Plan,
    run: Path,
    permutations: int,
    *,
    workers: int = 1,
    batched: bool = True,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Retrained:
    """Retrain a plan, and compare; any number of permutations is allowed.

    Args:
        plan: From `read_plan`.
        run: Folder of the run; gets a folder ``retrain``.
        permutations: How many there shall be in all.
        workers: Processes.
        batched: Train several networks as one where that is possible.
        device: Where tensors live.
        progress: Told ``(what, done, total)``.
    """
    report = progress or (lambda what, done, total: None)
    shuffle = shuffle_of(plan)
    folder = run / FOLDER
    log = RetrainLog(folder / "permutations.jsonl", settings_of(shuffle, device))
    if 0 not in log.finished:
        report("the run once more", 0, 1)
        measured = measure_training(shuffle.plan, device)
        note = _not_reproduced(run, measured.weights)
        log.append(0, measured.values, measured.reasons, note)
        report("the run once more", 1, 1)
    missing = [k for k in range(1, permutations + 1) if k not in log.finished]
    done = permutations - len(missing)
    report("retraining", done, permutations)
    with closing(retrainings(shuffle, missing, workers, batched, device)) as found:
        for number, values in found:
            log.append(number, values)
            done += 1
            report("retraining", done, permutations)
    null = [log.finished[k] for k in range(1, permutations + 1)]
    table = compare_with_null(log.finished[0], null, log.reasons)
    result = Retrained(
        table=table,
        permutations=permutations,
        strata=shuffle.strata,
        groupings=shuffle.plan.groupings,
        moving=tuple(x for x in shuffle.plan.groupings if x in shuffle.moving),
        left_out=shuffle.left_out,
        sentences=[
            *_sentences(table, permutations, shuffle),
            *([log.note] if log.note else []),
        ],
        folder=folder,
    )
    _write(result)
    return result


def compare_with_null(
    observed: Statistic, null: list[Statistic], reasons: dict[Cell, str]
) -> pd.DataFrame:
    """Form p of every cell, and of the mean over layers that have a value.

    ``p_max`` is adjusted over the layers of a source, grouping, quantity and pair of
    groups by max-T. A retraining without a value counts as reaching the observed one.

    Args:
        observed: Of the run.
        null: Of each retraining.
        reasons: Why an observed value is missing.

    Returns:
        See `Retrained`.
    """
    families: dict[tuple[str, ...], list[Cell]] = {}
    for cell in observed:
        key = (
            cell.source,
            cell.grouping,
            cell.quantity,
            cell.group_a,
            cell.group_b,
        )
        families.setdefault(key, []).append(cell)
    rows = []
    for (source, grouping, quantity, a, b), cells in families.items():
        together = [
            [one.get(cell, np.nan) for cell in cells] for one in (observed, *null)
        ]
        values = np.array(together, dtype=np.float64)  # [P + 1, layers]
        eligible = np.isfinite(values[0])
        p_max = p_max_t(values)
        names = [cell.layer for cell in cells]
        why = [reasons.get(cell, "") for cell in cells]
        if eligible.any():
            mean = values[:, eligible].mean(1, keepdims=True)
            values = np.concatenate([values, mean], axis=1)
            names, why = [*names, MEAN], [*why, ""]
            p_max = np.append(p_max, np.nan)
        z, p = standardise(values)[0], p_value(values)
        same = np.isfinite(values[0]) & np.isnan(z)
        why = [w or UNMOVED * bool(s) for w, s in zip(why, same, strict=True)]
        for i, name in enumerate(names):
            known = values[1:, i][np.isfinite(values[1:, i])]
            rows.append(
                {
                    "source": source,
                    "grouping": grouping,
                    "quantity": quantity,
                    "layer": name,
                    "group_a": a,
                    "group_b": b,
                    "observed": values[0, i],
                    "null_mean": known.mean() if len(known) else np.nan,
                    "null_sd": known.std() if len(known) else np.nan,
                    "z": z[i],
                    "p": p[i],
                    "p_max": p_max[i],
                    "reason": why[i],
                }
            )
    return pd.DataFrame(rows)


def _sentences(
    table: pd.DataFrame, permutations: int, shuffle: TargetShuffle
) -> list[str]:
    """Say what the means over layers show, and what that does not show."""
    target = shuffle.plan.cohort.target
    sentences = []
    means = table[table["layer"] == MEAN]
    for (source, _, a, b), rows in means.groupby(
        ["source", "grouping", "group_a", "group_b"], sort=False
    ):
        found = ", ".join(
            f"{quantity} by {round(p * (1 + permutations)) - 1} (p = {p:.3f})"
            for quantity, p in zip(rows["quantity"], rows["p"], strict=True)
        )
        sentences.append(
            f"Among {permutations} retrainings on '{target}' permuted {shuffle.moved} "
            f"within {shuffle.strata}, the run's mean divergence of {a} and {b} on "
            f"{SOURCES[str(source)]} was reached or exceeded: {found}."
        )
    if shuffle.different <= permutations:
        sentences.append(
            f"Only {shuffle.different} of such permutations differ, the run among "
            f"them: p cannot get much below {1 / shuffle.different:.3f}."
        )
    sentences += [
        f"'{name}' is left out: within its groups, {shuffle.strata}, too few "
        f"permutations of '{target}' differ."
        for name in shuffle.left_out
    ]
    return [*sentences, _meaning(shuffle)]


def _meaning(shuffle: TargetShuffle) -> str:
    """Say whose groups the null has, and what a small p is evidence of."""
    groupings = shuffle.plan.groupings
    staying = [f"'{name}'" for name in groupings if name not in shuffle.moving]
    moving = [f"'{name}'" for name in groupings if name in shuffle.moving]
    groups = []
    if moving:
        named = f" of {' and '.join(moving)}" if staying else ""
        groups.append(f"the groups{named} are those of the permuted labels")
    if staying:
        groups.append(f"the groups of {' and '.join(staying)} stay with their people")
    return (
        f"In the null {', and '.join(groups)}. A small p says that the difference "
        "comes with the real labels, and not with training on any labels of these "
        "people; it does not by itself show that dynamics differ beyond the inputs of "
        "the groups."
    )


def _not_reproduced(run: Path, weights: list[dict[str, torch.Tensor]]) -> str:
    """Say so where training the run again gives other weights; else say nothing.

    Raises:
        InputError: If a checkpoint is missing.
    """
    for number, now in enumerate(weights):
        path = run / "checkpoints" / f"fold-{number}.pt"
        if not path.is_file():
            raise InputError(f"{run} is not complete: there is no {path}.")
        then = torch.load(path, weights_only=True, map_location="cpu")
        close = now.keys() == then.keys() and all(
            weight.shape == then[name].shape
            and torch.allclose(weight.cpu(), then[name], rtol=CLOSE, atol=CLOSE)
            for name, weight in now.items()
        )
        if not close:
            return (
                "Training the run again here gave other weights than its checkpoints "
                "(another machine, version or number of threads): the values of the "
                "run in this table are those found here, as those of the null are."
            )
    return ""


def _write(result: Retrained) -> None:
    """Write the table, and everything for machines."""
    table = result.table
    table.to_csv(result.folder / RESULTS[0], sep="\t", index=False)
    plain = table.astype(object).where(table.notna(), None)
    content = {
        "permutations": result.permutations,
        "strata": result.strata,
        "groupings": result.groupings,
        "groups_move_with_targets": result.moving,
        "left_out": result.left_out,
        "sentences": result.sentences,
        "rows": plain.to_dict("records"),
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    (result.folder / RESULTS[1]).write_text(text, encoding="utf-8")
