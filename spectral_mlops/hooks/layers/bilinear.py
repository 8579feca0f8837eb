"""``nn.Bilinear``: linear in the products of its two inputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spectral_mlops.hooks.rows import Rows, samples_first, widen
from spectral_mlops.hooks.rules import Call, RowRule, first, register_rows, size_of


@register_rows(nn.Bilinear)
class BilinearRows(RowRule):
    """``z_o = xᵀ W_o y + b_o``: A holds the products ``x_i y_j``, ``d_in = I·J``."""

    def batch_size(
        self, layer: Any, given: Mapping[str, Any], batch_dim: int
    ) -> int | None:
        """``batch_dim`` must stand before the features."""
        return size_of(first(given), batch_dim, trailing=1)

    def rows(self, layer: Any, call: Call) -> Rows:
        """Form the products of each row."""
        first, second = call.given["input1"], call.given["input2"]
        x, y = (samples_first(widen(z), call.batch_dim) for z in (first, second))
        return Rows(
            torch.einsum("nsi,nsj->nsij", x, y).flatten(2),
            samples_first(call.adjoint, call.batch_dim),
            bias=None if layer.bias is None else "bias",
        )
