"""What every layer type must tell: its calls as rows of A and Δ.

One shape for everything between a layer and its spectrum:

* ``activation``: ``[N, S, d_in]``, samples × sharing positions × inputs;
* ``adjoint``: ``[N, S, d_out]``, the loss's derivative by the layer's output.

`Rows` holds them as they are; `VectorRows` holds the samples' parts of vector
parameters, which have no spectrum; layers whose rows would be far larger than what
they are made of (convolutions, embeddings) have forms of their own that answer the
same questions.

A rule is one small file in ``hooks/layers/``, found by the exact type of the
layer (a subclass may compute something else), and extended from outside by
`register_rows`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from spectral_mlops.errors import CaptureError
from spectral_mlops.registry import Registry

MAX_BYTES = 2**30
"""Size of a factor above which it is refused, unless asked for."""


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


class Contributions(ABC):
    """What the samples of one call contribute to some parameters."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples (or of rows on the batch axis)."""

    @abstractmethod
    def choose(self, samples: Tensor) -> Self:
        """Return the contributions of some samples (indices on any device)."""

    @abstractmethod
    def fold(self, k: int) -> Self:
        """Take ``k`` consecutive rows of the batch axis for one sample."""

    @abstractmethod
    def plus(self, later: Self) -> Self:
        """Add the adjoints of a further backward pass through the same call."""

    @abstractmethod
    def gradients(self) -> dict[str, Tensor]:
        """Return ``{parameter name in the layer: gradient}``, summed over samples.

        At the scale of the adjoints.
        """


class Factored(Contributions):
    """Contributions to a matrix that is a product of two factors."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)`` of the gradient matrix."""

    @abstractmethod
    def activation_rows(self, patches: bool = False) -> Tensor:
        """Return the rows of A for its spectrum, ``[blocks, N, S, d]``.

        Args:
            patches: Take those that re-form the gradient, where they are others.
        """

    @abstractmethod
    def adjoint_rows(self) -> Tensor:
        """Return the rows of Δ for its spectrum, ``[blocks, N, S, d]``."""

    @abstractmethod
    def row_counts(self, side: str) -> Tensor:
        """Return how many rows each sample has, ``[N]``.

        Args:
            side: ``"activation"`` for the rows of A, else those of Δ.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes kept alive."""

    def entries(self) -> Tensor | None:
        """Return sample and column of one-hot rows of A, ``[r, 2]``, if they are."""
        return None

    @abstractmethod
    def matrices(self) -> Tensor:
        """Return the gradient as a matrix, ``[blocks, d_in, d_out]``."""

    @abstractmethod
    def factors(self, max_bytes: int = MAX_BYTES) -> tuple[Tensor, Tensor]:
        """Return A and Δ whose product over rows re-forms `matrices`.

        Shapes ``[N, S, d_in]`` and ``[N, S, d_out]``, with a leading axis of blocks
        where there are several.

        Raises:
            CaptureError: If they would be larger than ``max_bytes``.
        """


@dataclass(frozen=True, eq=False)
class Rows(Factored):
    """One call of an affine layer, or the samples chosen from it.

    Attributes:
        activation: Shape ``[N, S, d_in]``.
        adjoint: Shape ``[N, S, d_out]``.
        weight: Name of the parameter whose gradient is ``ΔᵀA`` (``[d_out, d_in]``,
            or anything that it reshapes to).
        bias: Name of the parameter whose gradient is the sum of ``Δ``, if any.
        sections: Columns of ``d_out`` that mean something by themselves (gates,
            heads), by name.
        taken: Which rows are no padding, ``[N, S]``; all if None. The others are zero.
    """

    activation: Tensor
    adjoint: Tensor
    weight: str = "weight"
    bias: str | None = None
    sections: Mapping[str, slice] = field(default_factory=dict)
    taken: Tensor | None = None

    def __len__(self) -> int:
        return len(self.activation)

    def choose(self, samples: Tensor) -> Self:
        """See `Contributions`."""
        at = samples.to(self.activation.device)
        return replace(
            self,
            activation=self.activation[at],
            adjoint=self.adjoint[at],
            taken=None if self.taken is None else self.taken[at],
        )

    def fold(self, k: int) -> Self:
        """Join ``k`` consecutive rows of the batch axis along ``S``."""
        size, s, _ = self.activation.shape
        a, d = (
            x.reshape(size // k, k * s, -1) for x in (self.activation, self.adjoint)
        )
        taken = None if self.taken is None else self.taken.reshape(size // k, k * s)
        return replace(self, activation=a, adjoint=d, taken=taken)

    def plus(self, later: Self) -> Self:
        """See `Contributions`."""
        return replace(self, adjoint=self.adjoint + later.adjoint)

    def gradients(self) -> dict[str, Tensor]:
        """``ΔᵀA`` for the weight, the sum of ``Δ`` for the bias."""
        adjoint = self.adjoint.flatten(0, 1)
        found = {self.weight: adjoint.mT @ self.activation.flatten(0, 1)}
        if self.bias is not None:
            found[self.bias] = adjoint.sum(0)
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)``."""
        return self.activation.shape[-1], self.adjoint.shape[-1]

    def activation_rows(self, patches: bool = False) -> Tensor:
        """Shape ``[1, N, S, d_in]``."""
        return self.activation.unsqueeze(0)

    def adjoint_rows(self) -> Tensor:
        """Shape ``[1, N, S, d_out]``."""
        return self.adjoint.unsqueeze(0)

    @property
    def nbytes(self) -> int:
        """Of both factors."""
        return self.activation.nbytes + self.adjoint.nbytes

    def row_counts(self, side: str) -> Tensor:
        """``S`` for every sample, less its padding."""
        if self.taken is not None:
            return self.taken.sum(1).cpu()
        return torch.full((len(self),), self.activation.shape[1])

    def matrices(self) -> Tensor:
        """``AᵀΔ`` in float64, shape ``[1, d_in, d_out]``."""
        a, d = (x.flatten(0, 1).double() for x in (self.activation, self.adjoint))
        return (a.mT @ d).unsqueeze(0)

    def factors(self, max_bytes: int = MAX_BYTES) -> tuple[Tensor, Tensor]:
        """The rows themselves."""
        return self.activation, self.adjoint


@dataclass(frozen=True, eq=False)
class LaterRows(Contributions):
    """Contributions that are formed once somebody asks for them.

    For what depends on the call's own tensors alone, and has no spectrum.
    """

    samples: int
    make: Callable[[], Contributions]

    def __len__(self) -> int:
        return self.samples

    @cached_property
    def formed(self) -> Contributions:
        """The contributions."""
        with torch.no_grad():
            return self.make()

    def choose(self, samples: Tensor) -> Any:
        """See `Contributions`."""
        return self.formed.choose(samples)

    def fold(self, k: int) -> Any:
        """See `Contributions`."""
        return self.formed.fold(k)

    def plus(self, later: Self) -> Self:
        """See `Contributions`."""
        return replace(self, make=lambda: self.formed.plus(later.formed))

    def gradients(self) -> dict[str, Tensor]:
        """See `Contributions`."""
        return self.formed.gradients()


@dataclass(frozen=True, eq=False)
class VectorRows(Contributions):
    """The samples' parts of vector parameters (scales, shifts), ``[N, *shape]``."""

    parts: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def choose(self, samples: Tensor) -> Self:
        """See `Contributions`."""
        return self._each(lambda x: x[samples.to(x.device)])

    def fold(self, k: int) -> Self:
        """See `Contributions`."""
        return self._each(lambda x: x.unflatten(0, (-1, k)).sum(1))

    def plus(self, later: Self) -> Self:
        """See `Contributions`."""
        return replace(
            self, parts={name: x + later.parts[name] for name, x in self.parts.items()}
        )

    def gradients(self) -> dict[str, Tensor]:
        """The sum over samples."""
        return {name: part.sum(0) for name, part in self.parts.items()}

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, parts={name: change(x) for name, x in self.parts.items()})


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


def refuse_above(max_bytes: int, shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse a factor that is too large.

    Raises:
        CaptureError: If an array of this shape takes more than ``max_bytes``.
    """
    size = itemsize
    for n in shape:
        size *= n
    if size > max_bytes:
        raise CaptureError(
            f"The factor of shape {list(shape)} takes {size / 2**20:.0f} MiB, more "
            f"than max_bytes={max_bytes / 2**20:.0f} MiB: pass a larger max_bytes, "
            "or read the group gradients, which are formed without it."
        )


def widen(x: Tensor) -> Tensor:
    """Half-precision rows are widened before any product."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def first(given: Mapping[str, Any]) -> Any:
    """Return the first argument of a call."""
    return next(iter(given.values()))


def size_of(x: Tensor, axis: int, trailing: int = 0) -> int | None:
    """Return the size of an axis, if there are ``trailing`` more behind it."""
    return x.shape[axis] if x.ndim - trailing > axis else None


def samples_first(x: Tensor, batch_dim: int) -> Tensor:
    """Bring ``[*, d]`` with its batch axis at ``batch_dim`` to ``[N, S, d]``."""
    moved = x.movedim(batch_dim, 0)
    positions = moved.shape[1:-1].numel()
    return moved.reshape(len(moved), positions, x.shape[-1])
