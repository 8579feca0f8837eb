"""Comparing groups from what was kept of people: a value, relabelled values, reasons.

Puts together `spectra.statistics` (values under relabellings), `validity` (who is
relabelled, and what that can show) and `inference` (z and p).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from spectral_mlops.inference.comparison import EVERY_GROUP, Comparison
from spectral_mlops.records import POOLED, Quantity, Spectrum
from spectral_mlops.spectra.null import Relabelled
from spectral_mlops.spectra.statistics import OfSpectra, find_statistic
from spectral_mlops.validity import (
    BY_ROWS,
    Null,
    Observed,
    People,
    batch_strata,
    draw_people,
    labels_of_people,
    target_of_people,
    validity,
)

Values = NDArray[np.float64]
Cells = dict[tuple[str, str, str, str], dict[tuple[int, int], Spectrum]]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is compared: everything that was seen, and what is asked of it.

    Attributes:
        spectra: Of all watched batches.
        observed: The batches that parts of people were kept of.
        source: ``train`` or ``probe``.
        batches: Number of watched batches.
        refused: Why no null may be formed of these batches, if so.
    """

    spectra: Sequence[Spectrum]
    observed: Sequence[Observed]
    source: str
    batches: int
    refused: str = ""


def compare(
    seen: Subject, null: Null, solved: "Solved | None" = None
) -> list[Comparison]:
    """Compare groups at every layer and quantity.

    Args:
        seen: What was watched.
        null: How groups are compared.
        solved: Spectra under relabellings, kept for other statistics of the same
            watched batches under the same null; filled here. Only where everyone's
            labels move together is all of it kept.

    Returns:
        One comparison per layer, quantity, grouping and pair of groups; for the
        omnibus one per layer, quantity and grouping of three groups or more, the mean
        over its pairs.
    """
    find_statistic(null.statistic)
    comparing = _Comparing(seen, null, {} if solved is None else solved)
    return [
        row
        for grouping, sizes in _sizes(seen.spectra).items()
        for row in comparing.grouping(grouping, sizes)
    ]


Pairs = list[tuple[str, str]]
Solved = dict[tuple[str, int, int, str, str], Relabelled]
"""By grouping, kept batch, number of relabellings, layer and quantity."""


@dataclass(eq=False)
class _Comparing:
    """One call of `compare`; what several rows need is computed once."""

    seen: Subject
    null: Null
    relabelled: Solved

    def __post_init__(self) -> None:
        self.cells = _cells(self.seen.spectra)
        self.statistic = find_statistic(self.null.statistic)
        self.target = target_of_people(self.seen.observed)
        self.strata = {**self.null.strata, **batch_strata(self.seen.observed)}

    def grouping(
        self, grouping: str, sizes: dict[str, Spectrum]
    ) -> Iterator[Comparison]:
        """Yield the rows of one grouping."""
        labels = labels_of_people(self.seen.observed, grouping)
        valid, testable = {}, {}
        for quantity in dict.fromkeys(s.quantity for s in self.seen.spectra):
            words, testable[quantity] = validity(
                self.seen.source, self.seen.observed, labels, self.target, quantity
            )
            by_rows = self.null.weighting == "rows"
            valid[quantity] = words + (BY_ROWS if by_rows else "")
        pairs = list(combinations(sorted(sizes), 2))
        rows: list[Pairs] = [[pair] for pair in pairs]
        if self.null.omnibus:
            rows = [pairs] if len(sizes) > 2 else []
        together = self.null.everyone or self.null.omnibus
        people = None
        for row in rows:
            if labels and not (together and people):
                people = self._draw(labels, None if together else row[0], grouping)
            names = row[0] if not self.null.omnibus else (EVERY_GROUP, EVERY_GROUP)
            for layer, quantity in dict.fromkeys(
                (s.layer, s.quantity) for s in self.seen.spectra
            ):
                values, null, reason = self._cell(
                    grouping, row, people, layer, quantity
                )
                ends = _ends(row, sizes)
                yield Comparison(
                    layer=layer,
                    quantity=quantity,
                    grouping=grouping,
                    group_a=names[0],
                    group_b=names[1],
                    divergence=self.null.statistic,
                    values=values,
                    n_a=ends[0].samples,
                    n_b=ends[1].samples,
                    subjects_a=ends[0].subjects,
                    subjects_b=ends[1].subjects,
                    source=self.seen.source,
                    null=null,
                    strata=people.strata if people and self._wanted else "none",
                    valid_for=valid[quantity],
                    testable=testable[quantity],
                    reason=reason or ("" if testable[quantity] else valid[quantity]),
                )

    @property
    def _wanted(self) -> bool:
        """Whether a null is asked for and allowed."""
        return bool(self.null.permutations) and not self.seen.refused

    def _draw(
        self, labels: dict[str, str], pair: tuple[str, str] | None, grouping: str
    ) -> People:
        """Draw the relabellings of a pair's people, or of everyone."""
        if pair is not None:
            self.relabelled.clear()  # they are of others
        moved = {
            person: label
            for person, label in labels.items()
            if pair is None or label in pair
        }
        return draw_people(
            moved,
            grouping,
            self.target if self.null.by_target else None,
            self.strata if self._wanted else {},
            self.null.permutations if self._wanted else 0,
            self.null.seed,
            self.null.families if self._wanted else None,
        )

    def _cell(
        self,
        grouping: str,
        pairs: Pairs,
        people: People | None,
        layer: str,
        quantity: Quantity,
    ) -> tuple[Values, str, str]:
        """Values, the null's description, and why something is missing."""
        nothing, name = np.array([np.nan]), self.null.statistic
        if quantity not in self.statistic.quantities:
            kinds = " and ".join(self.statistic.quantities)
            return nothing, "none", f"{name} exists for the {kinds} alone"
        described, reason = self._describe(grouping, pairs, layer, quantity)
        of_spectra = isinstance(self.statistic, OfSpectra)
        if reason or (of_spectra and not self.null.permutations):
            return described, "none", reason
        if self.seen.refused and of_spectra:
            return described, "none", self.seen.refused
        if people is None:
            why = self.seen.refused or "no factors were kept for a null (null_batches)"
            return described, "none", why
        if not {group for pair in pairs for group in pair} <= set(people.groups):
            only = "only one" if len(pairs) == 1 else "not all"
            why = f"the batches kept for a null hold {only} of the groups"
            return described, "none", why
        groups = sorted({group for pair in pairs for group in pair})
        refusal = people.refusal(grouping, groups) if self._wanted else ""
        number = 0 if refusal or not self._wanted else people.relabelled.number
        cell = grouping, layer, quantity
        found, reason = self._under(people, pairs, cell, number)
        if found is None:
            return described, "none", reason
        if not number or np.isnan(found[0]):
            return found[:1], "none", refusal or self.seen.refused or reason
        distinct = people.distinct(groups)
        only_some = f" (only {distinct} different)" if distinct <= number else ""
        null = (
            f"{people.relabelled.text}{only_some} of "
            f"{len(people.labels)} people, "
            f"{len(self.seen.observed)} of {self.seen.batches} watched batches"
        )
        return found, null, reason

    def _describe(
        self, grouping: str, pairs: Pairs, layer: str, quantity: Quantity
    ) -> tuple[Values, str]:
        """Mean over pairs of what all watched batches show, or why there is none."""
        nothing = np.array([np.nan])
        if not isinstance(self.statistic, OfSpectra):
            return nothing, ""
        values, reasons = [], []
        for pair in pairs:
            value, reason = _descriptive(
                self.cells, layer, quantity, grouping, pair, self.statistic
            )
            values += [] if reason else [value]
            reasons += [reason] if reason else []
        return (np.array([np.mean(values)]), "") if values else (nothing, reasons[0])

    def _under(
        self, people: People, pairs: Pairs, cell: tuple[str, str, str], number: int
    ) -> tuple[Values | None, str]:
        """Mean over kept batches and pairs under each relabelling, ``[number + 1]``.

        Args:
            people: Who is relabelled.
            pairs: Of groups.
            cell: Grouping, layer and quantity.
            number: Of relabellings.
        """
        grouping, layer, quantity = cell
        found = []
        for i, seen in enumerate(self.seen.observed):
            kept = seen.layers.get(layer)
            part = kept.weighted(quantity, self.null.weighting) if kept else None
            if part is None:
                why = kept.reasons.get(quantity) if kept else None
                return None, why or "nothing was kept of this layer for a null"
            key = (grouping, i, number, layer, quantity)
            if key not in self.relabelled:
                codes = people.columns(seen.people, number)
                self.relabelled[key] = Relabelled(part, codes)
            relabelled = self.relabelled[key]
            if lacks := self.statistic.lacks(relabelled):
                return None, lacks
            for pair in pairs:
                a, b = (people.groups.index(group) for group in pair)
                found.append(self.statistic.under(relabelled, a, b).numpy())
        together = np.stack(found)
        known = np.isfinite(together)
        with np.errstate(invalid="ignore"):
            mean = np.where(known, together, 0.0).sum(0) / known.sum(0)
        if np.isnan(mean[0]):
            return mean, _undefined(self.null.statistic)
        return mean, ""


def _undefined(statistic: str) -> str:
    if statistic == "unbiased_norm_ratio":
        return (
            "an unbiased squared norm is not positive (or a group has one person): "
            "the gradients of single people say more about noise than about the group"
        )
    return f"{statistic} does not exist: a group's rows are all zero or not there"


def _ends(pairs: Pairs, sizes: dict[str, Spectrum]) -> list[Spectrum]:
    """Spectra that tell the sizes of a pair; of the smallest and largest group."""
    groups = (
        pairs[0] if len(pairs) == 1 else sorted({g for pair in pairs for g in pair})
    )
    found = [sizes[group] for group in groups]
    return (
        found
        if len(pairs) == 1
        else sorted(found, key=lambda s: s.samples)[:: len(found) - 1]
    )


def _cells(spectra: Sequence[Spectrum]) -> Cells:
    """Index spectra by layer, quantity, grouping, group; then by batch."""
    cells: Cells = defaultdict(dict)
    for s in spectra:
        cells[s.layer, s.quantity, s.grouping, s.group][s.step, s.rank] = s
    return cells


def _sizes(spectra: Sequence[Spectrum]) -> dict[str, dict[str, Spectrum]]:
    """A spectrum of every group of every grouping, which tells its size."""
    groups: dict[str, dict[str, Spectrum]] = defaultdict(dict)
    for s in spectra:
        if s.grouping != POOLED:
            groups[s.grouping].setdefault(s.group, s)
    return groups


def _descriptive(
    cells: Cells,
    layer: str,
    quantity: Quantity,
    grouping: str,
    pair: tuple[str, str],
    statistic: OfSpectra,
) -> tuple[float, str]:
    """Mean over watched batches, or why there is none."""
    a, b = (cells.get((layer, quantity, grouping, group), {}) for group in pair)
    both = [(a[batch], b[batch]) for batch in sorted(a.keys() & b.keys())]
    if not both:
        return np.nan, "the two groups were never in one watched batch"
    usable = [(x, y) for x, y in both if x.status == y.status == "ok"]
    if not usable:
        return np.nan, "no watched batch has finite spectra of both groups"
    if all(s.degenerate for x, y in usable for s in (x, y)):
        rank = "all-zero spectrum" if not usable[0][0].values.any() else "rank 1"
        return np.nan, f"degenerate: {rank}, a spectrum has no shape to compare"
    found = [
        float(
            statistic.function(torch.from_numpy(x.values), torch.from_numpy(y.values))
        )
        for x, y in usable
    ]
    known = [x for x in found if np.isfinite(x)]
    if not known:
        return np.nan, "a group has an all-zero spectrum"
    return float(np.mean(known)), ""
