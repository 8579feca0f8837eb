"""From the rows of a batch to spectrum records, in two steps.

`reduce_batches` leaves small matrices (`spectra.reduce`) of one batch, or of several
that waited; they are solved together and may be beside the training thread
(`spectra.solver`). `spectra_of` then makes records of what was solved.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from spectral_mlops.hooks.layer_rows import Measurable
from spectral_mlops.hooks.measured import known_of, measured_of
from spectral_mlops.records import Spectrum
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import LayerFactors
from spectral_mlops.spectra.reduced import Key, Reduced
from spectral_mlops.spectra.solve import Solved
from spectral_mlops.spectra.solver import solve_marking
from spectral_mlops.spectra.summaries import SUMMARIES, summarise
from spectral_mlops.spectra.together import reduce_together


@dataclass(frozen=True, eq=False)
class ReducedBatch:
    """Whose the small matrices of one batch are.

    Attributes:
        cells: What is known of each spectrum but its values, in the order of records.
        counted: Spectra that need no solving, descending.
    """

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


def measure(found: Measurable) -> list[Spectrum]:
    """Reduce and solve at once; see `reduce_batches`."""
    problems, batches = reduce_batches([found])
    return spectra_of(batches, solve_marking(problems))


def reduce_batches(
    found: Sequence[Measurable],
) -> tuple[list[Reduced], list[ReducedBatch]]:
    """Reduce rows to small matrices, one per layer, group and quantity.

    Returns:
        What is to be solved, of all batches in any order, and what is known of each
        batch, the pooled group first within each layer.
    """
    batches = [ReducedBatch() for _ in found]
    parts = [
        part
        for one, batch in zip(found, batches, strict=True)
        for part in _parts_of(one, batch)
    ]
    return reduce_together(parts), batches


def _parts_of(
    found: Measurable, batch: ReducedBatch
) -> Iterator[tuple[list[LayerFactors], Groups]]:
    """Yield a batch's factors by their groups, and note what its records will say."""
    serial = next(_SERIAL)
    for people, measured in measured_of(found):
        factors: list[LayerFactors] = []
        for item in measured:
            name = (serial, item.name)
            factors += item.factors(name, people)
            for quantity in item.quantities:
                for g, (_, _, members) in enumerate(people.groups):
                    key = Key(name, g, quantity)
                    counted = item.counted(quantity, members)
                    if counted is not None:
                        batch.counted[key] = counted
                    batch.cells[key] = known_of(item, quantity, people, g, found.wanted)
        yield factors, people.engine


_SERIAL = count()
"""Tells the batches apart that are solved together."""
