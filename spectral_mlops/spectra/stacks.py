"""Gram matrices of several problems in one stack on the CPU."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def norm_bound(gram: Tensor) -> Tensor:
    """Upper bound of the largest eigenvalue, at most ``m^(1/8)`` times too large."""
    size = torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True)
    unit = gram / size.masked_fill(size == 0, 1.0)
    square = unit @ unit
    fourth = torch.linalg.vector_norm(square @ square, dim=(-2, -1))  # √(Σ λ⁸)
    return fourth.pow(0.25) * size[..., 0, 0]


def stacked(grams: list[Tensor], size: int) -> Tensor:
    """Stack Grams of up to ``size`` rows on the CPU, padded with zeros."""
    if not grams:
        return torch.zeros(0, size, size, dtype=torch.float64)
    return torch.cat(
        [
            pad(g.cpu(), (0, size - g.shape[-1]) * 2) if g.shape[-1] < size else g.cpu()
            for g in grams
        ]
    )


def zero_non_finite(grams: Tensor) -> tuple[Tensor, Tensor]:
    """Zero the Grams that hold a non-finite row; a bad row shows on the diagonal."""
    finite = grams.diagonal(dim1=-2, dim2=-1).sum(-1).isfinite()
    if not finite.all():
        grams = torch.where(finite[:, None, None], grams, 0.0)
    return grams, finite
