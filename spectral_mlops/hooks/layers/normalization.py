"""Scale and shift of the normalisation layers.

``z = w · x̂ + b``: a sample's part of the scale is ``Σ Δ · x̂`` over its positions,
of the shift ``Σ Δ``. Batch statistics in training mode mix samples: ``x̂`` is then
that of the whole batch, and rows are assigned by row, so that the groups still add
up to the gradient.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from spectral_mlops.hooks.rows import Contributions, LaterRows, VectorRows, widen
from spectral_mlops.hooks.rules import Call, RowRule, first, register_rows, size_of


@register_rows(nn.LayerNorm, nn.RMSNorm)
class LayerNormRows(RowRule):
    """Normalised over the last axes, which scale and shift have too."""

    def batch_size(
        self, layer: Any, given: Mapping[str, Any], batch_dim: int
    ) -> int | None:
        """``batch_dim`` must stand before the normalised axes."""
        return size_of(first(given), batch_dim, len(layer.normalized_shape))

    def rows(self, layer: Any, call: Call) -> LaterRows:
        """Form them when they are asked for."""
        samples = call.adjoint.shape[call.batch_dim]
        return LaterRows(samples, partial(self._rows, layer, call))

    def _rows(self, layer: Any, call: Call) -> VectorRows:
        """Sum over the axes between the batch axis and the normalised ones."""
        x, shape = widen(call.input), layer.normalized_shape
        normal = (
            F.layer_norm(x, shape, eps=layer.eps)
            if isinstance(layer, nn.LayerNorm)
            else F.rms_norm(x, shape, eps=layer.eps)
        )

        def per_sample(product: Tensor) -> Tensor:
            moved = product.movedim(call.batch_dim, 0)
            between = tuple(range(1, moved.ndim - len(shape)))
            return moved.sum(between) if between else moved

        return _scale_and_shift(layer, call.adjoint, normal, per_sample)


class _ChannelRows(RowRule):
    """Layers on ``[N, C, *]`` with one scale and shift per channel."""

    def state(self, layer: Any) -> Any:
        """Stored statistics, where the call uses them; those of the backward pass.

        NOTE: not a copy, as autograd takes none either: a call in training mode in
        between writes to what its backward pass reads.
        """
        if layer.training or getattr(layer, "running_mean", None) is None:
            return None
        return layer.running_mean, layer.running_var

    def rows(self, layer: Any, call: Call) -> Contributions:
        """Form them when they are asked for, if nothing can change until then."""
        if call.state is not None:
            return self._rows(layer, call)
        return LaterRows(len(call.adjoint), partial(self._rows, layer, call))

    def _rows(self, layer: Any, call: Call) -> VectorRows:
        """Sum over positions."""
        normal = _normalised(layer, widen(call.input), call)
        return _scale_and_shift(layer, call.adjoint, normal, _over_positions)


@register_rows(nn.GroupNorm)
class GroupNormRows(_ChannelRows):
    """Normalised over groups of channels and positions of one sample."""

    def batch_size(
        self, layer: Any, given: Mapping[str, Any], batch_dim: int
    ) -> int | None:
        """The layer takes no call without a batch axis."""
        return len(first(given))


@register_rows(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
class BatchNormRows(GroupNormRows):
    """Normalised by the batch's statistics (training), or by stored ones."""


@register_rows(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
class InstanceNormRows(_ChannelRows):
    """Normalised over the positions of one sample and channel."""

    def state(self, layer: Any) -> Any:
        """A copy: the kernel repeats the stored statistics, and saves those."""
        found = super().state(layer)
        return None if found is None else tuple(x.clone() for x in found)

    def batch_size(
        self, layer: Any, given: Mapping[str, Any], batch_dim: int
    ) -> int | None:
        """The axis before channels and positions."""
        positions = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}
        return size_of(first(given), 0, positions[type(layer)] + 1)


def uses_batch_statistics(module: nn.Module) -> bool:
    """Whether a call of this layer would mix the samples of a batch."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return False
    return module.training or module.running_mean is None


def _normalised(layer: Any, x: Tensor, call: Call) -> Tensor:
    """Return ``x̂``, the input of scale and shift."""
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, eps=layer.eps)
    if call.state is not None:
        mean, variance = (widen(v) for v in call.state)
        return F.batch_norm(x, mean, variance, training=False, eps=layer.eps)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return F.batch_norm(x, None, None, training=True, eps=layer.eps)
    return F.instance_norm(x, eps=layer.eps)


def _over_positions(product: Tensor) -> Tensor:
    return product.flatten(2).sum(2) if product.ndim > 2 else product


def _scale_and_shift(
    layer: Any, adjoint: Tensor, normal: Tensor, per_sample: Any
) -> VectorRows:
    parts = {"weight": per_sample(adjoint * normal)}
    if getattr(layer, "bias", None) is not None:  # RMSNorm has no shift at all
        parts["bias"] = per_sample(adjoint)
    return VectorRows(parts)
