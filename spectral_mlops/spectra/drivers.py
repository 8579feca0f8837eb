"""LAPACK drivers, chosen by measurement, each with a second one behind it.

Eigenvalues of one float64 Gram matrix, µs, one thread (two threads), AMD EPYC,
torch 2.13 with MKL, NumPy 2.4 with OpenBLAS; in stacks of 8 (sizes to 32), 4 (to
128), 2 and 1:

==== ============== ============== ============ ================ =============
size torch eigvalsh NumPy eigvalsh scipy dsyevr torch cholesky   torch svdvals
==== ============== ============== ============ ================ =============
8    4.7 (4.7)      4.8 (4.8)      7.0 (6.9)    0.8 (1.1)        7.1 (7.1)
32   33 (33)        42 (42)        43 (44)      5.1 (5.4)        57 (57)
64   126 (127)      154 (167)      158 (158)    23 (23)          241 (290)
128  566 (730)      606 (652)      605 (668)    136 (133)        1070 (1231)
256  3110 (3219)    2665 (2849)    2642 (2865)  698 (605)        6691 (7243)
512  20128 (16184)  15400 (14336)  15370 (14394) 5662 (3654)     50540 (40598)
==== ============== ============== ============ ================ =============

From 200 rows on NumPy's would be a fifth faster, and is not used: its second pool of
threads costs a hundred times that where cores are busy (`products`).
"""

import numpy as np
import torch
from torch import Tensor

TorchLinAlgError: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
FAILURES = (TorchLinAlgError, np.linalg.LinAlgError)


def eigenvalues(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of symmetric, positive semi-definite matrices.

    Args:
        gram: Shape ``[b, m, m]``, float64, finite, on the CPU.

    Returns:
        Ascending values ``[b, m]``, NaN where no driver converged, and whether the
        second driver (``gesvd``) gave them, ``[b]``.
    """
    second = torch.zeros(len(gram), dtype=torch.bool)
    try:
        return torch.linalg.eigvalsh(gram), second
    except FAILURES:
        values = torch.full(gram.shape[:2], torch.nan, dtype=torch.float64)
    for i, matrix in enumerate(gram):
        try:
            values[i] = torch.linalg.eigvalsh(matrix[None])[0]
        except FAILURES:
            second[i] = True
            values[i] = _gesvd(matrix).flip(0)
    return values, second


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of one matrix, descending; NaN if no driver converges."""
    try:
        return torch.linalg.svdvals(matrix)
    except FAILURES:
        return _gesvd(matrix)


def root(gram: Tensor) -> Tensor:
    """``L`` with ``L Lᵀ`` the Gram, shape ``[b, m, m]``; triangular where it can be.

    A row that is zero (a padded or a silent sample) is left zero, the rest is
    factored without it.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    silent = diagonal == 0
    some = bool(silent.any())
    if some:
        typical = diagonal.amax(-1, keepdim=True)
        gram = gram.clone()
        gram.diagonal(dim1=-2, dim2=-1).add_(
            silent * typical.masked_fill(typical == 0, 1)
        )
    lower, info = torch.linalg.cholesky_ex(gram)
    if some:
        lower.diagonal(dim1=-2, dim2=-1).mul_(~silent)
    failed = info.nonzero()[:, 0]
    if len(failed):
        lower[failed] = _eigen_root(gram[failed]) * ~silent[failed].unsqueeze(-1)
    return lower


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(x in said for x in NO_MEMORY)


def _eigen_root(gram: Tensor) -> Tensor:
    """Root from eigenvectors, for Grams that are singular to working precision."""
    try:
        values, vectors = torch.linalg.eigh(gram)
    except FAILURES:
        try:  # of such matrices it gives the same
            left, singular, _ = np.linalg.svd(gram.numpy())
        except FAILURES:
            return torch.full_like(gram, torch.nan)
        values, vectors = torch.from_numpy(singular), torch.from_numpy(left)
    return vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)


def _gesvd(matrix: Tensor) -> Tensor:
    """LAPACK's ``gesvd``, another algorithm; NaN where it fails too."""
    import scipy.linalg  # rarely needed, and slow to import

    try:
        values = scipy.linalg.svd(
            matrix.numpy(), compute_uv=False, lapack_driver="gesvd", check_finite=True
        )
    except (*FAILURES, ValueError):  # ValueError: its root could not be found
        return torch.full((min(matrix.shape),), torch.nan, dtype=torch.float64)
    return torch.from_numpy(values)
