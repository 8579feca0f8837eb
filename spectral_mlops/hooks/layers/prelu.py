"""``nn.PReLU``: one slope, or one per channel (axis 1)."""

from typing import Any

from torch import nn

from spectral_mlops.hooks.rows import Call, RowRule, VectorRows, register_rows, widen


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
        return VectorRows({"weight": product.flatten(2).sum(2)})

    def batched(self, layer: Any, inputs: tuple[Any, ...], batch_dim: int) -> bool:
        """Whether there is an axis ``batch_dim``, which cannot be the channels'."""
        shared = layer.num_parameters == 1
        return inputs[0].ndim > (batch_dim if shared else 1)
