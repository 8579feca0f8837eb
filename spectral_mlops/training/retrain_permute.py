"""Whose target becomes whose, in one retraining.

Targets move between people of one *cell*: of the same site, of the same strata as
the split, and in the same part of it (the probe, or the validation people of one
fold). Each training set so keeps its numbers of every label, and the split, which
was drawn to balance them, is as likely for the permuted targets as for the real
ones. Without that, retrainings would not be exchangeable with the run. (Of a number
the split balances thirds; they move with it, and each fold keeps its own.)

Which labels move. The target always does, and where it is a number nothing else. A
grouping that tells the same as a target of classes, or a finer or coarser version of
it (one determines the other), is a name of the target and moves with it. Any other
grouping (sex, age) belongs to the person: it stays, and targets move within its
groups, so that each group keeps its share of every target. One set of retrainings so
serves all groupings.

Families. They move as blocks (`inference.exchange`), a cell being a stratum: as wholes
where they have as many members in each cell, and among the members within a cell. To
the draw of the split, which keeps families together, two of one kind differ in nothing
else. A table of parents and children wants a column that tells them apart among the
groupings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.cohorts.families import families_of
from spectral_mlops.errors import InputError
from spectral_mlops.inference.exchange import (
    Kind,
    count_distinct,
    draw_exchanges,
    kinds_of,
)
from spectral_mlops.training.plan import NONE, STRATA, Plan

FOLD = "fold"
"""Name of the part of the split, the probe being one of them."""
FEWEST = 20
"""Different permutations below which p could not reach 0.05."""


@dataclass(frozen=True, eq=False)
class TargetShuffle:
    """How the targets of a run are permuted.

    Attributes:
        plan: The run, with those groupings that can be tested.
        moving: Columns that move together: the target, and groupings where one
            determines the other.
        strata: What they move within, in words.
        kinds: Families that exchange targets as a whole.
        families: Whether anybody has a relative.
        left_out: Groupings within which too little moves.
    """

    plan: Plan
    moving: tuple[str, ...]
    strata: str
    kinds: tuple[Kind, ...]
    families: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def moved(self) -> str:
        """Over whom targets are permuted, in words."""
        if not self.families:
            return "over people"
        return "over families of one make-up, and among the members of each,"

    @property
    def different(self) -> int:
        """How many permutations there are that differ, the run itself among them."""
        return count_distinct(self.kinds, _codes(self.plan))

    def permuted(self, number: int) -> Plan:
        """Return the run with permuted targets; number 0 is the run itself.

        A permutation depends on its number and `comparison.seed` alone, so that
        more can be added later.
        """
        if number == 0:
            return self.plan
        cohort = self.plan.cohort
        draw = np.random.default_rng([self.plan.config.comparison.seed, number])
        (giver,) = draw_exchanges(self.kinds, 1, draw)
        people = cohort.people.copy()
        for column in self.moving:
            people[column] = people[column].array.take(giver)
        return replace(self.plan, cohort=replace(cohort, people=people))


def shuffle_of(plan: Plan) -> TargetShuffle:
    """Settle what moves, and within what.

    A grouping other than the primary one is left out where fewer than `FEWEST`
    permutations within its groups differ.

    Raises:
        InputError: If nobody's target can change.
    """
    people, target = plan.cohort.people, plan.cohort.target
    goal = _texts(people, target)
    named = [
        name
        for name in plan.groupings
        if name == target
        or (not plan.cohort.numeric and _one_determines(_texts(people, name), goal))
    ]
    moving = tuple(dict.fromkeys([target, *named]))
    balanced = [
        *(plan.probe.strata if plan.probe else ()),
        *(name for fold in plan.folds for name in fold.strata),
        *STRATA,
    ]
    within = [x for x in dict.fromkeys(balanced) if x in people and x not in moving]
    families = families_of(people)
    tested, left_out = [], []
    for name in plan.groupings:
        more = [*within, *([] if name in (*moving, *within) else [name])]
        kinds = _kinds(plan, more, families)
        enough = count_distinct(kinds, _codes(plan)) >= FEWEST
        if name == plan.primary or name in moving or enough:
            tested.append(name)
            within = more
        else:
            left_out.append(name)
    kinds = _kinds(plan, within, families)
    strata = " × ".join([*within, FOLD])
    shuffle = TargetShuffle(
        replace(plan, groupings=tuple(tested)),
        moving,
        strata,
        kinds,
        families is not None,
        tuple(left_out),
    )
    if shuffle.different < 2:
        want = "people of different targets in one stratum"
        if shuffle.families:
            want = (
                "families of one make-up and of different targets in one stratum, or "
                "relatives of different targets in one"
            )
        raise InputError(
            f"No permutation of '{target}' within {strata} changes anything: "
            f"retraining needs {want}."
        )
    return shuffle


def _kinds(
    plan: Plan, within: Sequence[str], families: "pd.Series[str] | None"
) -> tuple[Kind, ...]:
    """Return the families of each kind; of one kind are those of the same cells."""
    people = plan.cohort.people
    part = pd.Series("", index=people.index)
    if plan.probe:
        part[list(plan.probe.ids)] = "probe"
    for number, fold in enumerate(plan.folds):
        part[list(fold.validation_ids)] += f"validation {number} "
    columns = [*(_texts(people, name) for name in within), part.tolist()]
    cells = ["\x1f".join(labels) for labels in zip(*columns, strict=True)]
    ids = [str(who) for who in people.index]
    return kinds_of(cells, None if families is None else families[ids].tolist())


def _codes(plan: Plan) -> NDArray[np.int64]:
    """Return a code for each different target."""
    codes: NDArray[np.int64] = np.unique(plan.targets, return_inverse=True)[1]
    return codes


def _texts(people: pd.DataFrame, column: str) -> list[str]:
    """Return a column as text, gaps as one label."""
    return [str(x) for x in people[column].astype(object).fillna(NONE)]


def _one_determines(a: list[str], b: list[str]) -> bool:
    """Whether each label of one goes with a single label of the other."""
    pairs = len(set(zip(a, b, strict=True)))
    return pairs in (len(set(a)), len(set(b)))
