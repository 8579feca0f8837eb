"""From the rows of a batch to spectrum records, in two steps.

`reduce_batch` runs right after the backward pass and leaves small matrices
(`spectra.reduce`); they may be solved later, together with those of other batches and
beside the training thread (`spectra.solver`). `spectra_of` then makes records of what
was solved.
"""

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from spectral_mlops.hooks.layer_rows import LayerRows, LoneMatrix, Wanted
from spectral_mlops.hooks.measured import known_of, measured_of
from spectral_mlops.records import Spectrum
from spectral_mlops.spectra.reduce import reduce_layers
from spectral_mlops.spectra.reduced import Key, Reduced
from spectral_mlops.spectra.solve import Solved
from spectral_mlops.spectra.solver import solve_marking
from spectral_mlops.spectra.summaries import SUMMARIES, summarise


@dataclass(frozen=True, eq=False)
class ReducedBatch:
    """Small matrices of one batch, and whose they are.

    Attributes:
        problems: To be solved.
        cells: What is known of each spectrum but its values, in the order of records.
        counted: Spectra that need no solving, descending.
    """

    problems: list[Reduced] = field(default_factory=list)
    cells: dict[Key, dict[str, Any]] = field(default_factory=dict)
    counted: dict[Key, Tensor] = field(default_factory=dict)

    def found(
        self, solved: Mapping[Key, Solved]
    ) -> list[tuple[dict[str, Any], Solved]]:
        """Pair what was known with what was solved."""
        return [
            (cell, self._known(key) or solved[key]) for key, cell in self.cells.items()
        ]

    def _known(self, key: Key) -> Solved | None:
        values = self.counted.get(key)
        if values is None:
            return None
        return Solved(key, values.numpy(), 0.0, 0, "counted", "ok", True, 0.0)


def spectra_of(
    batches: Iterable[ReducedBatch], solved: Iterable[Solved]
) -> list[Spectrum]:
    """Make the records of some batches from all that was solved of them."""
    by_key = {one.key: one for one in solved}
    found = [pair for batch in batches for pair in batch.found(by_key)]
    summaries = summarise([torch.from_numpy(one.values) for _, one in found])
    return [
        Spectrum(
            **cell,
            values=one.values,
            route=one.route,
            floor=one.floor,
            below_floor=one.below_floor,
            status=one.status,
            bound=one.bound,
            summaries=(
                summary
                if one.summaries is None
                else dict.fromkeys(SUMMARIES, math.nan) | one.summaries
            ),
        )
        for (cell, one), summary in zip(found, summaries, strict=True)
    ]


def measure(
    layers: Iterable[LayerRows],
    lone: Iterable[LoneMatrix],
    wanted: Wanted,
    elsewhere: Set[str] = frozenset(),
) -> list[Spectrum]:
    """Reduce and solve at once; see `reduce_batch`."""
    batch = reduce_batch(layers, lone, wanted, elsewhere)
    return spectra_of([batch], solve_marking(batch.problems))


def reduce_batch(
    layers: Iterable[LayerRows],
    lone: Iterable[LoneMatrix],
    wanted: Wanted,
    elsewhere: Set[str] = frozenset(),
) -> ReducedBatch:
    """Reduce rows to small matrices, one per layer, group and quantity.

    Args:
        layers: Their rows.
        lone: Matrices without factors.
        wanted: What is measured.
        elsewhere: Layers whose product of factors is no parameter's gradient.

    Returns:
        What is left, the pooled group first within each layer.
    """
    batch = ReducedBatch()
    serial = next(_SERIAL)
    for people, measured in measured_of(layers, lone, wanted, elsewhere):
        factors = []
        for item in measured:
            name = (serial, item.name)
            factors += item.factors(name, people)
            for quantity in item.quantities:
                for g, (_, _, members) in enumerate(people.groups):
                    key = Key(name, g, quantity)
                    counted = item.counted(quantity, members)
                    if counted is not None:
                        batch.counted[key] = counted
                    batch.cells[key] = known_of(item, quantity, people, g, wanted)
        batch.problems.extend(reduce_layers(factors, people.engine))
    return batch


_SERIAL = count()
"""Tells the batches apart that are solved together."""
