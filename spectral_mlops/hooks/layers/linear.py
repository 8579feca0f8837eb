"""``nn.Linear`` on inputs with any number of leading axes."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from spectral_mlops.hooks.rows import Rows, samples_first, widen
from spectral_mlops.hooks.rules import Call, RowRule, first, register_rows, size_of


@register_rows(nn.Linear)
class LinearRows(RowRule):
    """``z = a Wᵀ + b``: leading axes other than the batch axis are positions."""

    def batch_size(
        self, layer: Any, given: Mapping[str, Any], batch_dim: int
    ) -> int | None:
        """``batch_dim`` must stand before the features."""
        return size_of(first(given), batch_dim, trailing=1)

    def rows(self, layer: Any, call: Call) -> Rows:
        """Flatten the leading axes."""
        return Rows(
            samples_first(widen(call.input), call.batch_dim),
            samples_first(call.adjoint, call.batch_dim),
            bias=None if layer.bias is None else "bias",
        )
