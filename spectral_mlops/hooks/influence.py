"""What a gradient step on one group's part does to every group's loss.

To first order: ``I[g, h] = −lr ⟨G_g, G_h⟩`` is the change of group h's part of the loss
by a plain gradient step on group g's part, all other things being equal. Since group
gradients add up, ``Σ_g I[g, h] = −lr ⟨G, G_h⟩``, the change by the whole step.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from spectral_mlops.errors import InputError
from spectral_mlops.hooks.context import capture
from spectral_mlops.records import ALL_LAYERS, Influence

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


class InfluenceMeans:
    """Influence averaged over the watched batches of an epoch.

    Each batch counts the same; a pair of groups is averaged over the batches that have
    both. Cosines are averaged as such, without those that are NaN.
    """

    def __init__(self) -> None:
        self._seen: dict[_Cell, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)

    def add(self, captured: capture, learning_rate: LearningRate) -> None:
        """Take in a batch (`group_influence`)."""
        found: Any = captured.group_gradients()
        if not captured.labelling.named:
            found = dict.fromkeys(captured.labelling.groupings, found)
        rates = _rates(captured, learning_rate)
        with torch.no_grad():
            for grouping, groups in found.items():
                for layer, gradients in _by_layer(groups, list(rates)):
                    self._add(grouping, layer, gradients, rates)

    def records(
        self, epoch: int, source: str = "train", fold: int = 0
    ) -> list[Influence]:
        """Return the means, and start anew."""
        seen, self._seen = self._seen, defaultdict(list)
        found = []
        for (layer, grouping, a, b), batches in seen.items():
            value, cosine, rate = (torch.stack(x) for x in zip(*batches, strict=True))
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
        self,
        grouping: str,
        layer: str,
        gradients: Mapping[str, Mapping[str, Tensor]],
        rates: Mapping[str, float],
    ) -> None:
        """Take in one layer: ``{group: {parameter: gradient}}``."""
        names = next(iter(gradients.values())).keys()
        products, weighted = 0.0, 0.0  # type: Any, Any
        for name in names:
            flat = torch.stack([g[name].flatten().double() for g in gradients.values()])
            gram = (flat @ flat.mT).cpu()
            products, weighted = products + gram, weighted + rates[name] * gram
        lengths = products.diagonal().sqrt()
        cosines = products / (lengths[:, None] * lengths)  # 0 / 0 is NaN
        rate = torch.tensor([rates[name] for name in names], dtype=torch.float64).mean()
        for (i, a), (j, b) in product(enumerate(gradients), repeat=2):
            cell = layer, grouping, a, b
            cosine = cosines[i, j].clamp(-1.0, 1.0)
            self._seen[cell].append((-weighted[i, j], cosine, rate))


def _by_layer(
    groups: Mapping[str, Mapping[str, Tensor]], order: Sequence[str]
) -> Iterator[tuple[str, dict[str, dict[str, Tensor]]]]:
    """Yield the group gradients of every layer, in model order, and of all of them.

    A group that a batch lacks has no gradients, and stays out.
    """
    present = {group: of for group, of in groups.items() if of}
    blank = {k: torch.zeros_like(x) for of in present.values() for k, x in of.items()}
    layers: dict[str, list[str]] = defaultdict(list)
    for name in order:
        if name in blank:
            layers[name.rpartition(".")[0]].append(name)
    if layers:
        layers[ALL_LAYERS] = [name for inside in layers.values() for name in inside]
    for layer, names in layers.items():
        yield (
            layer,
            {
                group: {name: of.get(name, blank[name]) for name in names}
                for group, of in present.items()
            },
        )


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
