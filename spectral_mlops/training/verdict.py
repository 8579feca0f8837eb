"""What the controls leave of a difference, as a table and one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spectral_mlops.training.outcome import Outcome, p_text
from spectral_mlops.training.plan import Plan

DECISIVE = ("init", "input-surrogate", "loss-matched")
"""Controls that "different dynamics" has to get past, all three."""


@dataclass(frozen=True, eq=False)
class ControlRow:
    """One control.

    Attributes:
        name: Of the control.
        outcome: The same outcome under the control.
        beyond: How far the trained networks are beyond it; None where the control is
            not subtracted, but has to show the difference, or none, by itself.
        passes: For decisive controls: whether the difference gets past; None where
            that could not be seen.
        says: What it means.
    """

    name: str
    outcome: Outcome
    beyond: Outcome | None
    passes: bool | None
    says: str


def controls_table(primary: Outcome, rows: Sequence[ControlRow]) -> pd.DataFrame:
    """Return one row per control, the primary outcome first.

    Returns:
        Columns ``control, statistic, z, p, beyond_z, beyond_p, people, strata, says``.
        ``beyond``: trained less control, under the same relabellings.
    """
    first = ControlRow("trained", primary, None, None, "the primary outcome")
    return pd.DataFrame(
        [
            {
                "control": row.name,
                "statistic": row.outcome.statistic,
                "z": row.outcome.z,
                "p": row.outcome.p,
                "beyond_z": row.beyond.z if row.beyond else np.nan,
                "beyond_p": row.beyond.p if row.beyond else np.nan,
                "people": row.outcome.people,
                "strata": row.outcome.strata,
                "says": row.outcome.reason or row.says,
            }
            for row in (first, *rows)
        ]
    )


def verdict_of(plan: Plan, primary: Outcome, rows: Sequence[ControlRow]) -> str:
    """Say whether the networks' dynamics differ beyond what controls show.

    "Different dynamics" needs the primary outcome and all three decisive controls at
    ``controls.level`` each; as all have to pass, no correction for four is due.
    """
    quantity, level = plan.primary_quantity, plan.config.controls.level
    if not primary.p <= level:
        return (
            f"Verdict: no difference in {quantity} between {plan.compared} is shown: "
            "there is nothing to explain."
        )
    found = {row.name: row for row in rows}
    decisive = [found[name] for name in DECISIVE if name in found]
    stops = [row for row in decisive if row.passes is False]
    unseen = [name for name in DECISIVE if name not in found]
    unseen += [row.name for row in decisive if row.passes is None]
    if stops:
        said = "; ".join(f"{row.name}: {row.says}{_numbers(row)}" for row in stops)
        return (
            f"Verdict: explained by {_listed([row.name for row in stops])}, not shown "
            f"to be different dynamics ({said})."
        )
    if unseen:
        why = "; ".join(
            f"{row.name}: {row.outcome.reason}"
            for row in decisive
            if row.passes is None and row.outcome.reason
        )
        return f"Verdict: undecided without {_listed(unseen)}{f' ({why})' * bool(why)}."
    said = "; ".join(f"{row.name}{_numbers(row)}" for row in decisive)
    return (
        f"Verdict: different dynamics in {quantity} between {plan.compared}, beyond "
        f"{_listed([row.name for row in decisive])} ({said})."
    )


def _numbers(row: ControlRow) -> str:
    shown = row.beyond or row.outcome
    if not np.isfinite(shown.p):
        return ""
    text = f"z = {shown.z:.2f}, {p_text(shown.p)}"
    if row.beyond:
        return f", trained less control {text}"
    if row.passes is False:
        text += f", where z = {shown.smallest_detectable:.2f} shows with 80 % power"
    return f", {shown.people} people: {text}"


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
