"""How often the graph of a step uses a parameter, beside the calls of its layers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from spectral_mlops.hooks.survey import Site


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
