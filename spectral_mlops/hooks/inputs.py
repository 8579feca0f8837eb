"""What the model and its layers are called with, and how it is kept."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mlops.hooks.autocast import autocast_is_on
from spectral_mlops.hooks.nested import map_tensors, tensors_in
from spectral_mlops.hooks.survey import Site, Survey
from spectral_mlops.hooks.watched import Watched

COPIED_BYTES = 4 * 2**20
"""Inputs of the model up to this size are copied where they must last."""


class Inputs:
    """What the model and its layers are called with in one batch.

    Args:
        survey: Of the model.
        lasting: Copy what layers take of the model's own inputs, which others may
            write to once the batch is over; see `exposed`.

    Attributes:
        exposed: Whether somebody else holds what was kept, and could write to it.
    """

    def __init__(self, survey: Survey, lasting: bool) -> None:
        self.exposed = not lasting
        self._survey, self._lasting = survey, lasting
        self._given: set[int] = set()
        """Memory that the model was given, and its buffers."""
        self._numbered = False
        """Whether the model was given a whole number for every sample."""

    def note(self, given: Iterable[Tensor], n: int) -> None:
        """Note what the model itself is called with, for ``n`` samples."""
        given = list(given)
        self._given |= {_storage(x) for x in given}
        if self._lasting:
            self._given |= {_storage(x) for x in self._survey.model.buffers()}
        self._numbered |= any(
            x.ndim == 1 and not x.is_floating_point() and len(x) == n for x in given
        )

    def note_shown(self, output: Any, calls: Iterable[Watched]) -> None:
        """Note whether the model returned memory that calls of its layers keep."""
        if self._lasting:
            shown = {_storage(x) for x in tensors_in(output)}
            kept = (x for call in calls for x in tensors_in(call.given))
            self.exposed |= any(_storage(x) in shown for x in kept)

    def keep(self, site: Site, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a layer was called with, so that it may be read later."""
        known: dict[int, Tensor] = {}
        return {
            name: map_tensors(self._keeper(site, name), value, known)
            for name, value in given.items()
        }

    def is_no_batch(self, x: Tensor, n: int) -> bool:
        """Whether an input is a parameter, or positions counted from zero.

        Args:
            x: Of a layer.
            n: Number of samples.
        """
        if self._is_own(x):  # unless it was repeated for every sample
            strides = zip(x.shape, x.stride(), strict=True)
            return not any(size == n and step == 0 for size, step in strides)
        counted = x.ndim == 1 and not (x.is_floating_point() or x.is_complex())
        if not counted or self._numbered or _storage(x) in self._given:
            return False
        return torch.equal(x, torch.arange(len(x), dtype=x.dtype, device=x.device))

    def _keeper(self, site: Site, argument: str) -> Callable[[Tensor], Tensor]:
        """Return how to keep an input: by reference where autograd guards it.

        Autograd saves the input of a layer whose weights are trained, and refuses
        the backward pass if it was changed in place. Others are copied; so are
        inputs that autocast casts, since autograd then saves the cast ones.
        """
        assert site.rule is not None
        own = [p for local, p in site.tensors.items() if "weight" in local]
        saved = site.rule.saved is None or argument in site.rule.saved
        guarded = saved and bool(own) and all(p.requires_grad for p in own)

        def keep(x: Tensor) -> Tensor:
            lent = self._is_own(x) or (self._lasting and _storage(x) in self._given)
            if lent and x.nbytes > COPIED_BYTES:
                self.exposed, lent = True, False
            if not x.is_floating_point():
                return x.clone() if lent or not saved else x.detach()
            kind = x.device.type
            cast = autocast_is_on(kind) and x.dtype != torch.get_autocast_dtype(kind)
            by_reference = guarded and not cast and not lent
            return x.detach() if by_reference else x.detach().clone()

        return keep

    def _is_own(self, x: Tensor) -> bool:
        """Whether it is a parameter of the model, or a view of one."""
        return id(x if x._base is None else x._base) in self._survey.names


_NAMES: dict[type, tuple[str, ...]] = {}
"""What the forward of a type calls its arguments."""


def named(
    kind: type[nn.Module], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a layer was called with, by name, in the order of its forward."""
    if kind not in _NAMES:
        _NAMES[kind] = tuple(inspect.signature(kind.forward).parameters)[1:]
    names = _NAMES[kind]
    more = [str(i) for i in range(len(names), len(args))]
    found = dict(zip((*names, *more), args, strict=False)) | dict(kwargs)
    return {name: found[name] for name in (*names, *more) if name in found}


def _storage(x: Tensor) -> int:
    """Tell which memory a tensor is a view of; sparse ones have none of their own."""
    try:
        return x.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return id(x)
