"""Where the graph of a step uses a parameter: beside its layers' calls, inside one."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from spectral_mlops.hooks.survey import Site

_FACTORS = {"AddmmBackward0": "_saved_mat1", "MmBackward0": "_saved_self"}
"""Kinds of products ``x Wᵀ``, with a bias or without, and where they keep ``x``."""


def used_outside(
    outputs: Iterable[Tensor], sites: Sequence[Site], calls: Sequence[Any]
) -> frozenset[str]:
    """Name the weights that something other than their layers' calls uses.

    Args:
        outputs: What the model returned, with a batch axis.
        sites: Its layers.
        calls: Those recorded so far, with the edges of their own (`edges_between`).
    """
    edges, seen = _walk((x.grad_fn for x in outputs), frozenset())
    for call in calls:
        if seen.intersection(call.nodes):
            edges.subtract(call.edges)
    return frozenset(
        name
        for site in sites
        if site.rule is not None
        for name, parameter in zip(
            site.parameters.values(), site.tensors.values(), strict=True
        )
        if parameter.requires_grad and edges[id(parameter)] > 0
    )


def edges_between(outputs: Iterable[Tensor], inputs: Iterable[Tensor]) -> Counter[int]:
    """Count the edges that end at each leaf in one layer's part of the graph."""
    ends = frozenset(x.grad_fn for x in inputs if x.grad_fn is not None)
    return _walk((x.grad_fn for x in outputs), ends)[0]


def nodes_of(outputs: Iterable[Tensor]) -> tuple[Any, ...]:
    """Return where outputs stand in the graph, and the bases that they are views of.

    An in-place operation on a view leaves only the base's place in the graph.
    """
    both = (y for x in outputs for y in (x, x._base) if y is not None)
    return tuple(y.grad_fn for y in both if y.grad_fn is not None)


def product_with(
    weight: Tensor, outputs: Iterable[Tensor], inputs: Iterable[Tensor]
) -> tuple[Any, Tensor | None]:
    """Find the one product ``x Wᵀ`` with a weight in one layer's part of the graph.

    Args:
        weight: A leaf.
        outputs: What the layer returned.
        inputs: What it was called with.

    Returns:
        Its node and what stands for the saved ``x``, with rows flattened; None twice if
        there are several products, or of another kind.
    """
    waiting = [x.grad_fn for x in outputs if x.grad_fn is not None]
    seen = {*waiting, *(x.grad_fn for x in inputs)}
    found = []
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            if following.name() == "TBackward0":
                if _leaf(following.next_functions[0][0]) is weight:
                    found.append(node)
            elif following not in seen and not hasattr(following, "variable"):
                seen.add(following)
                waiting.append(following)
    only = found[0] if len(found) == 1 else None
    saved = _FACTORS.get(only.name()) if only is not None else None
    return (None, None) if saved is None else (only, getattr(only, saved))


def _walk(starts: Iterable[Any], ends: frozenset[Any]) -> tuple[Counter[int], set[Any]]:
    """Count edges that end at each leaf, by the leaf's identity, and nodes seen.

    A leaf that autocast has cast once for all its uses is counted at the cast.
    """
    count: Counter[int] = Counter()
    waiting = [node for node in starts if node is not None and node not in ends]
    seen = set(waiting)
    while waiting:
        for following, _ in waiting.pop().next_functions:
            if following is None or following in ends:
                continue
            leaf = _leaf(following)
            if leaf is not None:
                count[id(leaf)] += 1
            elif following not in seen:
                seen.add(following)
                waiting.append(following)
    return count, seen


def _leaf(node: Any) -> Tensor | None:
    """Return the leaf that a node stands for, itself or cast."""
    if node.name() == "ToCopyBackward0":
        node = node.next_functions[0][0]
    return getattr(node, "variable", None)
