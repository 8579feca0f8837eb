"""Normalisation by choice, and activations by name.

Batch normalisation mixes the people of a batch: group gradients then still add up, but
are split by whose *row* a gradient comes from. The others see one person at a time.
"""

from typing import Literal

from torch import nn

Norm = Literal["none", "layer", "group", "batch"]
GROUPS = 8
"""Groups of channels of ``group``, or the largest number below that divides them into
groups of two channels at least (of one, a bias before it would have no gradient)."""
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}
Activation = Literal["relu", "gelu", "tanh"]


def make_norm(kind: Norm, channels: int, axes: int = 0) -> nn.Module:
    """Return a normalisation of ``[N, channels, *]``.

    Args:
        kind: ``layer``: one person's values together (over channels and places);
            ``group``: in up to `GROUPS` groups of channels; ``batch``: each channel
            over people; ``none``: nothing.
        channels: Size of axis 1.
        axes: Number of axes after it, 0 to 3.
    """
    if kind == "layer":
        return nn.GroupNorm(1, channels) if axes else nn.LayerNorm(channels)
    if kind == "group":
        possible = range(1, min(GROUPS, channels // 2) + 1)
        groups = [g for g in possible if channels % g == 0]
        return nn.GroupNorm(max(groups, default=1), channels)
    if kind == "batch":
        kinds = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        return kinds[axes](channels)
    return nn.Identity()
