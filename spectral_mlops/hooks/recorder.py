"""The hooks themselves: every call of every watched layer, with its adjoints.

A forward hook puts a *tensor* hook on each call's outputs and binds that call's
input in the closure. Never a full backward hook (in-place activations break it),
never a slot or counter on the layer (reused modules and recomputed forwards break
those). Nothing is written on the model, and every handle is removed by `detach`.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from spectral_mlops.errors import CaptureError
from spectral_mlops.hooks.graph import edges_between, used_outside
from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.nested import batch_sizes, map_tensors, tensors_in
from spectral_mlops.hooks.replay import (
    RUNNING,
    Anchor,
    Replay,
    pull_by_group,
    will_execute,
)
from spectral_mlops.hooks.rows import Contributions, widen
from spectral_mlops.hooks.rules import Call, Inner, RandomState, RowRule, first
from spectral_mlops.hooks.survey import (
    Site,
    Survey,
    trained_parameters,
)

COPIED_BYTES = 4 * 2**20
"""Inputs of the model up to this size are copied where they must last."""


@dataclass(eq=False)
class Watched:
    """One forward call of one layer; its adjoints arrive with the backward pass."""

    site: Site
    labelling: Labelling
    given: dict[str, Any]
    versions: tuple[int, ...]
    random: RandomState | None
    precision: torch.dtype | None
    training: bool
    state: Any
    recomputed: bool
    """Whether the call was made inside of a backward pass (by a checkpoint)."""
    inside: Inner | None = None
    """What the rule wants from inside of the call."""
    rows: dict[str, Contributions] = field(default_factory=dict)
    waiting: dict[int, Tensor] = field(default_factory=dict)
    """Adjoints of some of several outputs, until all have arrived."""
    outputs: int = 1
    adjoints: list[tuple[Tensor, int]] = field(default_factory=list)
    """What the backward pass brought, each with its version then."""
    edges: Counter[int] = field(default_factory=Counter)
    """How often the call's own part of the graph uses each leaf."""
    nodes: tuple[Any, ...] = ()
    """Where the call's outputs stand in the graph."""

    def unchanged(self) -> bool:
        """Whether inputs and adjoints kept by reference are still what they were."""
        kept = tensors_in(self.given)
        same = self.versions == tuple(x._version for x in kept)
        return same and all(x._version == version for x, version in self.adjoints)


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
        self._lasting = lasting
        self.labelling = labelling
        self.scale: Tensor | None = None
        self.coarse = False
        self.calls: list[Watched] = []
        self.reaching: dict[str, Tensor] = {}
        self.unbatched: dict[str, str] = {}
        self.lost: dict[str, str] = {}
        self.hidden: dict[str, str] = {}
        self.masked: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._survey = survey
        self._model, self._sites = survey.model, survey.sites
        self._batch_dim, self._folded = batch_dim, folded
        self._parameters, self._replay = parameters, replay
        self._handles: list[RemovableHandle] = []
        self._on_modules: list[RemovableHandle] = []
        self._states: dict[int, list[RandomState]] = {}
        self._learning: dict[str, list[Any]] = {}
        """Where the graph ends in each layer's trained parameters."""
        self._given: set[int] = set()
        self._numbered = False
        """Whether the model was given a whole number for every sample."""
        self._labellings = {id(labelling)}

    # -- attaching ---------------------------------------------------------------

    def attach(self) -> None:
        """Put the hooks on; `detach` must follow, whatever happens."""
        keep = self._handles.append
        self._attach_modules()
        for site in self._sites:
            if site.rule is not None:
                own = list(trained_parameters(site).values())
                self._learning[site.name] = [get_gradient_edge(p).node for p in own]
                if site.rule.together and own:
                    # All adjoints have arrived before any weight's gradient does,
                    # and no optimizer can have changed a weight yet.
                    hook = partial(self._on_complete, site)
                    self._handles += [p.register_hook(hook) for p in own]
        if self._parameters:
            for parameter in self._model.parameters():
                if parameter.requires_grad:
                    name = self._survey.names[id(parameter)]
                    hook = partial(self._on_parameter, name, parameter)
                    keep(parameter.register_hook(hook))

    def detach(self) -> None:
        """Take every hook off, those on output tensors included."""
        try:
            for site in self._sites:
                self._on_complete(site, None)
        finally:
            self._detach_modules()
            while self._handles:
                self._handles.pop().remove()
            for call in self.calls:
                call.nodes, call.inside = (), None
            self._states.clear()
            self._learning.clear()
            self._replay.release()

    def _attach_modules(self) -> None:
        keep = self._on_modules.append
        root = self._model
        keep(root.register_forward_pre_hook(Hook(self._on_root), with_kwargs=True))
        for site in self._sites:
            if site.rule is None:
                continue
            if type(site.rule).draws is not RowRule.draws:
                hook = Hook(partial(self._on_draw, site))
                keep(site.module.register_forward_pre_hook(hook))
            # First of all, so that a user's own hook may change what is returned.
            hook = Hook(partial(self._on_forward, site))
            keep(
                site.module.register_forward_hook(hook, prepend=True, with_kwargs=True)
            )
        keep(root.register_forward_hook(Hook(self._on_return)))

    def _detach_modules(self) -> None:
        while self._on_modules:
            self._on_modules.pop().remove()

    # -- forward -----------------------------------------------------------------

    def _on_root(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Check that the labels describe the batch the model is called with."""
        if not torch.is_grad_enabled():
            # PyTorch's transformer takes its fast path only where no hook is, so the
            # call's end is waited for from outside of the model.
            self._detach_modules()
            end = register_module_forward_hook(self._on_end, always_call=True)
            self._on_modules.append(end)
            return
        self._refuse_functional(self._survey.swapped())
        self._labellings.add(id(self.labelling))
        given = tensors_in((args, kwargs))
        self._given |= {_storage(x) for x in given}
        if self._lasting:
            self._given |= {_storage(x) for x in module.buffers()}
        self._numbered |= any(
            x.ndim == 1 and not x.is_floating_point() and len(x) == self.labelling.size
            for x in given
        )
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

    @staticmethod
    def _refuse_functional(swapped: bool) -> None:
        inside = torch._C._functorch.peek_interpreter_stack() is not None
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
                kept = (x for c in self.calls for x in tensors_in(c.given))
                self.exposed |= any(_storage(x) in shown for x in kept)
            self._look_outside(output)
            self._handles += self._replay.watch(output, self.labelling)

    def _look_outside(self, output: Any) -> None:
        """Replay parameters that are also used outside of their layers.

        Looked for once in the life of a survey: a function of a layer's weight (the
        usual way to tie an output to an embedding) is no call of the layer.
        """
        survey = self._survey
        if survey.outside is None:
            batch = {self.labelling.size, self.labelling.size * self._folded}
            shown = [x for x in tensors_in(output) if batch & set(x.shape)]
            if not any(x.grad_fn for x in shown):
                return
            survey.outside = used_outside(shown, survey.sites, self.calls)
            for call in self.calls:
                call.nodes = ()
        for site in self._sites:
            if survey.outside.intersection(site.parameters.values()):
                more = trained_parameters(site)
                self._replay.parameters |= {
                    name: p for name, p in more.items() if name in survey.outside
                }

    def _on_end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After a call without gradients, also a failed one, watch again."""
        if module is self._model:
            self._detach_modules()
            self._attach_modules()

    def _on_draw(self, site: Site, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Note where the random numbers stand before a call that draws some."""
        assert site.rule is not None
        watched = torch.is_grad_enabled() and not RUNNING.at(layer)
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
        if RUNNING.at(layer):  # a checkpoint recomputes for the replay
            return
        returned = [x for x in tensors_in(output) if x.is_floating_point()]
        complex_ = any(x.is_complex() for x in tensors_in(output))
        if not (complex_ or any(x.requires_grad for x in returned)):
            return
        self._refuse_functional(site.swapped())
        rule = site.rule
        assert rule is not None
        given = _named(type(layer), args, kwargs)
        why_not = self._why_not(site, given, complex_)
        if why_not:
            self.unbatched[site.name] = f"'{site.name}' {why_not}"
            self._replay.parameters |= trained_parameters(site)
            return
        device = returned[0].device.type
        cast = _autocast(device)
        self.coarse |= cast
        kept: dict[str, Any] = {}
        known: dict[int, Tensor] = {}
        for name, value in given.items():
            kept[name] = map_tensors(self._keeper(site, name), value, known)
        call = Watched(
            site=site,
            labelling=self.labelling,
            given=kept,
            versions=tuple(x._version for x in tensors_in(kept)),
            random=random,
            precision=torch.get_autocast_dtype(device) if cast else None,
            training=layer.training,
            state=rule.state(layer),
            recomputed=torch._C._current_graph_task_id() != -1,
        )
        self.calls.append(call)
        if self._survey.outside is None:
            call.edges = edges_between(returned, tensors_in(given))
            call.nodes = tuple(x.grad_fn for x in returned if x.grad_fn is not None)
        self._look_inside(rule, call, given, returned)
        hidden = rule.hidden(layer, given)
        self.hidden |= {site.name: hidden} if hidden else {}
        for i, x in enumerate(returned):
            if x.requires_grad:
                self._hook_output(call, i, len(returned), x, bool(hidden))

    def _look_inside(
        self,
        rule: RowRule,
        call: Watched,
        given: Mapping[str, Any],
        returned: list[Tensor],
    ) -> None:
        """Note adjoints inside of a call, where its rule finds their place.

        Not where somebody else keeps what autograd saves (a checkpoint, offloading).
        """
        if type(rule).inner is RowRule.inner or _saving_is_managed():
            return
        call.inside = rule.inner(call.site.module, given, returned)
        if call.inside is not None:
            hook = partial(self._on_inner, call)
            self._handles.append(call.inside.node.register_prehook(hook))

    def _why_not(self, site: Site, given: Mapping[str, Any], complex_: bool) -> str:
        """Say why a call cannot be seen as rows of samples, if so: it is replayed."""
        assert site.rule is not None
        n, x = self.labelling.size, first(given)
        hidden = site.rule.hidden(site.module, given)
        if hidden and isinstance(x, PackedSequence):
            return hidden
        if complex_:
            return "has complex numbers"
        axis = self._batch_dim if site.batch_dim is None else site.batch_dim
        size = site.rule.batch_size(site.module, given, axis)
        inside = site.batch_dim is not None and isinstance(x, Tensor) and x.ndim < 3
        if size is None or inside:
            return "called without batch axis"
        if isinstance(x, Tensor) and self._is_no_batch(x):
            return "called on something that is no batch"
        folded = isinstance(x, Tensor) and x.is_floating_point() and n and not size % n
        seen = self._survey.without_batch
        if site.name in seen or not (size in (n, n * self._folded) or folded):
            why = f"called on {size} rows, which are not those of {n} samples"
            return seen.setdefault(site.name, why)
        return ""

    def _is_no_batch(self, x: Tensor) -> bool:
        """Whether an input is a parameter, or positions counted from zero."""
        n = self.labelling.size
        if self._is_own(x):  # unless it was repeated for every sample
            strides = zip(x.shape, x.stride(), strict=True)
            return not any(size == n and step == 0 for size, step in strides)
        counted = x.ndim == 1 and not (x.is_floating_point() or x.is_complex())
        if not counted or self._numbered or _storage(x) in self._given:
            return False
        return torch.equal(x, torch.arange(len(x), dtype=x.dtype, device=x.device))

    def _is_own(self, x: Tensor) -> bool:
        """Whether it is a parameter of the model, or a view of one."""
        return id(x if x._base is None else x._base) in self._survey.names

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
            cast = _autocast(kind) and x.dtype != torch.get_autocast_dtype(kind)
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
        if RUNNING.at(call.site.module):
            return False
        if call.recomputed and len(self._labellings) > 1:
            self.lost[call.site.name] = (
                "computed again after relabel, by a reentrant checkpoint: "
                "use_reentrant=False"
            )
            return False
        own = self._learning[call.site.name]
        return not own or any(map(will_execute, own))

    def _receive(
        self, call: Watched, i: int, outputs: int, anchor: Anchor, gradient: Tensor
    ) -> None:
        """Take one adjoint in; several backward passes add up."""
        if not self._counts(call):
            return
        wide = widen(gradient)
        if wide is gradient and self.scale is None:  # kept as it is, not a copy
            call.adjoints.append((gradient, gradient._version))
        adjoint = wide if self.scale is None else wide / self.scale
        assert call.site.rule is not None
        together = call.site.rule.together and self._learning[call.site.name]
        if not (together or call.inside):
            self._take(call, tuple(adjoint if k == i else None for k in range(outputs)))
            return
        before = call.waiting.get(i)
        call.waiting[i] = adjoint if before is None else before + adjoint
        call.outputs = outputs

    def _on_inner(self, call: Watched, gradients: tuple[Tensor | None, ...]) -> None:
        """Take in the adjoint inside of a call; those of its outputs have arrived."""
        gradient = gradients[0]
        if gradient is None or not (call.waiting and self._counts(call)):
            return
        adjoint = widen(gradient.detach())
        self._complete(call, adjoint if self.scale is None else adjoint / self.scale)

    def _on_complete(self, site: Site, gradient: Tensor | None) -> None:
        """Turn the adjoints of several outputs into rows."""
        if RUNNING.at(site.module):
            return
        for call in self.calls:
            if call.site is site and call.waiting:
                self._complete(call)

    def _complete(self, call: Watched, inner: Tensor | None = None) -> None:
        adjoints = tuple(call.waiting.get(i) for i in range(call.outputs))
        call.waiting = {}
        self._take(call, adjoints, inner)

    def _take(
        self,
        call: Watched,
        adjoints: tuple[Tensor | None, ...],
        inner: Tensor | None = None,
    ) -> None:
        """Turn one call's adjoints into rows, while the layer is as it was."""
        assert call.site.rule is not None
        device = next(x for x in adjoints if x is not None).device
        axis = call.site.batch_dim
        with torch.no_grad(), _without_autocast(device.type):
            found = call.site.rule.rows(
                call.site.module,
                Call(
                    call.given,
                    adjoints,
                    self._batch_dim if axis is None else axis,
                    call.training,
                    call.state,
                    call.random,
                    call.precision,
                    inner,
                    None if call.inside is None else call.inside.kept,
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
        with RUNNING.begin(self._model, gradient.device):
            pull_by_group(
                [(anchor, anchor.onto_base(gradient), axis)],
                trained_parameters(call.site),
                call.labelling,
                self.masked,
            )

    def _on_parameter(
        self, name: str, parameter: nn.Parameter, gradient: Tensor
    ) -> None:
        if RUNNING.at(parameter):
            return
        total = self.reaching.get(name)
        fresh = gradient.detach()
        fresh = fresh.to_dense() if fresh.is_sparse else fresh
        self.reaching[name] = fresh.clone() if total is None else total + fresh


def _saving_is_managed() -> bool:
    """Whether hooks pack what autograd saves; unpacking it would wake them."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _autocast(device: str) -> bool:
    """Whether autocast is on; some devices (meta) know none."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    if not _autocast(device):  # as is usual in a backward pass
        return nullcontext()
    return torch.autocast(device, enabled=False)


class Hook:
    """A hook that copies of the model, made in the meantime, do not take along."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return no_hook

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _give_no_hook, ()


def _give_no_hook() -> Callable[..., None]:
    return no_hook


def no_hook(*args: Any, **kwargs: Any) -> None:
    """What stands in a copied or saved model in the place of a hook."""


_NAMES: dict[type, tuple[str, ...]] = {}
"""What the forward of a type calls its arguments."""


def _named(
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
