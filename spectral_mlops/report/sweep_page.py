"""The page of a study: what its trials say together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectral_mlops.report.html_page import page_of, write_page
from spectral_mlops.report.html_tables import number, table_html
from spectral_mlops.tracking.measures import CLASSIFICATION, Measures

DETECTED = 2.0
"""A divergence up to this z is not detected, if the study says no other."""
JUDGED = ("divergence", "upper", "p", "p_max")
READING = (
    "{words} is that of validation people, who also chose the checkpoints. Divergence "
    "is z under relabelling on the study's one probe, of all layers together: how "
    "detectable a difference is, not how large. Not detected does not mean absent, "
    "least of all where few people are held out; and the best of many trials looks "
    "better than it is."
)
TOGETHER = (
    "p is of each trial by itself; p_max is adjusted over all finished trials, by the "
    "maximum over them under each of the relabellings that they share."
)
SOUGHT = (
    " Trials of this study were chosen or stopped by their divergence on this probe: "
    "p, p_max and bounds describe it, and are no test; only a second probe is "
    "(spectral-mlops sweep confirm)."
)
BOUND = (
    "Upper is a one-sided 95 % confidence bound of the divergence, by test inversion "
    "(CLs) against the relabellings: had the mean z of new people with this network "
    "been larger, so low a z would be rare. It takes z to vary as a noncentral "
    "chi-square fitted to the relabellings does, and is not adjusted for having chosen "
    "the trial."
)
CONFIRMED = (
    "Each trial's settings trained again with a second probe, the first probe's people "
    "being back in training. Those of the second trained and validated before: their "
    "divergence had no part in choosing the trial, their {words} had. On the first "
    "probe p_max is adjusted over all finished trials, on the second over those "
    "confirmed."
)
UNCONFIRMED = (
    "None yet. 'spectral-mlops sweep confirm STUDY' trains the best trial again and "
    "holds out other people: what was chosen on the first probe looks better there "
    "than it is."
)
DRIVE = (
    "Each method's importances add up to 1. fANOVA sees only settings that every "
    "trial has, over all of their range. PED-ANOVA sees branches too, and asks what "
    "tells the best quarter of the trials (highest {words}, lowest z) from the others. "
    "Neither says in which direction a setting works: the slices do."
)
EARLY = (
    "Spearman's rank correlation over finished trials, between z after a share of the "
    "epochs and z at the checkpoints chosen by validation loss. Only where it is high "
    "could an early divergence tell which trials to stop."
)


@dataclass(frozen=True, eq=False)
class StudyPage:
    """What a study's page shows.

    Attributes:
        name: Of the study.
        objective: In words.
        quantity: Whose divergence counts.
        confounds: Accuracy of confounds alone, NaN if unknown.
        parameters: Names of the settings that trials drew.
        trials: Columns ``trial, state, divergence, upper, p, p_max, allowed, front``,
            the accuracy's (``auc`` or ``r2``), one per parameter, and more; ``upper``
            is the bound of the divergence, ``p_max`` is adjusted over trials.
        importances: Columns ``setting, target, evaluator, importance``.
        early: Columns ``share, trials, correlation``.
        notes: What could not be said.
        confirmed: Trials trained again, each on the first probe and on the second.
        detected: A divergence up to this z is not detected.
        sought: Whether the divergence had a part in choosing or stopping trials.
        measures: Of the task; its headline is what accuracy means.
    """

    name: str
    objective: str
    quantity: str
    confounds: float
    parameters: Sequence[str]
    trials: pd.DataFrame
    importances: pd.DataFrame
    early: pd.DataFrame
    notes: Sequence[str] = field(default=())
    confirmed: pd.DataFrame = field(default_factory=pd.DataFrame)
    detected: float = DETECTED
    sought: bool = False
    measures: Measures = CLASSIFICATION

    @property
    def accuracy(self) -> str:
        """The column of ``trials`` that says how accurate they are."""
        return self.measures.headline

    def told(self, text: str) -> str:
        """Return a text with the name of what accuracy is measured by."""
        return text.replace("{words}", self.measures.words)


def write_study_page(study: StudyPage, out: Path) -> Path:
    """Write a study's page; its folder is made, an older page is replaced."""
    return write_page(study_page(study), out)


def study_page(study: StudyPage) -> str:
    """Return a study's page."""
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in study.notes)
    drive = table_html(importance_table(study.importances), study.told(DRIVE))
    sections = [
        _head(study),
        _section("drive", "What drives accuracy, and what divergence", "drive")
        + notes
        + (drive if len(study.importances) else "")
        + "</section>",
        _section("tradeoff", "Accuracy against divergence", "tradeoff") + "</section>",
        "<section id='accurate'><h2>Accurate, with no detected divergence</h2>"
        f"{_accurate(study)}</section>",
        "<section id='confirmed'><h2>On a second probe</h2>"
        f"{_confirmed(study)}</section>",
        _section("contours", "Two settings at once", "contours") + "</section>",
        _section("slices", "Setting by setting", "slices-accuracy slices-z")
        + "</section>",
        "<section id='early'><h2>Does divergence early in training tell the end?</h2>"
        f"{table_html(study.early, EARLY)}</section>",
        "<section id='trials'><h2>Trials</h2>"
        f"{table_html(_shown(study), _together(study))}</section>",
    ]
    return page_of(f"Study {study.name}", sections, {"sweep": study_data(study)})


def study_data(study: StudyPage) -> dict[str, Any]:
    """Return what the page's script draws."""
    trials = study.trials
    drawn = trials[np.isfinite(trials[study.accuracy].astype(float))]
    return {
        "quantity": study.quantity,
        "detected": study.detected,
        "accuracy": study.measures.words,
        "confounds": study.confounds,
        "parameters": list(study.parameters),
        "importances": study.importances.to_dict("records"),
        "trials": [
            {
                "trial": row["trial"],
                "finished": row["state"] == "COMPLETE",
                "accuracy": row[study.accuracy],
                "z": row["divergence"],
                "allowed": row["allowed"],
                "front": row["front"],
                "values": [_value(row.get(name)) for name in study.parameters],
            }
            for row in drawn.to_dict("records")
        ],
    }


def importance_table(importances: pd.DataFrame) -> pd.DataFrame:
    """Return one row a setting, most important for accuracy first.

    Returns:
        ``setting`` and a column per target and method, side by side; NaN where a
        method does not see a setting.
    """
    if importances.empty:
        return pd.DataFrame({"setting": []})
    named = importances.assign(
        column=importances["target"] + ", " + importances["evaluator"]
    )
    order = list(dict.fromkeys(named["column"]))  # the two targets side by side
    order.sort(key=lambda name: name.rpartition(", ")[2].lower())
    table = named.pivot_table(
        index="setting", columns="column", values="importance", sort=False
    )[order]
    return table.sort_values(order[0], ascending=False).reset_index()


def accurate_trials(study: StudyPage) -> tuple[float, pd.DataFrame]:
    """Return finished trials that are accurate with no detected divergence.

    Accurate: allowed, and among the better half of the finished trials.

    Returns:
        The accuracy of that half, and those trials, the best first.
    """
    finished = study.trials[study.trials["state"] == "COMPLETE"]
    if finished.empty:
        return float("nan"), finished
    half = float(np.nanmedian(finished[study.accuracy].astype(float)))
    good = finished["allowed"].astype(bool) & (finished[study.accuracy] >= half)
    unseen = finished["divergence"] <= study.detected
    return half, finished[good & unseen].sort_values(study.accuracy, ascending=False)


def _head(study: StudyPage) -> str:
    counts = study.trials["state"].value_counts()
    said = ", ".join(f"{n} {str(state).lower()}" for state, n in counts.items())
    best = study.trials.loc[
        (study.trials["state"] == "COMPLETE") & study.trials["allowed"].astype(bool),
        study.accuracy,
    ].max()
    cards = [
        (str(len(study.trials)), f"trials: {said or 'none'}"),
        (study.objective, "objective"),
        (number(float(best), ".3f"), f"best {study.measures.words} of those allowed"),
        (number(study.confounds, ".3f"), f"{study.measures.words} of confounds alone"),
        (str(int(study.trials["front"].sum())), "trials on the trade-off front"),
    ]
    shown = "".join(
        f"<div class='card'><b>{escape(value)}</b><span>{escape(name)}</span></div>"
        for value, name in cards
    )
    return (
        f"<section id='head'><div class='cards'>{shown}</div>"
        f"<p class='note reading'>{escape(study.told(READING))}</p></section>"
    )


def _accurate(study: StudyPage) -> str:
    half, found = accurate_trials(study)
    words = (
        f"Finished and allowed, {study.measures.words} at least {number(half, '.3f')} "
        "(the better half), "
        f"z of {study.quantity} at most {study.detected:g}. A difference may be there "
        f"all the same, up to the bound. {BOUND} {_together(study)}"
    )
    if found.empty:
        return f"<p class='note'>{escape(words)} There is none.</p>"
    columns = ["trial", study.accuracy, *JUDGED, *study.parameters, "run"]
    return table_html(found[[c for c in columns if c in found]], words)


def _confirmed(study: StudyPage) -> str:
    if study.confirmed.empty:
        return f"<p class='note'>{escape(UNCONFIRMED)}</p>"
    return table_html(study.confirmed, study.told(CONFIRMED))


def _together(study: StudyPage) -> str:
    """Say what p over trials is, and what it is worth here."""
    return TOGETHER + (SOUGHT if study.sought else "")


def _shown(study: StudyPage) -> pd.DataFrame:
    """Return the table of trials, what they are judged by first."""
    first = ["trial", "state", study.accuracy, *JUDGED, "allowed", "front"]
    last = ["stopped", "infeasible", "error", "run"]
    twice = f"divergence.{study.quantity}"
    rest = [c for c in study.trials if c not in (*first, *last, twice)]
    return study.trials.reindex(columns=[*first, *rest, *last])


def _section(name: str, title: str, plots: str) -> str:
    """Return a section, left open for what follows its plots."""
    places = "".join(
        f'<div class="plot" id="plot-{plot}"></div>' for plot in plots.split()
    )
    return (
        f'<section id="{name}"><h2>{title}</h2><div class="bar" id="{name}-bar"></div>'
        f'<div class="plots">{places}</div>'
        f'<p class="note" id="{name}-note"></p>'
    )


def _value(value: Any) -> Any:
    """Return a drawn value as it can be drawn: a truth value is a word."""
    if value is None or value != value:
        return None
    return str(value).lower() if isinstance(value, bool | np.bool_) else value
