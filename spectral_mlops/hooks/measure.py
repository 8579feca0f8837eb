"""From the rows of one layer to spectrum records."""

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.rows import Factored
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
    """All rows of one layer in one context, or of several of them together.

    Attributes:
        layer: Name of the layer.
        calls: Its calls, each with the labels of its samples.
    """

    layer: str
    calls: list[tuple[Labelling, Factored]]

    @property
    def labellings(self) -> list[Labelling]:
        """Of the batches, each once; several calls may see one batch."""
        return list(dict.fromkeys(labelling for labelling, _ in self.calls))


@dataclass(frozen=True)
class _Part:
    """The rows of one group."""

    grouping: str
    group: str
    pieces: Sequence[Factored]
    samples: int
    subjects: int

    @property
    def paired(self) -> bool:
        return all(piece.paired for piece in self.pieces)

    def activation(self, patches: bool) -> Tensor:
        """Shape ``[blocks, r, d_in]``."""
        rows = [
            piece.factors()[0].flatten(-3, -2)
            if patches and not piece.paired
            else piece.activation_rows()
            for piece in self.pieces
        ]
        return torch.cat([x if x.ndim == 3 else x.unsqueeze(0) for x in rows], 1)

    def adjoint(self) -> Tensor:
        """Shape ``[blocks, r, d_out]``."""
        return torch.cat([piece.adjoint_rows() for piece in self.pieces], 1)

    def matrices(self) -> Tensor:
        """Shape ``[blocks, d_in, d_out]``."""
        return torch.stack([piece.matrices() for piece in self.pieces]).sum(0)


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
    elsewhere: Set[str] = frozenset(),
    patches: bool = False,
) -> list[Spectrum]:
    """Return one record per layer, group and quantity, the pooled group first.

    Args:
        layers: Their rows.
        quantities: Which spectra.
        loss_scale: ``c``.
        pooled: Whether to measure the pooled group ``all``.
        step: Written into the records.
        elsewhere: Layers whose product of factors is no parameter's gradient.
        patches: Whether a convolution's activation is that of its patches.
    """
    cells = [
        (layer, part, quantity, solved)
        for layer in layers
        for part, quantity, solved in _solve(
            list(_parts(layer, pooled)),
            tuple(
                q for q in quantities if q != "gradient" or layer.layer not in elsewhere
            ),
            patches,
        )
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
            rows=solved.rows,
            batch_samples=sum(labelling.size for labelling in layer.labellings),
            subjects=part.subjects,
            loss_scale=loss_scale,
            shape=part.pieces[0].shape,
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
        _union(factor_singular_values(item.matrix[None]), len(item.matrix))
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
    batches = rows.labellings
    if pooled:
        everyone = {who: torch.arange(who.size) for who in batches}
        yield _part(rows, POOLED, POOLED, everyone)
    for grouping in batches[0].groupings:
        names = {g for who in batches for g in who.groupings[grouping]}
        for group in sorted(names):
            chosen = {
                who: who.groupings[grouping].get(group, torch.arange(0))
                for who in batches
            }
            yield _part(rows, grouping, group, chosen)


def _part(
    rows: LayerRows, grouping: str, group: str, chosen: dict[Labelling, Tensor]
) -> _Part:
    people = {
        who.subjects[i] for who, samples in chosen.items() for i in samples.tolist()
    }
    first, *others = [piece.choose(chosen[who]) for who, piece in rows.calls]
    return _Part(
        grouping=grouping,
        group=group,
        pieces=first.joined(others),
        samples=sum(len(samples) for samples in chosen.values()),
        subjects=len(people),
    )


@dataclass(frozen=True)
class _Solved:
    """One member of a `Solution`, on the CPU, without what padding added."""

    values: Tensor
    rows: int
    route: str
    floor: float
    below_floor: int
    status: str


def _solve(
    parts: list[_Part], quantities: tuple[Quantity, ...], patches: bool
) -> Iterator[tuple[_Part, Quantity, _Solved]]:
    """Solve the groups of one layer in one call where they are small.

    Zero rows change no singular value, so groups are padded to the largest; where
    that would cost more than calls do, they are solved one by one.
    """
    if not all(part.paired for part in parts):
        for part in parts:
            for quantity in quantities:
                yield part, quantity, _solve_apart(part, quantity, patches)
        return
    factors = [(part.activation(False)[0], part.adjoint()[0]) for part in parts]
    longest = max(len(a) for a, _ in factors)
    together = longest * len(parts) <= STACKED_ROWS
    numbers = range(len(parts))
    for stack in [list(numbers)] if together else [[i] for i in numbers]:
        a = pad_sequence([factors[i][0] for i in stack], batch_first=True)
        d = pad_sequence([factors[i][1] for i in stack], batch_first=True)
        for quantity in quantities:
            solution = _solution(quantity, a, d)
            for place, i in enumerate(stack):
                rows = len(factors[i][0])
                yield parts[i], quantity, _member(solution, place, rows)


def _solve_apart(part: _Part, quantity: Quantity, patches: bool) -> _Solved:
    """Solve one group of a layer whose factors have rows of their own."""
    rows = part.adjoint() if quantity != "activation" else part.activation(patches)
    matrices = part.matrices() if quantity == "gradient" else rows
    return _union(factor_singular_values(matrices), rows.shape[1])


def _solution(quantity: Quantity, activation: Tensor, adjoint: Tensor) -> Solution:
    if quantity == "gradient":
        return gradient_singular_values(activation, adjoint)
    return factor_singular_values(activation if quantity == "activation" else adjoint)


def _union(solution: Solution, rows: int) -> _Solved:
    """Join the spectra of all blocks of one group."""
    whole = Solution(
        values=solution.values[:, :rows].flatten().sort(descending=True).values[None],
        floor=solution.floor.max(-1, keepdim=True).values,
        below_floor=solution.below_floor.sum(-1, keepdim=True),
        route=solution.route.max(-1, keepdim=True).values,
        finite=solution.finite.all(-1, keepdim=True),
    )
    member = _member(whole, 0, rows)
    return replace(member, below_floor=int(whole.below_floor[0]))


def _member(solution: Solution, i: int, rows: int) -> _Solved:
    """Take one group out, with as many values as it has rows or columns."""
    values = solution.values[i].cpu()
    values = values if rows > len(values) else values[:rows]
    floor, finite = float(solution.floor[i]), bool(solution.finite[i])
    status = "ok" if values.isfinite().all() else "not converged"
    return _Solved(
        values=values,
        rows=rows,
        route=ROUTES[int(solution.route[i])],
        floor=floor,
        below_floor=int((values < floor).sum()),
        status=status if finite else "non-finite",
    )
