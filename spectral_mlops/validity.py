"""Who may be relabelled within what, what that can show, and what it cannot.

Everything that may not have a p-value is refused here, in one sentence.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import factorial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from spectral_mlops.errors import InputError
from spectral_mlops.inference.exchange import interchangeable, kin_of, kinds_of
from spectral_mlops.inference.relabel import (
    Relabellings,
    distinct_relabellings,
    relabel,
)
from spectral_mlops.records import Quantity
from spectral_mlops.spectra.kept import KeptLayer

Strata = Mapping[str, Mapping[str, str]]
Families = Mapping[str, str]
"""Family of each person; empty where nobody has a relative."""

FEWEST = 20
"""Different values below which no relabelling can reach p ≤ 0.05."""
UNEVEN = 1.05
"""Ratio of the groups' mean numbers of samples per person above which it is said."""
MANY = 10**9
"""Where counting relabellings ends."""
WHOLE = "families whole"
"""How strata are called where relatives move together."""
WEIGHTINGS = ("subjects", "rows")
BY_ROWS = "; each row weighs the same"


@dataclass(frozen=True, eq=False)
class Observed:
    """One set of people seen at once: a watched batch, or the whole probe.

    Attributes:
        subjects: The person behind each sample, length ``N``.
        groupings: Label of each sample, per grouping.
        targets: What training predicts, per sample, if it was told.
        layers: What is kept of each layer, by name; parts of people are in the order
            of `people`.
        trained_on: Whether training saw these people.
        label_free: Whether the adjoints know no labels.
    """

    subjects: list[str]
    groupings: dict[str, list[str]]
    targets: list[str] | None
    layers: Mapping[str, KeptLayer]
    trained_on: bool
    label_free: bool

    @cached_property
    def people(self) -> list[str]:
        """Everybody once, in the order of their first sample."""
        return list(dict.fromkeys(self.subjects))


@dataclass(frozen=True, eq=False)
class Null:
    """How labels are moved, and what is computed of them.

    Attributes:
        permutations: Relabellings beside the observed labels; 0 for none.
        strata: ``{name: {subject: stratum}}``.
        by_target: Whether labels also stay within the target's classes, where the
            grouping is not the target.
        seed: Of the relabellings.
        statistic: Name in `STATISTICS`.
        everyone: Move everyone's labels together, not the pair's alone.
        omnibus: Of all groups at once instead of pairs; moves everyone.
        weighting: Whether all ``subjects`` weigh the same, or all ``rows``.
        families: ``{subject: family}``; families move as blocks.
    """

    permutations: int
    strata: Strata
    by_target: bool
    seed: int
    statistic: str
    everyone: bool = False
    omnibus: bool = False
    weighting: str = "subjects"
    families: Families = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise InputError(
                f"weighting='{self.weighting}': choose "
                f"{' or '.join(map(repr, WEIGHTINGS))}."
            )


@dataclass(frozen=True, eq=False)
class People:
    """The people a relabelling moves.

    Attributes:
        labels: The observed label of each person, by id, sorted.
        within: Stratum of each person, in that order.
        strata: Names of the strata.
        codes: Group of each person under each relabelling, ``[P + 1, n]``.
        fused: Name of a stratum that is the grouping itself, if there is one.
        exact: Whether these are all relabellings that there are, each once.
        families: Family of each person, where anybody has a relative.
    """

    labels: Mapping[str, str]
    within: Sequence[str]
    strata: str
    codes: NDArray[np.int64]
    fused: str = ""
    exact: bool = False
    families: Sequence[str] | None = None
    groups: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", sorted(set(self.labels.values())))

    @cached_property
    def relabelled(self) -> Relabellings:
        """The relabellings, which say what they are."""
        return Relabellings(tuple(self.labels), self.codes, self.exact)

    def columns(self, people: Sequence[str], relabellings: int) -> torch.Tensor:
        """Codes of some people, -1 for those who take no part, ``[·, len(people)]``."""
        place = {person: i for i, person in enumerate(self.labels)}
        codes = np.pad(self.codes, ((0, 0), (0, 1)), constant_values=-1)
        at = [place.get(person, -1) for person in people]
        return torch.from_numpy(codes[: relabellings + 1, at])

    def distinct(self, groups: Sequence[str], symmetric: bool = True) -> int:
        """Number of different values of a statistic of some groups, at most `MANY`.

        Other groups' labels are all one to it. Where it is symmetric, groups may be
        exchanged as a whole where that is a relabelling too: they have the same number
        of people in every stratum (and families of the same make-up).
        """
        key = (symmetric, tuple(groups))
        if key not in self._counted:
            self._counted[key] = self._count(groups, symmetric)
        return self._counted[key]

    @cached_property
    def _counted(self) -> dict[tuple[bool, tuple[str, ...]], int]:
        return {}

    def _count(self, groups: Sequence[str], symmetric: bool) -> int:
        names = ["", *groups]
        labels = [x if x in groups else "" for x in self.labels.values()]
        ways = distinct_relabellings(labels, self.within, self.families)
        if ways > MANY:
            return MANY
        if not symmetric:
            return ways
        kinds = kinds_of(self.within, self.families)
        codes = np.array([names.index(label) for label in labels], dtype=np.int64)
        alike: list[list[int]] = []
        for code in range(1, len(names)):
            same = [x for x in alike if interchangeable(kinds, codes, x[0], code)]
            if same:
                same[0].append(code)
            else:
                alike.append([code])
        for some in alike:
            ways //= factorial(len(some))
        return max(ways, 1)

    def refusal(
        self, grouping: str, groups: Sequence[str], symmetric: bool = True
    ) -> str:
        """Why no p may be formed for some groups, if so, in one sentence.

        Args:
            grouping: Name of the labels.
            groups: Those compared.
            symmetric: See `distinct`.
        """
        count = Counter(self.labels.values())
        few = [group for group in groups if count[group] < 2]
        if few:
            return (
                f"fewer than two people in group '{few[0]}': relabelling one person "
                "says nothing about a group"
            )
        if self.fused:
            return (
                f"grouping '{grouping}' and stratum '{self.fused}' tell the same "
                "people apart: labels that stay within it cannot move"
            )
        distinct = self.distinct(groups, symmetric)
        if distinct == 1:
            return f"no relabelling within the strata ({self.strata}) changes groups"
        if distinct < FEWEST:
            return (
                f"only {distinct} different values under relabelling within the strata "
                f"({self.strata}): {FEWEST} are needed for p = 0.05"
            )
        return ""


def draw_people(
    labels: Mapping[str, str],
    grouping: str,
    target: Mapping[str, str] | None,
    strata: Strata,
    permutations: int,
    seed: int,
    families: Families | None = None,
) -> People:
    """Relabel some people, sorted by id, in every way where there are few.

    A stratum of the grouping's own name, and the target where the grouping is the
    target, are left out: labels could not move within them. Families move as blocks,
    those with members left out among those that lack as many (`exchange.kin_of`).

    Raises:
        InputError: If somebody has no stratum, or no family where there are any.
    """
    ids = sorted(labels)
    columns: dict[str, Mapping[str, str]] = {}
    fused = ""
    if target is not None and not same_partition(labels, target):
        columns["target"] = target
    for name, column in strata.items():
        refuse_gaps("strata", name, column, ids)
        if name != grouping:
            columns[name] = column
            if len(set(labels.values())) > 1 and same_partition(labels, column):
                fused = fused or name
    within = [
        " × ".join(column[person] for column in columns.values()) for person in ids
    ]
    moved = {person: labels[person] for person in ids}
    within, named, names = with_families(
        ids, within, " × ".join(columns) or "none", families
    )
    found = relabel(moved, within, permutations, seed, named)
    return People(moved, within, names, found.codes, fused, found.exact, named)


def with_families(
    people: Sequence[str],
    within: Sequence[str],
    strata: str,
    families: Families | None,
) -> tuple[list[str], list[str] | None, str]:
    """Let families move as blocks within strata.

    Args:
        people: Ids.
        within: Stratum of each.
        strata: What the strata are called.
        families: ``{person: family}``, nothing where nobody has a relative.

    Returns:
        Stratum and family of each, and what that is called; the strata as they are and
        no families where none of them has a relative.

    Raises:
        InputError: If families say nothing about somebody.
    """
    if not families:
        return list(within), None, strata
    refuse_gaps("column", "families", families, people)
    named, marks = kin_of(people, families)
    marked = [stratum + mark for stratum, mark in zip(within, marks, strict=True)]
    return marked, named, strata if named is None else f"{strata}, {WHOLE}"


def read_families(families: Mapping[str, object] | None) -> dict[str, str]:
    """Read who is in which family; empty where nobody has a relative.

    Args:
        families: ``{person: family}``; whoever has none (None, NaN) is alone in theirs.
    """
    named = {
        str(person): f"alone {person}" if pd.isna(name) else str(name)  # type: ignore[call-overload]
        for person, name in (families or {}).items()
    }
    return named if len(set(named.values())) < len(named) else {}


def refuse_gaps(
    kind: str, name: str, column: Mapping[str, object], people: Sequence[str]
) -> None:
    """Refuse a column that says nothing about somebody.

    Raises:
        InputError: Naming the first of them.
    """
    lost = [person for person in people if person not in column]
    if lost:
        raise InputError(
            f"{kind} '{name}' says nothing about subject '{lost[0]}' "
            f"({len(lost)} of {len(people)}): give every person one."
        )


def same_partition(labels: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two labellings tell the same people apart."""
    pairs = {(labels[person], other[person]) for person in labels}
    return len(pairs) == len(set(labels.values())) == len({t for _, t in pairs})


def labels_of_people(observed: Sequence[Observed], grouping: str) -> dict[str, str]:
    """Return each person's label.

    Raises:
        InputError: If somebody's samples have two labels.
    """
    labels: dict[str, str] = {}
    for seen in observed:
        for person, label in zip(seen.subjects, seen.groupings[grouping], strict=True):
            if labels.setdefault(person, label) != label:
                raise InputError(
                    f"Subject '{person}' is in group '{labels[person]}' and in "
                    f"'{label}' of grouping '{grouping}': a person has one label."
                )
    return labels


def target_of_people(observed: Sequence[Observed]) -> dict[str, str] | None:
    """Return each person's target, or ``None`` where it was not told."""
    if any(seen.targets is None for seen in observed):
        return None
    return {
        person: target
        for seen in observed
        for person, target in zip(seen.subjects, seen.targets or (), strict=True)
    }


def batch_strata(observed: Sequence[Observed]) -> Strata:
    """Let labels move within batches where each person is in one of several.

    Every batch then keeps its group sizes under relabelling; spectra depend on them.
    """
    batch = {
        person: str(i) for i, seen in enumerate(observed) for person in seen.subjects
    }
    once = len(batch) == sum(len(seen.people) for seen in observed)
    return {"batch": batch} if once and len(observed) > 1 else {}


def validity(
    source: str,
    observed: Sequence[Observed],
    labels: Mapping[str, str],
    target: Mapping[str, str] | None,
    quantity: Quantity = "gradient",
) -> tuple[str, bool]:
    """Say what a p-value may mean here, and whether one may be formed."""
    words, testable = _validity(source, observed, labels, target, quantity)
    if testable:
        subjects = [person for seen in observed for person in seen.subjects]
        words += uneven_rows(subjects, labels)
    return words, testable


def uneven_rows(subjects: Sequence[str], labels: Mapping[str, str]) -> str:
    """Say that people have unequal numbers of samples, where groups differ in that.

    Spectra depend on the number of rows: without strata of it (scan length), such a
    group is relabelled too freely (`experiments/calibration`).

    Args:
        subjects: The person behind each sample.
        labels: Of each person.
    """
    counts = Counter(subjects)
    by_group: dict[str, Counter[int]] = defaultdict(Counter)
    for person, label in labels.items():
        by_group[label][counts[person]] += 1
    numbers = sorted({counts[person] for person in labels})
    if len(numbers) < 2:
        return ""
    means = [sum(n * k for n, k in c.items()) / c.total() for c in by_group.values()]
    if max(means) <= UNEVEN * min(means):
        return ""
    return (
        f"; people have {numbers[0]} to {numbers[-1]} samples, more in one group: "
        "give their number as strata="
    )


def _validity(
    source: str,
    observed: Sequence[Observed],
    labels: Mapping[str, str],
    target: Mapping[str, str] | None,
    quantity: Quantity,
) -> tuple[str, bool]:
    if source == "probe" and all(seen.label_free for seen in observed):
        return "held-out people; adjoints of a label-free output", True
    is_target = bool(labels) and target is not None and same_partition(labels, target)
    if is_target and source == "probe" and quantity == "activation":
        return "held-out people; activations know no labels", True
    if is_target and source == "probe":
        return (
            "descriptive: the grouping is the target and the loss's adjoints know it",
            False,
        )
    if is_target:
        return (
            "descriptive: the grouping is the target and these people were trained on",
            False,
        )
    where = "held-out people" if source == "probe" else "training people"
    if target is None:
        return f"{where}, assuming the grouping was not the target (targets=)", True
    return f"{where}; grouping unseen by training", True
