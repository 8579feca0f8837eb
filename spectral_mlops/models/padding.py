"""Sequences of unequal length in one batch: zeros after the end of the shorter ones.

Lengths need not travel beside the batch: padding is what follows a sequence's last time
point with any value other than zero. A time point of zeros before that is one like any
other.
"""

import torch
from torch import Tensor


def valid_steps(x: Tensor) -> Tensor:
    """Tell time points from padding.

    Args:
        x: Shape ``[N, T, C]``, zero after the end.

    Returns:
        Shape ``[N, T]``, bool: true up to the last time point that is not all zero;
        the first is always true.
    """
    some = (x != 0).any(-1)
    valid = some.flip(1).cumsum(1).flip(1) > 0
    valid[:, :1] = True
    return valid


def mean_over_valid(x: Tensor, valid: Tensor) -> Tensor:
    """Average over time points that are no padding.

    Args:
        x: Shape ``[N, T, d]``.
        valid: Shape ``[N, T]``, bool; at least one of each sequence.

    Returns:
        Shape ``[N, d]``.
    """
    weight = valid.to(x.dtype).unsqueeze(-1)
    return torch.where(valid.unsqueeze(-1), x, 0.0).sum(1) / weight.sum(1)
