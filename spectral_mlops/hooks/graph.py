"""How often the graph of a step uses a parameter, beside the calls of its layers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from spectral_mlops.hooks.nested import tensors_in
from spectral_mlops.hooks.survey import Site


def used_outside(
    output: Any, sites: Sequence[Site], calls: Iterable[Any]
) -> frozenset[str]:
    """Name the weights that something other than their layers' calls uses.

    A call of most layers is one edge from the graph to its weight; more edges than
    calls are uses of the weight as a tensor. Recurrent and attention layers use
    theirs in ways of their own and are not counted where they were called.

    Args:
        output: What the model returned.
        sites: Its layers.
        calls: Those recorded so far.
    """
    called = Counter(id(call.site.module) for call in calls)
    edges = _edges(output)
    found = set()
    for site in sites:
        if site.rule is None:
            continue
        several = isinstance(site.module, nn.RNNBase | nn.MultiheadAttention)
        if several and called[id(site.module)]:
            continue
        for local, parameter in site.tensors.items():
            if parameter.requires_grad:
                uses = sum(
                    called[id(other.module)]
                    for other in sites
                    if any(p is parameter for p in other.tensors.values())
                )
                if edges[id(parameter)] > uses:
                    found.add(site.parameters[local])
    return frozenset(found)


def _edges(output: Any) -> Counter[int]:
    """Count the edges that end at each leaf, by the leaf's identity."""
    count: Counter[int] = Counter()
    waiting = [x.grad_fn for x in tensors_in(output) if x.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                count[id(leaf)] += 1
            elif following not in seen:
                seen.add(following)
                waiting.append(following)
    return count
