"""Phase one: big rows into small float64 Gram matrices, right after backward.

For a group of ``r = n_g·S`` rows the Gram of the smaller side is made: ``A_g A_gᵀ``
where ``r ≤ d_in``, ``A_gᵀ A_g`` elsewhere. Where ``r`` is at most both widths,
the gradient needs no product of its own: its values follow from the row Grams of
the two factors, the very ones their own spectra follow from. Elsewhere it is formed
and reduced to the Gram of its smaller side.

Everything is done for all groups at once, and for layers of equal shape at once:
on small networks the number of calls is the cost.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

from spectral_mlops.errors import InputError
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.jobs import (
    Chosen,
    Factor,
    Grams,
    column_problems,
    formed_problem,
    row_problems,
    shared_problems,
)
from spectral_mlops.spectra.reduced import Key, Reduced, empty_problem

QUANTITIES = ("gradient", "activation", "adjoint")
STACKED = 2**18
"""Numbers in a factor up to which layers of equal shape share one call."""


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """What one layer hands to the engine.

    Attributes:
        name: Comes back in the keys.
        activation: Shape ``[N, S, d_in]``, or ``[B, N, S, d_in]`` in blocks (a
            grouped convolution's); any floating type and strides, a channel-first
            volume as a transposed view. None where no quantity needs it.
        adjoint: Shape ``[N, S, d_out]`` or ``[B, N, S, d_out]``, at the scale
            backpropagation made it; ``S`` may differ from the activation's where
            the gradient is given.
        gradient: Formed matrices, one per group, shape ``[G, d_in, d_out]`` or
            ``[G, B, d_in, d_out]``; None to take the rows' product.
        quantities: What to measure; None for what the call asks for.
    """

    name: Hashable
    activation: Tensor | None = None
    adjoint: Tensor | None = None
    gradient: Tensor | None = None
    quantities: tuple[str, ...] | None = None


def reduce_layers(
    layers: Sequence[LayerFactors],
    groups: Groups,
    quantities: Sequence[str] = QUANTITIES,
) -> list[Reduced]:
    """Reduce the rows of layers that saw one batch.

    Args:
        layers: Their factors.
        groups: Of the batch's ``N`` samples.
        quantities: Which of `QUANTITIES`.

    Returns:
        Small problems, in no particular order; every layer, group and quantity is
        a member of exactly one. An empty group has an empty spectrum.

    Raises:
        InputError: If a layer lacks what a quantity needs, or its shapes do not
            fit each other or the groups.
    """
    plan = _Plan(groups)
    for layer in layers:
        plan.add(layer, tuple(layer.quantities or quantities))
    return plan.run()


class _Plan:
    """Sorts factors into jobs of equal shape, then runs each as one call."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.row_jobs: dict[tuple[object, ...], tuple[list[Factor], Chosen]] = {}
        self.column_jobs: dict[tuple[object, ...], _ColumnJob] = {}
        self.shared: list[tuple[Factor, Factor, Chosen]] = []
        self.done: list[Reduced] = []

    def add(self, layer: LayerFactors, quantities: tuple[str, ...]) -> None:
        """Decide which Grams each group of the layer needs."""
        gradient = "gradient" in quantities
        product = gradient and layer.gradient is None
        a = self._factor(layer, "activation", quantities, product)
        d = self._factor(layer, "adjoint", quantities, product)
        if gradient and layer.gradient is not None:
            self._add_formed(layer.name, layer.gradient)
        if product:
            _check_pair(layer.name, a, d)
        present = [g for g, count in enumerate(self.groups.counts) if count]
        self._add_empty(layer, quantities)
        shared = (
            ()
            if not (a and d and product)
            else tuple(
                g
                for g in present
                if self._rows(a, g) <= min(a.rows.shape[3], d.rows.shape[3])
            )
        )
        if a and d and shared:
            self.shared.append((a, d, shared))
        tall: dict[tuple[bool, bool, bool], list[int]] = {}
        wide: dict[str, list[int]] = {"activation": [], "adjoint": []}
        for g in (g for g in present if g not in shared):
            kind = [False, False, product]
            for i, factor in enumerate((a, d)):
                if factor is not None and factor.wanted:
                    kind[i] = self._rows(factor, g) > factor.rows.shape[3]
                    if not kind[i]:
                        wide[factor.quantity].append(g)
            if any(kind):
                tall.setdefault((kind[0], kind[1], kind[2]), []).append(g)
        for factor in (a, d):
            if factor is not None:
                self._add_rows(factor, shared)
                self._add_rows(factor, tuple(wide[factor.quantity]))
        for kind_, chosen in tall.items():
            self._add_columns(a, d, tuple(chosen), kind_)

    def run(self) -> list[Reduced]:
        """Do all jobs."""
        found: dict[tuple[int, Chosen], list[Grams]] = {}
        for factors, chosen in self.row_jobs.values():
            problems, grams = row_problems(factors, self.groups, chosen)
            self.done += problems
            found.update(
                ((id(f), chosen), own) for f, own in zip(factors, grams, strict=True)
            )
        for a, d, chosen in self.shared:
            both = zip(found[id(a), chosen], found[id(d), chosen], strict=True)
            self.done += shared_problems(a, d, both, self.groups)
        for job in self.column_jobs.values():
            self.done += column_problems(
                job.activations, job.adjoints, self.groups, job.chosen, job.kind
            )
        return self.done

    def _rows(self, factor: Factor, group: int) -> int:
        return self.groups.counts[group] * factor.rows.shape[2]

    def _factor(
        self,
        layer: LayerFactors,
        quantity: str,
        quantities: tuple[str, ...],
        product: bool,
    ) -> Factor | None:
        wanted = quantity in quantities
        if not wanted and not product:
            return None
        rows = layer.activation if quantity == "activation" else layer.adjoint
        if rows is None:
            raise InputError(f"layer {layer.name}: the {quantity} rows are missing.")
        rows = rows.detach()
        if rows.dim() == 3:
            rows = rows.unsqueeze(0)
        if rows.dim() != 4 or rows.shape[1] != self.groups.size:
            raise InputError(
                f"layer {layer.name}: {quantity} rows of shape {tuple(rows.shape)}, "
                f"expected [N, S, d] or [B, N, S, d] with N = {self.groups.size}."
            )
        return Factor(layer.name, quantity, rows, wanted)

    def _add_rows(self, factor: Factor, chosen: Chosen) -> None:
        if chosen:
            key = (*_shape_of(factor), chosen)
            self.row_jobs.setdefault(key, ([], chosen))[0].append(factor)

    def _add_columns(
        self,
        a: Factor | None,
        d: Factor | None,
        chosen: Chosen,
        kind: tuple[bool, bool, bool],
    ) -> None:
        a = a if kind[0] or kind[2] else None
        d = d if kind[1] or kind[2] else None
        key = (*_shape_of(a), *_shape_of(d), chosen, kind)
        job = self.column_jobs.setdefault(key, _ColumnJob([], [], chosen, kind))
        job.activations.extend([a] if a else [])
        job.adjoints.extend([d] if d else [])

    def _add_formed(self, name: Hashable, matrices: Tensor) -> None:
        if matrices.dim() == 3:
            matrices = matrices.unsqueeze(1)
        if matrices.dim() != 4 or len(matrices) != len(self.groups.members):
            raise InputError(
                f"layer {name}: gradients of shape {tuple(matrices.shape)}, expected "
                f"[G, d_in, d_out] or [G, B, d_in, d_out] with "
                f"G = {len(self.groups.members)}."
            )
        self.done.append(formed_problem(name, matrices))

    def _add_empty(self, layer: LayerFactors, quantities: tuple[str, ...]) -> None:
        """Groups without samples; formed gradients are taken as they are."""
        keys = [
            Key(layer.name, g, quantity)
            for g, count in enumerate(self.groups.counts)
            for quantity in quantities
            if not count and (quantity != "gradient" or layer.gradient is None)
        ]
        if keys:
            self.done.append(empty_problem(keys))


@dataclass(frozen=True, eq=False)
class _ColumnJob:
    """Layers whose groups have more rows than columns in the same way."""

    activations: list[Factor]
    adjoints: list[Factor]
    chosen: Chosen
    kind: tuple[bool, bool, bool]


def _shape_of(factor: Factor | None) -> tuple[object, ...]:
    """Return what factors of one job share; large ones go alone."""
    if factor is None:
        return (None,)
    x = factor.rows
    alone = id(factor) if x.numel() > STACKED else 0
    return (x.shape, x.dtype, x.device, alone)


def _check_pair(name: Hashable, a: Factor | None, d: Factor | None) -> None:
    """Refuse rows whose product is not a gradient."""
    if a is None or d is None or a.rows.shape[:3] != d.rows.shape[:3]:
        shapes = [tuple(x.rows.shape) if x else None for x in (a, d)]
        raise InputError(
            f"layer {name}: activation and adjoint rows of shapes {shapes[0]} and "
            f"{shapes[1]} do not pair: give the formed gradient instead."
        )
