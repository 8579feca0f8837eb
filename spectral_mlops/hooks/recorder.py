"""The hooks themselves: every call of every watched layer, with its adjoints.

A forward hook puts a *tensor* hook on each call's outputs and binds that call's
input in the closure. Never a full backward hook (in-place activations break it),
never a slot or counter on the layer (reused modules and recomputed forwards break
those). Nothing is written on the model, and every handle is removed by `detach`.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from spectral_mlops.errors import CaptureError
from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.nested import batch_sizes, map_tensors, tensors_in
from spectral_mlops.hooks.replay import Anchor, Replay, pull_by_group
from spectral_mlops.hooks.rows import Call, Contributions, RandomState, RowRule, widen
from spectral_mlops.hooks.survey import (
    Site,
    Survey,
    clean_name,
    trained_parameters,
)

COPIED_BYTES = 4 * 2**20
"""Inputs of the model up to this size are copied where they must last."""


@dataclass(eq=False)
class Watched:
    """One forward call of one layer; its adjoints arrive with the backward pass."""

    site: Site
    labelling: Labelling
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: tuple[int, ...]
    random: RandomState | None
    precision: torch.dtype | None
    rows: dict[str, Contributions] = field(default_factory=dict)
    waiting: dict[int, Tensor] = field(default_factory=dict)
    """Adjoints of some of several outputs, until all have arrived."""
    outputs: int = 1

    def unchanged(self) -> bool:
        """Whether the inputs kept by reference are still what they were."""
        kept = tensors_in((self.args, self.kwargs))
        return self.versions == tuple(x._version for x in kept)


class Recorder:
    """Record the calls of some layers while attached.

    Args:
        survey: Of the model, whose own calls are checked against the labels; its
            layers without a rule are left alone.
        labelling: Of the calls to come; may be exchanged between forward calls.
        batch_dim: Batch axis of the model's inputs.
        folded: Rows of a sample that a call of the model itself may hold.
        parameters: Also record what reaches each parameter's own tensor hook.
        lasting: Copy what layers take of the model's own inputs, which others may
            write to once the batch is over; see `exposed`.
        replay: Of the parameters that no rule covers.
    """

    def __init__(
        self,
        survey: Survey,
        labelling: Labelling,
        batch_dim: int,
        folded: int,
        parameters: bool,
        lasting: bool,
        replay: Replay,
    ) -> None:
        self.exposed = not lasting
        """Whether somebody else holds what was kept, and could write to it."""
        self._lasting, self._given = lasting, set[int]()
        self.labelling = labelling
        self.scale: Tensor | None = None
        self.coarse = False
        self.calls: list[Watched] = []
        self.reaching: dict[str, Tensor] = {}
        self.unbatched: dict[str, str] = {}
        self.hidden: dict[str, str] = {}
        self.masked: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._survey = survey
        self._model, self._sites = survey.model, survey.sites
        self._batch_dim, self._folded = batch_dim, folded
        self._parameters, self._replay = parameters, replay
        self._handles: list[RemovableHandle] = []
        self._on_layers: list[RemovableHandle] = []
        self._states: dict[int, list[RandomState]] = {}
        self._nodes: dict[str, list[Any]] = {}

    # -- attaching ---------------------------------------------------------------

    def attach(self) -> None:
        """Put the hooks on; `detach` must follow, whatever happens."""
        keep = self._handles.append
        root = self._model
        keep(root.register_forward_pre_hook(self._on_root, with_kwargs=True))
        self._attach_layers()
        for site in self._sites:
            if site.rule is not None:
                own = list(trained_parameters(site).values())
                self._nodes[site.name] = [get_gradient_edge(p).node for p in own]
                if site.rule.together:
                    # All adjoints have arrived before any weight's gradient does,
                    # and no optimizer can have changed a weight yet.
                    hook = partial(self._on_complete, site)
                    self._handles += [p.register_hook(hook) for p in own]
        keep(root.register_forward_hook(self._on_return))
        keep(root.register_forward_hook(self._on_end, always_call=True))
        if self._parameters:
            for name, parameter in root.named_parameters():
                if parameter.requires_grad:
                    hook = partial(self._on_parameter, clean_name(name))
                    keep(parameter.register_hook(hook))

    def detach(self) -> None:
        """Take every hook off, those on output tensors included."""
        for site in self._sites:
            self._on_complete(site, None)
        for handles in (self._on_layers, self._handles):
            while handles:
                handles.pop().remove()
        self._states.clear()
        self._nodes.clear()
        self._replay.release()

    def _attach_layers(self) -> None:
        keep = self._on_layers.append
        for site in self._sites:
            if site.rule is None:
                continue
            if type(site.rule).draws is not RowRule.draws:
                keep(
                    site.module.register_forward_pre_hook(partial(self._on_draw, site))
                )
            hook = partial(self._on_forward, site)
            keep(site.module.register_forward_hook(hook, with_kwargs=True))

    # -- forward -----------------------------------------------------------------

    def _on_root(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Check that the labels describe the batch the model is called with."""
        if not torch.is_grad_enabled():
            # PyTorch's transformer takes its fast path only where no hook is.
            while self._on_layers:
                self._on_layers.pop().remove()
            return
        self._refuse_functional()
        if self._lasting:
            self._given |= {_storage(x) for x in tensors_in((args, kwargs))}
        sizes = batch_sizes((args, kwargs), self._batch_dim)
        if not sizes:
            return
        n = self.labelling.size
        if not {n, n * self._folded} & sizes.keys():
            size, shape = next(iter(sizes.items()))
            raise CaptureError(
                f"The model is called with {size} samples (axis {self._batch_dim} of "
                f"{shape}) and the labels name {n}: give one label per sample, set "
                "batch_dim=, or call captured.relabel(groups) before this forward "
                "call."
            )

    def _refuse_functional(self) -> None:
        inside = torch._C._functorch.peek_interpreter_stack() is not None
        swapped = any(m._parameters.get(k) is not p for m, k, p in self._survey.own)
        if inside or swapped:
            raise CaptureError(
                "The model is called functionally (torch.func, functional_call): its "
                "own parameters take no part in that call. Watch ordinary calls of "
                "the model, with loss.backward()."
            )

    def _on_return(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook what the model returned, for replay."""
        if torch.is_grad_enabled():
            if self._lasting:
                shown = {_storage(x) for x in tensors_in(output)}
                kept = (x for c in self.calls for x in tensors_in((c.args, c.kwargs)))
                self.exposed |= any(_storage(x) in shown for x in kept)
            self._handles += self._replay.watch(output, self.labelling)

    def _on_end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After a call without gradients, also a failed one, watch again."""
        if not self._on_layers:
            self._attach_layers()

    def _on_draw(self, site: Site, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Note where the random numbers stand before a call that draws some."""
        assert site.rule is not None
        watched = torch.is_grad_enabled() and not self._replay.running
        if watched and site.rule.draws(layer):
            device = next(layer.parameters()).device
            self._states.setdefault(id(layer), []).append(RandomState.now(device))

    def _on_forward(
        self,
        site: Site,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        states = self._states.get(id(layer))
        random = states.pop() if states else None
        if self._replay.running:  # a checkpoint recomputes for the replay
            return
        returned = [x for x in tensors_in(output) if x.is_floating_point()]
        if not any(x.requires_grad for x in returned):
            return
        rule = site.rule
        assert rule is not None
        device = returned[0].device.type
        cast = torch.is_autocast_enabled(device)
        precision = torch.get_autocast_dtype(device) if cast else None
        self.coarse |= cast
        inputs = (*args, *kwargs.values())
        why_hidden = rule.hidden(layer, inputs)
        packed = isinstance(inputs[0], PackedSequence)
        batched = rule.batched(layer, inputs, self._batch_dim)
        if not batched or (why_hidden and packed):
            why = why_hidden if batched else "called without batch axis"
            self.unbatched[site.name] = f"'{site.name}' {why}"
            self._replay.parameters |= trained_parameters(site)
            return
        kept: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(
            self._keeper(site), (args, kwargs)
        )
        versions = tuple(x._version for x in tensors_in(kept))
        call = Watched(site, self.labelling, *kept, versions, random, precision)
        self.calls.append(call)
        self.hidden |= {site.name: why_hidden} if why_hidden else {}
        for i, x in enumerate(returned):
            if x.requires_grad:
                self._hook_output(call, i, len(returned), x, bool(why_hidden))

    def _keeper(self, site: Site) -> Callable[[Tensor], Tensor]:
        """Return how to keep an input: by reference where autograd guards it.

        Autograd saves the input of a layer whose weights are trained, and refuses
        the backward pass if it was changed in place. Others are copied; so are
        inputs that autocast casts, since autograd then saves the cast ones.
        """
        own = [p for local, p in site.tensors.items() if "weight" in local]
        guarded = bool(own) and all(p.requires_grad for p in own)

        def keep(x: Tensor) -> Tensor:
            lent = self._lasting and _storage(x) in self._given
            if lent and x.nbytes > COPIED_BYTES:
                self.exposed, lent = True, False
            if not x.is_floating_point():
                return x.clone() if lent else x.detach()
            kind = x.device.type
            cast = torch.is_autocast_enabled(kind) and (
                x.dtype != torch.get_autocast_dtype(kind)
            )
            by_reference = guarded and not cast and not lent
            return x.detach() if by_reference else x.detach().clone()

        return keep

    def _hook_output(
        self, call: Watched, i: int, outputs: int, x: Tensor, hidden: bool
    ) -> None:
        """Wait for the adjoint of one output.

        A view's own adjoint comes before its base's, which others may have added to
        (attention weights go on into the layer's output); it never comes after an
        in-place operation on the view, and then the base's is the one.
        """
        anchor = Anchor.of(x)
        receive = self._pull if hidden else self._receive
        passes: set[int] = set()

        def on_output(gradient: Tensor | None) -> None:  # None stands for zero
            passes.add(torch._C._current_graph_task_id())
            if gradient is not None:
                receive(call, i, outputs, anchor, gradient.detach())

        def on_base(gradient: Tensor | None) -> None:
            seen = torch._C._current_graph_task_id() in passes
            if gradient is not None and not seen:
                receive(call, i, outputs, anchor, anchor.view(gradient.detach()))

        self._handles.append(x.register_hook(on_output))
        if anchor.layout is not None:
            self._handles.append(anchor.tensor.register_hook(on_base))

    # -- backward ----------------------------------------------------------------

    def _counts(self, call: Watched) -> bool:
        """Whether this pass goes on to the layer's parameters.

        One for the gradient of an input (a gradient penalty) does not.
        """
        if self._replay.running:
            return False
        nodes = self._nodes[call.site.name]
        return not nodes or any(map(_will_execute, nodes))

    def _receive(
        self, call: Watched, i: int, outputs: int, anchor: Anchor, gradient: Tensor
    ) -> None:
        """Take one adjoint in; several backward passes add up."""
        if not self._counts(call):
            return
        wide = widen(gradient)
        adjoint = wide if self.scale is None else wide / self.scale
        assert call.site.rule is not None
        if not call.site.rule.together:
            self._take(call, tuple(adjoint if k == i else None for k in range(outputs)))
            return
        before = call.waiting.get(i)
        call.waiting[i] = adjoint if before is None else before + adjoint
        call.outputs = outputs

    def _on_complete(self, site: Site, gradient: Tensor | None) -> None:
        """Turn the adjoints of several outputs into rows."""
        if self._replay.running:
            return
        for call in self.calls:
            if call.site is site and call.waiting:
                adjoints = tuple(call.waiting.get(i) for i in range(call.outputs))
                call.waiting = {}
                self._take(call, adjoints)

    def _take(self, call: Watched, adjoints: tuple[Tensor | None, ...]) -> None:
        """Turn one call's adjoints into rows, while the layer is as it was."""
        assert call.site.rule is not None
        device = next(x for x in adjoints if x is not None).device
        with torch.no_grad(), _without_autocast(device.type):
            found = call.site.rule.rows(
                call.site.module,
                Call(
                    call.args,
                    call.kwargs,
                    adjoints,
                    self._batch_dim,
                    call.random,
                    call.precision,
                ),
            )
        parts = {"": found} if isinstance(found, Contributions) else found
        for part, rows in parts.items():
            before = call.rows.get(part)
            call.rows[part] = rows if before is None else before.plus(rows)

    def _pull(
        self, call: Watched, i: int, outputs: int, anchor: Anchor, gradient: Tensor
    ) -> None:
        """Pull one adjoint back to the layer's parameters, group by group."""
        if not self._counts(call):
            return
        first = 0 if getattr(call.site.module, "batch_first", False) else 1
        axis = 1 if i else first  # of last states, of the output
        self._replay.running = True
        try:
            pull_by_group(
                [(anchor, anchor.onto_base(gradient), axis)],
                trained_parameters(call.site),
                call.labelling,
                self.masked,
            )
        finally:
            self._replay.running = False

    def _on_parameter(self, name: str, gradient: Tensor) -> None:
        if self._replay.running:
            return
        total = self.reaching.get(name)
        fresh = gradient.detach()
        fresh = fresh.to_dense() if fresh.is_sparse else fresh
        self.reaching[name] = fresh.clone() if total is None else total + fresh


def _without_autocast(device: str) -> AbstractContextManager[object]:
    if not torch.is_autocast_enabled(device):  # as is usual in a backward pass
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _will_execute(node: Any) -> bool:
    """Whether the backward pass under way goes on to a leaf."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # so it answers where `autograd.grad` was asked for the leaf
        return True


def _storage(x: Tensor) -> int:
    """Tell which memory a tensor is a view of."""
    return x.untyped_storage().data_ptr()


def refuse_sharded(parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse parameters of which each process holds a shard.

    Raises:
        CaptureError: If there is one.
    """
    sharding = sys.modules.get("torch.distributed.tensor")
    if sharding is None:
        return
    for name, parameter in parameters.items():
        if isinstance(parameter, sharding.DTensor):
            raise CaptureError(
                f"Parameter '{clean_name(name)}' is sharded over processes (FSDP2, "
                "DTensor), and a shard's gradient has no groups. Train with "
                "DistributedDataParallel to watch, or watch an unsharded copy of the "
                "model on a probe."
            )
