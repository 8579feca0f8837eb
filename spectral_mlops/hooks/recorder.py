"""The hooks themselves: every call of every watched layer, with its adjoints.

A forward hook puts a *tensor* hook on each call's outputs and binds that call's
input in the closure. Never a full backward hook (in-place activations break it),
never a slot or counter on the layer (reused modules and recomputed forwards break
those). Nothing is written on the model, and every handle is removed by `detach`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from spectral_mlops.errors import CaptureError
from spectral_mlops.hooks.arrivals import Arrivals
from spectral_mlops.hooks.autocast import autocast_is_on
from spectral_mlops.hooks.graph import edges_between, nodes_of, used_outside
from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.hook import Hook
from spectral_mlops.hooks.inputs import Inputs, named
from spectral_mlops.hooks.nested import batch_sizes, tensors_in
from spectral_mlops.hooks.replay import RUNNING, Replay
from spectral_mlops.hooks.rules import Inner, RandomState, RowRule, first
from spectral_mlops.hooks.survey import Site, Survey, trained_parameters
from spectral_mlops.hooks.watched import Watched


class Recorder:
    """Record the calls of some layers while attached.

    Args:
        survey: Of the model, whose own calls are checked against the labels; its
            layers without a rule are left alone.
        labelling: Of the calls to come; may be exchanged between forward calls.
        batch_dim: Batch axis of the model's inputs.
        folded: Rows of a sample that a call of the model itself may hold.
        parameters: Also record what reaches each parameter's own tensor hook.
        lasting: See `inputs.Inputs`.
        replay: Of the parameters that no rule covers.

    Attributes:
        survey: See above.
        begun: Whether it was ever attached.
        arrivals: What the backward pass brought.
        coarse: Whether a call was made under autocast.
        unbatched: Why the calls of a layer are no rows of samples, by its name.
        hidden: Why calls of a layer cannot be seen into, by its name.
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
        self.labelling = labelling
        self.inputs = Inputs(survey, lasting)
        self.arrivals = Arrivals(survey, batch_dim)
        self.coarse = False
        self.unbatched: dict[str, str] = {}
        self.hidden: dict[str, str] = {}
        self.survey = survey
        self.begun = False
        self._model, self._sites = survey.model, survey.sites
        self._untouched = {
            id(site.module): site
            for site in survey.sites
            if site.untouched and site.rule is not None
        }
        self._batch_dim, self._folded = batch_dim, folded
        self._parameters, self._replay = parameters, replay
        self._handles: list[RemovableHandle] = []
        self._on_modules: list[RemovableHandle] = []
        self._states: dict[int, RandomState] = {}
        self.arrivals.labellings.add(id(labelling))

    # -- attaching ---------------------------------------------------------------

    def attach(self) -> None:
        """Put the hooks on; `detach` must follow, whatever happens."""
        self.begun = True
        self._attach_modules()
        self.arrivals.attach(self._parameters)

    def detach(self) -> None:
        """Take every hook off, those on output tensors included."""
        try:
            self.arrivals.finish()
        finally:
            self._detach_modules()
            while self._handles:
                self._handles.pop().remove()
            self.arrivals.detach()
            self._states.clear()
            self._replay.release()

    def _attach_modules(self) -> None:
        keep = self._on_modules.append
        root = self._model
        keep(root.register_forward_pre_hook(Hook(self._on_root), with_kwargs=True))
        if self._untouched:
            keep(register_module_forward_pre_hook(self._before_any))
            keep(register_module_forward_hook(self._after_any, with_kwargs=True))
        for site in self._sites:
            if site.rule is None or site.untouched:
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

    def _before_any(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """See whether a layer that no hook may be put on is about to be called."""
        site = self._untouched.get(id(module))
        if site is not None:
            self._on_draw(site, module, args)

    def _after_any(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        """See whether it was a layer that no hook may be put on."""
        site = self._untouched.get(id(module))
        if site is not None:
            self._on_forward(site, module, args, kwargs, output)

    def _detach_modules(self) -> None:
        while self._on_modules:
            handle = self._on_modules.pop()
            handle.remove()
            # PyTorch leaves this mark of a hook on all modules behind, and then takes
            # the hook to be there still (`torch.compile` warns of it).
            _global_forward_hooks_with_kwargs.pop(handle.id, None)

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
        self._refuse_functional(self.survey.swapped())
        self.arrivals.labellings.add(id(self.labelling))
        given = tensors_in((args, kwargs))
        if any(x.is_nested for x in given):
            raise CaptureError(
                "The model is called with a nested tensor, whose rows have no sample "
                "axis to count: pad it, or pack the sequences."
            )
        self.inputs.note(given, self.labelling.size)
        sizes = batch_sizes((args, kwargs), self._batch_dim)
        n = self.labelling.size
        if not sizes:
            shapes = [tuple(x.shape) for x in given if x.ndim]
            if shapes:
                raise CaptureError(
                    f"batch_dim={self._batch_dim}, and the model is called with "
                    f"{shapes[0]}, which has no axis {self._batch_dim} (they count "
                    "from 0): set batch_dim= to the axis of samples."
                )
            return
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
            self.inputs.note_shown(output, self.arrivals.calls)
            self._look_outside(output)
            self._handles += self._replay.watch(output, self.labelling)

    def _look_outside(self, output: Any) -> None:
        """Replay parameters that are also used outside of their layers.

        Looked for once in the life of a survey: a function of a layer's weight (the
        usual way to tie an output to an embedding) is no call of the layer.
        """
        survey = self.survey
        if survey.outside is None:
            batch = {self.labelling.size, self.labelling.size * self._folded}
            shown = [x for x in tensors_in(output) if batch & set(x.shape)]
            if not any(x.grad_fn for x in shown):
                return
            survey.outside = used_outside(shown, survey.sites, self.arrivals.calls)
            for call in self.arrivals.calls:
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
        self._states.pop(id(layer), None)  # of a call that failed
        watched = torch.is_grad_enabled() and not RUNNING.at(layer)
        if watched and site.rule.draws(layer):
            device = next(layer.parameters()).device
            self._states[id(layer)] = RandomState.now(device)

    def _on_forward(
        self,
        site: Site,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        random = self._states.pop(id(layer), None)
        if RUNNING.at(layer):  # a checkpoint recomputes for the replay
            return
        returned = [x for x in tensors_in(output) if x.is_floating_point()]
        complex_ = any(x.is_complex() for x in tensors_in(output))
        if not (complex_ or any(x.requires_grad for x in returned)):
            return
        self._refuse_functional(site.swapped())
        rule = site.rule
        assert rule is not None
        given = named(type(layer), args, kwargs)
        why_not = self._why_not(site, given, complex_)
        if why_not:
            self.unbatched[site.name] = f"'{site.name}' {why_not}"
            self._replay.parameters |= trained_parameters(site)
            return
        device = returned[0].device.type
        cast = autocast_is_on(device)
        self.coarse |= cast
        kept = self.inputs.keep(site, given)
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
        self.arrivals.calls.append(call)
        if self.survey.outside is None:
            call.edges = edges_between(returned, tensors_in(given))
            call.nodes = nodes_of(returned)
        call.inside = self._inside_of(call, given, returned)
        hidden = rule.hidden(layer, given)
        self.hidden |= {site.name: hidden} if hidden else {}
        self.arrivals.expect(call, returned, bool(hidden))

    @staticmethod
    def _inside_of(
        call: Watched, given: Mapping[str, Any], returned: list[Tensor]
    ) -> Inner | None:
        """Find what a rule wants from inside of a call.

        Not where somebody else keeps what autograd saves (a checkpoint, offloading).
        """
        rule = call.site.rule
        assert rule is not None
        if type(rule).inner is RowRule.inner or _saving_is_managed():
            return None
        return rule.inner(call.site.module, given, returned)

    def _why_not(self, site: Site, given: Mapping[str, Any], complex_: bool) -> str:
        """Say why a call cannot be seen as rows of samples, if so: it is replayed."""
        assert site.rule is not None
        n, x = self.labelling.size, first(given)
        if complex_:
            return "has complex numbers"
        if any(x.is_nested for x in tensors_in(given)):
            return "called with a nested tensor"
        axis = self._batch_dim if site.batch_dim is None else site.batch_dim
        size = site.rule.batch_size(site.module, given, axis)
        inside = site.batch_dim is not None and isinstance(x, Tensor) and x.ndim < 3
        if size is None or inside:
            return "called without batch axis"
        if isinstance(x, Tensor) and self.inputs.is_no_batch(x, n):
            return "called on something that is no batch"
        folded = isinstance(x, Tensor) and x.is_floating_point() and n and not size % n
        seen = self.survey.without_batch
        if site.name in seen or not (size in (n, n * self._folded) or folded):
            why = f"called on {size} rows, which are not those of {n} samples"
            return seen.setdefault(site.name, why)
        return ""


def _saving_is_managed() -> bool:
    """Whether hooks pack what autograd saves; unpacking it would wake them."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
