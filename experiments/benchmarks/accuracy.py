"""Accuracy against cost of ways to decompose, on spectra that are hard.

The gradient ``G = AᵀΔ`` of one linear layer, float32 rows, against a float64 SVD
of the formed matrix. Ours is measured through `capture`, on a layer that is given
``A`` as its input and ``Δ`` by the loss ``Σ z∘Δ``.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.benchmarks.cases import SEED
from spectral_mlops import capture
from tests.reference import reference_gradient_values

TARGET = 1e-6
"""Largest error allowed, relative to the largest singular value."""

ROWS, D_IN, D_OUT = 64, 512, 256

Factors = tuple[Tensor, Tensor]
Route = Callable[[Tensor, Tensor], Tensor]


def _with_spectrum(values: Tensor, columns: int, seed: int) -> Tensor:
    """A float32 matrix ``[ROWS, columns]`` with (nearly) these singular values."""
    random = torch.Generator().manual_seed(seed)
    left = torch.randn(ROWS, ROWS, generator=random, dtype=torch.float64)
    right = torch.randn(columns, ROWS, generator=random, dtype=torch.float64)
    u, v = torch.linalg.qr(left).Q, torch.linalg.qr(right).Q
    return (u * values @ v.T).float()


def _pair(values: Tensor, seed: int = SEED) -> Factors:
    ones = torch.ones(ROWS, dtype=torch.float64)
    return _with_spectrum(values, D_IN, seed), _with_spectrum(ones, D_OUT, seed + 1)


def _cancelling() -> Factors:
    """Factors whose large directions do not meet: the product is near zero."""
    a, d = _pair(torch.logspace(0, -1, ROWS, dtype=torch.float64))
    twice = torch.cat([a[: ROWS // 2]] * 2)
    opposite = torch.cat([d[: ROWS // 2], -d[: ROWS // 2]])
    return twice, opposite + 1e-6 * d


def _softmax() -> Factors:
    """Adjoints whose rows sum to zero, as those of a cross-entropy do."""
    a, d = _pair(torch.ones(ROWS, dtype=torch.float64))
    return a, d - d.mean(1, keepdim=True)


def _levels(*levels: float) -> Tensor:
    """Each level equally often."""
    values = torch.tensor(levels, dtype=torch.float64)
    return values.repeat_interleave(ROWS // len(levels))


SPECTRA: dict[str, Callable[[], Factors]] = {
    "flat": lambda: _pair(_levels(1.0)),
    "decay to 1e-3": lambda: _pair(torch.logspace(0, -3, ROWS, dtype=torch.float64)),
    "decay to 1e-12": lambda: _pair(torch.logspace(0, -12, ROWS, dtype=torch.float64)),
    "rank-deficient": lambda: _pair(_levels(1.0, 0.5, 0.0, 0.0)),
    "repeated": lambda: _pair(_levels(1.0, 1.0, 1e-2, 1e-2)),
    "tiny (1e-20)": lambda: _pair(1e-20 * torch.logspace(0, -3, ROWS).double()),
    "huge (1e+15)": lambda: _pair(1e15 * torch.logspace(0, -3, ROWS).double()),
    "softmax rows": _softmax,
    "near-zero product": _cancelling,
}


def _gram(a: Tensor, d: Tensor) -> Tensor:
    """Eigenvalues of the rows' Gram product, by a symmetric equivalent."""
    values, vectors = torch.linalg.eigh(a @ a.T)
    root = vectors * values.clamp(min=0).sqrt()
    squares = torch.linalg.eigvalsh(root.T @ (d @ d.T) @ root)
    return squares.clamp(min=0).sqrt().flip(-1)


def _qr(a: Tensor, d: Tensor) -> Tensor:
    """Singular values of the product of the factors' triangles."""
    _, r_a = torch.linalg.qr(a.T, mode="r")
    _, r_d = torch.linalg.qr(d.T, mode="r")
    return torch.linalg.svdvals(r_a @ r_d.T)


def _formed(a: Tensor, d: Tensor) -> Tensor:
    """Singular values of the matrix itself."""
    return torch.linalg.svdvals(a.T @ d)


def _formed_gram(a: Tensor, d: Tensor) -> Tensor:
    """Eigenvalues of the formed matrix's Gram matrix."""
    gradient = a.T @ d
    return torch.linalg.eigvalsh(gradient.T @ gradient).clamp(min=0).sqrt().flip(-1)


def _in_float64(route: Route) -> Route:
    return lambda a, d: route(a.double(), d.double())


ROUTES: dict[str, Route] = {
    "SVD of G, float64": _in_float64(_formed),
    "SVD of G, float32": _formed,
    "Gram of G, float64": _in_float64(_formed_gram),
    "Gram of rows, float64": _in_float64(_gram),
    "Gram of rows, float32": _gram,
    "QR of rows, float64": _in_float64(_qr),
}


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Largest error over ``σ_max``; spectra are padded with zeros to one length."""
    length = max(len(found), len(exact))
    pair = [np.pad(values, (0, length - len(values))) for values in (found, exact)]
    return float(np.abs(pair[0] - pair[1]).max() / exact.max())


OURS = "ours (the whole step)"
"""Its time holds forward, backward, capture and solve, that of the routes a solve."""


def _ours(a: Tensor, d: Tensor) -> tuple[Any, float]:
    """The record that a capture makes, and the seconds of the step it watched."""
    layer = nn.Linear(D_IN, D_OUT, bias=False)
    began = time.perf_counter()
    with capture(
        layer, ["g"] * ROWS, reduction="sum", quantities=["gradient"]
    ) as captured:
        (layer(a) * d).sum().backward()
    (record,) = captured.spectra(pooled=False)
    return record, time.perf_counter() - began


def measure_accuracy(repeats: int = 5) -> Iterator[dict[str, Any]]:
    """One row per spectrum and route: largest error, time, and the record's words.

    Args:
        repeats: Times a route is timed after a first, untimed one.
    """
    for spectrum, make in SPECTRA.items():
        a, d = make()
        exact = reference_gradient_values(a, d)
        for name, route in ROUTES.items():
            seconds = []
            for _ in range(repeats + 1):
                began = time.perf_counter()
                found = route(a, d)
                seconds.append(time.perf_counter() - began)
            error = relative_error(found.double().numpy(), exact)
            yield _row(spectrum, name, error, median(seconds[1:]))
        runs = [_ours(a, d) for _ in range(repeats + 1)]
        record = runs[0][0]
        error = relative_error(record.values, exact)
        yield _row(spectrum, OURS, error, median(s for _, s in runs[1:])) | {
            "record_route": record.route,
            "below_floor": record.below_floor,
            "status": record.status,
        }


def _row(spectrum: str, route: str, error: float, seconds: float) -> dict[str, Any]:
    return {
        "spectrum": spectrum,
        "route": route,
        "error": error,
        "error_met": error <= TARGET,
        "ms": 1e3 * seconds,
    }
