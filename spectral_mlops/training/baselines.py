"""What little suffices: simple predictions in the run's own folds.

``linear`` is logistic regression with an L2 penalty (of a number, ridge regression) on
the features that the network gets (of time courses, on their correlations);
``confounds`` knows age, sex, site and motion and no feature. Both are fitted on a
fold's training people alone. A network that does not beat the first has learned nothing
that a line does not tell, and one that does not beat the second may have learned who
moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.cohorts import Adjustment
from spectral_mlops.cohorts.confounds import Design, confound_columns
from spectral_mlops.cohorts.features import VOLUME_THRESHOLD
from spectral_mlops.errors import UnknownNameError
from spectral_mlops.registry import nearest
from spectral_mlops.training.intervals import ROW, Judged, performance_table
from spectral_mlops.training.performance import Said
from spectral_mlops.training.plan import Plan

Array = NDArray[np.float64]

CHUNK = 1 << 16
"""Features that are looked at together."""


@dataclass(frozen=True, eq=False)
class Baseline:
    """What one simple model says of people it was not fitted on.

    Attributes:
        name: ``linear`` or ``confounds``.
        about: What it was given, in words.
        validation: Of each fold.
        probe: Of each fold; empty where there is no probe.
    """

    name: str
    about: str
    validation: list[Said]
    probe: list[Said]


def baselines(plan: Plan) -> list[Baseline]:
    """Fit the baselines in every fold of a run.

    Args:
        plan: The run; ``baselines.columns`` names the confounds, else those that look
            like age, sex, site and motion are taken.

    Returns:
        ``linear``, and ``confounds`` where there is any column.

    Raises:
        UnknownNameError: If a confound named is no column.
    """
    found = [_linear(plan)]
    columns = _columns(plan)
    if columns:
        found.append(_confounds(plan, columns))
    return found


def judge(plan: Plan, said: Sequence[Said], probed: Sequence[Said]) -> pd.DataFrame:
    """Judge a run's networks beside the baselines, all with intervals.

    Args:
        plan: The run.
        said: Of each network's validation people, at its chosen checkpoint.
        probed: Of the probe's; empty where there is none.

    Returns:
        See `intervals.performance_table`; empty where ``baselines.run`` is false. The
        network's validation people also chose its checkpoint, those of the others did
        not.
    """
    settings = plan.config.baselines
    if not settings.run:
        return pd.DataFrame(columns=[*ROW])
    judged = [("network", list(said), list(probed))]
    judged += [(one.name, one.validation, one.probe) for one in baselines(plan)]
    ids = [str(who) for who in plan.cohort.people.index]
    groups = plan.labels(np.arange(len(ids)))[plan.primary]
    return performance_table(
        [
            Judged(name, people, parts)
            for name, *both in judged
            for people, parts in zip(("validation", "probe"), both, strict=True)
            if parts
        ],
        dict(zip(ids, groups, strict=True)),
        settings.draws,
        plan.config.comparison.seed,
        plan.task.metrics,
    )


def _columns(plan: Plan) -> list[str]:
    """Return the confounds: those named, else those that look like some."""
    people, wanted = plan.cohort.people, plan.config.baselines.columns
    known = [str(name) for name in people.columns if name != plan.cohort.target]
    for name in wanted:
        if name not in known:
            raise UnknownNameError(
                f"baselines.columns names '{name}', which is no column of the people "
                f"beside the target: choose from {', '.join(known)}."
                f"{nearest(name, known)}"
            )
    return list(wanted) or confound_columns(people, plan.cohort.target)


def _linear(plan: Plan) -> Baseline:
    cohort, about = plan.cohort, "the network's features"
    if cohort.modality == "timecourses":
        vectors = correlations_of(cohort.features)
        cohort = replace(cohort, features=vectors, modality="fnc", lengths=None)
        about = "correlations of the time courses"
    said, probed = [], []
    for fold in plan.folds:
        train = cohort.rows(fold.train_ids)
        features = cohort.features
        wanted = plan.config.confounds
        adjustment = Adjustment.fit(cohort, train, wanted.regress, wanted.harmonise)
        if adjustment != Adjustment():
            features = adjustment.apply(cohort, np.arange(len(features)))
        rows = [train, *_held_out(plan, fold.validation_ids)]
        known, *others = _rotated(features, rows)
        strength = plan.task.features
        parts = _fit(plan, train, known, others, fold.validation_ids, strength)
        said.append(parts[0])
        probed += parts[1:]
    return Baseline("linear", about, said, probed)


def _confounds(plan: Plan, columns: Sequence[str]) -> Baseline:
    cohort, said, probed = plan.cohort, [], []
    for fold in plan.folds:
        train = cohort.rows(fold.train_ids)
        design = Design.fit(cohort.people.iloc[train], columns)
        known, *others = (
            design.matrix(cohort.people.iloc[rows])
            for rows in (train, *_held_out(plan, fold.validation_ids))
        )
        strength = plan.task.confounds
        parts = _fit(plan, train, known, others, fold.validation_ids, strength)
        said.append(parts[0])
        probed += parts[1:]
    return Baseline("confounds", ", ".join(columns), said, probed)


def _held_out(plan: Plan, validation: Sequence[str]) -> list[NDArray[np.intp]]:
    """Return rows of validation people and, if there are any, of the probe's."""
    ids = [validation, *([plan.probe.ids] if plan.probe else [])]
    return [plan.cohort.rows(part) for part in ids]


def _rotated(
    features: NDArray[np.floating], rows: Sequence[NDArray[np.intp]]
) -> list[Array]:
    """Turn wide z-scored rows into as many columns as there are training people.

    An L2 penalty keeps weights in the span of the training rows, so the fit is the same
    in coordinates of that span, whatever the number of features. Lengths are divided by
    the root of that number, so that one penalty fits all widths. Features are read some
    at a time: volumes may be larger than memory.

    Args:
        features: Of everyone, shape ``[people, *shape]``; of volumes, voxels whose
            training mean exceeds the scaler's threshold are taken.
        rows: Of the training people first, then of others.

    Returns:
        Their coordinates, each ``[len(rows), r]`` with ``r`` at most the number of
        training people.
    """
    flat = features.reshape(len(features), -1)
    train, count = rows[0], len(rows[0])
    together = np.concatenate(rows)
    products, width = np.zeros((len(together), count)), 0
    for start in range(0, flat.shape[1], CHUNK):
        block = flat[:, start : start + CHUNK]
        known = block[train].astype(np.float64)
        mean, spread = known.mean(axis=0), known.std(axis=0)
        kept = np.ptp(known, axis=0) > 0
        if features.ndim > 2:
            kept &= mean > VOLUME_THRESHOLD
        z = (block[together][:, kept] - mean[kept]) / spread[kept]
        products += z @ z[:count].T
        width += int(kept.sum())
    products /= max(width, 1)
    values, vectors = np.linalg.eigh(products[:count])
    turned = values > max(values[-1], 0) * 1e-10
    turn = vectors[:, turned] / np.sqrt(values[turned])  # [n, r]
    ends = np.cumsum([len(part) for part in rows])[:-1]
    return np.split(products @ turn, ends)


def _fit(
    plan: Plan,
    train: NDArray[np.intp],
    known: Array,
    others: Sequence[Array],
    validation: Sequence[str],
    strength: float,
) -> list[Said]:
    """Fit on training people; predict the validation people, and then the probe's."""
    say = plan.task.fit(known, plan.targets[train], strength)
    ids = [tuple(validation), *([plan.probe.ids] if plan.probe else [])]
    return [
        say(who, plan.targets[plan.cohort.rows(who)], rows)
        for who, rows in zip(ids, others, strict=True)
    ]


def correlations_of(signals: NDArray[np.floating]) -> NDArray[np.float32]:
    """Correlate everyone's components.

    Args:
        signals: Shape ``[people, *, T, C]``; windows of a person are put together, and
            time points at which everything is zero are padding.

    Returns:
        Row-major upper triangles, shape ``[people, C(C-1)/2]``; 0 for a component that
        does not change.
    """
    count = signals.shape[-1]
    rows, columns = np.triu_indices(count, 1)
    found = np.zeros((len(signals), len(rows)), dtype=np.float32)
    for person, signal in enumerate(signals):
        flat = np.asarray(signal, dtype=np.float64).reshape(-1, count)
        flat = flat[(flat != 0).any(axis=1)]
        if not len(flat):
            continue
        flat = flat - flat.mean(axis=0)
        length = np.sqrt((flat**2).sum(axis=0))
        flat = flat / np.where(length > 0, length, 1.0)
        found[person] = (flat.T @ flat)[rows, columns]
    return found


def baseline_metrics(
    performance: pd.DataFrame, names: Sequence[str] = ("auc",)
) -> dict[str, float]:
    """Return the baselines' numbers: ``baseline/<model>_<name>``, and ``…_probe``.

    Args:
        performance: From `intervals.performance_table`.
        names: Of metrics in it.
    """
    rows = performance[
        performance["metric"].isin(list(names))
        & (performance["group"] == "all")
        & (performance["model"] != "network")
    ]
    suffix = {"validation": "", "probe": "_probe"}
    return {
        f"baseline/{row['model']}_{row['metric']}{suffix[row['people']]}": float(
            row["value"]
        )
        for row in rows.to_dict("records")
    }
