"""What a study says: which settings drive accuracy, which divergence, and what pays."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import spearmanr

from spectral_mlops.records import QUANTITIES
from spectral_mlops.report.sweep_page import DETECTED, StudyPage, write_study_page
from spectral_mlops.sweeps.confirm import confirmations
from spectral_mlops.sweeps.familywise import finished_null, p_over_trials
from spectral_mlops.sweeps.recipe import study_measures
from spectral_mlops.sweeps.stopping import SOUGHT
from spectral_mlops.sweeps.study import read_study, trials_table
from spectral_mlops.tracking.measures import CLASSIFICATION, MEASURES, Measures

FEWEST = 10
"""Trials below which importances say nothing."""
EVALUATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "fANOVA": ("FanovaImportanceEvaluator", {"seed": 0}),
    "PED-ANOVA": ("PedAnovaImportanceEvaluator", {"target_quantile": 0.25}),
}
"""Classes of `optuna.importance`, and what they are made with."""
SHARES = (0.1, 0.25, 0.5)
"""Of a trial's epochs, after which its divergence is held against its last."""
FEWEST_RANKED = 5
HEADLINES = tuple(one.headline for one in MEASURES.values())


def write_study(name: str, storage: str, out: Path) -> Path:
    """Write the page of a study that exists.

    Args:
        name: Of the study.
        storage: Address of a database.
        out: The file.

    Raises:
        InputError: If there is no such study.
    """
    return write_study_page(answers(read_study(name, storage)), out)


def answers(study: optuna.Study) -> StudyPage:
    """Return everything that the page of a study shows."""
    search = study.user_attrs.get("search", {})
    quantity = str(search.get("primary quantity", "adjoint"))
    trials = study.get_trials(deepcopy=False)
    kept = [
        q for q in QUANTITIES if any(f"divergence.{q}" in t.user_attrs for t in trials)
    ]
    measures = study_measures(study)
    accuracy = measures.headline
    table = trials_table(study, kept, accuracy)
    if table.empty:
        table = pd.DataFrame(columns=["trial", "state", accuracy, "run"])
    table["divergence"] = table.get(f"divergence.{quantity}", np.nan)
    table["p"] = [trial.user_attrs.get("p") for trial in trials]
    nulls = [finished_null(trial) for trial in trials]
    table["p_max"], strangers = p_over_trials(nulls)
    table["upper"] = [math.nan if null is None else null.upper for null in nulls]
    for column in (accuracy, "divergence", "p", "p_max", "upper"):
        table[column] = table[column].astype(float)
    table["stopped"] = [trial.user_attrs.get("stopped") for trial in trials]
    table["allowed"] = [not _infeasible(trial) for trial in trials]
    table["front"] = front(table, accuracy)
    drive, notes = importances(trials, quantity, measures)
    return StudyPage(
        name=study.study_name,
        objective=str(search.get("objective", accuracy)),
        quantity=quantity,
        confounds=float(study.user_attrs.get(f"confounds_{accuracy}", math.nan)),
        parameters=list(dict.fromkeys(x for t in trials for x in t.params)),
        trials=table,
        importances=drive,
        early=early_and_late(trials, quantity),
        notes=[*notes, *([strangers] if strangers else [])],
        confirmed=confirmations(study),
        detected=_detected(str(search.get("objective", ""))),
        sought=search.get("objective", accuracy) != accuracy
        or SOUGHT in study.user_attrs,
        measures=measures,
    )


def importances(
    trials: Sequence[FrozenTrial], quantity: str, measures: Measures = CLASSIFICATION
) -> tuple[pd.DataFrame, list[str]]:
    """Return how much each setting matters for accuracy and for divergence.

    fANOVA sees only settings that every trial has, and all of their range; PED-ANOVA
    sees branches too, and asks what tells the best quarter of the trials (most
    accurate, lowest z) from the others. Each adds up to 1.

    Args:
        trials: Of a study.
        quantity: Whose divergence counts.
        measures: What accuracy is.

    Returns:
        Columns ``setting, target`` (``AUC`` or ``R²``, and ``divergence``),
        ``evaluator, importance``; and why some are missing.
    """
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    targets = {
        measures.words: {t.number: -_number(t, measures.headline) for t in finished},
        "divergence": {
            t.number: _number(t, f"divergence.{quantity}") for t in finished
        },
    }
    rows, notes = [], []
    for target, values in targets.items():
        known = [trial for trial in finished if math.isfinite(values[trial.number])]
        if len(known) < FEWEST:
            notes.append(
                f"Importances for {target} need {FEWEST} finished trials with one; "
                f"there are {len(known)}."
            )
            continue
        copied = _lowest_first(known, values)
        for evaluator in EVALUATORS:
            try:
                found = _importances(copied, evaluator)
            except (ValueError, RuntimeError) as error:
                notes.append(f"{evaluator} says nothing of {target}: {error}")
                continue
            rows += [(name, target, evaluator, x) for name, x in found.items()]
    columns = ["setting", "target", "evaluator", "importance"]
    return pd.DataFrame(rows, columns=columns), notes


def front(table: pd.DataFrame, accuracy: str = "auc") -> list[bool]:
    """Tell which trials no other one beats in accuracy and in divergence.

    Args:
        table: Columns ``state, divergence, allowed`` and the accuracy's; a divergence
            below 0 counts as 0, since less than expected is no advantage.
        accuracy: ``auc`` or ``r2``.
    """
    counted = (
        (table["state"] == "COMPLETE")
        & table["allowed"]
        & np.isfinite(table[accuracy])
        & np.isfinite(table["divergence"])
    ).to_numpy(dtype=bool)
    right = table[accuracy].to_numpy(dtype=float)
    z = np.maximum(0.0, table["divergence"].to_numpy(dtype=float))
    found = []
    for i in range(len(table)):
        as_good = counted & (right >= right[i]) & (z <= z[i])
        better = as_good & ((right > right[i]) | (z < z[i]))
        found.append(bool(counted[i] and not better.any()))
    return found


def early_and_late(trials: Sequence[FrozenTrial], quantity: str) -> pd.DataFrame:
    """Hold the divergence early in training against that at the end.

    Args:
        trials: Of a study; those that finished count.
        quantity: Whose divergence.

    Returns:
        Columns ``share`` of the epochs, ``trials``, ``correlation`` (Spearman's over
        trials, NaN below five). The end is that of the checkpoints chosen by
        validation loss.
    """
    rows = []
    for share in SHARES:
        pairs = [
            (early, _number(trial, f"divergence.{quantity}"))
            for trial in trials
            if trial.state == TrialState.COMPLETE
            for early in _at(trial.user_attrs.get(f"trajectory.{quantity}", []), share)
        ]
        known = np.array([pair for pair in pairs if math.isfinite(pair[1])])
        rows.append((share, len(known), _rank_correlation(known)))
    return pd.DataFrame(rows, columns=["share", "trials", "correlation"])


def _at(points: Sequence[Sequence[float]], share: float) -> list[float]:
    """Return the value at a share of the epochs, or none if the end is as near."""
    if len(points) < 2:
        return []
    wanted = share * points[-1][0]
    epoch, value = min(points, key=lambda point: abs(point[0] - wanted))
    return [] if epoch == points[-1][0] else [value]


def _rank_correlation(pairs: "np.ndarray[Any, Any]") -> float:
    if len(pairs) < FEWEST_RANKED or (np.ptp(pairs, axis=0) == 0).any():
        return math.nan
    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def _lowest_first(
    trials: Sequence[FrozenTrial], values: Mapping[int, float]
) -> optuna.Study:
    """Copy trials into a study of one objective, where lower is better."""
    copied = optuna.create_study(direction="minimize")
    copied.add_trials(
        optuna.trial.create_trial(
            params=trial.params,
            distributions=trial.distributions,
            value=values[trial.number],
        )
        for trial in trials
    )
    return copied


def _importances(study: optuna.Study, evaluator: str) -> dict[str, float]:
    # Imported here: it brings forests, and workers start without them.
    from optuna import importance

    kind, made_with = EVALUATORS[evaluator]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which is experimental, or drops a setting
        made = getattr(importance, kind)(**made_with)
        found = importance.get_param_importances(study, evaluator=made)
    return {name: x for name, x in found.items() if math.isfinite(x)}


def _number(trial: FrozenTrial, name: str) -> float:
    value = trial.user_attrs.get(name)
    if value is None and name in HEADLINES and trial.values:
        value = trial.values[0]  # a study of an older version
    return math.nan if value is None else float(value)


def _detected(objective: str) -> float:
    """Return the z above which a divergence counts: tau of ``constrained``."""
    _, constrained, tau = objective.partition("≤")
    return float(tau) if constrained else DETECTED


def _infeasible(trial: FrozenTrial) -> bool:
    return any(value > 0 for value in trial.constraints.values())
