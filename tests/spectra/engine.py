"""The engine beside the slow way, for every layer, group and quantity."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import QUANTITIES, LayerFactors, reduce_layers
from spectral_mlops.spectra.reduced import Key
from spectral_mlops.spectra.singular import ACCURACY
from spectral_mlops.spectra.solve import Solved, solve
from tests.reference import (
    Array,
    reference_gradient_values,
    reference_singular_values,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


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
