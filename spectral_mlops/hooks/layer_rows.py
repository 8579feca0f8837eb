"""What a batch gives to be measured: rows, lone matrices, and whose they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.rows import Factored
from spectral_mlops.records import POOLED, Quantity
from spectral_mlops.spectra.groups import Groups

GATES = ("stacked", "apart", "both")


@dataclass(frozen=True)
class LayerRows:
    """All rows of one layer in one context, or of several of them together.

    Attributes:
        layer: Name of the layer.
        calls: Its calls, each with the labels of its samples.
    """

    layer: str
    calls: list[tuple[Labelling, Factored]]

    @property
    def labellings(self) -> tuple[Labelling, ...]:
        """Of the batches, each once; several calls may see one batch."""
        return tuple(dict.fromkeys(labelling for labelling, _ in self.calls))


@dataclass(frozen=True, eq=False)
class LoneMatrix:
    """Group gradients of one matrix, found without factors of its own.

    Attributes:
        parameter: Its name, which its records have as their layer.
        labellings: Of the batches that it was found in.
        gradients: ``{(grouping, group): gradient}``, shape ``[d_in, d_out]``.
    """

    parameter: str
    labellings: tuple[Labelling, ...]
    gradients: Mapping[tuple[str, str], Tensor]

    def plus(self, other: "LoneMatrix") -> "LoneMatrix":
        """Add what another batch found."""
        sums = dict(self.gradients)
        for key, gradient in other.gradients.items():
            sums[key] = sums[key] + gradient if key in sums else gradient
        both = dict.fromkeys((*self.labellings, *other.labellings))
        return LoneMatrix(self.parameter, tuple(both), sums)


@dataclass(frozen=True)
class Wanted:
    """What is measured of a batch.

    Attributes:
        quantities: Which spectra.
        pooled: Whether to measure the pooled group ``all``.
        patches: Whether a convolution's activation is that of its patches.
        gates: One of `GATES`.
        loss_scale: ``c``.
        step: Written into the records.
    """

    quantities: tuple[Quantity, ...]
    pooled: bool = True
    patches: bool = False
    gates: str = "stacked"
    loss_scale: float = 1.0
    step: int = 0


class Measurable(NamedTuple):
    """All that is to be measured of one batch, or of several together.

    Attributes:
        layers: Their rows.
        lone: Matrices without factors.
        wanted: What is measured.
        elsewhere: Layers whose product of factors is no parameter's gradient.
    """

    layers: list[LayerRows]
    lone: list[LoneMatrix]
    wanted: Wanted
    elsewhere: frozenset[str]


class People:
    """The groups of the samples of some batches, one after another."""

    def __init__(self, labellings: tuple[Labelling, ...], pooled: bool) -> None:
        self.labellings = labellings
        self.starts = {}
        self.size = 0
        for who in labellings:
            self.starts[who] = self.size
            self.size += who.size
        self.groups: list[tuple[str, str, Tensor]] = []
        if pooled:
            self.groups.append((POOLED, POOLED, torch.arange(self.size)))
        for grouping in labellings[0].groupings:
            names = sorted({g for who in labellings for g in who.groupings[grouping]})
            for group in names:
                members = [
                    who.groupings[grouping][group] + self.starts[who]
                    for who in labellings
                    if group in who.groupings[grouping]
                ]
                self.groups.append((grouping, group, torch.cat(members)))

    @cached_property
    def engine(self) -> Groups:
        """The same for the engine."""
        return Groups(self.size, [members for _, _, members in self.groups])

    @cached_property
    def subjects(self) -> list[int]:
        """Number of different people in each group."""
        who = [person for labels in self.labellings for person in labels.subjects]
        return [len({who[i] for i in m.tolist()}) for _, _, m in self.groups]

    def within(self, labelling: Labelling, grouping: str, group: str) -> Tensor:
        """Return the samples of one batch that are in a group."""
        if grouping == POOLED:
            return torch.arange(labelling.size)
        nobody = torch.empty(0, dtype=torch.int64)
        return labelling.groupings[grouping].get(group, nobody)

    def formed(self, of_group: Mapping[tuple[str, str], Tensor]) -> Tensor:
        """Stack what was formed per group; the pooled group is their sum.

        Args:
            of_group: ``{(grouping, group): matrix}``, any shape; absent ones are
                zero.
        """
        zero = torch.zeros_like(next(iter(of_group.values())))
        named = (name for name, _, _ in self.groups if name != POOLED)
        first = next(named, "")  # nobody at all is in no group
        parts = [x for (grouping, _), x in of_group.items() if grouping == first]
        whole = {(POOLED, POOLED): torch.stack(parts).sum(0)} if parts else {}
        together = {**whole, **of_group}
        return torch.stack([together.get((a, b), zero) for a, b, _ in self.groups])
