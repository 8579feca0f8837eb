"""Perceptrons of the same people, one effect each, trained as one.

Cohorts of one seed have the same people, splits, first weights, batch orders and
dropout masks (all drawn from seed, fold and epoch), and differ in their features
alone. One batched product per layer so takes the place of one per network; the
numbers are those of `FoldRun.train_epoch` and `validate`, to rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout

from spectral_mlops.models.mlp import Mlp
from spectral_mlops.training.fold import FoldRun, even_order
from spectral_mlops.training.optimisation import OPTIMIZERS

Layers = list[tuple[Tensor, Tensor]]


def train_stack(runs: Sequence[FoldRun]) -> None:
    """Train the networks of the same fold of several cohorts.

    Every run is left with the weights of its lowest validation loss in its model.

    Args:
        runs: Of the same people, seed, fold number and settings; untrained.
    """
    first = runs[0]
    settings = first.plan.config.training
    layers = stacked([run.model for run in runs])
    parameters = [tensor for layer in layers for tensor in layer]
    optimizer = OPTIMIZERS[settings.optimizer](
        parameters,
        lr=settings.learning_rate,  # type: ignore[call-arg]
        weight_decay=settings.weight_decay,
    )
    optimizer.param_groups[0]["fused"] = True  # one pass over the stack
    inputs = torch.stack([run.inputs for run in runs])
    targets = torch.stack([run.targets for run in runs])
    held = torch.stack([run.validation_inputs for run in runs])
    held_targets = torch.stack(
        [torch.from_numpy(run.plan.targets[run.validation_rows]) for run in runs]
    )
    groups = first.plan.labels(first.train_rows)[first.plan.primary]
    for epoch in range(settings.epochs):
        first._seed(epoch)
        for batch in even_order(groups).split(settings.batch_size):
            optimizer.zero_grad()
            logits = forward(first.model, layers, inputs[:, batch], training=True)
            wanted = targets[:, batch].flatten()
            loss = cross_entropy(logits.flatten(0, 1), wanted, reduction="sum")
            (loss / len(batch)).backward()
            optimizer.step()
        said = forward(first.model, layers, held, training=False).detach()
        for place, loss in enumerate(mean_losses(said, held_targets)):
            if loss < runs[place].best_loss:
                runs[place].best_loss, runs[place].best_epoch = loss, epoch
                put_back(runs[place].model, layers, place)


def mean_losses(logits: Tensor, targets: Tensor) -> list[float]:
    """Mean loss of every network, from logits ``[B, n, C]`` and targets ``[B, n]``."""
    logs = logits.double().log_softmax(-1)
    found = logs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    losses: list[float] = (-found.mean(1)).tolist()
    return losses


def stacked(models: Sequence[torch.nn.Module]) -> Layers:
    """Weights and biases of every layer, ``[B, d_out, d_in]`` and ``[B, d_out]``."""
    return [
        tuple(
            torch.stack([model.get_parameter(f"{name}.{kind}") for model in models])
            .detach()
            .requires_grad_()
            for kind in ("weight", "bias")
        )
        for name in names_of(models[0])
    ]


def names_of(model: torch.nn.Module) -> list[str]:
    """Names of a perceptron's layers, in order."""
    assert isinstance(model, Mlp)
    return [f"hidden_{i + 1}" for i in range(model.depth)] + ["output"]


def forward(
    model: torch.nn.Module, layers: Layers, x: Tensor, training: bool
) -> Tensor:
    """Logits ``[B, N, C]`` of inputs ``[B, N, d]``."""
    assert isinstance(model, Mlp)
    for weight, bias in layers[:-1]:
        x = model.activation(torch.baddbmm(bias.unsqueeze(1), x, weight.mT))
        if training:  # the same mask for all networks, drawn as each would
            x = x * dropout(x.new_ones(x.shape[1:]), model.dropout.p, training=True)
    weight, bias = layers[-1]
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def put_back(model: torch.nn.Module, layers: Layers, place: int) -> None:
    """Copy one network's weights into a model."""
    with torch.no_grad():
        for name, layer in zip(names_of(model), layers, strict=True):
            for kind, tensor in zip(("weight", "bias"), layer, strict=True):
                model.get_parameter(f"{name}.{kind}").copy_(tensor[place])
