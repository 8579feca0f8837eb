"""Convolutions and their transposes in one, two and three dimensions.

The gradient of a convolution is formed by PyTorch's own kernel on the samples
chosen; patches are unfolded only when they are asked for. With ``G`` groups of
channels there are ``G`` independent maps (*blocks*) of ``C_in/G · k`` inputs and
``C_out/G`` outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_mlops.hooks.rows import MAX_BYTES, Factored, refuse_above, widen
from spectral_mlops.hooks.rules import Call, RowRule, first, register_rows, size_of


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input."""

    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    transposed: bool
    bias: bool
    beforehand: tuple[int, ...]
    """Padding that the input gets first, as ``F.pad`` takes it (last axis first)."""
    mode: str
    """What it is padded with."""

    @classmethod
    def of(cls, layer: Any) -> "Geometry":
        """Read it from a layer, for kernels that take one padding per axis."""
        axes = len(layer.kernel_size)
        explicit = isinstance(layer.padding, str) or layer.padding_mode != "zeros"
        return cls(
            weight=tuple(layer.weight.shape),
            stride=layer.stride,
            padding=(0,) * axes if explicit else layer.padding,
            dilation=layer.dilation,
            output_padding=layer.output_padding,
            groups=layer.groups,
            transposed=layer.transposed,
            bias=layer.bias is not None,
            beforehand=(
                tuple(layer._reversed_padding_repeated_twice) if explicit else ()
            ),
            mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode,
        )

    @property
    def kernel(self) -> tuple[int, ...]:
        """Its size along each axis."""
        return self.weight[2:]


@dataclass(frozen=True, eq=False)
class ConvolutionRows(Factored):
    """One call of a convolution.

    Attributes:
        input: Shape ``[N·k, C_in, *]``.
        adjoint: Shape ``[N·k, C_out, *]``.
        geometry: Of the layer.
        folded: ``k``, rows of the batch axis per sample.
    """

    input: Tensor
    adjoint: Tensor
    geometry: Geometry
    folded: int = 1

    def __len__(self) -> int:
        return len(self.input) // self.folded

    def choose(self, samples: Tensor) -> Self:
        """See `Contributions`."""
        at = samples.to(self.input.device)
        if self.folded > 1:
            within = torch.arange(self.folded, device=at.device)
            at = (at.unsqueeze(1) * self.folded + within).flatten()
        return replace(self, input=self.input[at], adjoint=self.adjoint[at])

    def fold(self, k: int) -> Self:
        """See `Contributions`."""
        return replace(self, folded=k)

    def plus(self, later: Self) -> Self:
        """See `Contributions`."""
        return replace(self, adjoint=self.adjoint + later.adjoint)

    def gradients(self) -> dict[str, Tensor]:
        """What PyTorch's own backward kernel gives for these samples."""
        g = self.geometry
        if len(self.input) == 0:
            weight, bias = self.input.new_zeros(g.weight), self._shift()
        else:
            x = self._padded()
            # The weight's values enter the gradient by the input only.
            _, weight, bias = torch.ops.aten.convolution_backward(
                self.adjoint, x, x.new_empty(g.weight), [self.adjoint.shape[1]],
                g.stride, g.padding, g.dilation, g.transposed, g.output_padding,
                g.groups, [False, True, g.bias],
            )  # fmt: skip
        return {"weight": weight, "bias": bias} if g.bias else {"weight": weight}

    @property
    def shape(self) -> tuple[int, int]:
        """``(C_in/G · k, C_out)``."""
        g = self.geometry
        inputs = self.input.shape[1] // g.groups
        return inputs * torch.Size(g.kernel).numel(), self.adjoint.shape[1]

    def activation_rows(self, patches: bool = False) -> Tensor:
        """Positions × channels of the input, ``[G, N, positions, C_in/G]``."""
        if not patches:
            return self._by_position(self.input)
        rows = self.factors()[0]
        return rows if rows.ndim == 4 else rows.unsqueeze(0)

    def adjoint_rows(self) -> Tensor:
        """Positions × channels of the output, ``[G, N, positions, C_out/G]``."""
        return self._by_position(self.adjoint)

    @property
    def nbytes(self) -> int:
        """Of the input and the adjoint."""
        return self.input.nbytes + self.adjoint.nbytes

    def row_counts(self, side: str) -> Tensor:
        """Positions of the input or the output, of all rows of a sample."""
        x = self.input if side == "activation" else self.adjoint
        return torch.full((len(self),), self.folded * x.shape[2:].numel())

    def matrices(self) -> Tensor:
        """The gradient as ``[G, C_in/G · k, C_out/G]``."""
        g, weight = self.geometry, self.gradients()["weight"]
        if g.transposed:  # [C_in, C_out/G, *k]
            blocks = weight.flatten(2).unflatten(0, (g.groups, -1)).mT
            return blocks.flatten(1, 2)  # [G, C_in/G · k, C_out/G]
        return weight.flatten(1).unflatten(0, (g.groups, -1)).mT

    def factors(self, max_bytes: int = MAX_BYTES) -> tuple[Tensor, Tensor]:
        """Unfolded patches and the adjoint's rows, ``[G, N, S, d]`` (no G if 1).

        The inputs of a patch stand as the weight has them: channel, then kernel.
        """
        g, d_in = self.geometry, self.shape[0]
        positions = self.adjoint.shape[2:].numel()
        samples = len(self)
        rows = self.folded * positions
        refuse_above(
            max_bytes, (g.groups, samples, rows, d_in), self.input.element_size()
        )
        x, axes = self._padded(), len(g.kernel)
        stride, dilation = g.stride, g.dilation
        if g.transposed:
            x, stride = self._stretched(x), (1,) * axes
        else:
            x = F.pad(x, [p for n in reversed(g.padding) for p in (n, n)])
        for axis, (k, s, d) in enumerate(zip(g.kernel, stride, dilation, strict=True)):
            x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
        if g.transposed:
            x = x.flip(tuple(range(-axes, 0)))
        # [N·k, C, *positions, *kernel] -> [N·k, positions, C, kernel]
        patches = x.movedim(1, 1 + axes).flatten(1, axes).flatten(3)
        patches = patches.unflatten(2, (g.groups, -1)).flatten(3).movedim(2, 0)
        adjoint = self.adjoint.flatten(2).mT.unflatten(2, (g.groups, -1)).movedim(2, 0)
        a, d = (
            z.reshape(g.groups, samples, rows, z.shape[-1]) for z in (patches, adjoint)
        )
        return (a, d) if g.groups > 1 else (a[0], d[0])

    def _shift(self) -> Tensor:
        return self.adjoint.new_zeros(self.adjoint.shape[1])

    def _by_position(self, x: Tensor) -> Tensor:
        blocks = x.flatten(2).unflatten(1, (self.geometry.groups, -1))  # [N·k, G, d, P]
        rows = blocks.movedim(1, 0).mT
        if self.folded == 1:
            return rows  # a view
        return rows.unflatten(1, (-1, self.folded)).flatten(2, 3)

    def _padded(self) -> Tensor:
        g = self.geometry
        return (
            F.pad(self.input, g.beforehand, g.mode) if any(g.beforehand) else self.input
        )

    def _stretched(self, x: Tensor) -> Tensor:
        """Put ``stride − 1`` zeros between positions: a transpose walks by one."""
        g = self.geometry
        inside = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], g.stride, strict=True)]
        wide = x.new_zeros(*x.shape[:2], *inside)
        at: tuple[Any, ...] = (..., *(slice(None, None, s) for s in g.stride))
        wide[at] = x
        pads: list[int] = []
        for k, d, p, o in zip(
            g.kernel, g.dilation, g.padding, g.output_padding, strict=True
        ):
            reach = d * (k - 1) - p
            pads = [reach, reach + o, *pads]  # the last axis comes first
        return F.pad(wide, pads)


@register_rows(
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
class ConvolutionRule(RowRule):
    """The batch axis is the first, whatever the model's own is."""

    def batch_size(
        self, layer: Any, given: Mapping[str, Any], batch_dim: int
    ) -> int | None:
        """The first of two axes and the positions."""
        return size_of(first(given), 0, len(layer.kernel_size) + 1)

    def rows(self, layer: Any, call: Call) -> ConvolutionRows:
        """Keep the input and the adjoint as they are."""
        geometry = Geometry.of(layer)
        if geometry.transposed:
            geometry = replace(geometry, output_padding=_output_padding(geometry, call))
        return ConvolutionRows(widen(call.input), call.adjoint, geometry)


def _output_padding(g: Geometry, call: Call) -> tuple[int, ...]:
    """What the output is longer by; ``output_size=`` may have asked for more."""
    sizes = zip(
        call.adjoint.shape[2:], call.input.shape[2:], g.stride, g.padding, g.dilation,
        g.kernel, strict=True,
    )  # fmt: skip
    return tuple(
        out - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for out, n, s, p, d, k in sizes
    )
