"""From the rows of a batch to spectrum records, in two steps.

`reduce_batch` runs right after the backward pass and leaves small matrices
(`spectra.reduce`); they may be solved later, together with those of other batches and
beside the training thread (`spectra.solver`). `spectra_of` then makes records of what
was solved.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor

from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.rows import Factored, Rows
from spectral_mlops.records import POOLED, Quantity, Spectrum
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import LayerFactors, reduce_layers
from spectral_mlops.spectra.reduced import Key, Reduced
from spectral_mlops.spectra.solve import Solved
from spectral_mlops.spectra.solver import solve_marking
from spectral_mlops.spectra.summaries import SUMMARIES, summarise

GATES = ("stacked", "apart", "both")


@dataclass(frozen=True)
class LayerRows:
    """All rows of one layer in one context, or of several of them together.

    Attributes:
        layer: Name of the layer.
        calls: Its calls, each with the labels of its samples.
    """

    layer: str
    calls: list[tuple[Labelling, Factored]]

    @property
    def labellings(self) -> tuple[Labelling, ...]:
        """Of the batches, each once; several calls may see one batch."""
        return tuple(dict.fromkeys(labelling for labelling, _ in self.calls))


@dataclass(frozen=True, eq=False)
class LoneMatrix:
    """Group gradients of one matrix, found without factors of its own.

    Attributes:
        parameter: Its name, which its records have as their layer.
        labellings: Of the batches that it was found in.
        gradients: ``{(grouping, group): gradient}``, shape ``[d_in, d_out]``.
    """

    parameter: str
    labellings: tuple[Labelling, ...]
    gradients: Mapping[tuple[str, str], Tensor]

    def plus(self, other: "LoneMatrix") -> "LoneMatrix":
        """Add what another batch found."""
        sums = dict(self.gradients)
        for key, gradient in other.gradients.items():
            sums[key] = sums[key] + gradient if key in sums else gradient
        both = dict.fromkeys((*self.labellings, *other.labellings))
        return LoneMatrix(self.parameter, tuple(both), sums)


@dataclass(frozen=True)
class Wanted:
    """What is measured of a batch.

    Attributes:
        quantities: Which spectra.
        pooled: Whether to measure the pooled group ``all``.
        patches: Whether a convolution's activation is that of its patches.
        gates: One of `GATES`.
        loss_scale: ``c``.
        step: Written into the records.
    """

    quantities: tuple[Quantity, ...]
    pooled: bool = True
    patches: bool = False
    gates: str = "stacked"
    loss_scale: float = 1.0
    step: int = 0


@dataclass(frozen=True, eq=False)
class ReducedBatch:
    """Small matrices of one batch, and whose they are.

    Attributes:
        problems: To be solved.
        cells: What is known of each spectrum but its values, in the order of records.
        counted: Spectra that need no solving, descending.
    """

    problems: list[Reduced] = field(default_factory=list)
    cells: dict[Key, dict[str, Any]] = field(default_factory=dict)
    counted: dict[Key, Tensor] = field(default_factory=dict)

    def found(
        self, solved: Mapping[Key, Solved]
    ) -> list[tuple[dict[str, Any], Solved]]:
        """Pair what was known with what was solved."""
        return [
            (cell, self._known(key) or solved[key]) for key, cell in self.cells.items()
        ]

    def _known(self, key: Key) -> Solved | None:
        values = self.counted.get(key)
        if values is None:
            return None
        return Solved(key, values.numpy(), 0.0, 0, "counted", "ok", True, 0.0)


def spectra_of(
    batches: Iterable[ReducedBatch], solved: Iterable[Solved]
) -> list[Spectrum]:
    """Make the records of some batches from all that was solved of them."""
    by_key = {one.key: one for one in solved}
    found = [pair for batch in batches for pair in batch.found(by_key)]
    summaries = summarise([torch.from_numpy(one.values) for _, one in found])
    return [
        Spectrum(
            **cell,
            values=one.values,
            route=one.route,
            floor=one.floor,
            below_floor=one.below_floor,
            status=one.status,
            bound=one.bound,
            summaries=(
                summary
                if one.summaries is None
                else dict.fromkeys(SUMMARIES, math.nan) | one.summaries
            ),
        )
        for (cell, one), summary in zip(found, summaries, strict=True)
    ]


def measure(
    layers: Iterable[LayerRows],
    lone: Iterable[LoneMatrix],
    wanted: Wanted,
    elsewhere: Set[str] = frozenset(),
) -> list[Spectrum]:
    """Reduce and solve at once; see `reduce_batch`."""
    batch = reduce_batch(layers, lone, wanted, elsewhere)
    return spectra_of([batch], solve_marking(batch.problems))


def reduce_batch(
    layers: Iterable[LayerRows],
    lone: Iterable[LoneMatrix],
    wanted: Wanted,
    elsewhere: Set[str] = frozenset(),
) -> ReducedBatch:
    """Reduce rows to small matrices, one per layer, group and quantity.

    Args:
        layers: Their rows.
        lone: Matrices without factors.
        wanted: What is measured.
        elsewhere: Layers whose product of factors is no parameter's gradient.

    Returns:
        What is left, the pooled group first within each layer.
    """
    batch = ReducedBatch()
    serial = next(_SERIAL)
    by_labels: dict[tuple[Labelling, ...], list[_Measured]] = {}
    for layer in layers:
        by_labels.setdefault(layer.labellings, []).extend(
            _measured(layer, wanted, layer.layer in elsewhere)
        )
    if "gradient" in wanted.quantities:
        for matrix in lone:
            by_labels.setdefault(matrix.labellings, []).append(_Lone(matrix))
    for labellings, measured in by_labels.items():
        people = _People(labellings, wanted.pooled)
        factors = []
        for item in measured:
            name = (serial, item.name)
            factors += item.factors(name, people)
            for quantity in item.quantities:
                for g, (grouping, group, members) in enumerate(people.groups):
                    key = Key(name, g, quantity)
                    counted = item.counted(quantity, members)
                    if counted is not None:
                        batch.counted[key] = counted
                    batch.cells[key] = {
                        "layer": item.name,
                        "quantity": quantity,
                        "grouping": grouping,
                        "group": group,
                        "samples": len(members),
                        "rows": item.rows(quantity, members),
                        "batch_samples": people.size,
                        "subjects": people.subjects[g],
                        "loss_scale": wanted.loss_scale,
                        "shape": item.shape,
                        "step": wanted.step,
                    }
        batch.problems.extend(reduce_layers(factors, people.engine))
    return batch


_SERIAL = count()
"""Tells the batches apart that are solved together."""


class _People:
    """The groups of the samples of some batches, one after another."""

    def __init__(self, labellings: tuple[Labelling, ...], pooled: bool) -> None:
        self.labellings = labellings
        self.starts = {}
        self.size = 0
        for who in labellings:
            self.starts[who] = self.size
            self.size += who.size
        self.groups: list[tuple[str, str, Tensor]] = []
        if pooled:
            self.groups.append((POOLED, POOLED, torch.arange(self.size)))
        for grouping in labellings[0].groupings:
            names = sorted({g for who in labellings for g in who.groupings[grouping]})
            for group in names:
                members = [
                    who.groupings[grouping][group] + self.starts[who]
                    for who in labellings
                    if group in who.groupings[grouping]
                ]
                self.groups.append((grouping, group, torch.cat(members)))

    @cached_property
    def engine(self) -> Groups:
        """The same for the engine."""
        return Groups(self.size, [members for _, _, members in self.groups])

    @cached_property
    def subjects(self) -> list[int]:
        """Number of different people in each group."""
        who = [person for labels in self.labellings for person in labels.subjects]
        return [len({who[i] for i in m.tolist()}) for _, _, m in self.groups]

    def within(self, labelling: Labelling, grouping: str, group: str) -> Tensor:
        """Return the samples of one batch that are in a group."""
        if grouping == POOLED:
            return torch.arange(labelling.size)
        nobody = torch.empty(0, dtype=torch.int64)
        return labelling.groupings[grouping].get(group, nobody)

    def formed(self, of_group: Mapping[tuple[str, str], Tensor]) -> Tensor:
        """Stack what was formed per group; the pooled group is their sum.

        Args:
            of_group: ``{(grouping, group): matrix}``, any shape; absent ones are
                zero.
        """
        zero = torch.zeros_like(next(iter(of_group.values())))
        first = next(name for name, _, _ in self.groups if name != POOLED)
        parts = [x for (grouping, _), x in of_group.items() if grouping == first]
        whole = {(POOLED, POOLED): torch.stack(parts).sum(0)} if parts else {}
        together = {**whole, **of_group}
        return torch.stack([together.get((a, b), zero) for a, b, _ in self.groups])


class _Measured:
    """One name that records will have as their layer, with its factors."""

    name: str
    shape: tuple[int, int]
    quantities: tuple[Quantity, ...]

    def factors(self, name: Any, people: _People) -> list[LayerFactors]:
        """What the engine gets."""
        raise NotImplementedError

    def rows(self, quantity: Quantity, members: Tensor) -> int:
        """Number of factor rows of a group."""
        raise NotImplementedError

    def counted(self, quantity: Quantity, members: Tensor) -> Tensor | None:
        """The spectrum itself, where it needs no solving."""
        return None


class _Lone(_Measured):
    def __init__(self, matrix: LoneMatrix) -> None:
        self.name, self._matrix = matrix.parameter, matrix
        d_in, d_out = next(iter(matrix.gradients.values())).shape
        self.shape, self.quantities = (d_in, d_out), ("gradient",)

    def factors(self, name: Any, people: _People) -> list[LayerFactors]:
        formed = people.formed(self._matrix.gradients)
        return [LayerFactors(name, gradient=formed, quantities=("gradient",))]

    def rows(self, quantity: Quantity, members: Tensor) -> int:
        return len(members)


class _Paired(_Measured):
    """Rows of A and Δ that belong together, or one section of Δ's columns."""

    def __init__(
        self,
        layer: LayerRows,
        quantities: tuple[Quantity, ...],
        section: str = "",
    ) -> None:
        self.name = f"{layer.layer}.{section}" if section else layer.layer
        self.quantities = quantities
        calls = [(who, rows) for who, rows in layer.calls if isinstance(rows, Rows)]
        columns = calls[0][1].sections[section] if section else slice(None)
        self._activation = _side_by_side([(w, r.activation) for w, r in calls])
        self._adjoint = _side_by_side([(w, r.adjoint[..., columns]) for w, r in calls])
        self.shape = self._activation.shape[-1], self._adjoint.shape[-1]
        self._positions = _summed([(who, r.row_counts("")) for who, r in calls])

    def factors(self, name: Any, people: _People) -> list[LayerFactors]:
        return [
            LayerFactors(
                name, self._activation, self._adjoint, quantities=self.quantities
            )
        ]

    def rows(self, quantity: Quantity, members: Tensor) -> int:
        return int(self._positions[members].sum())


class _Unpaired(_Measured):
    """Factors with rows of their own (convolutions, embeddings)."""

    def __init__(
        self, layer: LayerRows, quantities: tuple[Quantity, ...], patches: bool
    ) -> None:
        self.name, self.quantities = layer.layer, quantities
        self._layer, self._patches = layer, patches
        self.shape = layer.calls[0][1].shape

    def factors(self, name: Any, people: _People) -> list[LayerFactors]:
        calls = self._layer.calls
        activation = adjoint = gradient = None
        solved = [q for q in self.quantities if not self._is_counted(q)]
        if "activation" in solved:
            rows = [(who, x.activation_rows(self._patches)) for who, x in calls]
            activation = _side_by_side(rows)
        if "adjoint" in solved:
            adjoint = _side_by_side([(who, x.adjoint_rows()) for who, x in calls])
        if "gradient" in solved:
            of_group = {
                (grouping, group): torch.stack(
                    [
                        rows.choose(people.within(who, grouping, group)).matrices()
                        for who, rows in calls
                    ]
                ).sum(0)
                for grouping, group, _ in people.groups
                if grouping != POOLED
            }
            if not of_group:  # nobody at all
                of_group = {("", ""): torch.zeros(1, *self.shape)}
            gradient = people.formed(of_group)
        return [LayerFactors(name, activation, adjoint, gradient, tuple(solved))]

    def rows(self, quantity: Quantity, members: Tensor) -> int:
        side = "activation" if quantity == "activation" and not self._patches else ""
        per_sample = [(who, x.row_counts(side)) for who, x in self._layer.calls]
        return int(_summed(per_sample)[members].sum())

    def counted(self, quantity: Quantity, members: Tensor) -> Tensor | None:
        table = self._table
        if table is None or not self._is_counted(quantity):
            return None
        chosen = table[torch.isin(table[:, 0], members)]
        counts = torch.bincount(chosen[:, 1], minlength=1).sort(descending=True).values
        return counts[: min(len(chosen), self.shape[0])].to(torch.float64).sqrt()

    def _is_counted(self, quantity: Quantity) -> bool:
        return quantity == "activation" and self._table is not None

    @cached_property
    def _table(self) -> Tensor | None:
        """Samples and entries, ``[r, 2]``, where rows of A are one-hot."""
        starts, total, tables = {}, 0, []
        for who in self._layer.labellings:
            starts[who] = total
            total += who.size
        for who, rows in self._layer.calls:
            entries = rows.entries()
            if entries is None:
                return None
            tables.append(entries + torch.tensor([starts[who], 0]))
        return torch.cat(tables)


def _measured(layer: LayerRows, wanted: Wanted, elsewhere: bool) -> Iterator[_Measured]:
    """Yield the names under which one layer is measured."""
    quantities = tuple(q for q in wanted.quantities if q != "gradient" or not elsewhere)
    first = layer.calls[0][1]
    if not isinstance(first, Rows):
        yield _Unpaired(layer, quantities, wanted.patches)
        return
    own = tuple(q for q in quantities if q != "activation")
    apart = wanted.gates != "stacked" and first.sections and own
    if wanted.gates == "apart" and apart:
        quantities = tuple(q for q in quantities if q == "activation")
    if quantities:
        yield _Paired(layer, quantities)
    for section in first.sections if apart else ():
        yield _Paired(layer, own, section)


def _side_by_side(calls: Sequence[tuple[Labelling, Tensor]]) -> Tensor:
    """Join the rows ``[(B,) N, S, d]`` of calls: batches along N, calls along S.

    Batches with fewer positions get rows of zeros, which change no singular value.
    """
    if len(calls) == 1:
        return calls[0][1]
    batches: dict[Labelling, list[Tensor]] = {}
    for who, rows in calls:
        batches.setdefault(who, []).append(rows)
    joined = [torch.cat(rows, -2) for rows in batches.values()]
    longest = max(rows.shape[-2] for rows in joined)
    return torch.cat(
        [
            torch.nn.functional.pad(rows, (0, 0, 0, longest - rows.shape[-2]))
            for rows in joined
        ],
        -3,
    )


def _summed(per_sample: Sequence[tuple[Labelling, Tensor]]) -> Tensor:
    """Add the numbers of several calls of one batch, and join batches."""
    batches: dict[Labelling, Tensor] = {}
    for who, numbers in per_sample:
        batches[who] = batches[who] + numbers if who in batches else numbers
    return torch.cat(list(batches.values()))
