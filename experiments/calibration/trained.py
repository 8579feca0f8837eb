"""Trained networks: what p a run of the package gives where no groups differ.

Inputs know neither the class nor the sex of a person; the two depend on each other.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from spectral_mlops import SpectralMonitor
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.inference.significance import combined_z, p_value

TRAINED_ON, HELD_OUT, FEATURES, BATCH, EPOCHS = 80, 40, 12, 40, 20
QUANTITIES = ("gradient", "activation", "adjoint")

VALID = {
    ("train", "sex"): "training people, a grouping unseen by training",
    ("probe", "class"): "held-out people, classes as groups, adjoints of the margin",
    ("probe", "sex"): "held-out people, a grouping unseen by training",
}
OTHERS = {("train", "class"): "training people, classes as groups"}


def combined_p(
    comparisons: Sequence[Comparison], grouping: str, quantity: str
) -> float:
    """Return p of the mean over layers of the standardised divergence."""
    columns = [
        item.values
        for item in comparisons
        if (item.grouping, item.quantity) == (grouping, quantity) and item.has_null
    ]
    return float(p_value(combined_z(np.stack(columns, axis=1))))


def p_of_one_network(seed: int, permutations: int) -> dict[tuple[str, str, str], float]:
    """Train one network on one cohort; return p by source, grouping and quantity."""
    torch.manual_seed(seed)
    n = TRAINED_ON + HELD_OUT
    x = torch.randn(n, FEATURES)
    classes = torch.arange(n) % 2
    same = torch.rand(n) < 0.65
    sex = torch.where(same, classes, 1 - classes)
    model = nn.Sequential(
        *[nn.Linear(FEATURES, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU()],
        nn.Linear(8, 2),
    )

    def labels(chosen: Tensor) -> dict[str, list[int]]:
        return {"class": classes[chosen].tolist(), "sex": sex[chosen].tolist()}

    monitor = SpectralMonitor(
        model,
        epochs=[EPOCHS - 1],
        null_batches=TRAINED_ON // BATCH,
        pooled=False,
        strata=None,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loss_function = nn.CrossEntropyLoss()
    for epoch in range(EPOCHS):
        monitor.begin_epoch(epoch)
        for who in torch.randperm(TRAINED_ON).split(BATCH):
            optimizer.zero_grad()
            watched = monitor.watch(
                labels(who), subjects=who.tolist(), targets=classes[who].tolist()
            )
            with watched:
                loss_function(model(x[who]), classes[who]).backward()
            optimizer.step()
    held_out = torch.arange(TRAINED_ON, n)
    batch = (x[held_out], classes[held_out], labels(held_out), held_out.tolist())
    seen = {"train": monitor.collect(), "probe": monitor.probe([batch])}
    found = {}
    for source, result in seen.items():
        comparisons = result.comparisons(permutations, seed=seed)
        for grouping in ("class", "sex"):
            for quantity in QUANTITIES:
                p = combined_p(comparisons, grouping, quantity)
                found[source, grouping, quantity] = p
    return found
