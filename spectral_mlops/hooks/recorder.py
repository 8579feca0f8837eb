"""The hooks themselves: every call of every watched layer, with its adjoint.

A forward hook puts a *tensor* hook on each call's output and binds that call's
input in the closure. Never a full backward hook (in-place activations break it),
never a slot or counter on the layer (reused modules and recomputed forwards break
those). Nothing is written on the model, and every handle is removed by `detach`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spectral_mlops.errors import CaptureError
from spectral_mlops.hooks.coverage import Site, clean_name, trained_parameters
from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.replay import Replay, anchor
from spectral_mlops.hooks.rows import Rows


@dataclass(eq=False)
class Call:
    """One forward call of one layer; the adjoint arrives with the backward pass."""

    site: Site
    labelling: Labelling
    inputs: tuple[Any, ...]
    versions: tuple[int, ...]
    adjoint: Tensor | None = None
    rows: Rows | None = field(default=None, init=False)


class Recorder:
    """Record the calls of some layers while attached.

    Args:
        model: The model; its own calls are checked against the labels.
        sites: Its layers; those without a rule are left alone.
        labelling: Of the calls to come; may be exchanged between forward calls.
        batch_dim: Batch axis of the model's inputs.
        parameters: Also record what reaches each parameter's own tensor hook.
        replay: Of the parameters that no rule covers.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        labelling: Labelling,
        batch_dim: int,
        parameters: bool,
        replay: Replay,
    ) -> None:
        self.labelling = labelling
        self.calls: list[Call] = []
        self.reaching: dict[str, Tensor] = {}
        self.unbatched: set[str] = set()
        self._model, self._sites = model, sites
        self._batch_dim, self._parameters = batch_dim, parameters
        self._replay = replay
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put the hooks on; `detach` must follow, whatever happens."""
        keep = self._handles.append
        keep(self._model.register_forward_pre_hook(self._on_root, with_kwargs=True))
        for site in self._sites:
            if site.rule is not None:
                hook = partial(self._on_forward, site)
                keep(site.module.register_forward_hook(hook, with_kwargs=True))
        keep(self._model.register_forward_hook(self._on_return))
        if self._parameters:
            for name, parameter in self._model.named_parameters():
                if parameter.requires_grad:
                    hook = partial(self._on_parameter, clean_name(name))
                    keep(parameter.register_hook(hook))

    def detach(self) -> None:
        """Take every hook off, those on output tensors included."""
        while self._handles:
            self._handles.pop().remove()
        self._replay.release()

    def _on_return(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook what the model returned, for replay."""
        if torch.is_grad_enabled():
            self._handles += self._replay.watch(output, self.labelling)

    def _on_root(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Check that the labels describe the batch the model is called with."""
        if not torch.is_grad_enabled():
            return
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        batched = next((x for x in tensors if x.ndim > self._batch_dim), None)
        if batched is None:
            return
        size = batched.shape[self._batch_dim]
        if size != self.labelling.size:
            raise CaptureError(
                f"The model is called with {size} samples (axis {self._batch_dim} of "
                f"{tuple(batched.shape)}) and the labels name "
                f"{self.labelling.size}: give one label per sample, set batch_dim=, "
                "or call captured.relabel(groups) before this forward call."
            )

    def _on_forward(
        self,
        site: Site,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        if not (isinstance(output, Tensor) and output.requires_grad):
            return
        if self._replay.running:  # a checkpoint recomputes for the replay
            return
        inputs = tuple(
            self._keep(x, layer) if isinstance(x, Tensor) else x
            for x in (*args, *kwargs.values())
        )
        assert site.rule is not None
        if not site.rule.batched(layer, inputs, self._batch_dim):
            self.unbatched.add(site.name)
            self._replay.parameters |= trained_parameters(site)
            return
        versions = tuple(x._version for x in inputs if isinstance(x, Tensor))
        call = Call(site, self.labelling, inputs, versions)
        self.calls.append(call)
        hook = partial(self._on_adjoint, call, output.shape)
        self._handles.append(anchor(output).register_hook(hook))

    @staticmethod
    def _keep(x: Tensor, layer: nn.Module) -> Tensor:
        """Keep an input by reference where autograd guards it against writes.

        Autograd saves the input of a layer whose weight is trained, and refuses
        the backward pass if it was changed in place. Others are copied.
        """
        weight = layer._parameters.get("weight")
        guarded = weight is not None and weight.requires_grad
        return x.detach() if guarded else x.detach().clone()

    def _on_adjoint(self, call: Call, shape: torch.Size, gradient: Tensor) -> None:
        """Keep the adjoint of one call; several backward passes add up."""
        if self._replay.running:
            return
        fresh = gradient.detach().reshape(shape)
        call.adjoint = fresh if call.adjoint is None else call.adjoint + fresh

    def _on_parameter(self, name: str, gradient: Tensor) -> None:
        if self._replay.running:
            return
        total = self.reaching.get(name)
        fresh = gradient.detach()
        self.reaching[name] = fresh.clone() if total is None else total + fresh
