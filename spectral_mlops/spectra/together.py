"""Several batches reduced as one: their samples side by side, their groups apart.

On small networks a reduction costs calls, not arithmetic, and several batches in one
take as many calls as one of them. Batches may differ in size and in labels.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.plan import STACKED
from spectral_mlops.spectra.reduce import LayerFactors, reduce_layers
from spectral_mlops.spectra.reduced import Key, Reduced

Batch = tuple[Sequence[LayerFactors], Groups]
"""Layers, and the groups of the samples that they saw."""


def reduce_together(batches: Sequence[Batch]) -> list[Reduced]:
    """`reduce_layers` of several batches, in fewer calls where their layers are alike.

    Args:
        batches: In any number; no name of a layer twice.

    Returns:
        As `reduce_layers` of each.
    """
    alike: dict[tuple[object, ...], list[Batch]] = {}
    problems: list[Reduced] = []
    for layers, groups in batches:
        kinds = [_kind_of(layer) for layer in layers]
        paired = list(zip(layers, kinds, strict=True))
        alone = [layer for layer, kind in paired if kind is None]
        if alone:
            problems += reduce_layers(alone, groups)
        small = [layer for layer, kind in paired if kind is not None]
        if small:
            key = tuple(kind for kind in kinds if kind is not None)
            alike.setdefault(key, []).append((small, groups))
    for some in alike.values():
        problems += reduce_layers(*some[0]) if len(some) == 1 else _joined(some)
    return problems


def _joined(batches: list[Batch]) -> list[Reduced]:
    """Reduce batches whose layers fit each other, one by one."""
    groups = Groups.joined([groups for _, groups in batches])
    starts = [0, *accumulate(len(own.members) for _, own in batches)][:-1]
    columns = zip(*(layers for layers, _ in batches), strict=True)
    layers = [_side_by_side(column) for column in columns]
    names = {layer.name: [one.name for one in of] for layer, of in layers}

    def own(key: Key) -> Key:
        batch = bisect_right(starts, key.group) - 1
        return Key(names[key.layer][batch], key.group - starts[batch], key.quantity)

    return [
        replace(problem, keys=[own(key) for key in problem.keys])
        for problem in reduce_layers([layer for layer, _ in layers], groups)
    ]


def _side_by_side(
    layers: tuple[LayerFactors, ...],
) -> tuple[LayerFactors, tuple[LayerFactors, ...]]:
    """Join a layer's samples in several batches, and its groups' gradients."""
    first = layers[0]
    rows = (_cat([x.activation for x in layers], -3),
            _cat([x.adjoint for x in layers], -3))  # fmt: skip
    gradient = _cat([x.gradient for x in layers], 0)
    return LayerFactors(first.name, *rows, gradient, first.quantities), layers


def _cat(parts: Sequence[Tensor | None], axis: int) -> Tensor | None:
    given = [part.detach() for part in parts if part is not None]
    return torch.cat(given, axis) if given else None


def _kind_of(layer: LayerFactors) -> tuple[object, ...] | None:
    """What layers share that may be joined, the number of samples apart.

    None where joining gains nothing, or would let the size of one batch's numbers
    decide about the rounding of another's (`reduced.safe_exponent`).
    """
    kind: list[object] = [layer.quantities]
    for x in (layer.activation, layer.adjoint, layer.gradient):
        if x is None:
            kind.append(None)
            continue
        if x.numel() > STACKED or x.dtype == torch.float64:
            return None
        shape = list(x.shape)
        shape[0 if x is layer.gradient else -3] = -1
        kind.append((tuple(shape), x.dtype, x.device))
    return tuple(kind)
