"""Comparing groups from factors captured once: who is relabelled, within what.

Puts together `spectra.null` (values under relabellings) and `inference` (z and p),
and says of every row what a p-value may mean and why one is missing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral_mlops.errors import InputError
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.inference.relabel import digest, draw_relabellings
from spectral_mlops.records import POOLED, Quantity, Spectrum
from spectral_mlops.spectra.divergences import DIVERGENCES
from spectral_mlops.spectra.null import (
    MAX_ROWS,
    RelabelFactors,
    compress,
    relabelled_divergence,
)

Strata = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, eq=False)
class ObservedLayer:
    """The reduced rows of one layer, or why there are none."""

    name: str
    activation: Tensor
    adjoint: Tensor
    sample: Tensor
    reason: str

    @classmethod
    def reduce(
        cls, name: str, activation: Tensor, adjoint: Tensor, sample: Tensor
    ) -> "ObservedLayer":
        """Compress rows ``[r, d]``; ``sample`` says whose each row is."""
        if len(sample) > MAX_ROWS:
            reason = f"{len(sample)} rows are too many for a null ({MAX_ROWS} at most)"
        elif not (activation.isfinite().all() and adjoint.isfinite().all()):
            reason = "rows are not finite"
        else:
            return cls(name, compress(activation), compress(adjoint), sample, "")
        return cls.without(name, reason)

    @classmethod
    def without(cls, name: str, reason: str) -> "ObservedLayer":
        """Keep nothing but why there is nothing."""
        nothing = torch.empty(0, 0, dtype=torch.float64)
        return cls(name, nothing, nothing, torch.empty(0, dtype=torch.int64), reason)


@dataclass(frozen=True, eq=False)
class Observed:
    """One set of people seen at once: a watched batch, or the whole probe.

    Attributes:
        subjects: The person behind each sample, length ``N``.
        groupings: Label of each sample, per grouping.
        targets: What training predicts, per sample, if it was told.
        layers: Reduced rows of each layer.
        trained_on: Whether training saw these people.
        label_free: Whether the adjoints know no labels.
    """

    subjects: list[str]
    groupings: dict[str, list[str]]
    targets: list[str] | None
    layers: list[ObservedLayer]
    trained_on: bool
    label_free: bool


@dataclass(frozen=True, eq=False)
class _People:
    """The people a relabelling moves: sorted ids, their labels and strata."""

    ids: list[str]
    codes: NDArray[np.int64]  # [P + 1, n]
    groups: list[str]
    strata: str

    @cached_property
    def digest(self) -> str:
        """Short digest of who is relabelled and how; equal ones mean one null."""
        return digest(self.ids, self.codes)[:12]


def compare(
    spectra: Sequence[Spectrum],
    observed: Sequence[Observed],
    *,
    source: str,
    batches: int,
    permutations: int,
    strata: Strata,
    by_target: bool,
    seed: int,
    divergence: str,
    everyone: bool,
    refused: str = "",
) -> list[Comparison]:
    """Compare every pair of groups at every layer and quantity.

    Args:
        spectra: Of all watched batches.
        observed: The batches whose factors were kept.
        source: ``train`` or ``probe``.
        batches: Number of watched batches.
        permutations: Relabellings beside the observed labels; 0 for none.
        strata: ``{name: {subject: stratum}}``.
        by_target: Whether labels also stay within the target's classes, where the
            grouping is not the target.
        seed: Of the relabellings.
        divergence: Name of the divergence.
        everyone: Move everyone's labels together, not the pair's alone.
        refused: Why no null may be formed of these batches, if so.

    Returns:
        One comparison per layer, quantity, grouping and pair.
    """
    DIVERGENCES.get(divergence)
    result = []
    cells = _cells(spectra)
    strata = {**strata, **_batch_strata(observed)}
    for (grouping, a, b), sizes in _pairs(spectra).items():
        labels = _labels_of_people(observed, grouping)
        target = _target_of_people(observed)
        people = None
        if permutations and labels and not refused:
            moved = (
                labels
                if everyone
                else {
                    person: label for person, label in labels.items() if label in (a, b)
                }
            )
            people = _people(
                moved, target if by_target else None, strata, permutations, seed
            )
        valid, testable = _validity(source, observed, labels, target)
        for layer, quantity in dict.fromkeys((s.layer, s.quantity) for s in spectra):
            values, reason = _descriptive(
                cells, layer, quantity, grouping, (a, b), divergence
            )
            null = "none"
            if not reason and people is not None:
                found, reason = _under_relabelling(
                    observed, people, layer, quantity, (a, b), divergence
                )
                if found is not None:
                    values = found
                    null = (
                        f"{permutations} relabellings ({people.digest}) of "
                        f"{len(people.ids)} people, "
                        f"{len(observed)} of {batches} watched batches"
                    )
            elif not reason and permutations:
                reason = refused or "no factors were kept for a null (null_batches)"
            result.append(
                Comparison(
                    layer=layer,
                    quantity=quantity,
                    grouping=grouping,
                    group_a=a,
                    group_b=b,
                    divergence=divergence,
                    values=values,
                    n_a=sizes[0].samples,
                    n_b=sizes[1].samples,
                    subjects_a=sizes[0].subjects,
                    subjects_b=sizes[1].subjects,
                    source=source,
                    null=null,
                    strata=people.strata if people else "none",
                    valid_for=valid,
                    testable=testable,
                    reason=reason or ("" if testable else valid),
                )
            )
    return result


Cells = dict[tuple[str, str, str, str], dict[tuple[int, int], Spectrum]]


def _cells(spectra: Sequence[Spectrum]) -> Cells:
    """Index spectra by layer, quantity, grouping, group; then by batch."""
    cells: Cells = defaultdict(dict)
    for s in spectra:
        cells[s.layer, s.quantity, s.grouping, s.group][s.step, s.rank] = s
    return cells


def _pairs(
    spectra: Sequence[Spectrum],
) -> dict[tuple[str, str, str], tuple[Spectrum, Spectrum]]:
    """Every pair of groups of every grouping, with a spectrum that tells sizes."""
    groups: dict[str, dict[str, Spectrum]] = defaultdict(dict)
    for s in spectra:
        if s.grouping != POOLED:
            groups[s.grouping].setdefault(s.group, s)
    return {
        (grouping, a, b): (found[a], found[b])
        for grouping, found in groups.items()
        for a, b in combinations(sorted(found), 2)
    }


def _descriptive(
    cells: Cells,
    layer: str,
    quantity: Quantity,
    grouping: str,
    pair: tuple[str, str],
    divergence: str,
) -> tuple[NDArray[np.float64], str]:
    """Mean over watched batches of the divergence, or why there is none."""
    a, b = (cells.get((layer, quantity, grouping, group), {}) for group in pair)
    both = [(a[batch], b[batch]) for batch in sorted(a.keys() & b.keys())]
    nothing = np.array([np.nan])
    if not both:
        return nothing, "the two groups were never in one watched batch"
    usable = [(x, y) for x, y in both if x.status == y.status == "ok"]
    if not usable:
        return nothing, "no watched batch has finite spectra of both groups"
    if all(s.degenerate for x, y in usable for s in (x, y)):
        rank = "all-zero spectrum" if not usable[0][0].values.any() else "rank 1"
        return nothing, f"degenerate: {rank}, a spectrum has no shape to compare"
    function = DIVERGENCES.get(divergence)
    found = [
        float(function(torch.from_numpy(x.values), torch.from_numpy(y.values)))
        for x, y in usable
    ]
    known = [x for x in found if np.isfinite(x)]
    if not known:
        return nothing, "a group has an all-zero spectrum"
    return np.array([np.mean(known)]), ""


def _labels_of_people(observed: Sequence[Observed], grouping: str) -> dict[str, str]:
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


def _batch_strata(observed: Sequence[Observed]) -> Strata:
    """Let labels move within batches where each person is in one of several.

    Every batch then keeps its group sizes under relabelling; spectra depend on them.
    """
    batch = {
        person: str(i) for i, seen in enumerate(observed) for person in seen.subjects
    }
    once = len(batch) == sum(len(set(seen.subjects)) for seen in observed)
    return {"batch": batch} if once and len(observed) > 1 else {}


def _target_of_people(observed: Sequence[Observed]) -> dict[str, str] | None:
    """Return each person's target, or ``None`` where it was not told."""
    if any(seen.targets is None for seen in observed):
        return None
    return {
        person: target
        for seen in observed
        for person, target in zip(seen.subjects, seen.targets or (), strict=True)
    }


def _same_partition(labels: Mapping[str, str], target: Mapping[str, str]) -> bool:
    """Whether labels and targets tell the same people apart."""
    pairs = {(labels[person], target[person]) for person in labels}
    return len(pairs) == len(set(labels.values())) == len({t for _, t in pairs})


def _people(
    labels: Mapping[str, str],
    target: Mapping[str, str] | None,
    strata: Strata,
    permutations: int,
    seed: int,
) -> _People:
    """Draw the relabellings of some people, sorted by id."""
    ids = sorted(labels)
    columns: dict[str, Mapping[str, str]] = {}
    if target is not None and not _same_partition(labels, target):
        columns["target"] = target
    for name, column in strata.items():
        lost = [person for person in ids if person not in column]
        if lost:
            raise InputError(
                f"strata '{name}' says nothing about subject '{lost[0]}' "
                f"({len(lost)} of {len(ids)}): give every person a stratum."
            )
        if not _same_partition(labels, column):
            columns[name] = column
    within = [
        " × ".join(column[person] for column in columns.values()) for person in ids
    ]
    codes = draw_relabellings([labels[i] for i in ids], within, permutations, seed)
    groups = sorted(set(labels.values()))
    return _People(ids, codes, groups, " × ".join(columns) or "none")


def _validity(
    source: str,
    observed: Sequence[Observed],
    labels: Mapping[str, str],
    target: Mapping[str, str] | None,
) -> tuple[str, bool]:
    """Say what a p-value may mean here, and whether one may be formed."""
    if source == "probe" and all(seen.label_free for seen in observed):
        return "held-out people; adjoints of a label-free output", True
    is_target = bool(labels) and target is not None and _same_partition(labels, target)
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


def _under_relabelling(
    observed: Sequence[Observed],
    people: _People,
    layer: str,
    quantity: Quantity,
    pair: tuple[str, str],
    divergence: str,
) -> tuple[NDArray[np.float64] | None, str]:
    """Mean over the kept batches under every relabelling, shape ``[P + 1]``."""
    if not set(pair) <= set(people.groups):
        return None, "the batches kept for a null hold only one of the groups"
    place = {person: i for i, person in enumerate(people.ids)}
    codes = np.pad(people.codes, ((0, 0), (0, 1)), constant_values=-1)
    wanted = (people.groups.index(pair[0]), people.groups.index(pair[1]))
    found = []
    for seen in observed:
        kept = next((x for x in seen.layers if x.name == layer), None)
        if kept is None or kept.reason:
            return None, kept.reason if kept else "no factors of its own for a null"
        person = torch.tensor([place.get(i, len(place)) for i in seen.subjects])
        factors = _weighted(kept, person)
        values = relabelled_divergence(
            quantity, factors, torch.from_numpy(codes), wanted, divergence
        )
        found.append(values.numpy())
    together = np.stack(found)
    known = np.isfinite(together)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, together, 0.0).sum(0) / known.sum(0)
    return mean, ""


def _weighted(kept: ObservedLayer, person: Tensor) -> RelabelFactors:
    """Give each person the same weight, whatever their number of rows."""
    owner = person[kept.sample]
    weight = torch.bincount(owner)[owner].to(torch.float64).rsqrt().unsqueeze(1)
    return RelabelFactors(kept.activation * weight, kept.adjoint * weight, owner)
