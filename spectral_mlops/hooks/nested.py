"""Tensors inside of what layers take and return: tuples, mappings, packed sequences."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def tensors_in(item: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, lists, mappings, dataclasses, each once.

    Outputs of Hugging Face's models are mappings.
    """
    found: dict[int, Tensor] = {}
    for x in _walk(item):
        found.setdefault(id(x), x)
    return list(found.values())


def map_tensors(
    change: Callable[[Tensor], Tensor], item: Any, known: dict[int, Tensor]
) -> Any:
    """Rebuild nested tuples, lists and mappings with every tensor changed.

    Anything else is passed on as it is.

    Args:
        change: Makes a new tensor of each.
        item: What holds them.
        known: New tensors by the identity of the old: one tensor in several places
            stays one (a layer may ask whether its query is its key).
    """

    def visit(x: Any) -> Any:
        if isinstance(x, Tensor):
            if id(x) not in known:
                known[id(x)] = change(x)
            return known[id(x)]
        if isinstance(x, tuple) and hasattr(x, "_fields"):  # packed sequences
            return type(x)(*(visit(y) for y in x))
        if type(x) in (tuple, list):
            return type(x)(visit(y) for y in x)
        if type(x) is dict:
            return {key: visit(y) for key, y in x.items()}
        return x

    return visit(item)


def batch_sizes(item: Any, axis: int) -> dict[int, tuple[int, ...]]:
    """Return the sizes of an axis over all tensors that have it, with a shape each.

    A packed sequence holds as many samples as are in its first step.
    """
    found: dict[int, tuple[int, ...]] = {}
    waiting = [item]
    while waiting:
        x = waiting.pop(0)
        if isinstance(x, PackedSequence):
            found.setdefault(int(x.batch_sizes[0]), tuple(x.data.shape))
        elif isinstance(x, Tensor):
            if x.ndim > axis:
                found.setdefault(x.shape[axis], tuple(x.shape))
        elif isinstance(x, Mapping):
            waiting += x.values()
        elif isinstance(x, tuple | list):
            waiting += x
    return found


def _walk(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from _walk(value)
    elif isinstance(item, tuple | list):
        for value in item:
            yield from _walk(value)
    elif is_dataclass(item) and not isinstance(item, type):
        for part in fields(item):
            yield from _walk(getattr(item, part.name))
