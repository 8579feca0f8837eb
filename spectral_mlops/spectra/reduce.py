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
from spectral_mlops.spectra.drivers import is_out_of_memory
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.jobs import Factor, formed_problem
from spectral_mlops.spectra.plan import Plan
from spectral_mlops.spectra.randomised import sketched_formed
from spectral_mlops.spectra.reduced import Key, Reduced, unsolvable

QUANTITIES = ("gradient", "activation", "adjoint")
FACTORS = ("activation", "adjoint")
LARGEST = 2048
"""A 2048 × 2048 Gram takes seconds to decompose."""


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
    largest: int = LARGEST,
) -> list[Reduced]:
    """Reduce the rows of layers that saw one batch.

    Args:
        layers: Their factors.
        groups: Of the batch's ``N`` samples.
        quantities: Which of `QUANTITIES`.
        largest: Smaller side of a matrix above which only its leading values are
            found, by a randomised method that says so.

    Returns:
        Small problems, in no particular order; every layer, group and quantity is
        a member of exactly one. An empty group has an empty spectrum.

    Raises:
        InputError: If a layer lacks what a quantity needs, or its shapes do not
            fit each other or the groups.
    """
    plan = Plan(groups, largest)
    others: list[Reduced] = []
    for layer in layers:
        wanted = tuple(layer.quantities or quantities)
        product = "gradient" in wanted and layer.gradient is None
        a, d = (_factor(layer, name, wanted, product, groups.size) for name in FACTORS)
        if product:
            _check_pair(layer.name, a, d)
        elif "gradient" in wanted and layer.gradient is not None:
            others += _formed(layer.name, layer.gradient, groups, largest)
        plan.add(a, d, product)
        # Formed gradients of groups without samples are taken as they are.
        names = [q for q in wanted if product or q != "gradient"]
        empty = [g for g, count in enumerate(groups.counts) if not count]
        keys = [Key(layer.name, g, q) for g in empty for q in names]
        if keys:
            others.append(unsolvable(keys, [0] * len(keys)))
    return others + plan.run()


def _factor(
    layer: LayerFactors,
    quantity: str,
    quantities: tuple[str, ...],
    product: bool,
    size: int,
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
    if rows.dim() != 4 or rows.shape[1] != size:
        raise InputError(
            f"layer {layer.name}: {quantity} rows of shape {tuple(rows.shape)}, "
            f"expected [N, S, d] or [B, N, S, d] with N = {size}."
        )
    return Factor(layer.name, quantity, rows, wanted)


def _formed(
    name: Hashable, matrices: Tensor, groups: Groups, largest: int
) -> list[Reduced]:
    matrices = matrices.detach()
    if matrices.dim() == 3:
        matrices = matrices.unsqueeze(1)
    if matrices.dim() != 4 or len(matrices) != len(groups.members):
        raise InputError(
            f"layer {name}: gradients of shape {tuple(matrices.shape)}, expected "
            f"[G, d_in, d_out] or [G, B, d_in, d_out] with G = {len(groups.members)}."
        )
    large = min(matrices.shape[2:]) > largest
    try:
        problem = sketched_formed if large else formed_problem
        return [problem(name, matrices)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        keys = [Key(name, g, "gradient") for g in range(len(matrices))]
        size = matrices.shape[1] * min(matrices.shape[2:])
        return [unsolvable(keys, [size] * len(keys), "out of memory")]


def _check_pair(name: Hashable, a: Factor | None, d: Factor | None) -> None:
    """Refuse rows whose product is not a gradient."""
    if a is None or d is None or a.rows.shape[:3] != d.rows.shape[:3]:
        shapes = [tuple(x.rows.shape) if x else None for x in (a, d)]
        raise InputError(
            f"layer {name}: activation and adjoint rows of shapes {shapes[0]} and "
            f"{shapes[1]} do not pair: give the formed gradient instead."
        )
