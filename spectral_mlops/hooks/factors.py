"""The factors of each group at one layer."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.rows import Factored
from spectral_mlops.records import POOLED


class GroupFactors(NamedTuple):
    """The factors of one group at one layer; ``Aᵀ Δ`` over rows is its gradient.

    Attributes:
        A: Activations, shape ``[n_g, S, d_in]``; of a convolution the unfolded
            patches; of an embedding the indices ``[n_g, S]`` of its one-hot rows.
            Grouped convolutions have a leading axis of blocks.
        adjoint: Shape ``[n_g, S, d_out]``; carries the loss scale ``c``.
        samples: ``n_g``.
    """

    A: Tensor
    adjoint: Tensor
    samples: int


def group_factors(
    calls: Sequence[tuple[Labelling, Factored]],
    groupings: Iterable[str],
    max_bytes: int,
) -> dict[str, dict[str, GroupFactors]]:
    """Join the rows of a layer's calls, group by group.

    Args:
        calls: Those of the layer, each with the labels of its samples.
        groupings: Names of the groupings.
        max_bytes: Size above which unfolded patches are refused.

    Returns:
        ``{grouping: {group: factors}}``, the pooled group ``all`` included.

    Raises:
        CaptureError: If they are larger than ``max_bytes``.
    """
    labellings = list(dict.fromkeys(labelling for labelling, _ in calls))
    result: dict[str, dict[str, GroupFactors]] = {}
    for grouping in groupings:
        names = sorted({g for who in labellings for g in who.groupings[grouping]})
        for group in (*names, POOLED):
            pieces = []
            for who in labellings:
                members = torch.arange(who.size)
                if group != POOLED:
                    members = who.groupings[grouping].get(group, members[:0])
                chosen = [
                    rows.choose(members).factors(max_bytes)
                    for labelling, rows in calls
                    if labelling is who
                ]
                positions = 2 if chosen[0][1].ndim == 4 else 1
                pieces.append(
                    tuple(torch.cat(x, positions) for x in zip(*chosen, strict=True))
                )
            samples = pieces[0][1].ndim - 3
            a, d = (torch.cat(x, samples) for x in zip(*pieces, strict=True))
            result.setdefault(grouping, {})[group] = GroupFactors(
                a, d, d.shape[samples]
            )
    return result
