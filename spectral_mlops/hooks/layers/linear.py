"""``nn.Linear`` on inputs with any number of leading axes."""

from typing import Any

from torch import Tensor, nn

from spectral_mlops.hooks.rows import Rows, register_rows


@register_rows(nn.Linear)
class LinearRows:
    """``z = a Wᵀ + b``: leading axes other than the batch axis are positions."""

    def parameters(self, layer: nn.Module) -> set[str]:
        """``weight``, and ``bias`` where there is one."""
        return {"weight"} if layer.bias is None else {"weight", "bias"}

    def batched(
        self, layer: nn.Module, inputs: tuple[Any, ...], batch_dim: int
    ) -> bool:
        """Whether there is an axis ``batch_dim`` before the features."""
        return inputs[0].ndim - 1 > batch_dim

    def rows(
        self,
        layer: nn.Module,
        inputs: tuple[Any, ...],
        adjoint: Tensor,
        batch_dim: int,
    ) -> Rows:
        """Flatten ``[*, d]`` with its batch axis at ``batch_dim`` to ``[N, S, d]``."""
        del layer
        activation: Tensor = inputs[0]
        return Rows(_flatten(activation, batch_dim), _flatten(adjoint, batch_dim))

    def gradients(self, layer: nn.Module, rows: Rows) -> dict[str, Tensor]:
        """``ΔᵀA`` for the weight (``[d_out, d_in]``), the sum of ``Δ`` for the bias."""
        adjoint = rows.adjoint.flatten(0, 1)
        gradients = {"weight": adjoint.mT @ rows.activation.flatten(0, 1)}
        if layer.bias is not None:
            gradients["bias"] = adjoint.sum(0)
        return gradients


def _flatten(x: Tensor, batch_dim: int) -> Tensor:
    moved = x.movedim(batch_dim, 0)
    return moved.reshape(len(moved), -1, x.shape[-1])  # [N, S, d]
