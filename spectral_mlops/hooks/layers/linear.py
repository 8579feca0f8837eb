"""``nn.Linear`` on inputs with any number of leading axes."""

from typing import Any

from torch import nn

from spectral_mlops.hooks.rows import (
    Call,
    RowRule,
    Rows,
    register_rows,
    samples_first,
    widen,
)


@register_rows(nn.Linear)
class LinearRows(RowRule):
    """``z = a Wᵀ + b``: leading axes other than the batch axis are positions."""

    def batched(self, layer: Any, inputs: tuple[Any, ...], batch_dim: int) -> bool:
        """Whether there is an axis ``batch_dim`` before the features."""
        return inputs[0].ndim - 1 > batch_dim

    def rows(self, layer: Any, call: Call) -> Rows:
        """Flatten the leading axes."""
        return Rows(
            samples_first(widen(call.input), call.batch_dim),
            samples_first(call.adjoint, call.batch_dim),
            bias=None if layer.bias is None else "bias",
        )
