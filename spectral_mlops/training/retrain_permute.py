"""Whose target becomes whose, in one retraining.

Targets move between people of one *cell*: of the same site, of the same strata as
the split, and in the same part of it (the probe, or the validation people of one
fold). Each training set so keeps its numbers of every label, and the split, which
was drawn to balance them, is as likely for the permuted targets as for the real
ones. Without that, retrainings would not be exchangeable with the run.

Which labels move. The target always does. A grouping that tells the same as the
target, or a finer or coarser version of it (one determines the other), is a name
of the target and moves with it. Any other grouping (sex, age) belongs to the
person: it stays, and targets move within its groups, so that each group keeps its
share of every target.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.errors import InputError
from spectral_mlops.training.plan import NONE, STRATA, Plan

FOLD = "fold"
"""Name of the part of the split, the probe being one of them."""


@dataclass(frozen=True, eq=False)
class TargetShuffle:
    """How the targets of a run are permuted.

    Attributes:
        plan: The run, the primary grouping alone.
        moving: Columns that move together: the target, and the grouping where one
            determines the other.
        strata: What they move within, in words.
        cells: Rows of the cohort that form one cell each.
    """

    plan: Plan
    moving: tuple[str, ...]
    strata: str
    cells: tuple[NDArray[np.intp], ...]

    def permuted(self, number: int) -> Plan:
        """Return the run with permuted targets; number 0 is the run itself.

        A permutation depends on its number and `comparison.seed` alone, so that
        more can be added later.
        """
        if number == 0:
            return self.plan
        cohort = self.plan.cohort
        draw = np.random.default_rng([self.plan.config.comparison.seed, number])
        giver = np.arange(len(cohort.people))
        for cell in self.cells:
            giver[cell] = draw.permutation(cell)
        people = cohort.people.copy()
        for column in self.moving:
            people[column] = people[column].array.take(giver)
        return replace(self.plan, cohort=replace(cohort, people=people))


def shuffle_of(plan: Plan) -> TargetShuffle:
    """Settle what moves, and within what.

    Raises:
        InputError: If nobody's target can change.
    """
    plan = replace(plan, groupings=(plan.primary,))
    people, target = plan.cohort.people, plan.cohort.target
    label = _texts(people, plan.primary)
    same = plan.primary == target or _one_determines(label, _texts(people, target))
    moving = tuple(dict.fromkeys([target, plan.primary])) if same else (target,)
    balanced = [
        *(plan.probe.strata if plan.probe else ()),
        *(name for fold in plan.folds for name in fold.strata),
        *STRATA,
        plan.primary,
    ]
    within = [
        name
        for name in dict.fromkeys(balanced)
        if name in people.columns and name not in moving
    ]
    part = pd.Series("", index=people.index)
    if plan.probe:
        part[list(plan.probe.ids)] = "probe"
    for number, fold in enumerate(plan.folds):
        part[list(fold.validation_ids)] = f"validation {number}"
    table = pd.DataFrame({name: _texts(people, name) for name in within})
    table.index = people.index
    keys = table.assign(part=part).agg("\x1f".join, axis=1).to_numpy()
    cells = tuple(np.flatnonzero(keys == key) for key in sorted(set(keys)))
    strata = " × ".join([*within, FOLD])
    targets = plan.targets
    if all(len(set(targets[cell])) < 2 for cell in cells):
        raise InputError(
            f"No permutation of '{target}' within {strata} changes anything: "
            "retraining needs people of different targets in one stratum."
        )
    return TargetShuffle(plan, moving, strata, cells)


def _texts(people: pd.DataFrame, column: str) -> list[str]:
    """Return a column as text, gaps as one label."""
    return [str(x) for x in people[column].astype(object).fillna(NONE)]


def _one_determines(a: list[str], b: list[str]) -> bool:
    """Whether each label of one goes with a single label of the other."""
    pairs = len(set(zip(a, b, strict=True)))
    return pairs in (len(set(a)), len(set(b)))
