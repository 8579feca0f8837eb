"""From the rows of one layer to spectrum records."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.rows import Rows
from spectral_mlops.records import POOLED, Quantity, Spectrum
from spectral_mlops.spectra.singular import (
    ROUTES,
    Solution,
    factor_singular_values,
    gradient_singular_values,
)
from spectral_mlops.spectra.summaries import summarise

STACKED_ROWS = 1024
"""Rows up to which the groups of a layer are padded to one stack."""


@dataclass(frozen=True)
class LayerRows:
    """All rows of one layer in one context.

    Attributes:
        layer: Name of the layer.
        batches: One entry per labelling (one, unless ``relabel`` was called).
    """

    layer: str
    batches: list[tuple[Labelling, Rows]]


@dataclass(frozen=True)
class _Part:
    """The rows of one group."""

    grouping: str
    group: str
    activation: Tensor  # [r, d_in]
    adjoint: Tensor  # [r, d_out]
    samples: int
    subjects: int


@dataclass(frozen=True, eq=False)
class GroupGradient:
    """One group's gradient of one matrix, found without factors.

    Attributes:
        parameter: Its name.
        grouping: Name of the labelling.
        group: Label.
        matrix: Shape ``[d_in, d_out]``.
        samples: Number of samples of the group.
        subjects: The people among them.
    """

    parameter: str
    grouping: str
    group: str
    matrix: Tensor
    samples: int
    subjects: frozenset[str]

    def plus(self, other: "GroupGradient") -> "GroupGradient":
        """Add another part of the same group and matrix."""
        return replace(
            self,
            matrix=self.matrix + other.matrix,
            samples=self.samples + other.samples,
            subjects=self.subjects | other.subjects,
        )

    def pooled(self) -> "GroupGradient":
        """Return this as a part of the pooled group."""
        return replace(self, grouping=POOLED, group=POOLED)


def measure(
    layers: Iterable[LayerRows],
    quantities: tuple[Quantity, ...],
    loss_scale: float,
    pooled: bool,
    step: int,
) -> list[Spectrum]:
    """Return one record per layer, group and quantity, the pooled group first.

    Args:
        layers: Their rows.
        quantities: Which spectra.
        loss_scale: ``c``.
        pooled: Whether to measure the pooled group ``all``.
        step: Written into the records.
    """
    cells = [
        (layer, part, quantity, solved)
        for layer in layers
        for part, quantity, solved in _solve(list(_parts(layer, pooled)), quantities)
    ]
    values = [solved.values for _, _, _, solved in cells]
    summaries = summarise(values)
    return [
        Spectrum(
            layer=layer.layer,
            quantity=quantity,
            grouping=part.grouping,
            group=part.group,
            values=values[i].numpy(),
            samples=part.samples,
            rows=len(part.activation),
            batch_samples=sum(labelling.size for labelling, _ in layer.batches),
            subjects=part.subjects,
            loss_scale=loss_scale,
            shape=(part.activation.shape[1], part.adjoint.shape[1]),
            route=solved.route,
            floor=solved.floor,
            below_floor=solved.below_floor,
            status=solved.status,
            summaries=summaries[i],
            step=step,
        )
        for i, (layer, part, quantity, solved) in enumerate(cells)
    ]


def measure_gradients(
    gradients: Iterable[GroupGradient], loss_scale: float, pooled: bool, step: int
) -> list[Spectrum]:
    """Return one gradient record per replayed matrix and group.

    The layer of a record is the name of the parameter; there are no factors, so
    ``rows`` is the number of samples. Gradients of the same parameter and group
    (of several batches) are added.

    Args:
        gradients: Of one or more batches.
        loss_scale: ``c``.
        pooled: Whether to measure the pooled group ``all`` too.
        step: Written into the records.
    """
    given = list(gradients)
    first = given[0].grouping if given else ""
    everybody = [g.pooled() for g in given if pooled and g.grouping == first]
    cells: dict[tuple[str, str, str], GroupGradient] = {}
    for item in everybody + given:
        key = (item.parameter, item.grouping, item.group)
        cells[key] = cells[key].plus(item) if key in cells else item
    found = list(cells.values())
    solved = [
        _member(factor_singular_values(item.matrix[None]), 0, len(item.matrix))
        for item in found
    ]
    summaries = summarise([solution.values for solution in solved])
    total = sum(item.samples for item in given if item.grouping == first)
    names = len({item.parameter for item in given})
    return [
        Spectrum(
            layer=item.parameter,
            quantity="gradient",
            grouping=item.grouping,
            group=item.group,
            values=solution.values.numpy(),
            samples=item.samples,
            rows=item.samples,
            batch_samples=total // names,
            subjects=len(item.subjects),
            loss_scale=loss_scale,
            shape=(item.matrix.shape[0], item.matrix.shape[1]),
            route=solution.route,
            floor=solution.floor,
            below_floor=solution.below_floor,
            status=solution.status,
            summaries=summary,
            step=step,
        )
        for item, solution, summary in zip(found, solved, summaries, strict=True)
    ]


def _parts(rows: LayerRows, pooled: bool) -> Iterator[_Part]:
    if pooled:
        everyone = [(who, torch.arange(who.size)) for who, _ in rows.batches]
        yield _part(rows, POOLED, POOLED, everyone)
    for grouping in rows.batches[0][0].groupings:
        names = {g for who, _ in rows.batches for g in who.groupings[grouping]}
        for group in sorted(names):
            chosen = [
                (who, who.groupings[grouping].get(group, torch.arange(0)))
                for who, _ in rows.batches
            ]
            yield _part(rows, grouping, group, chosen)


def _part(
    rows: LayerRows, grouping: str, group: str, chosen: list[tuple[Labelling, Tensor]]
) -> _Part:
    pieces = [
        batch.choose(samples)
        for (_, batch), (_, samples) in zip(rows.batches, chosen, strict=True)
    ]
    people = {who.subjects[i] for who, samples in chosen for i in samples.tolist()}
    return _Part(
        grouping=grouping,
        group=group,
        activation=torch.cat([piece.activation.flatten(0, 1) for piece in pieces]),
        adjoint=torch.cat([piece.adjoint.flatten(0, 1) for piece in pieces]),
        samples=sum(len(samples) for _, samples in chosen),
        subjects=len(people),
    )


@dataclass(frozen=True)
class _Solved:
    """One member of a `Solution`, on the CPU, without what padding added."""

    values: Tensor
    route: str
    floor: float
    below_floor: int
    status: str


def _solve(
    parts: list[_Part], quantities: tuple[Quantity, ...]
) -> Iterator[tuple[_Part, Quantity, _Solved]]:
    """Solve the groups of one layer in one call where they are small.

    Zero rows change no singular value, so groups are padded to the largest; where
    that would cost more than calls do, they are solved one by one.
    """
    longest = max(len(part.activation) for part in parts)
    together = longest * len(parts) <= STACKED_ROWS
    for stack in [parts] if together else [[part] for part in parts]:
        a = pad_sequence([part.activation for part in stack], batch_first=True)
        d = pad_sequence([part.adjoint for part in stack], batch_first=True)
        for quantity in quantities:
            solution = _solution(quantity, a, d)
            for i, part in enumerate(stack):
                yield part, quantity, _member(solution, i, len(part.activation))


def _solution(quantity: Quantity, activation: Tensor, adjoint: Tensor) -> Solution:
    if quantity == "gradient":
        return gradient_singular_values(activation, adjoint)
    return factor_singular_values(activation if quantity == "activation" else adjoint)


def _member(solution: Solution, i: int, rows: int) -> _Solved:
    """Take one group out, with as many values as it has rows or columns."""
    values = solution.values[i, :rows].cpu()
    floor, finite = float(solution.floor[i]), bool(solution.finite[i])
    status = "ok" if values.isfinite().all() else "not converged"
    return _Solved(
        values=values,
        route=ROUTES[int(solution.route[i])],
        floor=floor,
        below_floor=int((values < floor).sum()),
        status=status if finite else "non-finite",
    )
