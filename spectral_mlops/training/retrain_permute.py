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
share of every target. One set of retrainings so serves all groupings.

Families. Relatives are alike in target too, and single people of different families
may then not be exchanged. Families of one *kind* (as many members in each cell)
exchange the targets of all their members as a whole, and members of one family and
cell exchange theirs among themselves; both together, as exchangeability blocks of
Winkler, Webster, Vidaurre, Nichols & Smith (2015). To the draw of the split, which
keeps families together, two of one kind differ in nothing else. It assumes that
relatives of one cell are alike in kind: a table of parents and children wants a column
that tells them apart among the groupings. Who has no relative is a family of one, and
where nobody has, this is the permutation of people within cells.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.cohorts.families import families_of
from spectral_mlops.errors import InputError
from spectral_mlops.training.plan import NONE, STRATA, Plan

FOLD = "fold"
"""Name of the part of the split, the probe being one of them."""
FEWEST = 20
"""Different permutations below which p could not reach 0.05."""

Block = tuple[NDArray[np.intp], ...]
"""Rows of one family, cell by cell."""
Kind = tuple[Block, ...]
"""Families with as many members in each of the same cells."""


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
        return _different(self.kinds, self.plan.targets)

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
        for kind in self.kinds:
            for family, other in zip(kind, draw.permutation(len(kind)), strict=True):
                for own, given in zip(family, kind[other], strict=True):
                    giver[own] = draw.permutation(given)
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
        if name == target or _one_determines(_texts(people, name), goal)
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
        enough = _different(_kinds(plan, more, families), plan.targets) >= FEWEST
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
    named = ids if families is None else families[ids].tolist()
    members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, (family, cell) in enumerate(zip(named, cells, strict=True)):
        members[family][cell].append(row)
    kinds: dict[tuple[tuple[str, int], ...], list[Block]] = defaultdict(list)
    for rows in members.values():
        make_up = tuple((cell, len(rows[cell])) for cell in sorted(rows))
        kinds[make_up].append(tuple(np.array(rows[cell]) for cell in sorted(rows)))
    return tuple(tuple(kinds[make_up]) for make_up in sorted(kinds))


def _different(kinds: Sequence[Kind], targets: NDArray[np.int64]) -> int:
    """Count the different targets that permutations give, those of the run included.

    Of each kind: which family gets whose targets, times the orders of targets within
    the cells of every family.
    """
    number = 1
    for kind in kinds:
        given: Counter[tuple[tuple[int, ...], ...]] = Counter()
        for family in kind:
            labels = tuple(tuple(sorted(targets[rows].tolist())) for rows in family)
            given[labels] += 1
            for cell in labels:
                number *= _orders(Counter(cell))
        number *= _orders(given)
    return number


def _orders(counts: Counter[Any]) -> int:
    """Number of orders of things of which some are alike."""
    orders = factorial(counts.total())
    for alike in counts.values():
        orders //= factorial(alike)
    return orders


def _texts(people: pd.DataFrame, column: str) -> list[str]:
    """Return a column as text, gaps as one label."""
    return [str(x) for x in people[column].astype(object).fillna(NONE)]


def _one_determines(a: list[str], b: list[str]) -> bool:
    """Whether each label of one goes with a single label of the other."""
    pairs = len(set(zip(a, b, strict=True)))
    return pairs in (len(set(a)), len(set(b)))
