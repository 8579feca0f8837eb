"""Spectra of a whole window of batches: sums of group gradients and of Grams.

The group gradient of a window is the sum over its batches; the factors' rows are those
of all batches, and their spectrum follows from the sum of their Grams. What is kept is
groups × (parameters + widths²), however long the window is.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectral_mlops.hooks.measure import ReducedBatch, spectra_of
from spectral_mlops.hooks.measured import (
    LayerRows,
    LoneMatrix,
    Wanted,
    known_of,
    measured_of,
)
from spectral_mlops.records import Quantity, Spectrum
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import LayerFactors, reduce_layers
from spectral_mlops.spectra.reduced import Key, Reduced, divide, safe_exponent
from spectral_mlops.spectra.solver import solve_marking

Cell = tuple[str, Quantity, str, str]
"""Layer, quantity, grouping, group."""
FLOAT32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class _Sum:
    """What a window holds of one layer, quantity and group."""

    matrix: Tensor
    known: dict[str, Any]
    people: frozenset[str]

    def plus(self, later: "_Sum") -> "_Sum":
        """Add another batch."""
        counts = ("samples", "rows", "batch_samples")
        people = self.people | later.people
        known = later.known | {k: self.known[k] + later.known[k] for k in counts}
        known["subjects"] = len(people)
        return _Sum(self.matrix + later.matrix, known, people)


@dataclass
class Window:
    """Batches, added up."""

    _sums: dict[Cell, _Sum] = field(default_factory=dict)

    def add(
        self,
        layers: Iterable[LayerRows],
        lone: Iterable[LoneMatrix],
        wanted: Wanted,
        elsewhere: Set[str] = frozenset(),
    ) -> None:
        """Add one batch; see `measure.reduce_batch`."""
        for people, measured in measured_of(layers, lone, wanted, elsewhere):
            names = [who for labels in people.labellings for who in labels.subjects]
            for item in measured:
                for quantity in item.quantities:
                    matrices = item.sums(quantity, people).cpu()
                    for g, (grouping, group, members) in enumerate(people.groups):
                        own = frozenset(names[i] for i in members.tolist())
                        found = _Sum(
                            matrices[g],
                            known_of(item, quantity, people, g, wanted),
                            own,
                        )
                        cell = (item.name, quantity, grouping, group)
                        before = self._sums.get(cell)
                        self._sums[cell] = before.plus(found) if before else found

    def spectra(self) -> list[Spectrum]:
        """Solve what was added up, and begin anew.

        Returns:
            One record per layer, quantity and group, at scale ``batch``: the sum over
            the batches of the window.
        """
        sums, self._sums = self._sums, {}
        batch = ReducedBatch()
        for i, one in enumerate(sums.values()):
            quantity: Quantity = one.known["quantity"]
            key = Key(i, 0, quantity)
            batch.cells[key] = one.known
            if quantity == "gradient":
                factors = [LayerFactors(i, gradient=one.matrix.unsqueeze(0))]
                everyone = Groups(1, [None])
                batch.problems.extend(reduce_layers(factors, everyone, [quantity]))
            else:
                batch.problems.append(_of_gram(key, one))
        return spectra_of([batch], solve_marking(batch.problems))


def _of_gram(key: Key, one: _Sum) -> Reduced:
    """Return the problem of a factor whose Gram is there already."""
    blocks, width, _ = one.matrix.shape
    exponent = safe_exponent(one.matrix) // 2  # a Gram is of squares
    return Reduced(
        keys=[key],
        sizes=[min(width, one.known["rows"])],
        gram=divide(one.matrix, 2 * exponent),
        other=None,
        blocks=blocks,
        coarse=FLOAT32,
        exponents=[exponent],
    )
