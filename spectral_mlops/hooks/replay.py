"""Exact group gradients of parameters that no row rule covers.

At each output of the model the loss-side adjoint is masked to one group at a time and
pulled back to just those parameters, in the very graph of the step: the same dropout
masks, the same recomputed activations. One partial backward pass per group: slower,
exact. Samples are assigned by whose loss a gradient comes from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from spectral_mlops.hooks.groups import Labelling

REENTRANT = "reentrant checkpoint: use_reentrant=False"
OUTSIDE = (
    "its gradient did not come through what the model returned (a penalty, or a "
    f"{REENTRANT})"
)


@dataclass(eq=False)
class _Output:
    """One tensor that the model returned."""

    edge: GradientEdge
    shape: torch.Size
    labelling: Labelling
    from_others: Tensor | None = None
    """What reached it through the model, from outputs that derive from it."""


class Replay:
    """Pull masked adjoints of the model's outputs back to some parameters.

    Args:
        parameters: Name to parameter; more may join before the model returns.
        batch_dim: Batch axis of the model's outputs.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], batch_dim: int) -> None:
        self.parameters = dict(parameters)
        self.gradients: dict[str, dict[str, dict[str, Tensor]]] = {}
        self.labellings: list[Labelling] = []
        self.obstacle = ""
        self.running = False
        self._batch_dim = batch_dim
        self._outputs: list[_Output] = []

    def watch(self, returned: Any, labelling: Labelling) -> Iterator[RemovableHandle]:
        """Hook every tensor that a call of the model returned.

        Args:
            returned: A tensor, or tensors nested in tuples, lists and mappings.
            labelling: Of that call.

        Yields:
            A handle per tensor.
        """
        if not self.parameters:
            return
        if labelling not in self.labellings:
            self.labellings.append(labelling)
        for tensor in _tensors(returned):
            target = anchor(tensor)
            output = _Output(get_gradient_edge(target), tensor.shape, labelling)
            self._outputs.append(output)
            yield target.register_hook(partial(self._on_adjoint, output))

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

    def _on_adjoint(self, output: _Output, gradient: Tensor) -> None:
        if self.running or self.obstacle:
            return
        adjoint = gradient.detach()
        if output.from_others is not None:
            adjoint = adjoint - output.from_others
            output.from_others = None
        axis = self._batch_dim
        batched = len(output.shape) > axis
        if not batched or output.shape[axis] != output.labelling.size:
            self.obstacle = (
                f"the model returned a tensor of shape {tuple(output.shape)}, which "
                f"has no batch axis of {output.labelling.size}"
            )
            return
        self.running = True
        try:
            self._subtract_from_others(output, adjoint)
            for grouping, groups in output.labelling.groupings.items():
                for group, samples in groups.items():
                    self._pull(output, adjoint, grouping, group, samples)
        except RuntimeError as error:
            if "Checkpointing is not compatible" not in str(error):
                raise
            self.obstacle = REENTRANT
        finally:
            self.running = False

    def _subtract_from_others(self, output: _Output, adjoint: Tensor) -> None:
        """Note what this adjoint will send to other outputs through the model.

        Those are pulled back from here; at the other output only the rest is the
        loss's own. Outputs that derive from others are reached first.
        """
        others = [other for other in self._outputs if other is not output]
        if not others:
            return
        found = torch.autograd.grad(
            [output.edge],
            [other.edge for other in others],
            [adjoint],
            retain_graph=True,
            allow_unused=True,
        )
        for other, flow in zip(others, found, strict=True):
            if flow is not None:
                before = other.from_others
                other.from_others = flow if before is None else before + flow

    def _pull(
        self,
        output: _Output,
        adjoint: Tensor,
        grouping: str,
        group: str,
        samples: Tensor,
    ) -> None:
        """Add one group's part to its gradients."""
        chosen = samples.to(adjoint.device)
        whole = adjoint.reshape(output.shape)
        masked = torch.zeros_like(whole).index_copy(
            self._batch_dim, chosen, whole.index_select(self._batch_dim, chosen)
        )
        found = torch.autograd.grad(
            [output.edge],
            list(self.parameters.values()),
            [masked.reshape(adjoint.shape)],
            retain_graph=True,
            allow_unused=True,
        )
        totals = self.gradients.setdefault(grouping, {}).setdefault(group, {})
        for name, gradient in zip(self.parameters, found, strict=True):
            if gradient is not None:
                fresh = gradient.detach()
                before = totals.get(name)
                totals[name] = fresh if before is None else before + fresh


def anchor(output: Tensor) -> Tensor:
    """Return the tensor that keeps an output's place in the graph.

    NOTE: ``nn.Linear`` on more than two axes returns a view of the product. An
    in-place activation on a view rebuilds the graph from the view's *base*, and a
    hook on the view never fires; one on the base does, with the same adjoint.
    """
    base = output._base
    if base is None or base.shape.numel() != output.shape.numel():
        return output
    same_order = base.is_contiguous() and output.is_contiguous()
    return base if base.requires_grad and same_order else output


def _tensors(returned: Any) -> Iterator[Tensor]:
    """Yield the tensors that carry a gradient, each once."""
    seen: set[int] = set()
    waiting = [returned]
    while waiting:
        item = waiting.pop(0)
        if isinstance(item, Tensor):
            if item.requires_grad and id(item) not in seen:
                seen.add(id(item))
                yield item
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, tuple | list):
            waiting += item
