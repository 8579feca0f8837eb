"""``nn.Bilinear``: linear in the products of its two inputs."""

from typing import Any

import torch
from torch import nn

from spectral_mlops.hooks.rows import (
    Call,
    RowRule,
    Rows,
    register_rows,
    samples_first,
    widen,
)


@register_rows(nn.Bilinear)
class BilinearRows(RowRule):
    """``z_o = xᵀ W_o y + b_o``: A holds the products ``x_i y_j``, ``d_in = I·J``."""

    def batched(self, layer: Any, inputs: tuple[Any, ...], batch_dim: int) -> bool:
        """Whether there is an axis ``batch_dim`` before the features."""
        return inputs[0].ndim - 1 > batch_dim

    def rows(self, layer: Any, call: Call) -> Rows:
        """Form the products of each row."""
        first, second = (*call.args, *call.kwargs.values())
        x, y = (samples_first(widen(z), call.batch_dim) for z in (first, second))
        return Rows(
            torch.einsum("nsi,nsj->nsij", x, y).flatten(2),
            samples_first(call.adjoint, call.batch_dim),
            bias=None if layer.bias is None else "bias",
        )
