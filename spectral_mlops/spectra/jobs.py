"""Reduced problems of layers that share a shape: one call for all of them.

A job is a list of factors of equal shape, floating type and device, and the groups
whose problem has the same form in all of them.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_mlops.spectra.groups import Groups, Stack
from spectral_mlops.spectra.products import (
    ColumnProducts,
    column_products,
    row_grams,
    self_product,
)
from spectral_mlops.spectra.reduced import (
    EPSILON,
    Key,
    Reduced,
    Source,
    divide,
    rounding,
    safe_exponent,
)

Chosen = tuple[int, ...]


class Factor:
    """One factor of one layer, on its way into a job.

    Attributes:
        name: Of the layer.
        quantity: ``activation`` or ``adjoint``.
        rows: Shape ``[B, N, S, d]``, as they were given.
        scaled: The same, divided by ``2^exponent`` where squares need that.
        exponent: Zero for all but extreme float64 rows.
        wanted: Whether its own spectrum is asked for.
    """

    def __init__(
        self, name: Hashable, quantity: str, rows: Tensor, wanted: bool
    ) -> None:
        self.name, self.quantity, self.wanted = name, quantity, wanted
        self.rows = rows
        self.exponent = safe_exponent(rows)
        self.scaled = divide(rows, self.exponent) if self.exponent else rows


@dataclass(frozen=True, eq=False)
class Grams:
    """Row Grams of one factor for a stack of groups, shape ``[G·B, m, m]``."""

    stack: Stack
    gram: Tensor


def row_problems(
    factors: list[Factor], groups: Groups, chosen: Chosen
) -> tuple[list[Reduced], list[list[Grams]]]:
    """Row Grams of groups with no more rows than columns.

    Args:
        factors: Of one job, ``c`` of them.
        groups: Of the batch.
        chosen: None of them empty.

    Returns:
        The problems of the factors' own spectra, and per factor its Grams.
    """
    x = _join(factors)  # [c·B, N, S, d]
    problems: list[Reduced] = []
    grams: list[list[Grams]] = [[] for _ in factors]
    for stack, gram in _row_grams(x, groups, chosen):
        gram = _blocks_inside(gram, len(factors))  # [c, G·B, m, m]
        for own, matrices in zip(grams, gram.unbind(), strict=True):
            own.append(Grams(stack, matrices))
        picked = [i for i, f in enumerate(factors) if f.wanted]
        if picked:
            some = gram if len(picked) == len(factors) else gram[picked]
            sizes = [n * x.shape[2] for n in stack.sizes]
            members = [factors[i] for i in picked]
            problems.append(_problem(members, stack.groups, sizes, some))
    return problems, grams


def shared_problems(
    a: Factor, d: Factor, grams: Iterable[tuple[Grams, Grams]], groups: Groups
) -> Iterator[Reduced]:
    """Gradients of groups whose rows are at most both widths, from row Grams."""
    for of_a, of_d in grams:
        yield Reduced(
            keys=[Key(a.name, g, "gradient") for g in of_a.stack.groups],
            sizes=[n * a.rows.shape[2] for n in of_a.stack.sizes],
            gram=of_a.gram,
            other=of_d.gram,
            blocks=len(a.rows),
            coarse=max(rounding(a.rows), rounding(d.rows)),
            exponents=[a.exponent + d.exponent] * len(of_a.stack.groups),
            source=Source(
                a.rows,
                d.rows,
                [groups.members[g] for g in of_a.stack.groups],
                (a.rows._version, d.rows._version),
                (a.exponent, d.exponent),
            ),
        )


def column_problems(
    firsts: list[Factor],
    seconds: list[Factor],
    groups: Groups,
    chosen: Chosen,
    kind: tuple[bool, bool, bool],
) -> Iterator[Reduced]:
    """Problems of groups with more rows than columns.

    Args:
        firsts: Activations of the layers of one job; empty if not needed.
        seconds: Their adjoints; empty if not needed.
        groups: Of the batch.
        chosen: None of them empty.
        kind: Whether to reduce the activation's columns, the adjoint's columns,
            and the formed gradient.
    """
    a = _join(firsts) if firsts else None
    d = _join(seconds) if seconds else None
    factors = firsts or seconds
    for run, products in _column_products(a, d, groups, chosen, kind[:2]):
        for side, gram in (
            (firsts, products.activation),
            (seconds, products.adjoint),
        ):
            if gram is not None:
                sizes = [gram.shape[-1]] * len(run)
                yield _problem(side, run, sizes, _blocks_inside(gram, len(side)))
        if products.gradient is not None and products.energy is not None:
            gram = _smaller_gram(products.gradient)
            longest = max(groups.counts[g] for g in run) * factors[0].rows.shape[2]
            reach = products.energy.sqrt().prod(-1)
            yield Reduced(
                keys=[Key(f.name, g, "gradient") for f in factors for g in run],
                sizes=[gram.shape[-1]] * (len(factors) * len(run)),
                gram=_blocks_inside(gram, len(factors)).flatten(0, 1),
                other=None,
                blocks=len(factors[0].rows),
                coarse=max(rounding(f.rows) for f in (firsts[0], seconds[0])),
                exponents=[
                    x.exponent + y.exponent
                    for x, y in zip(firsts, seconds, strict=True)
                    for _ in run
                ],
                noise=_blocks_inside(longest * EPSILON * reach, len(factors)).flatten(),
            )


def formed_problem(name: Hashable, matrices: Tensor) -> Reduced:
    """Gradients that are formed already, shape ``[G, B, d_in, d_out]``."""
    exponent = safe_exponent(matrices)
    gram = _smaller_gram(divide(matrices.detach(), exponent))
    return Reduced(
        keys=[Key(name, g, "gradient") for g in range(len(matrices))],
        sizes=[gram.shape[-1]] * len(matrices),
        gram=gram.flatten(0, 1),
        other=None,
        blocks=matrices.shape[1],
        coarse=rounding(matrices),
        exponents=[exponent] * len(matrices),
    )


def _problem(
    factors: list[Factor], run: Chosen, sizes: list[int], gram: Tensor
) -> Reduced:
    """Factors' own spectra from Grams ``[c, G·B, m, m]``."""
    return Reduced(
        keys=[Key(f.name, g, f.quantity) for f in factors for g in run],
        sizes=sizes * len(factors),
        gram=gram.flatten(0, 1),
        other=None,
        blocks=len(factors[0].rows),
        coarse=rounding(factors[0].rows),
        exponents=[f.exponent for f in factors for _ in run],
    )


def _join(factors: list[Factor]) -> Tensor:
    """One tensor of all factors' rows, shape ``[c·B, N, S, d]``."""
    rows = [f.scaled for f in factors]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _blocks_inside(x: Tensor, c: int) -> Tensor:
    """Reorder ``[c·B, G, *]`` to ``[c, G·B, *]``."""
    if len(x) == c:
        return x
    return x.unflatten(0, (c, -1)).transpose(1, 2).flatten(1, 2)


def _smaller_gram(matrices: Tensor) -> Tensor:
    wide = matrices.shape[-2] <= matrices.shape[-1]
    return self_product(matrices if wide else matrices.mT)


def _row_grams(
    x: Tensor, groups: Groups, chosen: Chosen
) -> Iterator[tuple[Stack, Tensor]]:
    """Yield stacks with their row Grams ``[c, G, m, m]``.

    One Gram of a whole batch, and the groups' blocks of it, where that is no more
    work than the groups' own: with the pooled group, or with several labellings.
    """
    stacks = groups.stacks(chosen)
    work = sum(s.samples.shape[0] * s.samples.shape[1] ** 2 for s in stacks)
    if work < sum(size**2 for size in groups.batches) or len({*groups.batches}) > 1:
        for stack in stacks:
            yield stack, row_grams(x, stack)
        return
    batches = list(torch.arange(groups.size).split(groups.batches))
    (everyone,) = Groups(groups.size, batches).stacks((*range(len(batches)),))
    whole = row_grams(x, everyone)  # [c, batches, N·S, N·S]
    positions = x.shape[2]
    length = max(1, groups.batches[0] * positions)
    for stack in stacks:
        rows = stack.rows(positions, x.device)  # [G, m]
        batch, rows = rows[:, :1, None] // length, rows % length
        gram = whole[:, batch, rows[:, :, None], rows[:, None, :]]
        if not stack.even:
            padding = stack.padding.repeat_interleave(positions, 1).to(x.device)
            gram.masked_fill_(padding[:, :, None] | padding[:, None, :], 0.0)
        yield stack, gram


def _column_products(
    a: Tensor | None,
    d: Tensor | None,
    groups: Groups,
    chosen: Chosen,
    grams: tuple[bool, bool],
) -> Iterator[tuple[Chosen, ColumnProducts]]:
    """Yield groups with their products, from disjoint cells added up."""
    if groups.disjoint(chosen):
        for stack in groups.stacks(chosen):
            yield stack.groups, column_products(a, d, stack, grams)
        return
    cells = groups.cells(chosen)
    stacks = cells.groups.stacks(tuple(range(len(cells.groups.members))))
    found = [(s, column_products(a, d, s, grams)) for s in stacks]
    order = torch.tensor([c for s, _ in found for c in s.groups]).argsort()
    sums = []
    for parts in zip(*(products for _, products in found), strict=True):
        made = [part for part in parts if part is not None]
        sums.append(_add_up(torch.cat(made, 1), order, cells.parts) if made else None)
    yield chosen, ColumnProducts(*sums)


def _add_up(x: Tensor, order: Tensor, parts: list[Tensor]) -> Tensor:
    """Sum cells ``[c·B, cells, *]`` to groups; one at a time, so NaN stays in its own.

    Args:
        x: The cells as they were stacked.
        order: Where each cell stands in `x`.
        parts: Cells of each group.
    """
    where = [order[part].to(x.device) for part in parts]
    return torch.stack([x.index_select(1, cells).sum(1) for cells in where], 1)
