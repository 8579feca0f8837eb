"""What a gradient step on one group's part does to every group's loss.

To first order: ``I[g, h] = −lr ⟨G_g, G_h⟩`` is the change of group h's part of the loss
by a plain gradient step on group g's part, all other things being equal. Since group
gradients add up, ``Σ_g I[g, h] = −lr ⟨G, G_h⟩``, the change by the whole step.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral_mlops.errors import InputError
from spectral_mlops.hooks.context import capture
from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.rows import Rows
from spectral_mlops.records import ALL_LAYERS, Influence

PIECE = 2**20
"""Entries of a gradient that are widened to float64 at once."""

LearningRate = float | torch.optim.Optimizer
_Cell = tuple[str, str, str, str]


def group_influence(
    captured: capture,
    learning_rate: LearningRate,
    *,
    epoch: int = 0,
    source: str = "train",
    fold: int = 0,
) -> list[Influence]:
    """Return the influence of every group on every group in one batch.

    At scale ``batch``: gradients carry the loss scale ``c``, as the step does. All
    parameters with group gradients count, biases and scales included (`coverage`).

    Args:
        captured: A batch after its backward pass, before or after the step.
        learning_rate: A number, or the optimizer whose parameter groups have it. What
            the optimizer makes of a gradient (momentum, Adam's scaling, weight decay)
            is left out: this is the plain-SGD form.
        epoch: Written into the records.
        source: Written into the records.
        fold: Written into the records.

    Returns:
        Records, by layer in model order and `ALL_LAYERS` last.

    Raises:
        InputError: If the optimizer lacks one of the parameters.
    """
    means = InfluenceMeans()
    means.add(captured, learning_rate)
    return means.records(epoch, source, fold)


class _Products(NamedTuple):
    """Inner products of the groups' gradients of one parameter, ``[G, G]``."""

    groups: tuple[str, ...]
    inner: NDArray[np.float64]


class InfluenceMeans:
    """Influence averaged over the watched batches of an epoch.

    Each batch counts the same; a pair of groups is averaged over the batches that have
    both. Cosines are averaged as such, without those that are NaN.
    """

    def __init__(self) -> None:
        self._seen: dict[_Cell, list[tuple[float, float, float]]] = defaultdict(list)

    def add(self, captured: capture, learning_rate: LearningRate) -> None:
        """Take in a batch (`group_influence`)."""
        rates = _rates(captured, learning_rate)
        with torch.no_grad():
            for grouping, products in _products(captured).items():
                for layer, names in _by_layer(products, list(rates)):
                    self._add(grouping, layer, [(products[n], rates[n]) for n in names])

    def records(
        self, epoch: int, source: str = "train", fold: int = 0
    ) -> list[Influence]:
        """Return the means, and start anew."""
        seen, self._seen = self._seen, defaultdict(list)
        found = []
        for (layer, grouping, a, b), batches in seen.items():
            value, cosine, rate = torch.tensor(batches, dtype=torch.float64).mT
            found.append(
                Influence(
                    epoch=epoch,
                    source=source,
                    fold=fold,
                    layer=layer,
                    grouping=grouping,
                    group_a=a,
                    group_b=b,
                    value=float(value.mean()),
                    cosine=float(cosine.nanmean()),
                    learning_rate=float(rate.mean()),
                    batches=len(batches),
                )
            )
        return found

    def _add(
        self, grouping: str, layer: str, products: Sequence[tuple[_Products, float]]
    ) -> None:
        """Take in one layer: the products of its parameters, and their rates."""
        groups = sorted({group for of, _ in products for group in of.groups})
        total, weighted = np.zeros((2, len(groups), len(groups)))
        with np.errstate(all="ignore"):  # 0 / 0 is NaN, and NaN stays
            for of, rate in products:
                at = np.array([groups.index(group) for group in of.groups])
                total[at[:, None], at] += of.inner
                weighted[at[:, None], at] += rate * of.inner
            lengths = np.sqrt(np.maximum(total.diagonal(), 0.0))
            cosines = (total / (lengths[:, None] * lengths)).clip(-1.0, 1.0)
        rate = sum(rate for _, rate in products) / len(products)
        for i, j in product(range(len(groups)), repeat=2):
            cell = layer, grouping, groups[i], groups[j]
            found = -float(weighted[i, j]), float(cosines[i, j]), rate
            self._seen[cell].append(found)


def _products(captured: capture) -> dict[str, dict[str, _Products]]:
    """Return ``{grouping: {parameter: products}}``.

    Where a layer has few rows, ``⟨G_g, G_h⟩`` is the sum of ``(A Aᵀ) ∘ (Δ Δᵀ)`` over
    the rows of both groups and no gradient is formed.
    """
    found: dict[str, dict[str, _Products]] = {
        grouping: {} for grouping in captured.labelling.groupings
    }
    for who, rows, parameters in _short(captured):
        a, d = (x.flatten(0, 1).double() for x in (rows.activation, rows.adjoint))
        if not bool(a.isfinite().all() and d.isfinite().all()):
            continue  # zero times NaN would reach all groups
        adjoints = d @ d.mT
        weight = (a @ a.mT) * adjoints
        inner = {rows.weight: weight.cpu(), rows.bias: adjoints.cpu()}
        for grouping, groups in who.groupings.items():
            member = torch.zeros(len(groups), *rows.adjoint.shape[:2])
            for g, samples in enumerate(groups.values()):
                member[g, samples] = 1.0
            chosen = member.flatten(1).double()
            for local, name in parameters.items():
                small = chosen @ inner[local] @ chosen.mT
                found[grouping][name] = _Products(tuple(groups), small.numpy())
    done = {name for of in found.values() for name in of}
    for grouping, by_group in captured.gradients_without(done).items():
        names = dict.fromkeys(name for of in by_group.values() for name in of)
        for name in names:
            there = tuple(group for group, of in by_group.items() if name in of)
            formed = _inner([by_group[group][name] for group in there])
            found[grouping][name] = _Products(there, formed.numpy())
    return found


def _short(captured: capture) -> Iterator[tuple[Labelling, Rows, dict[str, str]]]:
    """Yield layers whose gradients take more than their rows: one call, plain rows.

    With the names of their parameters; tied ones, which get gradients from elsewhere
    too, are left out.
    """
    by_rows = {row.parameter for row in captured.coverage() if row.method == "rows"}
    sites = {
        site.layer(part): site
        for site in captured.survey.sites
        for part in site.parts.values()
    }
    for layer in captured.reached_layers():
        calls = captured.layer_rows(layer).calls
        (who, rows), site = calls[0], sites.get(layer)
        if len(calls) > 1 or not isinstance(rows, Rows) or site is None:
            continue
        d_in, d_out = rows.shape
        count = rows.activation.shape[:2].numel()
        if count * (d_in + d_out) > d_in * d_out:
            continue
        local = [name for name in (rows.weight, rows.bias) if name is not None]
        names = {k: site.parameters[k] for k in local if k in site.parameters}
        if by_rows.issuperset(names.values()) and captured.survey.tied.isdisjoint(
            names.values()
        ):
            yield who, rows, names


def _inner(gradients: Sequence[Tensor]) -> Tensor:
    """Inner products of groups' gradients, ``[G, G]``, float64, piece by piece."""
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for pieces in zip(*(x.flatten().split(PIECE) for x in gradients), strict=True):
        some = torch.stack(pieces).double()
        total += (some @ some.mT).cpu()
    return total


def _by_layer(
    names: Iterable[str], order: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield the parameters of every layer, in model order, and of all of them."""
    layers: dict[str, list[str]] = defaultdict(list)
    known = set(names)
    for name in order:
        if name in known:
            layers[name.rpartition(".")[0]].append(name)
    if layers:
        layers[ALL_LAYERS] = [name for inside in layers.values() for name in inside]
    yield from layers.items()


def _rates(captured: capture, learning_rate: LearningRate) -> dict[str, float]:
    """Return the learning rate of each parameter by its clean name.

    Raises:
        InputError: If the optimizer lacks one.
    """
    tensors = {
        name: site.tensors[local]
        for site in captured.survey.sites
        for local, name in site.parameters.items()
    }
    if not isinstance(learning_rate, torch.optim.Optimizer):
        return dict.fromkeys(tensors, float(learning_rate))
    by_tensor = {
        id(parameter): float(group["lr"])
        for group in learning_rate.param_groups
        for parameter in group["params"]
    }
    lost = [
        name
        for name, tensor in tensors.items()
        if tensor.requires_grad and id(tensor) not in by_tensor
    ]
    if lost:
        raise InputError(
            f"The optimizer does not hold '{lost[0]}' ({len(lost)} parameters of the "
            "model): pass the one that trains it, or a number."
        )
    return {name: by_tensor.get(id(tensor), 0.0) for name, tensor in tensors.items()}
