"""Adjoints as the backward pass brings them, call by call."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from spectral_mlops.hooks.autocast import without_autocast
from spectral_mlops.hooks.replay import (
    RUNNING,
    Anchor,
    ByGroup,
    Reached,
    pull_by_group,
    will_execute,
)
from spectral_mlops.hooks.rows import Contributions, widen
from spectral_mlops.hooks.rules import Call
from spectral_mlops.hooks.survey import Site, Survey, trained_parameters
from spectral_mlops.hooks.watched import Watched


class Arrivals:
    """Turns the adjoints that a backward pass brings into rows.

    Args:
        survey: Of the model.
        batch_dim: Batch axis of layers without a convention of their own.

    Attributes:
        scale: What adjoints are divided by, if the loss is scaled.
        calls: Those watched so far, in the order of the forward pass.
        labellings: Identities of all labels that calls were made under.
        reaching: What reached each parameter's own tensor hook.
        lost: Why nothing is known of a layer, by its name.
        masked: Gradients by group of layers that cannot be seen into.
    """

    def __init__(self, survey: Survey, batch_dim: int) -> None:
        self.scale: Tensor | None = None
        self.calls: list[Watched] = []
        self.labellings: set[int] = set()
        self.reaching: dict[str, Tensor] = {}
        self.lost: dict[str, str] = {}
        self.masked: ByGroup = {}
        self._survey, self._batch_dim = survey, batch_dim
        self._handles: list[RemovableHandle] = []
        self._learning: dict[str, list[Any]] = {}
        """Where the graph ends in each layer's trained parameters."""

    def attach(self, parameters: bool) -> None:
        """Hook the layers' parameters; ``parameters`` for what reaches each of all."""
        for site in self._survey.sites:
            if site.rule is not None:
                own = list(trained_parameters(site).values())
                self._learning[site.name] = [get_gradient_edge(p).node for p in own]
                if site.rule.together and own:
                    # All adjoints have arrived before any weight's gradient does,
                    # and no optimizer can have changed a weight yet.
                    hook = partial(self._on_complete, site)
                    self._handles += [p.register_hook(hook) for p in own]
        if parameters:
            for parameter in self._survey.model.parameters():
                if parameter.requires_grad:
                    name = self._survey.names[id(parameter)]
                    hook = partial(self._on_parameter, name, parameter)
                    self._handles.append(parameter.register_hook(hook))

    def finish(self) -> None:
        """Turn what is still waiting into rows."""
        for site in self._survey.sites:
            self._on_complete(site, None)

    def detach(self) -> None:
        """Take every hook off, and let go of the graph."""
        while self._handles:
            self._handles.pop().remove()
        for call in self.calls:
            call.nodes, call.inside = (), None
        self._learning.clear()

    def expect(self, call: Watched, returned: list[Tensor], hidden: bool) -> None:
        """Wait for the adjoints of what a call returned.

        Args:
            call: Whose they are.
            returned: Its outputs.
            hidden: Whether the layer cannot be seen into.
        """
        if call.inside is not None:
            hook = partial(self._on_inner, call)
            self._handles.append(call.inside.node.register_prehook(hook))
        for i, x in enumerate(returned):
            if x.requires_grad:
                self._hook_output(call, i, len(returned), x, hidden)

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

        self._handles.append(_listen(x, on_output, hidden))
        if anchor.layout is not None:
            self._handles.append(_listen(anchor.tensor, on_base, hidden))

    def _counts(self, call: Watched) -> bool:
        """Whether this pass goes on to the layer's parameters.

        One for the gradient of an input (a gradient penalty) does not.
        """
        if RUNNING.at(call.site.module):
            return False
        if call.recomputed and len(self.labellings) > 1:
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
        with torch.no_grad(), without_autocast(device.type):
            found = call.site.rule.rows(
                call.site.module, self._told(call, adjoints, inner)
            )
        parts = {"": found} if isinstance(found, Contributions) else found
        for part, rows in parts.items():
            before = call.rows.get(part)
            call.rows[part] = rows if before is None else before.plus(rows)

    def _told(
        self,
        call: Watched,
        adjoints: tuple[Tensor | None, ...],
        inner: Tensor | None = None,
    ) -> Call:
        """Return the call as its rule sees it."""
        axis = call.site.batch_dim
        return Call(
            call.given,
            adjoints,
            self._batch_dim if axis is None else axis,
            call.training,
            call.state,
            call.random,
            call.precision,
            inner,
            None if call.inside is None else call.inside.kept,
        )

    def _pull(
        self, call: Watched, i: int, outputs: int, anchor: Anchor, gradient: Tensor
    ) -> None:
        """Pull one adjoint back to the layer's parameters, group by group."""
        if not self._counts(call):
            return
        rule = call.site.rule
        assert rule is not None
        if not call.rows:
            with torch.no_grad(), without_autocast(gradient.device.type):
                call.rows |= rule.known(call.site.module, self._told(call, ()))
        packed = isinstance(call.given["input"], PackedSequence)
        output = 0 if packed or getattr(call.site.module, "batch_first", False) else 1
        axis = 1 if i else output  # of last states, of the output
        owner = packed_samples(call.given["input"]) if packed and not i else None
        with RUNNING.begin(self._survey.model, gradient.device):
            pull_by_group(
                [Reached(anchor, anchor.onto_base(gradient), axis, owner)],
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


def _listen(
    x: Tensor, hook: Callable[[Tensor | None], None], first: bool
) -> RemovableHandle:
    """Hear what arrives at a tensor, after all hooks on it have had their say.

    Args:
        x: Somebody may have put hooks on it that change its gradient, or may yet.
        hook: Told the gradient.
        first: Be told before hooks that come later, which a pass that begins at the
            tensor wakes again.
    """
    node, place = x.grad_fn, x.output_nr
    if first or node is None:
        return x.register_hook(hook)
    return node.register_prehook(lambda gradients: hook(gradients[place]))


def packed_samples(given: PackedSequence) -> Tensor:
    """Return the sample behind each row of packed sequences, on the CPU."""
    order = given.sorted_indices
    places = torch.cat([torch.arange(int(n)) for n in given.batch_sizes])
    return places if order is None else order.cpu()[places]
