"""Which Grams each group of each layer needs, and which layers share a call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from spectral_mlops.spectra.drivers import is_out_of_memory
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.jobs import (
    Chosen,
    Factor,
    Grams,
    column_problems,
    row_problems,
    shared_problems,
)
from spectral_mlops.spectra.randomised import sketched_product, sketched_rows
from spectral_mlops.spectra.reduced import Key, Reduced, unsolvable

STACKED = 2**18
"""Numbers in a factor up to which layers of equal shape share one call."""
Part = Factor | tuple[Factor, Factor]
"""Whose spectrum: a factor's own, or the gradient of two."""


class Plan:
    """Sorts factors into jobs of equal shape, then runs each as one call.

    Args:
        groups: Of the batch.
        largest: Smaller side above which a matrix is sketched, not decomposed.
    """

    def __init__(self, groups: Groups, largest: int) -> None:
        self.groups = groups
        self.largest = largest
        self.row_jobs: dict[tuple[object, ...], tuple[list[Factor], Chosen]] = {}
        self.column_jobs: dict[tuple[object, ...], _ColumnJob] = {}
        self.shared: list[tuple[Factor, Factor, Chosen]] = []
        self.large: list[tuple[Part, int]] = []
        self.done: list[Reduced] = []

    def add(self, a: Factor | None, d: Factor | None, product: bool) -> None:
        """Decide what to make of each group that is not empty.

        Args:
            a: The layer's activation, where anything needs it.
            d: Its adjoint.
            product: Whether the gradient is to be had from both.
        """
        pair = (a, d) if a is not None and d is not None and product else None
        shared: list[int] = []
        wide: dict[str, list[int]] = {"activation": [], "adjoint": []}
        tall: dict[tuple[bool, bool, bool], list[int]] = {}
        for g in (g for g, count in enumerate(self.groups.counts) if count):
            if pair and self._side(pair, g) == self._rows(pair[0], g) <= self.largest:
                shared.append(g)
                continue
            kind = [False, False, pair is not None and not self._is_large(pair, g)]
            for i, factor in enumerate((a, d)):
                if factor is None or not factor.wanted or self._is_large(factor, g):
                    continue
                kind[i] = self._rows(factor, g) > factor.rows.shape[3]
                if not kind[i]:
                    wide[factor.quantity].append(g)
            for one in _column_kinds(*kind):
                tall.setdefault(one, []).append(g)
        if pair and shared:
            self.shared.append((*pair, tuple(shared)))
        for factor in (a, d):
            if factor is not None:
                self._add_rows(factor, tuple(shared))
                self._add_rows(factor, tuple(wide[factor.quantity]))
        for one, chosen in tall.items():
            self._add_columns(a, d, tuple(chosen), one)

    def run(self) -> list[Reduced]:
        """Do all jobs; one that finds no memory leaves marked members."""
        found: dict[tuple[int, Chosen], list[Grams]] = {}
        for factors, chosen in self.row_jobs.values():
            with self._marking([f for f in factors if f.wanted], chosen):
                problems, grams = row_problems(factors, self.groups, chosen)
                self.done += problems
                for factor, own in zip(factors, grams, strict=True):
                    found[id(factor), chosen] = own
        for a, d, chosen in self.shared:
            of_a, of_d = found.get((id(a), chosen)), found.get((id(d), chosen))
            if of_a is None or of_d is None:
                self._mark([(a, d)], chosen)
                continue
            both = zip(of_a, of_d, strict=True)
            self.done += shared_problems(a, d, both, self.groups)
        for job in self.column_jobs.values():
            sides = zip((job.activations, job.adjoints), job.kind[:2], strict=True)
            singles = [f for side, wanted in sides if wanted for f in side]
            products = zip(job.activations, job.adjoints, strict=False)
            parts = [*singles, *(products if job.kind[2] else ())]
            with self._marking(parts, job.chosen):
                self.done += list(
                    column_problems(
                        job.activations, job.adjoints, self.groups, job.chosen, job.kind
                    )
                )
        for part, g in self.large:
            with self._marking([part], (g,)):
                if isinstance(part, tuple):
                    self.done.append(sketched_product(*part, self.groups, g))
                else:
                    self.done.append(sketched_rows(part, self.groups, g))
        return self.done

    @contextmanager
    def _marking(self, parts: Sequence[Part], chosen: Chosen) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._mark(parts, chosen)

    def _mark(self, parts: Sequence[Part], chosen: Chosen) -> None:
        """Leave marked members for factors, and for pairs their gradients."""
        for part in parts:
            pair = part if isinstance(part, tuple) else (part,)
            quantity = "gradient" if len(pair) > 1 else pair[0].quantity
            sizes = [len(pair[0].rows) * self._side(part, g) for g in chosen]
            keys = [Key(pair[0].name, g, quantity) for g in chosen]
            self.done.append(unsolvable(keys, sizes, "out of memory"))

    def _rows(self, factor: Factor, group: int) -> int:
        return self.groups.counts[group] * factor.rows.shape[2]

    def _side(self, part: Part, group: int) -> int:
        """Smaller side of the matrix, which is the number of its values."""
        pair = part if isinstance(part, tuple) else (part,)
        return min(self._rows(pair[0], group), *(f.rows.shape[3] for f in pair))

    def _is_large(self, part: Part, group: int) -> bool:
        """Whether to sketch; puts it on the list."""
        large = self._side(part, group) > self.largest
        if large:
            self.large.append((part, group))
        return large

    def _add_rows(self, factor: Factor, chosen: Chosen) -> None:
        if chosen:
            key = (*_shape_of(factor), chosen)
            self.row_jobs.setdefault(key, ([], chosen))[0].append(factor)

    def _add_columns(
        self,
        a: Factor | None,
        d: Factor | None,
        chosen: Chosen,
        kind: tuple[bool, bool, bool],
    ) -> None:
        """Add to the job of all layers of these shapes."""
        a = a if kind[0] or kind[2] else None
        d = d if kind[1] or kind[2] else None
        key = (*_shape_of(a), *_shape_of(d), chosen, kind)
        job = self.column_jobs.setdefault(key, _ColumnJob([], [], chosen, kind))
        job.activations.extend([a] if a else [])
        job.adjoints.extend([d] if d else [])


@dataclass(frozen=True, eq=False)
class _ColumnJob:
    """Layers whose groups have more rows than columns in the same way."""

    activations: list[Factor]
    adjoints: list[Factor]
    chosen: Chosen
    kind: tuple[bool, bool, bool]


def _column_kinds(
    activation: bool, adjoint: bool, product: bool
) -> list[tuple[bool, bool, bool]]:
    """Without a product each side goes its own way: their positions may differ."""
    if product:
        return [(activation, adjoint, True)]
    alone = [(activation, False, False), (False, adjoint, False)]
    return [one for one in alone if any(one)]


def _shape_of(factor: Factor | None) -> tuple[object, ...]:
    """Return what factors of one job share; large ones go alone."""
    if factor is None:
        return (None,)
    x = factor.rows
    alone = id(factor) if x.numel() > STACKED else 0
    return (x.shape, x.dtype, x.device, alone)
