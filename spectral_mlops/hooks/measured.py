"""What is measured of each layer: its rows, by group, as the engine wants them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from spectral_mlops.errors import InputError
from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.layer_rows import (
    LayerRows,
    LoneMatrix,
    Measurable,
    People,
    Wanted,
)
from spectral_mlops.hooks.rows import Rows
from spectral_mlops.records import POOLED, Quantity
from spectral_mlops.spectra.reduce import LayerFactors

MOST_ENTRIES = 4096
"""Entries of an embedding whose Gram may be held."""


class Measured(ABC):
    """One name that records will have as their layer, with its factors."""

    name: str
    shape: tuple[int, int]
    quantities: tuple[Quantity, ...]

    @abstractmethod
    def factors(self, name: Any, people: People) -> list[LayerFactors]:
        """Return what the engine gets."""

    @abstractmethod
    def rows(self, quantity: Quantity, members: Tensor) -> int:
        """Return the number of factor rows of a group."""

    @abstractmethod
    def sums(self, quantity: Quantity, people: People) -> Tensor:
        """Return what adds up over batches, per group, float64.

        The gradient ``[G, blocks, d_in, d_out]``, or the Gram ``[G, blocks, d, d]`` of
        a factor's columns.
        """

    def counted(self, quantity: Quantity, members: Tensor) -> Tensor | None:
        """Return the spectrum itself, where it needs no solving."""
        return None


class _Lone(Measured):
    def __init__(self, matrix: LoneMatrix) -> None:
        self.name, self._matrix = matrix.parameter, matrix
        d_in, d_out = next(iter(matrix.gradients.values())).shape
        self.shape, self.quantities = (d_in, d_out), ("gradient",)

    def factors(self, name: Any, people: People) -> list[LayerFactors]:
        formed = people.formed(self._matrix.gradients)
        return [LayerFactors(name, gradient=formed, quantities=("gradient",))]

    def rows(self, quantity: Quantity, members: Tensor) -> int:
        return len(members)

    def sums(self, quantity: Quantity, people: People) -> Tensor:
        return people.formed(self._matrix.gradients).double().unsqueeze(1)


class Paired(Measured):
    """Rows of A and Δ that belong together, or one section of Δ's columns.

    Attributes:
        activation: Shape ``[N, S, d_in]``; zero where a sample has fewer positions.
        adjoint: Shape ``[N, S, d_out]``.
    """

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
        self.activation = _side_by_side([(w, r.activation) for w, r in calls])
        self.adjoint = _side_by_side([(w, r.adjoint[..., columns]) for w, r in calls])
        self.shape = self.activation.shape[-1], self.adjoint.shape[-1]
        self._calls = calls

    def factors(self, name: Any, people: People) -> list[LayerFactors]:
        """See `Measured`."""
        return [
            LayerFactors(
                name, self.activation, self.adjoint, quantities=self.quantities
            )
        ]

    def rows(self, quantity: Quantity, members: Tensor) -> int:
        """See `Measured`."""
        if len(self._calls) == 1 and self._calls[0][1].taken is None:
            return self.activation.shape[1] * len(members)
        return int(self.positions[members].sum())

    @cached_property
    def positions(self) -> Tensor:
        """Number of rows of each sample, ``[N]``."""
        return summed([(who, rows.row_counts("")) for who, rows in self._calls])

    def sums(self, quantity: Quantity, people: People) -> Tensor:
        """See `Measured`."""
        left = self.adjoint if quantity == "adjoint" else self.activation
        right = self.activation if quantity == "activation" else self.adjoint
        found = []
        for _, _, members in people.groups:
            at = members.to(left.device)
            a, d = (x[at].flatten(0, 1).double() for x in (left, right))
            found.append((a.mT @ d).unsqueeze(0))
        return torch.stack(found)


class Unpaired(Measured):
    """Factors with rows of their own (convolutions, embeddings).

    Attributes:
        layer: Its calls.
        patches: Whether the activation is that of the patches.
    """

    def __init__(
        self, layer: LayerRows, quantities: tuple[Quantity, ...], patches: bool
    ) -> None:
        self.name, self.quantities = layer.layer, quantities
        self.layer, self.patches = layer, patches
        self.shape = layer.calls[0][1].shape

    def factors(self, name: Any, people: People) -> list[LayerFactors]:
        """See `Measured`."""
        calls = self.layer.calls
        activation = adjoint = gradient = None
        solved = [q for q in self.quantities if not self.is_counted(q)]
        if "activation" in solved:
            rows = [(who, x.activation_rows(self.patches)) for who, x in calls]
            activation = _side_by_side(rows)
        if "adjoint" in solved:
            adjoint = _side_by_side([(who, x.adjoint_rows()) for who, x in calls])
        if "gradient" in solved:
            gradient = self._gradient(people)
        return [LayerFactors(name, activation, adjoint, gradient, tuple(solved))]

    def rows(self, quantity: Quantity, members: Tensor) -> int:
        """See `Measured`."""
        return int(self.positions(quantity)[members].sum())

    def positions(self, quantity: Quantity) -> Tensor:
        """Number of factor rows of each sample, ``[N]``."""
        side = "activation" if quantity == "activation" and not self.patches else ""
        per_sample = [(who, x.row_counts(side)) for who, x in self.layer.calls]
        return summed(per_sample)

    def counted(self, quantity: Quantity, members: Tensor) -> Tensor | None:
        """See `Measured`."""
        table = self.table
        if table is None or not self.is_counted(quantity):
            return None
        chosen = table[torch.isin(table[:, 0], members)]
        counts = torch.bincount(chosen[:, 1], minlength=1).sort(descending=True).values
        return counts[: min(len(chosen), self.shape[0])].to(torch.float64).sqrt()

    def sums(self, quantity: Quantity, people: People) -> Tensor:
        """See `Measured`."""
        if quantity == "gradient":
            return self._gradient(people).double()
        if self.is_counted(quantity) and self.shape[0] > MOST_ENTRIES:
            raise InputError(
                f"Layer '{self.name}' has {self.shape[0]} entries, too many for the "
                "activations of a window: leave it out by layers=, or activations by "
                "quantities=, or take aggregate='batch'."
            )
        found = []
        for grouping, group, _ in people.groups:
            grams = []
            for who, rows in self.layer.calls:
                for i in people.within(who, grouping, group):  # volumes are large
                    one = rows.choose(i.reshape(1))
                    x = (
                        one.adjoint_rows()
                        if quantity == "adjoint"
                        else one.activation_rows(self.patches)
                    )
                    x = x.flatten(1, 2).double()
                    grams.append(x.mT @ x)
            width = self._width(quantity)
            blank = torch.zeros(*width, width[-1], dtype=torch.float64)
            found.append(sum(grams, blank))
        return torch.stack(found)

    def _gradient(self, people: People) -> Tensor:
        """Group gradients, ``[G, blocks, d_in, d_out]``."""
        of_group = {
            (grouping, group): torch.stack(
                [
                    rows.choose(people.within(who, grouping, group)).matrices()
                    for who, rows in self.layer.calls
                ]
            ).sum(0)
            for grouping, group, _ in people.groups
            if grouping != POOLED
        }
        if not of_group:  # nobody at all
            of_group = {("", ""): torch.zeros(1, *self.shape)}
        return people.formed(of_group)

    def _width(self, quantity: Quantity) -> tuple[int, int]:
        """Blocks and columns of a factor."""
        rows = self.layer.calls[0][1].choose(torch.empty(0, dtype=torch.int64))
        adjoint = quantity == "adjoint"
        x = rows.adjoint_rows() if adjoint else rows.activation_rows(self.patches)
        return x.shape[0], x.shape[-1]

    def is_counted(self, quantity: Quantity) -> bool:
        """Whether a spectrum follows from counts of one-hot rows."""
        return quantity == "activation" and self.table is not None

    @cached_property
    def table(self) -> Tensor | None:
        """Samples and entries, ``[r, 2]``, where rows of A are one-hot."""
        starts, total, tables = {}, 0, []
        for who in self.layer.labellings:
            starts[who] = total
            total += who.size
        for who, rows in self.layer.calls:
            entries = rows.entries()
            if entries is None:
                return None
            tables.append(entries + torch.tensor([starts[who], 0]))
        return torch.cat(tables)


def measured_layer(
    layer: LayerRows, wanted: Wanted, elsewhere: bool
) -> Iterator[Measured]:
    """Yield the names under which one layer is measured."""
    first = layer.calls[0][1]
    own_gradient = [q for q in wanted.quantities if q != "gradient" or not elsewhere]
    quantities = tuple(q for q in own_gradient if q in first.known)
    if not isinstance(first, Rows):
        if not quantities:
            return
        yield Unpaired(layer, quantities, wanted.patches)
        return
    own = tuple(q for q in quantities if q != "activation")
    apart = wanted.gates != "stacked" and first.sections and own
    if wanted.gates == "apart" and apart:
        quantities = tuple(q for q in quantities if q == "activation")
    if quantities:
        yield Paired(layer, quantities)
    for section in first.sections if apart else ():
        yield Paired(layer, own, section)


def measured_of(found: Measurable) -> list[tuple[People, list[Measured]]]:
    """Sort what is measured by the batches it was seen in."""
    wanted = found.wanted
    by_labels: dict[tuple[Labelling, ...], list[Measured]] = {}
    for layer in found.layers:
        by_labels.setdefault(layer.labellings, []).extend(
            measured_layer(layer, wanted, layer.layer in found.elsewhere)
        )
    if "gradient" in wanted.quantities:
        for matrix in found.lone:
            by_labels.setdefault(matrix.labellings, []).append(_Lone(matrix))
    return [(People(who, wanted.pooled), own) for who, own in by_labels.items()]


def known_of(
    item: Measured, quantity: Quantity, people: People, g: int, wanted: Wanted
) -> dict[str, Any]:
    """Return the fields of a spectrum that are known before it is solved."""
    grouping, group, members = people.groups[g]
    return {
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


def summed(per_sample: Sequence[tuple[Labelling, Tensor]]) -> Tensor:
    """Add the numbers of several calls of one batch, and join batches."""
    batches: dict[Labelling, Tensor] = {}
    for who, numbers in per_sample:
        batches[who] = batches[who] + numbers if who in batches else numbers
    return torch.cat(list(batches.values()))
