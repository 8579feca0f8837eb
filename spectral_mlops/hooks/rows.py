"""What every layer type must tell: its calls as rows of A and Δ.

One shape for everything between a layer and its spectrum:

* ``activation``: ``[N, S, d_in]``, samples × sharing positions × inputs;
* ``adjoint``: ``[N, S, d_out]``, the loss's derivative by the layer's output.

A rule is one small file in ``hooks/layers/``, found by the exact type of the
layer (a subclass may compute something else), and extended from outside by
`register_rows`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from spectral_mlops.registry import Registry


@dataclass(frozen=True)
class Rows:
    """One call of a layer, or the samples chosen from it.

    Attributes:
        activation: Shape ``[N, S, d_in]``.
        adjoint: Shape ``[N, S, d_out]``.
    """

    activation: Tensor
    adjoint: Tensor

    def choose(self, samples: Tensor) -> "Rows":
        """Return the rows of some samples (indices on any device)."""
        samples = samples.to(self.activation.device)
        return Rows(self.activation[samples], self.adjoint[samples])


class RowRule(Protocol):
    """How one layer type's calls become rows, and rows become gradients."""

    def parameters(self, layer: nn.Module) -> set[str]:
        """Return the names of the parameters that `gradients` gives.

        The rule is used only where the layer holds exactly these.
        """
        ...

    def batched(
        self, layer: nn.Module, inputs: tuple[Any, ...], batch_dim: int
    ) -> bool:
        """Return whether a call has a batch axis; one without is replayed."""
        ...

    def rows(
        self,
        layer: nn.Module,
        inputs: tuple[Any, ...],
        adjoint: Tensor,
        batch_dim: int,
    ) -> Rows:
        """Bring one call to the common shape.

        Args:
            layer: The layer.
            inputs: What it was called with, detached.
            adjoint: Derivative by its output, of the output's shape.
            batch_dim: The batch axis of inputs and output.

        Returns:
            The rows, views where possible.
        """
        ...

    def gradients(self, layer: nn.Module, rows: Rows) -> dict[str, Tensor]:
        """Return ``{parameter name in the layer: gradient}`` of the rows given.

        Every gradient has its parameter's shape and the rows' scale.
        """
        ...


ROW_RULES: Registry[type, RowRule] = Registry("row rule")


def register_rows(
    *layer_types: type[nn.Module],
) -> Callable[[type[RowRule]], type[RowRule]]:
    """File a rule class for one or more layer types; also from outside the package.

    Example:
        >>> @register_rows(MyLinear)              # doctest: +SKIP
        ... class MyLinearRows:
        ...     def parameters(self, layer): ...
        ...     def batched(self, layer, inputs, batch_dim): ...
        ...     def rows(self, layer, inputs, adjoint, batch_dim): ...
        ...     def gradients(self, layer, rows): ...
    """

    def file(rule: type[RowRule]) -> type[RowRule]:
        ROW_RULES.register(*layer_types)(rule())
        return rule

    return file
