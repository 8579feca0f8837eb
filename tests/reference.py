"""Slow and obviously right: what the fast code is compared with."""

from collections.abc import Hashable, Sequence
from itertools import combinations, permutations
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

Array = NDArray[np.float64]


def as_array(tensor: Tensor) -> Array:
    return tensor.detach().to(torch.float64).cpu().numpy()


def reference_singular_values(matrix: Tensor | Array) -> Array:
    """All singular values, by a float64 SVD of the matrix as it is."""
    if isinstance(matrix, Tensor):
        matrix = as_array(matrix)
    return np.linalg.svd(matrix, compute_uv=False)


def reference_gradient_values(activation: Tensor, adjoint: Tensor) -> Array:
    """Singular values of the formed matrix, as many as its rank can be."""
    matrix = as_array(activation).T @ as_array(adjoint)
    return reference_singular_values(matrix)[: min(len(activation), *matrix.shape)]


def padded(values: Sequence[float], length: int) -> Array:
    return np.array([*values, *[0.0] * (length - len(values))])


def reference_js(a: Sequence[float], b: Sequence[float]) -> float:
    """Jensen-Shannon divergence in bits of two spectra; NaN if one is all zero."""
    if not sum(a) or not sum(b):
        return float("nan")
    length = max(len(a), len(b))
    return float(jensenshannon(padded(a, length), padded(b, length), base=2)) ** 2


def rows_of(owner: Sequence[int], labels: Sequence[int], group: int) -> list[int]:
    """Rows of the people who have a label, one by one."""
    return [row for row, person in enumerate(owner) if labels[person] == group]


def relabelled_values(
    quantity: str, activation: Tensor, adjoint: Tensor, rows: list[int]
) -> Array:
    """Spectrum of the chosen rows, from the matrix formed anew."""
    a, d = as_array(activation)[rows], as_array(adjoint)[rows]
    matrix = {"activation": a, "adjoint": d, "gradient": a.T @ d}[quantity]
    return reference_singular_values(matrix)


def all_relabellings(
    labels: Sequence[int],
    strata: Sequence[str],
    families: Sequence[Hashable] | None = None,
) -> set[tuple[int, ...]]:
    """Every different labelling that keeps the labels within their strata.

    With families, those of moves that take relatives to relatives and no others.
    """
    kept = set()
    own = range(len(labels)) if families is None else families
    related = [(i, j) for i, j in combinations(range(len(own)), 2) if own[i] == own[j]]
    for order in permutations(range(len(labels))):
        if not all(strata[i] == strata[j] for i, j in enumerate(order)):
            continue
        if all(own[order[i]] == own[order[j]] for i, j in related):
            kept.add(tuple(labels[i] for i in order))
    return kept


class ReferenceMethod:
    """The method as its authors describe it, for networks of ``nn.Linear``.

    For each group and layer the other groups' rows are zeroed, the group gradient
    is formed, and a full SVD is taken of the gradient and of both factors, at the
    precision of training. Each layer is called once on ``[N, d_in]``.

    Example:
        >>> with ReferenceMethod(model, labels) as reference:   # doctest: +SKIP
        ...     loss_function(model(x), y).backward()
        >>> values = reference.spectra()                         # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, labels: Sequence[Hashable]) -> None:
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        }
        self.labels = list(labels)  # [N]
        self.activations: dict[str, Tensor] = {}  # layer: [N, d_in]
        self.adjoints: dict[str, Tensor] = {}  # layer: [N, d_out]

    def __enter__(self) -> Self:
        self.handles = [
            layer.register_forward_hook(self._remember(name))
            for name, layer in self.layers.items()
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _remember(self, name: str):
        def keep_adjoint(gradient: Tensor) -> None:
            self.adjoints[name] = gradient

        def keep(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            self.activations[name] = inputs[0].detach()
            output.register_hook(keep_adjoint)

        return keep

    def spectra(self) -> dict[tuple[str, str, Hashable], Tensor]:
        """Singular values by ``(layer, quantity, group)``, zeros of padding included.

        ``min(N, d_in)`` of the activation, ``min(N, d_out)`` of the adjoint,
        ``min(d_in, d_out)`` of the gradient; at scale ``batch``.
        """
        values = {}
        for name in self.layers:
            for group in sorted(set(self.labels), key=str):
                mine = [[label == group] for label in self.labels]
                mask = torch.tensor(mine, device=self.adjoints[name].device)  # [N, 1]
                activation = self.activations[name] * mask
                adjoint = self.adjoints[name] * mask
                gradient = activation.T @ adjoint  # [d_in, d_out]
                for quantity, matrix in (
                    ("gradient", gradient),
                    ("activation", activation),
                    ("adjoint", adjoint),
                ):
                    found = torch.linalg.svdvals(matrix)
                    values[name, quantity, group] = found
        return values
