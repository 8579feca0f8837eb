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
        Shape ``[*]``, between -1 and 1; NaN where one is all zero.
    """
    a, b = a.flatten(-2), b.flatten(-2)
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return ((a * b).sum(-1) / norms).clamp(-1.0, 1.0)


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
