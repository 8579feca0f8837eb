"""``nn.PReLU``: one slope, or one per channel (axis 1)."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from spectral_mlops.hooks.rows import VectorRows, widen
from spectral_mlops.hooks.rules import Call, RowRule, first, register_rows, size_of


@register_rows(nn.PReLU)
class PReLURows(RowRule):
    """The slope sees the negative inputs: ``Σ Δ · min(x, 0)``."""

    def rows(self, layer: Any, call: Call) -> VectorRows:
        """Sum over positions, and over channels where they share the slope."""
        product = call.adjoint * widen(call.input).clamp(max=0)
        if layer.num_parameters == 1:
            product = product.movedim(call.batch_dim, 0)
            return VectorRows({"weight": product.flatten(1).sum(1, keepdim=True)})
        # The channels stand on axis 1 of the call: the batch must stand on axis 0.
        return VectorRows(
            {"weight": product.flatten(2).sum(2) if product.ndim > 2 else product}
        )

    def batch_size(
        self, layer: Any, given: Mapping[str, Any], batch_dim: int
    ) -> int | None:
        """Channels stand on axis 1: the batch must then stand on axis 0."""
        shared = layer.num_parameters == 1
        return size_of(first(given), batch_dim if shared else 0, int(not shared))
