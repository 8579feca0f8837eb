"""The engine beside the slow way, for every layer, group and quantity."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import QUANTITIES, LayerFactors, reduce_layers
from spectral_mlops.spectra.reduced import Key
from spectral_mlops.spectra.solve import ACCURACY, Solved, solve
from tests.reference import (
    Array,
    reference_gradient_values,
    reference_singular_values,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def with_values(rows: int, columns: int, values: list[float], seed: int = 0) -> Tensor:
    """A float64 matrix that has exactly these singular values."""
    u = torch.linalg.qr(normal(rows, len(values), seed=seed).double()).Q
    v = torch.linalg.qr(normal(columns, len(values), seed=seed + 1).double()).Q
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.mT


def cancelling(r: int, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
    """Factors whose large parts cancel: σ(A)·σ(Δ) = 1 and σ_max(AᵀΔ) = 3e-6.

    The first sample direction carries A, the second Δ, and the third the product.
    """
    basis = torch.linalg.qr(normal(r, r, seed=3).double()).Q
    left = torch.linalg.qr(normal(d_in, r, seed=4).double()).Q
    right = torch.linalg.qr(normal(d_out, r, seed=5).double()).Q
    in_a, in_d = torch.full((r,), 1e-3).double(), torch.full((r,), 1e-3).double()
    in_a[0], in_a[1], in_d[0], in_d[1] = 1.0, 1e-8, 1e-8, 1.0
    in_d[2] = 3e-3
    return (basis * in_a) @ left.mT, (basis * in_d) @ right.mT


def spectra(
    layers: Sequence[LayerFactors],
    groups: Groups,
    quantities: Sequence[str] = QUANTITIES,
    **settings: int,
) -> dict[Key, Solved]:
    solved = solve(reduce_layers(layers, groups, quantities, **settings))
    found = {one.key: one for one in solved}
    assert len(found) == len(solved)
    return found


def expected_values(layer: LayerFactors, samples: Tensor, quantity: str) -> Array:
    """The union of the blocks' spectra, each from an SVD of its matrix."""
    parts = []
    for rows in (layer.activation, layer.adjoint):
        assert rows is not None
        parts.append(rows.unsqueeze(0) if rows.dim() == 3 else rows)
    values = []
    for a, d in zip(*parts, strict=True):
        a, d = a[samples].flatten(0, 1), d[samples].flatten(0, 1)
        if quantity == "gradient":
            values.append(reference_gradient_values(a, d))
        else:
            own = a if quantity == "activation" else d
            values.append(reference_singular_values(own))
    return np.sort(np.concatenate(values))[::-1]


def close(one: Solved, expected: Array, scale: float = 1.0) -> None:
    assert one.status == "ok"
    assert one.values.dtype == np.float64
    assert one.values.shape == expected.shape
    top = expected.max(initial=0.0)
    np.testing.assert_allclose(
        one.values / scale, expected, rtol=0, atol=ACCURACY * top, err_msg=str(one.key)
    )
    assert (np.diff(one.values) <= 0).all()


def check_all(layers: Sequence[LayerFactors], groups: Groups) -> dict[Key, Solved]:
    """Every number against the reference; returns what was found."""
    found = spectra(layers, groups)
    assert len(found) == len(layers) * len(groups.members) * len(QUANTITIES)
    for layer in layers:
        for g, samples in enumerate(groups.members):
            for quantity in QUANTITIES:
                one = found[Key(layer.name, g, quantity)]
                close(one, expected_values(layer, samples, quantity))
    return found
