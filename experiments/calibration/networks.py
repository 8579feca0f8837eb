"""Many small networks on many cohorts, trained as one.

Every cohort has 80 people who train and 40 who are held out. Inputs know nothing of
the classes; in `sites` both depend on the site, and on each other through it alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from experiments.power.stack import Layers, forward, stacked
from spectral_mlops.models.mlp import Mlp, MlpSettings

TRAINED_ON, HELD_OUT, FEATURES = 80, 40, 12
BATCH, EPOCHS, FOLDS, LEARNING_RATE = 32, 20, 5, 0.01
SHAPE = MlpSettings(hidden=(10, 8), dropout=0.0)
FLAT = 0.5
"""Site B's inputs shrink from one feature to the next, to this power of its number."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """One data set; the first 80 people train.

    Attributes:
        inputs: Shape ``[120, 12]``.
        classes: 0 or 1, half of each part, shape ``[120]``.
        sites: 0 or 1, shape ``[120]``.
    """

    inputs: Tensor
    classes: Tensor
    sites: Tensor


@dataclass(frozen=True, eq=False)
class Task:
    """One network to train.

    Attributes:
        cohort: Its data set.
        train: Places of its people, shape ``[n]``.
        validation: Places of those who choose its checkpoint, shape ``[m]``.
        seed: Of its first weights and batches.
    """

    cohort: Cohort
    train: Tensor
    validation: Tensor
    seed: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Trained:
    """Networks by place.

    Attributes:
        epochs: Weights after each epoch asked for.
        best: Weights of the lowest validation loss.
    """

    epochs: dict[int, Layers]
    best: Layers


def plain(seed: int) -> Cohort:
    """Inputs that know neither class nor site."""
    rng = np.random.default_rng([1, seed])
    n = TRAINED_ON + HELD_OUT
    inputs = torch.from_numpy(rng.normal(size=(n, FEATURES))).float()
    return Cohort(inputs, torch.arange(n) % 2, torch.zeros(n, dtype=torch.int64))


def sites(seed: int) -> Cohort:
    """Three quarters of one class, a quarter of the other are of site B.

    Its inputs have another mean and a steeper spectrum. Within a site inputs know no
    class.
    """
    rng = np.random.default_rng([2, seed])
    base = plain(seed)
    position = torch.arange(len(base.classes)) // 2 % 4
    site = torch.where(base.classes == 1, position != 0, position == 0).long()
    noise = torch.from_numpy(rng.normal(size=base.inputs.shape)).float()
    steep = torch.arange(1, FEATURES + 1) ** -FLAT
    inputs = torch.where(site.unsqueeze(1) == 1, 0.5 + noise * steep, noise)
    return Cohort(inputs, base.classes, site)


def fold_tasks(cohort: Cohort, seed: int, seeds: int) -> list[Task]:
    """Five folds of the training people, so many networks each; folds vary slowest."""
    rng = np.random.default_rng([3, seed])
    fold = np.empty(TRAINED_ON, dtype=np.int64)
    for label in (0, 1):  # as many of each class in every fold
        members = np.flatnonzero(cohort.classes[:TRAINED_ON].numpy() == label)
        fold[rng.permutation(members)] = np.arange(len(members)) % FOLDS
    parts = [
        (torch.from_numpy(np.flatnonzero(fold != k)), np.flatnonzero(fold == k))
        for k in range(FOLDS)
    ]
    return [
        Task(cohort, train, torch.from_numpy(held), (4, seed, k, s))
        for k, (train, held) in enumerate(parts)
        for s in range(seeds)
    ]


def first_model(task: Task) -> Mlp:
    """The untrained network of a task."""
    torch.manual_seed(int(np.random.SeedSequence(task.seed).generate_state(1)[0]))
    return Mlp(FEATURES, 2, SHAPE)


def orders_of(task: Task) -> Tensor:
    """Who comes when, shape ``[epochs, n]``: places into ``task.train``."""
    rng = np.random.default_rng(task.seed)
    rows = np.tile(np.arange(len(task.train)), (EPOCHS, 1))
    return torch.from_numpy(rng.permuted(rows, axis=1))


def train_many(tasks: Sequence[Task], kept: Sequence[int] = ()) -> Trained:
    """Train networks with as many people each, Adam on batches of 32.

    Args:
        tasks: One per network.
        kept: Epochs after which weights are kept.
    """
    models = [first_model(task) for task in tasks]
    layers = stacked(models)
    parameters = [tensor for layer in layers for tensor in layer]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    x, y = (torch.stack(part) for part in zip(*map(_training, tasks), strict=True))
    held = [(task.cohort, task.validation) for task in tasks]
    held_x = torch.stack([cohort.inputs[who] for cohort, who in held])
    held_y = torch.stack([cohort.classes[who] for cohort, who in held])
    orders = torch.stack([orders_of(task) for task in tasks])  # [B, epochs, n]
    lowest = torch.full((len(tasks),), torch.inf)
    best, snapshots = _copy(layers), {}
    for epoch in range(EPOCHS):
        for index in orders[:, epoch].split(BATCH, dim=1):
            optimizer.zero_grad()
            inputs = x.gather(1, index.unsqueeze(2).expand(-1, -1, FEATURES))
            logits = forward(models[0], layers, inputs, training=True).flatten(0, 1)
            wanted = y.gather(1, index).flatten()
            loss = cross_entropy(logits, wanted, reduction="sum") / index.shape[1]
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            said = forward(models[0], layers, held_x, training=False)
            losses = cross_entropy(said.mT, held_y, reduction="none").mean(1)
            better = losses < lowest
            lowest = torch.where(better, losses, lowest)
            for old, new in zip(best, layers, strict=True):
                for a, b in zip(old, new, strict=True):
                    a[better] = b[better]
        if epoch in kept:
            snapshots[epoch] = _copy(layers)
    return Trained(snapshots, best)


def _training(task: Task) -> tuple[Tensor, Tensor]:
    return task.cohort.inputs[task.train], task.cohort.classes[task.train]


def _copy(layers: Layers) -> Layers:
    return [(w.detach().clone(), b.detach().clone()) for w, b in layers]
