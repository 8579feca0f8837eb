"""Leading singular directions, and how those of two groups lie to each other.

What compares groups depends on their sizes like every other comparison here, and is
judged under the same null (`statistics.principal_angle`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from spectral_mlops.spectra.drivers import FAILURES

RESOLVED = 1e-6
"""Directions whose singular value is below this share of the first are not given:
rows of float32 do not determine them."""
SAME = 1e-9
"""Loadings this close to the largest one, relatively, count as equally large."""


class Leading(NamedTuple):
    """The leading left singular vectors of a matrix.

    Attributes:
        vectors: Shape ``[k, d]``, float64, orthonormal, the largest absolute loading
            of each positive (the first one, where several are equally large). Fewer
            than asked for where the rank is smaller. Vectors of equal singular values
            are any basis of their space.
        values: Shape ``[k]``, descending.
        energy: Sum of all squared singular values, ``‖X‖²``.
    """

    vectors: Tensor
    values: Tensor
    energy: float

    @property
    def shares(self) -> Tensor:
        """Share of each direction in the energy, shape ``[k]``."""
        return self.values.square() / self.energy


def gradient_columns(activation: Tensor, adjoint: Tensor) -> Tensor:
    """Return a matrix with the left singular vectors and values of ``AᵀΔ``.

    Args:
        activation: Rows of A, shape ``[r, d_in]``.
        adjoint: Rows of Δ, shape ``[r, d_out]``.

    Returns:
        Shape ``[d_in, min(r, d_out)]``, float64. With ``Δᵀ = Q R`` it is ``AᵀRᵀ``:
        ``Q`` turns columns only.
    """
    a, d = activation.to(torch.float64), adjoint.to(torch.float64)
    if d.shape[0] < d.shape[1]:
        d = torch.linalg.qr(d.mT, mode="r").R.mT
    return a.mT @ d


def leading_left(matrix: Tensor, k: int) -> Leading:
    """Find the leading left singular vectors by the Gram of the smaller side.

    The leading eigenvectors of the smaller Gram span a subspace; the small matrix that
    is left of ``X`` inside it is decomposed as it is, so that squaring costs no digits
    of what is returned.

    Args:
        matrix: ``X``, finite, shape ``[d, m]``.
        k: How many directions, at least 1.

    Returns:
        Those that stand above `RESOLVED`; all NaN if no driver converges.
    """
    x = matrix.to(torch.float64)
    size = float(x.abs().amax()) if x.numel() else 0.0
    if size == 0.0:
        return Leading(x.new_zeros(0, len(x)), x.new_zeros(0), 0.0)
    x = x / size  # squares neither over- nor underflow
    wide = x.shape[0] <= x.shape[1]
    gram = x @ x.mT if wide else x.mT @ x
    count = min(k, len(gram))
    energy = float(gram.diagonal().sum()) * size * size
    try:
        found = torch.linalg.eigh(gram).eigenvectors[:, -count:]
        basis = found if wide else torch.linalg.qr(x @ found).Q
        inner, values, _ = torch.linalg.svd(basis.mT @ x, full_matrices=False)
    except FAILURES:
        unknown = x.new_full((count, len(x)), torch.nan)
        return Leading(unknown, unknown[:, :1].flatten(), energy)
    kept = int((values > RESOLVED * values[0]).sum())
    vectors = (basis @ inner[:, :kept]).mT
    return Leading(_signed(vectors), values[:kept] * size, energy)


def _signed(vectors: Tensor) -> Tensor:
    """Make the largest absolute loading of each vector ``[k, d]`` positive."""
    magnitude = vectors.abs()
    largest = magnitude >= magnitude.amax(1, keepdim=True) * (1 - SAME)
    first = largest.to(torch.int8).argmax(1, keepdim=True)
    return vectors * torch.where(vectors.gather(1, first) < 0, -1.0, 1.0)


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
    return _angles(u, v)


def _angles(u: Tensor, v: Tensor) -> Tensor:
    """Angles between the spans of orthonormal columns ``[*, d, k]``, ascending."""
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
