"""Leading singular directions of a layer's input space, group by group.

For convolutions the input space is channels × kernel: directions are kernel-shaped
patterns, not maps of the whole input. With several groups of channels the layer is
block-diagonal, and a direction is zero outside of its block's channels.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from spectral_mlops.errors import InputError
from spectral_mlops.hooks.context import capture
from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.layer_rows import LayerRows, People
from spectral_mlops.hooks.layers.convolution import ConvolutionRows
from spectral_mlops.hooks.rows import Factored, Rows
from spectral_mlops.records import Direction, Quantity
from spectral_mlops.spectra.directions import Leading, gradient_columns, leading_left

QUANTITIES: tuple[Quantity, ...] = ("gradient", "activation")

Chosen = list[Factored]


def leading_directions(
    captured: capture,
    layer: str | None = None,
    k: int = 3,
    *,
    quantities: Sequence[str] = QUANTITIES,
    epoch: int = 0,
    source: str = "train",
    fold: int = 0,
) -> list[Direction]:
    """Return the leading input-space directions of every group of a batch.

    Found from the smallest side: with ``r`` rows of a group no matrix larger than
    ``d_in × min(r, d_out)`` is formed, and the decomposed one is the smaller Gram of
    that. Values are at scale ``batch``; shares have no scale. Both, and the directions
    themselves, depend on how many samples a group has.

    Args:
        captured: A batch after its backward pass.
        layer: Name of the layer; the first with rows if not given.
        k: How many directions; fewer where the rank is smaller.
        quantities: ``gradient`` (left singular vectors of ``G_g``) and ``activation``
            (right ones of the rows of ``A_g``; of a convolution, of its patches; of
            an embedding none, they would be its entries).
        epoch: Written into the records.
        source: Written into the records.
        fold: Written into the records.

    Returns:
        Records, the pooled group first. A group with rows that are not finite has
        ``k`` marked ones of NaN; a group that is absent, or zero, has none.

    Raises:
        InputError: If ``k`` is below 1, a quantity has no directions, or there is no
            layer with rows.

    Example:
        >>> model, x = torch.nn.Linear(3, 2), torch.eye(3)
        >>> with capture(model, ["a", "a", "b"]) as captured:
        ...     model(x).sum().backward()
        >>> [d] = [d for d in leading_directions(captured, k=1)
        ...        if (d.group, d.quantity) == ("b", "activation")]
        >>> d.vector.tolist()
        [0.0, 0.0, 1.0]
    """
    if k < 1:
        raise InputError(f"k={k}: ask for at least one direction.")
    unknown = [name for name in quantities if name not in QUANTITIES]
    if unknown:
        raise InputError(
            f"quantities={list(quantities)}: input space has directions of "
            f"{' and '.join(QUANTITIES)}."
        )
    if layer is None:
        reached = captured.reached_layers()
        if not reached:
            raise InputError("No layer of this model has rows: there are no factors.")
        layer = reached[0]
    rows = captured.layer_rows(layer)
    shape = _input_shape(rows)
    found = []
    with torch.no_grad():
        people = People(rows.labellings, pooled=True)
        for grouping, group, members in people.groups:
            if not len(members):
                continue
            chosen = list(_chosen(rows, people, grouping, group))
            one_hot = any(call.entries() is not None for call in chosen)
            for quantity in QUANTITIES[: 1 if one_hot else None]:
                if quantity not in quantities or quantity not in chosen[0].known:
                    continue
                leading, status = _leading(chosen, quantity, k)
                vectors = leading.vectors.cpu().numpy().astype(np.float32)
                pairs = zip(leading.values.tolist(), leading.shares, strict=True)
                found += [
                    Direction(
                        epoch=epoch,
                        source=source,
                        fold=fold,
                        layer=layer,
                        quantity=quantity,
                        grouping=grouping,
                        group=group,
                        index=index,
                        value=value,
                        share=float(share),
                        vector=vectors[index],
                        shape=shape,
                        samples=len(members),
                        status=status,
                    )
                    for index, (value, share) in enumerate(pairs)
                ]
    return found


def _chosen(
    rows: LayerRows, people: People, grouping: str, group: str
) -> Iterator[Factored]:
    """Yield a group's part of every call."""
    for who, call in rows.calls:
        members = people.within(who, grouping, group)
        if len(members):
            yield call.choose(members)


def _leading(calls: Chosen, quantity: Quantity, k: int) -> tuple[Leading, str]:
    """Find the directions of one group, and say whether they could be found."""
    blocks = _columns(calls, quantity)
    width = sum(len(block) for block in blocks)
    if not all(bool(block.isfinite().all()) for block in blocks):
        unknown = torch.full((k, width), torch.nan, dtype=torch.float64)
        return Leading(unknown, unknown[:, 0], float("nan")), "non-finite"
    parts = [leading_left(block, k) for block in blocks]
    values = torch.cat([part.values for part in parts])
    padded = values.new_zeros(len(values), width)
    row = column = 0
    for part, block in zip(parts, blocks, strict=True):
        there = slice(row, row + len(part.values)), slice(column, column + len(block))
        padded[there] = part.vectors
        row, column = there[0].stop, there[1].stop
    order = values.argsort(descending=True, stable=True)[:k]
    energy = sum(part.energy for part in parts)
    status = "not converged" if bool(values.isnan().any()) else "ok"
    return Leading(padded[order], values[order], energy), status


def _columns(calls: Chosen, quantity: Quantity) -> list[Tensor]:
    """Return a matrix ``[d_in, m]`` per block whose left vectors are asked for."""
    plain = [call for call in calls if isinstance(call, Rows)]
    if len(plain) == len(calls):
        activation = torch.cat([call.activation.flatten(0, 1) for call in plain])
        if quantity == "activation":
            return [activation.mT]
        adjoint = torch.cat([call.adjoint.flatten(0, 1) for call in plain])
        if not bool(activation.isfinite().all() and adjoint.isfinite().all()):
            return [activation.new_full((activation.shape[1], 1), torch.nan)]
        return [gradient_columns(activation, adjoint)]
    if quantity == "gradient":
        return list(torch.stack([call.matrices().double() for call in calls]).sum(0))
    grams = [gram for call in calls for gram in _patch_grams(call)]
    return list(_root(torch.stack(grams).sum(0)))


def _patch_grams(call: Factored) -> Iterator[Tensor]:
    """Yield the Gram of patches ``[blocks, d_in, d_in]``, sample by sample.

    Unfolded patches of all samples at once would be far larger than the input.
    """
    for i in range(len(call)):
        rows = call.choose(torch.tensor([i])).activation_rows(patches=True)
        x = rows.flatten(1, 2).double()
        yield x.mT @ x


def _root(gram: Tensor) -> Tensor:
    """Return matrices whose left singular vectors and values are those of the rows.

    Args:
        gram: ``XᵀX``, shape ``[blocks, d, d]``.
    """
    if not bool(gram.isfinite().all()):
        return torch.full_like(gram, torch.nan)
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)


def _input_shape(rows: LayerRows) -> tuple[int, ...]:
    """Return the shape of a layer's input space."""
    call: tuple[Labelling, Factored] = rows.calls[0]
    if isinstance(call[1], ConvolutionRows):
        return call[1].input.shape[1], *call[1].geometry.kernel
    return (call[1].shape[0],)
