"""From the rows of watched batches to the people that a null relabels."""

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor

from spectral_mlops.hooks.layer_rows import Measurable
from spectral_mlops.hooks.observed import keep_layers
from spectral_mlops.validity import Observed


def observe(
    found: Measurable,
    trained_on: bool,
    label_free: bool = False,
    number: int = 0,
) -> Observed | None:
    """Keep what a null needs of captured rows; None if nothing was captured.

    Samples without a person behind them are others in each batch, hence its number.
    """
    batches = [x for layer in found.layers for x in layer.labellings]
    batches += [x for matrix in found.lone for x in matrix.labellings]
    labellings = tuple(dict.fromkeys(batches))
    if not labellings:
        return None
    groupings = {
        name: [group for who in labellings for group in _labels_of(who.groupings[name])]
        for name in labellings[0].groupings
    }
    targets = [who.targets for who in labellings]
    subjects = [
        [p if who.identified else f"{number}: {p}" for p in who.subjects]
        for who in labellings
    ]
    order = {p: i for i, p in enumerate(dict.fromkeys(chain(*subjects)))}
    people = {
        who: torch.tensor([order[p] for p in own], dtype=torch.int64)
        for who, own in zip(labellings, subjects, strict=True)
    }
    with torch.no_grad():
        kept = keep_layers(*found, people)
    return Observed(
        subjects=list(chain(*subjects)),
        groupings=groupings,
        targets=(
            None
            if any(t is None for t in targets)
            else [label for column in targets for label in column or ()]
        ),
        layers=kept,
        trained_on=trained_on,
        label_free=label_free,
    )


def _labels_of(groups: Mapping[str, Tensor]) -> list[str]:
    """Return the label of each sample, in order."""
    at = {i: group for group, samples in groups.items() for i in samples.tolist()}
    return [at[i] for i in range(len(at))]
