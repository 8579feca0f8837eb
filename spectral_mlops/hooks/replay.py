"""Exact group gradients of parameters that no row rule covers.

At each output of the model the loss-side adjoint is masked to one group at a time and
pulled back to just those parameters, in the very graph of the step: the same dropout
masks, the same recomputed activations. One partial backward pass per group: slower,
exact. Samples are assigned by whose loss a gradient comes from.

NOTE: a user's own tensor hooks on the way fire again in each of these passes, and
``retain_grad`` counts them in.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.nested import tensors_in


class Running:
    """Which models a replay is under way in; hooks on their parts then rest.

    One for all captures, since nested ones would take each other's passes for
    training's; by model, since other threads may train others.
    """

    def __init__(self) -> None:
        self._parts: Counter[int] = Counter()

    def at(self, part: nn.Module | nn.Parameter) -> bool:
        """Whether a module or parameter is part of such a model."""
        return self._parts[id(part)] > 0

    @contextmanager
    def begin(self, model: nn.Module, device: torch.device) -> Iterator[None]:
        """Replay; buffers and random numbers are left as they were.

        Checkpointed blocks are computed again, and would count a batch twice.
        """
        kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
        parts = [id(part) for part in (*model.modules(), *model.parameters())]
        self._parts.update(parts)
        try:
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                yield
        finally:
            self._parts.subtract(parts)
            for part in parts:
                if not self._parts[part]:
                    del self._parts[part]
            for buffer, value in kept:
                # Past the version that autograd guards, as the kernels write too.
                buffer.data.copy_(value)


RUNNING = Running()
REENTRANT = "reentrant checkpoint: use_reentrant=False"
OUTSIDE = (
    "its gradient did not come through what the model returned (a penalty, or a "
    f"{REENTRANT})"
)

ByGroup = dict[str, dict[str, dict[str, Tensor]]]
"""``{grouping: {group: {parameter: gradient}}}``."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """The tensor that keeps an output's place in the graph.

    NOTE: ``nn.Linear`` on more than two axes returns a view of the product, and a
    recurrent layer with ``batch_first`` a transposed one. An in-place activation on
    a view rebuilds the graph from the view's *base*, and a hook on the view never
    fires; one on the base does, with the same numbers in another order.

    Attributes:
        tensor: The base, or the output itself where it is no view of all of one.
        edge: Its place in the graph, whatever becomes of the tensor in place.
        shape: Of the output.
        layout: Strides and offset of the output in the base; none where they are
            one tensor.
    """

    tensor: Tensor
    edge: GradientEdge
    shape: torch.Size
    layout: tuple[tuple[int, ...], int] | None

    @classmethod
    def of(cls, output: Tensor) -> "Anchor":
        """Find it."""
        base = output._base
        if (
            base is None
            or not (base.requires_grad and base.is_contiguous())
            or base.numel() != output.numel()
        ):
            return cls(output, get_gradient_edge(output), output.shape, None)
        layout = (
            output.stride(),
            int(output.storage_offset() - base.storage_offset()),
        )
        return cls(base, get_gradient_edge(base), output.shape, layout)

    def view(self, gradient: Tensor) -> Tensor:
        """Show a gradient of the anchor in the shape of the output."""
        if self.layout is None:
            return gradient
        strides, offset = self.layout
        return gradient.contiguous().as_strided(self.shape, strides, offset)

    def onto_base(self, adjoint: Tensor) -> Tensor:
        """Bring an adjoint of the output to the shape of the anchor."""
        if self.layout is None:
            return adjoint
        spread = adjoint.new_empty(self.tensor.shape)
        self.view(spread).copy_(adjoint)
        return spread

    def mask(self, gradient: Tensor, axis: int, samples: Tensor) -> Tensor:
        """Return a gradient of the anchor that is zero but for some samples."""
        chosen = samples.to(gradient.device)
        masked = torch.zeros_like(gradient, memory_format=torch.contiguous_format)
        part = self.view(gradient).index_select(axis, chosen)
        self.view(masked).index_copy_(axis, chosen, part)
        return masked


class Reached(NamedTuple):
    """An adjoint that is pulled back group by group.

    Attributes:
        anchor: Where its tensor stands in the graph.
        adjoint: What reached it there.
        axis: Its batch axis.
        owner: Sample of each place on that axis (of packed sequences); as many
            consecutive places of each if not given.
    """

    anchor: Anchor
    adjoint: Tensor
    axis: int
    owner: Tensor | None = None

    def masked(self, samples: Tensor, size: int) -> Tensor:
        """Return the adjoint, zero but for some of ``size`` samples."""
        if self.owner is None:
            places = unfold(samples, self.anchor.shape[self.axis] // size)
        else:
            places = torch.isin(self.owner, samples).nonzero().squeeze(1)
        return self.anchor.mask(self.adjoint, self.axis, places)


@dataclass(eq=False)
class _Output:
    """One tensor that the model returned."""

    anchor: Anchor
    labelling: Labelling
    from_others: Tensor | None = field(default=None)
    """What reached it through the model, from outputs that derive from it."""


class Replay:
    """Pull masked adjoints of the model's outputs back to some parameters.

    Args:
        model: Whose buffers are left as they are.
        parameters: Name to parameter; more may join before the backward pass.
        batch_dim: Batch axis of the model's outputs.
        folded: Rows of a sample that an output may hold, one after another.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        batch_dim: int,
        folded: int = 1,
    ) -> None:
        self._model = model
        self.parameters = dict(parameters)
        self.checked: dict[str, nn.Parameter] = {}
        """Parameters with a rule whose groups are to be seen by a replay too."""
        self.gradients: ByGroup = {}
        self.second: ByGroup = {}
        """What a replay finds for those with a rule."""
        self.labellings: list[Labelling] = []
        self.obstacle = ""
        self._batch_dim, self._folded = batch_dim, folded
        self._outputs: list[_Output] = []

    def watch(self, returned: Any, labelling: Labelling) -> Iterator[RemovableHandle]:
        """Hook every tensor that a call of the model returned.

        Args:
            returned: A tensor, or tensors nested in tuples, lists and mappings.
            labelling: Of that call.

        Yields:
            A handle per tensor.
        """
        if labelling not in self.labellings:
            self.labellings.append(labelling)
        seen: set[int] = set()
        for tensor in tensors_in(returned):
            if not tensor.requires_grad:
                continue
            anchor = Anchor.of(tensor)
            if id(anchor.tensor) in seen:  # two views of one tensor
                continue
            seen.add(id(anchor.tensor))
            output = _Output(anchor, labelling)
            self._outputs.append(output)
            yield anchor.tensor.register_hook(partial(self._on_adjoint, output))

    @property
    def reached(self) -> set[str]:
        """Names of the parameters that a replay found a gradient for."""
        return {
            name
            for groups in self.gradients.values()
            for gradients in groups.values()
            for name in gradients
        }

    def release(self) -> None:
        """Let go of the graph."""
        self._outputs = []

    def _on_adjoint(self, output: _Output, gradient: Tensor | None) -> None:
        if RUNNING.at(self._model) or gradient is None or not self._counts():
            return
        adjoint = gradient.detach()
        if output.from_others is not None:
            adjoint = adjoint - output.from_others
            output.from_others = None
        axis = self._axis(output)
        try:
            with RUNNING.begin(self._model, adjoint.device):
                self._subtract_from_others(output, adjoint)
                if axis is not None:
                    self._pull(output, adjoint, axis)
        except RuntimeError as error:
            words = ("Checkpointing is not compatible", "use_reentrant=True")
            if not any(word in str(error) for word in words):
                raise
            self.obstacle = REENTRANT

    def _pull(self, output: _Output, adjoint: Tensor, axis: int) -> None:
        for parameters, totals in (
            (self.parameters, self.gradients),
            (self.checked, self.second),
        ):
            if parameters:
                reached = [Reached(output.anchor, adjoint, axis)]
                pull_by_group(reached, parameters, output.labelling, totals)

    def _counts(self) -> bool:
        """Whether the pass under way goes on to some replayed parameter."""
        wanted = (*self.parameters.values(), *self.checked.values())
        nodes = (get_gradient_edge(p).node for p in wanted)
        return any(map(will_execute, nodes))

    def _axis(self, output: _Output) -> int | None:
        """Return the batch axis of an output, or note why there is none to be told.

        Another one than the model's is taken where it is the only one of that size
        (a time-first model may return one row per sample).
        """
        shape, size = output.anchor.shape, output.labelling.size
        fits = [i for i, n in enumerate(shape) if n in (size, size * self._folded)]
        own = self._batch_dim
        if own in fits and (own == 0 or len(fits) == 1):
            return own
        if len(fits) == 1:
            return fits[0]
        which = "no axis" if not fits else f"more than one axis ({fits})"
        self.obstacle = (
            f"the model returned a tensor of shape {tuple(shape)}, which has {which} "
            f"of {size} samples"
        )
        return None

    def _subtract_from_others(self, output: _Output, adjoint: Tensor) -> None:
        """Note what this adjoint will send to other outputs through the model.

        Those are pulled back from here; at the other output only the rest is the
        loss's own. Outputs that derive from others are reached first.
        """
        others = [other for other in self._outputs if other is not output]
        if not others:
            return
        found = torch.autograd.grad(
            [output.anchor.edge],
            [other.anchor.edge for other in others],
            [adjoint],
            retain_graph=True,
            allow_unused=True,
        )
        for other, flow in zip(others, found, strict=True):
            if flow is not None:
                before = other.from_others
                other.from_others = flow if before is None else before + flow


def will_execute(node: Any) -> bool:
    """Whether the backward pass under way goes on to a leaf."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # so it answers where `autograd.grad` was asked for the leaf
        return True


def pull_by_group(
    outputs: Sequence[Reached],
    parameters: Mapping[str, nn.Parameter],
    labelling: Labelling,
    totals: ByGroup,
) -> None:
    """Pull adjoints back to parameters, one group of samples at a time.

    Args:
        outputs: Of the same call.
        parameters: By name.
        labelling: Of the samples; an axis may hold several rows of each.
        totals: What is found is added here.
    """
    for grouping, groups in labelling.groupings.items():
        for group, samples in groups.items():
            found = torch.autograd.grad(
                [reached.anchor.edge for reached in outputs],
                list(parameters.values()),
                [reached.masked(samples, labelling.size) for reached in outputs],
                retain_graph=True,
                allow_unused=True,
            )
            sums = totals.setdefault(grouping, {}).setdefault(group, {})
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    fresh = gradient.detach()
                    fresh = fresh.to_dense() if fresh.is_sparse else fresh
                    before = sums.get(name)
                    sums[name] = fresh if before is None else before + fresh


def unfold(samples: Tensor, k: int) -> Tensor:
    """Return the rows of samples that have ``k`` consecutive rows each."""
    if k == 1:
        return samples
    return (samples.unsqueeze(1) * k + torch.arange(k)).flatten()
