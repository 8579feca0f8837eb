"""Spectra of a whole window of batches: sums of group gradients and of Grams.

The group gradient of a window is the sum over its batches; the factors' rows are those
of all batches, and their spectrum follows from the sum of their Grams. What is kept is
groups × (parameters + widths²), however long the window is.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectral_mlops.hooks.distributed import Ranks
from spectral_mlops.hooks.layer_rows import Measurable
from spectral_mlops.hooks.measure import ReducedBatch, spectra_of
from spectral_mlops.hooks.measured import known_of, measured_of
from spectral_mlops.records import Quantity, Spectrum
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import LayerFactors, reduce_layers
from spectral_mlops.spectra.reduced import Key, Reduced, divide, safe_exponent
from spectral_mlops.spectra.solver import solve_marking

Cell = tuple[str, Quantity, str, str]
"""Layer, quantity, grouping, group."""
FLOAT32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a window holds of one layer, quantity and group, beside the matrix.

    Attributes:
        known: Fields of the record.
        people: Those behind the samples, as far as they were told.
        strangers: Number of samples without a person, each of which is another.
    """

    known: dict[str, Any]
    people: frozenset[str]
    strangers: int

    def plus(self, later: "_Seen") -> "_Seen":
        """Add another batch."""
        counts = ("samples", "rows", "batch_samples")
        people = self.people | later.people
        strangers = self.strangers + later.strangers
        known = later.known | {k: self.known[k] + later.known[k] for k in counts}
        known["subjects"] = len(people) + strangers
        return _Seen(known, people, strangers)


@dataclass
class Window:
    """Batches, added up."""

    _matrices: dict[Cell, Tensor] = field(default_factory=dict)
    _seen: dict[Cell, _Seen] = field(default_factory=dict)

    def add(self, found: Measurable) -> None:
        """Add one batch."""
        for people, measured in measured_of(found):
            names = [
                who if labels.identified else None
                for labels in people.labellings
                for who in labels.subjects
            ]
            for item in measured:
                for quantity in item.quantities:
                    matrices = item.sums(quantity, people).cpu()
                    for g, (grouping, group, members) in enumerate(people.groups):
                        own = [names[i] for i in members.tolist()]
                        seen = _Seen(
                            known_of(item, quantity, people, g, found.wanted),
                            frozenset(who for who in own if who is not None),
                            own.count(None),
                        )
                        cell = (item.name, quantity, grouping, group)
                        self._add(cell, seen)
                        before = self._matrices.get(cell)
                        self._matrices[cell] = (
                            matrices[g] if before is None else before + matrices[g]
                        )

    def join(self, ranks: Ranks) -> None:
        """Take in what all ranks hold, so that each has the window of all batches.

        The ranks' batches come one after another, in the order of ranks. A group or a
        layer that one rank has not seen adds nothing there.
        """
        self._matrices = ranks.add(self._matrices)
        told, self._seen = ranks.gather(self._seen), {}
        for found in told:
            for cell, seen in found.items():
                self._add(cell, seen)

    def _add(self, cell: Cell, seen: _Seen) -> None:
        before = self._seen.get(cell)
        self._seen[cell] = before.plus(seen) if before else seen

    def spectra(self) -> list[Spectrum]:
        """Solve what was added up, and begin anew.

        Returns:
            One record per layer, quantity and group, at scale ``batch``: the sum over
            the batches of the window.
        """
        matrices, self._matrices = self._matrices, {}
        every, self._seen = self._seen, {}
        batch, problems = ReducedBatch(), list[Reduced]()
        for i, (cell, seen) in enumerate(every.items()):
            matrix, quantity = matrices[cell], cell[1]
            key = Key(i, 0, quantity)
            batch.cells[key] = seen.known
            if quantity == "gradient":
                factors = [LayerFactors(i, gradient=matrix.unsqueeze(0))]
                everyone = Groups(1, [None])
                problems += reduce_layers(factors, everyone, [quantity])
            else:
                problems.append(_of_gram(key, matrix, seen.known["rows"]))
        return spectra_of([batch], solve_marking(problems))


def _of_gram(key: Key, gram: Tensor, rows: int) -> Reduced:
    """Return the problem of a factor whose Gram is there already."""
    blocks, width, _ = gram.shape
    exponent = safe_exponent(gram) // 2  # a Gram is of squares
    return Reduced(
        keys=[key],
        sizes=[min(width, rows)],
        gram=divide(gram, 2 * exponent),
        other=None,
        blocks=blocks,
        coarse=FLOAT32,
        exponents=[exponent],
    )
