"""What a layer type must tell: how its calls become the contributions of samples.

A rule is one small file in ``hooks/layers/``, found by the exact type of the
layer (a subclass may compute something else), and extended from outside by
`register_rows`. What rules give is in `hooks.rows`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectral_mlops.hooks.rows import Contributions, widen
from spectral_mlops.registry import Registry


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer, as a rule sees it once its adjoints have arrived.

    Attributes:
        given: What the layer was called with, tensors detached, by the name that its
            ``forward`` has for it and in that order.
        adjoints: Derivative by each output tensor, of that tensor's shape, in the
            order in which the layer returned them; ``None`` where the loss does not
            depend on it.
        batch_dim: The batch axis of the layer's input and output, unless the layer
            has a convention of its own.
        training: Whether the layer was in training mode.
        state: What `RowRule.state` gave at the time.
        random: Random state before the call, for rules that ask for it.
        precision: What autocast computed the call in, if it did.
        inner: The adjoint at the place inside of the layer that `RowRule.inner` told,
            if one arrived there.
        kept: The tensor from inside of the layer that it told.
    """

    given: Mapping[str, Any]
    adjoints: tuple[Tensor | None, ...]
    batch_dim: int
    training: bool = True
    state: Any = None
    random: "RandomState | None" = None
    precision: torch.dtype | None = None
    inner: Tensor | None = None
    kept: Tensor | None = None

    def as_used(self, x: Tensor) -> Tensor:
        """Return an input or a weight with the digits that the call used."""
        used = x if self.precision is None else x.to(self.precision)
        return widen(used)

    @property
    def input(self) -> Tensor:
        """The layer's first argument."""
        return first(self.given)

    @property
    def adjoint(self) -> Tensor:
        """The derivative by the layer's only output."""
        found = self.adjoints[0]
        assert found is not None  # its hook would not have fired
        return found


class Inner(NamedTuple):
    """What a rule wants from inside of a call.

    Attributes:
        node: Of the graph, with one output, whose adjoint is to be noted; it comes
            after those of all the call's outputs.
        kept: A tensor of the call that autograd has saved.
    """

    node: Any
    kept: Tensor


@dataclass(frozen=True, eq=False)
class RandomState:
    """Where the random number generators stood before a call."""

    cpu: Tensor
    device: torch.device
    on_device: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        """Read the state that a layer on ``device`` draws from."""
        there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), device, there)

    @property
    def devices(self) -> list[torch.device]:
        """What ``torch.random.fork_rng`` must put back beside the CPU's state."""
        return [] if self.on_device is None else [self.device]

    def restore(self) -> None:
        """Go back; call inside ``torch.random.fork_rng``."""
        torch.set_rng_state(self.cpu)
        if self.on_device is not None:
            torch.cuda.set_rng_state(self.on_device, self.device)


class RowRule(ABC):
    """How one layer type's calls become contributions of samples.

    ``layer`` is always of the very type that the rule was registered for.
    """

    names: tuple[str, ...] = ("weight", "bias")
    """The layer's parameters that are accounted for, where they are not None."""

    saved: tuple[str, ...] | None = None
    """Arguments that autograd guards against being written to; all if None."""

    together = False
    """Whether the adjoints of several outputs are waited for, and told in one call;
    otherwise there is a call for each, and what they give is added up."""

    def parameters(self, layer: Any) -> Mapping[str, str]:
        """Return the parameters that this rule accounts for, the input's side first.

        The rule is used only where the layer holds exactly these as its own.

        Returns:
            ``{parameter name in the layer: name of the part of the layer}``; the
            part is empty where the layer is one map. Parts are the keys of `rows`.
        """
        there = (name for name in self.names if getattr(layer, name, None) is not None)
        return dict.fromkeys(there, "")

    def batch_size(
        self, layer: Any, given: Mapping[str, Any], batch_dim: int
    ) -> int | None:
        """Return how many rows a call has on its batch axis.

        None if it has no such axis; it is then replayed.
        """
        return size_of(first(given), batch_dim)

    def state(self, layer: Any) -> Any:
        """Return what a call depends on beside its inputs and may have changed since.

        Weights are not part of it: they are those of the call in its backward pass.
        """
        return None

    def draws(self, layer: Any) -> bool:
        """Return whether a call draws random numbers that `rows` must draw again."""
        return False

    def hidden(self, layer: Any, given: Mapping[str, Any]) -> str:
        """Say why a call cannot be seen into, if so; it is then pulled back by group.

        One backward pass through the layer per group: exact, without factors.
        """
        return ""

    def known(self, layer: Any, call: Call) -> dict[str, Contributions]:
        """Return what is known without adjoints of a call that cannot be seen into.

        By part; usually `InputRows` of the parts next to the layer's input.
        """
        return {}

    def inner(
        self, layer: Any, given: Mapping[str, Any], returned: Sequence[Tensor]
    ) -> Inner | None:
        """Return what is wanted from inside of a call, where its graph shows it.

        Asked in the forward pass, where nothing else manages what autograd saves.
        """
        return None

    @abstractmethod
    def rows(self, layer: Any, call: Call) -> Contributions | dict[str, Contributions]:
        """Bring one call to the common shape, views where possible.

        Called in the backward pass, when the layer is as it was in the call.

        Args:
            layer: The layer.
            call: Its inputs and adjoints, in float32 or float64.

        Returns:
            What the samples contribute, by part if there are several.
        """


ROW_RULES: Registry[type, RowRule] = Registry("row rule")


def register_rows(
    *layer_types: type[nn.Module],
) -> Callable[[type[RowRule]], type[RowRule]]:
    """File a rule class for one or more layer types; also from outside the package.

    Example:
        >>> class Scale(nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.scale = nn.Parameter(torch.ones(width))
        ...
        ...     def forward(self, x):
        ...         return x * self.scale
        >>> @register_rows(Scale)
        ... class ScaleRows(RowRule):
        ...     names = ("scale",)
        ...
        ...     def rows(self, layer, call):
        ...         return VectorRows({"scale": call.input * call.adjoint})
    """

    def file(rule: type[RowRule]) -> type[RowRule]:
        ROW_RULES.register(*layer_types)(rule())
        return rule

    return file


def first(given: Mapping[str, Any]) -> Any:
    """Return the first argument of a call."""
    return next(iter(given.values()))


def size_of(x: Tensor, axis: int, trailing: int = 0) -> int | None:
    """Return the size of an axis, if there are ``trailing`` more behind it."""
    return x.shape[axis] if x.ndim - trailing > axis else None
