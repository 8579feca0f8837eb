"""One call of a layer as rows of A and Δ, or as what its samples add to a vector.

One shape for everything between a layer and its spectrum:

* ``activation``: ``[N, S, d_in]``, samples × sharing positions × inputs;
* ``adjoint``: ``[N, S, d_out]``, the loss's derivative by the layer's output.

`Rows` holds them as they are; `VectorRows` holds the samples' parts of vector
parameters, which have no spectrum; layers whose rows would be far larger than what
they are made of (convolutions, embeddings) have forms of their own that answer the
same questions. The rules that make them are in `hooks.rules`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from spectral_mlops.errors import CaptureError
from spectral_mlops.records import QUANTITIES, Quantity

MAX_BYTES = 2**30
"""Size of a factor above which it is refused, unless asked for."""


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

    known: tuple[Quantity, ...] = QUANTITIES
    """What its rows say."""

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
class InputRows(Factored):
    """The rows of A of a call whose adjoints nobody can see.

    Attributes:
        rows: The activation, and an adjoint that stands for its shape alone.
        why: Why the adjoints are not known.
    """

    rows: Rows
    why: str
    known: tuple[Quantity, ...] = ("activation",)

    def __len__(self) -> int:
        return len(self.rows)

    def choose(self, samples: Tensor) -> Self:
        """See `Contributions`."""
        return replace(self, rows=self.rows.choose(samples))

    def fold(self, k: int) -> Self:
        """See `Contributions`."""
        return replace(self, rows=self.rows.fold(k))

    def plus(self, later: Self) -> Self:
        """The same rows: further backward passes bring adjoints."""
        return self

    def gradients(self) -> dict[str, Tensor]:
        """None: they are pulled back by group."""
        return {}

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)``."""
        return self.rows.shape

    def activation_rows(self, patches: bool = False) -> Tensor:
        """Shape ``[1, N, S, d_in]``."""
        return self.rows.activation_rows(patches)

    def adjoint_rows(self) -> Tensor:
        """Refused."""
        raise CaptureError(self.why)

    def row_counts(self, side: str) -> Tensor:
        """``S`` for every sample, less its padding."""
        return self.rows.row_counts(side)

    @property
    def nbytes(self) -> int:
        """Of the activation."""
        return self.rows.activation.nbytes

    def matrices(self) -> Tensor:
        """Refused."""
        raise CaptureError(self.why)

    def factors(self, max_bytes: int = MAX_BYTES) -> tuple[Tensor, Tensor]:
        """Refused."""
        raise CaptureError(self.why)


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


def samples_first(x: Tensor, batch_dim: int) -> Tensor:
    """Bring ``[*, d]`` with its batch axis at ``batch_dim`` to ``[N, S, d]``."""
    moved = x.movedim(batch_dim, 0)
    positions = moved.shape[1:-1].numel()
    return moved.reshape(len(moved), positions, x.shape[-1])
