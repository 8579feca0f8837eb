"""A small network, some people, and one epoch of training on them."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

PEOPLE, INPUTS, CLASSES = 26, 9, 2


def network(dropout=0.0, classes=CLASSES):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, 6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, classes)
    )


def people(seed=0, n=PEOPLE, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, INPUTS, generator=generator)
    y = torch.arange(n) % 2
    x[:, :4] += shift * y.unsqueeze(1)
    sex = ["f" if i % 3 else "m" for i in range(n)]
    return x, y, sex, [f"sub-{i:02d}" for i in range(n)]


def epoch(model, optimizer, monitor, x, y, sex, who, size=8):
    batches = torch.arange(len(x)).split(size)
    for batch in batches:
        rows = batch.tolist()
        groups = {"dx": y[batch], "sex": [sex[i] for i in rows]}
        with monitor.watch(groups, [who[i] for i in rows], y[batch]):
            loss = cross_entropy(model(x[batch]), y[batch])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return len(batches)


def probe_batches(x, y, who, sizes=(11, 15)):
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        yield x[part], y[part], {"dx": y[part]}, who[part]
        start += size
