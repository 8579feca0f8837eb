"""What is left of a layer's rows between the training step and the solver.

Plain data: small float64 Gram matrices, who they belong to and what is needed to
judge the values they give. Nothing here is written to after it was made, so it may
be handed to another thread.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float64).eps
SAFE_EXPONENT = 200
"""Numbers within 2^±200 can be squared twice; float32 ones always are."""


def safe_exponent(x: Tensor) -> int:
    """Return the power of two to divide by so that squares stay in range.

    Zero for all but float64, and there for ordinary numbers. NOTE: reads one
    number back, so float64 rows on a GPU wait for it.
    """
    if x.dtype != torch.float64 or not x.numel():
        return 0
    largest = float(torch.linalg.vector_norm(x.detach(), torch.inf))
    if not math.isfinite(largest):
        finite = x.detach().abs().nan_to_num(0.0, 0.0, 0.0)
        largest = float(finite.max())
    exponent = math.frexp(largest)[1]
    return exponent if abs(exponent) > SAFE_EXPONENT else 0


def divide(x: Tensor, exponent: int) -> Tensor:
    """Return ``x / 2^exponent`` in float64; in two steps, as 2^1024 is no number."""
    x = x.to(torch.float64)
    if exponent:
        half = exponent // 2
        x = x * 2.0**-half * 2.0 ** -(exponent - half)
    return x


def rounding(x: Tensor) -> float:
    """Return the relative rounding of rows: half-precision ones count as float32.

    They are widened before any product, so nothing but their storage is coarse.
    """
    return EPSILON if x.dtype == torch.float64 else torch.finfo(torch.float32).eps


class Key(NamedTuple):
    """Whose spectrum it is.

    Attributes:
        layer: The name given to the layer.
        group: Position of the group.
        quantity: ``gradient``, ``activation`` or ``adjoint``.
    """

    layer: Hashable
    group: int
    quantity: str


@dataclass(frozen=True, eq=False)
class Source:
    """The rows that two row Grams were made of, for the QR route.

    Held by reference until solved. A later in-place write would make them another
    batch's rows, so `rows` refuses what has been written to.

    Attributes:
        activation: Shape ``[B, N, S, d_in]``.
        adjoint: Shape ``[B, N, S, d_out]``.
        samples: Per member of the reduced problem, its samples.
        versions: Of both tensors, when the Grams were made.
        exponents: Powers of two that A and Δ were divided by.
    """

    activation: Tensor
    adjoint: Tensor
    samples: list[Tensor]
    versions: tuple[int, int]
    exponents: tuple[int, int]

    def rows(self, member: int, block: int) -> tuple[Tensor, Tensor] | None:
        """Return ``A_g`` and ``Δ_g`` as they were reduced, ``[r, d]``, on the CPU.

        None if they have been written to.
        """
        both = (self.activation, self.adjoint)
        if tuple(x._version for x in both) != self.versions:
            return None
        samples = self.samples[member]
        a, d = (
            divide(x[block].index_select(0, samples.to(x.device)).flatten(0, 1), e)
            for x, e in zip(both, self.exponents, strict=True)
        )
        return a.cpu(), d.cpu()


class Tail(NamedTuple):
    """What is known of a whole matrix that only leading values are taken of.

    Attributes:
        energy: ``‖X‖_F²``, shape ``[b·B]``.
        fourth: ``‖X Xᵀ‖_F²``, shape ``[b·B]``.
    """

    energy: Tensor
    fourth: Tensor


@dataclass(frozen=True, eq=False)
class Reduced:
    """Problems of one shape: ``b`` members of ``B`` blocks each.

    The spectrum of a member is the union of its blocks' spectra.

    Attributes:
        keys: Of the members, length ``b``.
        sizes: Number of values of one block of each member; what the Gram holds
            beyond them is padding.
        gram: ``X Xᵀ`` of the matrix whose values are asked for, or ``K_A`` if
            there is another; shape ``[b·B, m, m]``, float64, blocks innermost.
        other: ``K_Δ``; the values asked for are then those of ``AᵀΔ``.
        blocks: ``B``.
        coarse: Rounding of the rows themselves, relative.
        exponents: Per member, the power of two that its values are to be
            multiplied by.
        noise: Rounding of the matrix itself, absolute, shape ``[b·B]``.
        source: For the QR route.
        tail: Of matrices that only the leading values are asked of.
        status: ``ok``, or why there is nothing to solve.
        ready: Recorded behind the copies to the CPU, where there were any.
    """

    keys: list[Key]
    sizes: list[int]
    gram: Tensor
    other: Tensor | None
    blocks: int
    coarse: float
    exponents: list[int]
    noise: Tensor | None = None
    source: Source | None = None
    tail: Tail | None = None
    status: str = "ok"
    ready: "torch.cuda.Event | None" = None

    def wait(self) -> None:
        """Wait until the matrices are on the CPU; any thread may."""
        if self.ready is not None:
            self.ready.synchronize()

    @property
    def nbytes(self) -> int:
        """Bytes kept alive, rows held by reference included."""
        kept = [self.gram, self.other, self.noise]
        if self.source is not None:
            kept += [self.source.activation, self.source.adjoint]
        return sum(x.numel() * x.element_size() for x in kept if x is not None)


def unsolvable(keys: list[Key], sizes: list[int], status: str = "ok") -> Reduced:
    """Members with nothing to solve: without rows, or failed on the way."""
    return Reduced(
        keys=keys,
        sizes=sizes,
        gram=torch.zeros(len(keys), 0, 0, dtype=torch.float64),
        other=None,
        blocks=1,
        coarse=EPSILON,
        exponents=[0] * len(keys),
        status=status,
    )


def to_host(problem: Reduced) -> Reduced:
    """Start copying a GPU's matrices to pinned memory, beside the training stream.

    Nothing waits here: `Reduced.wait` does, on the thread that solves.
    """
    if not problem.gram.is_cuda:
        return problem
    device = problem.gram.device
    side = _SIDE_STREAMS.setdefault(device, torch.cuda.Stream(device))
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        gram, other, noise = (
            _pinned_copy(x, side) for x in (problem.gram, problem.other, problem.noise)
        )
        ready = torch.cuda.Event()
        ready.record(side)
    assert gram is not None
    return replace(problem, gram=gram, other=other, noise=noise, ready=ready)


_SIDE_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _pinned_copy(x: Tensor | None, side: torch.cuda.Stream) -> Tensor | None:
    if x is None:
        return None
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    x.record_stream(side)  # the allocator must not hand it out before it is copied
    return host
