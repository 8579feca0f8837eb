"""How two groups' gradients lie to each other: directions beside magnitudes.

Both depend on the groups' sizes like every other comparison here, and are judged
under the same null.
"""

import torch
from torch import Tensor


def gradient_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two gradients as vectors.

    Args:
        a: Shape ``[*, d_in, d_out]``.
        b: Shape ``[*, d_in, d_out]``.

    Returns:
        Shape ``[*]``, float64, between -1 and 1; NaN where one is all zero.
    """
    return (_direction(a) * _direction(b)).sum(-1).clamp(-1.0, 1.0)


def principal_angles(a: Tensor, b: Tensor, rank: int) -> Tensor:
    """Angles between the leading left singular subspaces (Björck & Golub, 1973).

    Args:
        a: Shape ``[*, d, m]``.
        b: Shape ``[*, d, n]``.
        rank: Dimension of both subspaces, at most ``min(d, m, n)``.

    Returns:
        Shape ``[*, rank]``, radians in ``[0, π/2]``, ascending. Accurate for
        small angles too: those come from sines, the large ones from cosines.
    """
    u = torch.linalg.svd(a, full_matrices=False).U[..., :rank]
    v = torch.linalg.svd(b, full_matrices=False).U[..., :rank]
    overlap = u.mT @ v
    cosines = torch.linalg.svdvals(overlap).clamp(0.0, 1.0)
    sines = torch.linalg.svdvals(v - u @ overlap).clamp(0.0, 1.0).flip(-1)
    return torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin())


def _direction(gradient: Tensor) -> Tensor:
    """Flatten to a float64 vector of length 1, by way of its largest entry."""
    x = gradient.to(torch.float64).flatten(-2)
    if x.shape[-1]:
        x = x / x.abs().amax(-1, keepdim=True)  # squares neither over- nor underflow
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
