"""What a null keeps of a batch's layers: rows where they are few, else people's sums.

Each person weighs the same: a row counts 1/(rows of its person at that layer), and
how many these are is kept too. What would take more than `KEPT_BYTES` is not kept, and
says so.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from spectral_mlops.hooks.groups import Labelling
from spectral_mlops.hooks.layer_rows import LayerRows, LoneMatrix, Wanted
from spectral_mlops.hooks.layers.embedding import EmbeddingRows
from spectral_mlops.hooks.measured import Measured, Paired, Unpaired, measured_layer
from spectral_mlops.hooks.rows import Factored
from spectral_mlops.records import Quantity
from spectral_mlops.spectra.batched import compress
from spectral_mlops.spectra.kept import (
    Kept,
    KeptColumns,
    KeptCounts,
    KeptLayer,
    KeptRows,
)
from spectral_mlops.spectra.kept_gradients import FormedGradients, GradientRows
from spectral_mlops.spectra.null import MAX_ROWS

KEPT_BYTES = 128 * 2**20
"""What may be kept of one quantity at one layer."""

COPY_BYTES = 16 * 2**20
"""Float64 copies that may exist at once."""

NOT_FINITE = "rows are not finite"
NO_PEOPLE = (
    "its gradients were found per group (replayed, or shared by several layers), so "
    "that nothing is known of single people for a null"
)


def keep_layers(
    layers: Iterable[LayerRows],
    lone: Iterable[LoneMatrix],
    wanted: Wanted,
    elsewhere: Set[str],
    people: Mapping[Labelling, Tensor],
) -> dict[str, KeptLayer]:
    """Keep what a null needs of some batches, under the names that records have.

    Args:
        layers: Their rows.
        lone: Matrices without factors, of which nothing is kept.
        wanted: What is measured.
        elsewhere: Layers whose product of factors is no parameter's gradient.
        people: Index of the person behind each sample, per batch.

    Returns:
        What is kept, by name.
    """
    count = 1 + max((int(x.max()) for x in people.values() if len(x)), default=-1)
    kept = {
        item.name: _keep(item, layer, people, count)
        for layer in layers
        for item in measured_layer(layer, wanted, layer.layer in elsewhere)
    }
    for matrix in lone:
        name = matrix.parameter
        known = kept.get(name, KeptLayer(name, {}, {}))  # of A, where Δ is hidden
        kept[name] = replace(known, reasons={**known.reasons, "gradient": NO_PEOPLE})
    return kept


def _keep(
    item: Measured, layer: LayerRows, people: Mapping[Labelling, Tensor], count: int
) -> KeptLayer:
    """Keep the quantities of one name; none of them where rows are not finite."""
    owner = torch.cat([people[who] for who in layer.labellings])
    rows: _PairedRows | _UnpairedRows
    if isinstance(item, Paired):
        rows = _PairedRows(item, owner, count)
    else:
        assert isinstance(item, Unpaired)
        rows = _UnpairedRows(item, owner, count)
    found: dict[str, Kept | str] = {
        quantity: rows.keep(quantity) for quantity in item.quantities
    }
    kept = {name: x for name, x in found.items() if isinstance(x, Kept)}
    reasons = {name: x for name, x in found.items() if isinstance(x, str)}
    if not all(x.finite for x in kept.values()) or NOT_FINITE in reasons.values():
        return KeptLayer(item.name, {}, dict.fromkeys(found, NOT_FINITE))
    rows_of = {str(name): rows.rows_of(name) for name in item.quantities}
    return KeptLayer(item.name, kept, reasons, rows_of)


class _Pair:
    """Flat rows of A and Δ that belong together, and whose they are.

    Args:
        activation: Shape ``[r, d_in]``.
        adjoint: Shape ``[r, d_out]``.
        owner: Person behind each row, ``[r]``.
        count: Number of people, ``n``.
        rows_of: Number of rows of each person, ``[n]``.
        positions: Consecutive rows that are of one sample, as many for each.
    """

    def __init__(
        self,
        activation: Tensor,
        adjoint: Tensor,
        owner: Tensor,
        count: int,
        rows_of: Tensor,
        positions: int = 1,
    ) -> None:
        self.sides = {"activation": activation, "adjoint": adjoint}
        self.owner, self.count, self.positions = owner, count, positions
        self.weight = rows_of.clamp(min=1).to(torch.float64).rsqrt()

    @cached_property
    def _finite(self) -> bool:
        return all(bool(x.isfinite().all()) for x in self.sides.values())

    @cached_property
    def _compressed(self) -> dict[str, Tensor]:
        return {}

    def _rows(self, side: str) -> Tensor:
        if side not in self._compressed:
            weight = self.weight[self.owner].unsqueeze(1)
            self._compressed[side] = compress(self.sides[side]) * weight
        return self._compressed[side]

    def keep(self, quantity: Quantity) -> Kept | str:
        """Keep rows, or sums over each person's rows, whichever is smaller."""
        names = list(self.sides) if quantity == "gradient" else [quantity] * 2
        left, right = (self.sides[name] for name in names)
        r, d, e = len(left), left.shape[1], right.shape[1]
        as_rows = r * sum(min(r, self.sides[n].shape[1]) for n in dict.fromkeys(names))
        summed = self.count * d * e
        if summed <= as_rows or r > MAX_ROWS:
            size = summed * (8 if quantity != "gradient" else left.element_size())
            if size > KEPT_BYTES:
                return _too_large(r, size)
            sums = self._sums(left, right)
            if quantity == "gradient":
                return FormedGradients(sums.to(left.dtype).unsqueeze(1))
            return KeptColumns(sums.unsqueeze(1))
        if not self._finite:
            return NOT_FINITE
        if quantity == "gradient":
            a, d_ = self._rows("activation"), self._rows("adjoint")
            return GradientRows(a, d_, self.owner, self.count)
        return KeptRows(self._rows(quantity), self.owner)

    def _sums(self, left: Tensor, right: Tensor) -> Tensor:
        """Products over each person's rows, ``[n, d, e]``, float64 on the CPU.

        Rows of one sample stand together; `positions` of them are multiplied at a
        time, those of several samples in one call.
        """
        s, d, e = self.positions, left.shape[1], right.shape[1]
        found = torch.zeros(self.count, d, e, dtype=torch.float64)
        some = max(1, COPY_BYTES // max(1, 8 * (s * (d + e) + d * e)))
        x, y = (z.view(-1, s, z.shape[1]) for z in (left, right))
        owner = self.owner.view(-1, s)[:, 0]
        weight = self.weight.square()[owner].view(-1, 1, 1)
        for at in torch.arange(len(x)).split(some):
            piece = slice(int(at[0]), int(at[-1]) + 1)
            products = x[piece].double().mT @ y[piece].double()
            found.index_add_(0, owner[piece], products.cpu().mul_(weight[piece]))
        return found


class _PairedRows:
    """Rows of a layer that has them as they are."""

    def __init__(self, item: Paired, owner: Tensor, count: int) -> None:
        s = item.activation.shape[1]
        a, d = (x.detach().flatten(0, 1) for x in (item.activation, item.adjoint))
        rows_of = owner.bincount(item.positions.double(), minlength=count)
        self._rows_of = rows_of
        each = owner.repeat_interleave(s)
        if s > 1 and len(a) <= MAX_ROWS:  # padding adds nothing
            taken = (a != 0).any(1) | (d != 0).any(1)
            if not taken.all():
                a, d, each, s = a[taken], d[taken], each[taken.cpu()], 1
        self.keep = _Pair(a, d, each, count, rows_of, max(1, s)).keep

    def rows_of(self, quantity: Quantity) -> Tensor:
        """Number of rows of each person, ``[n]``; one for all quantities."""
        del quantity
        return self._rows_of


class _UnpairedRows:
    """Rows of a layer that would be far larger than what they are made of."""

    def __init__(self, item: Unpaired, owner: Tensor, count: int) -> None:
        self.item, self.owner, self.count = item, owner, count
        starts, total = {}, 0
        for who in item.layer.labellings:
            starts[who] = total
            total += who.size
        self.calls = [
            (owner[starts[who] : starts[who] + who.size], rows)
            for who, rows in item.layer.calls
        ]

    def keep(self, quantity: Quantity) -> Kept | str:
        """Keep rows, or sums over each person's samples."""
        if quantity == "gradient":
            return self._gradient()
        if self.item.is_counted(quantity):
            return self._counts()
        adjoint, patches = quantity == "adjoint", self.item.patches

        def of(rows: Factored) -> Tensor:
            return rows.adjoint_rows() if adjoint else rows.activation_rows(patches)

        blocks, _, _, d = of(self.calls[0][1].choose(torch.tensor([0]))).shape
        r = int(self.item.positions(quantity).sum())
        if r <= MAX_ROWS and blocks == 1:
            rows = [of(x)[0].detach() for _, x in self.calls]
            return self._pair(rows, rows, quantity).keep(quantity)

        def gram(one: Factored) -> Tensor:
            x = of(one).detach().flatten(1, 2).double()
            return x.mT @ x

        size = 8 * self.count * blocks * d * d
        if size > KEPT_BYTES:
            return _too_large(r, size)
        return KeptColumns(self._by_person(gram, (blocks, d, d), quantity).double())

    def _gradient(self) -> Kept | str:
        """Of patches or used entries where these are few, else formed by person."""
        d_in, d_out = self.item.shape
        r = int(self.item.positions("gradient").sum())
        if all(isinstance(x, EmbeddingRows) for _, x in self.calls):
            return self._looked_up()
        nobody = torch.empty(0, dtype=torch.int64)
        example = self.calls[0][1].choose(nobody).matrices()
        blocks = len(example)
        as_rows = r * (min(r, d_in) + min(r, d_out))
        few = r <= MAX_ROWS and blocks == 1 and as_rows < self.count * d_in * d_out
        if few and 8 * r * d_in <= KEPT_BYTES:
            factors = [x.factors() for _, x in self.calls]
            a, d = ([x.detach() for x in side] for side in zip(*factors, strict=True))
            return self._pair(a, d, "gradient").keep("gradient")
        size = example.element_size() * self.count * d_in * d_out
        if size > KEPT_BYTES:
            return _too_large(r, size)
        shape = (blocks, d_in, d_out // blocks)
        parts = self._by_person(lambda x: x.matrices(), shape, "gradient")
        return FormedGradients(parts.to(example.dtype))

    def _pair(self, a: list[Tensor], d: list[Tensor], quantity: Quantity) -> _Pair:
        """Join ``[N, S, ·]`` of calls."""
        each = [
            owner.repeat_interleave(x.shape[1])
            for (owner, _), x in zip(self.calls, a, strict=True)
        ]
        left, right = (torch.cat([x.flatten(0, 1) for x in side]) for side in (a, d))
        rows_of = self.rows_of(quantity)
        return _Pair(left, right, torch.cat(each), self.count, rows_of)

    def _looked_up(self) -> Kept | str:
        """Only the entries that were used have rows of a gradient."""
        entries, adjoints, owners = [], [], []
        for owner, rows in self.calls:
            assert isinstance(rows, EmbeddingRows)
            taken = rows.taken
            entries.append(rows.index[taken].cpu())
            adjoints.append(rows.adjoint[taken].detach())
            owners.append(owner.unsqueeze(1).expand(taken.shape)[taken.cpu()])
        used, place = torch.cat(entries).unique(return_inverse=True)
        adjoint, owner, n = torch.cat(adjoints), torch.cat(owners), len(used)
        rows_of = self.rows_of("gradient")
        if len(owner) <= MAX_ROWS:
            hot = one_hot(place, n).to(adjoint)
            return _Pair(hot, adjoint, owner, self.count, rows_of).keep("gradient")
        size = adjoint.element_size() * self.count * n * adjoint.shape[1]
        if size > KEPT_BYTES:
            return _too_large(len(owner), size)
        parts = adjoint.new_zeros(self.count * n, adjoint.shape[1], device="cpu")
        weight = rows_of.clamp(min=1).reciprocal()[owner].unsqueeze(1)
        weighted = adjoint.cpu() * weight.to(adjoint.dtype)
        parts = parts.index_add(0, owner * n + place, weighted)
        return FormedGradients(parts.view(self.count, 1, n, -1))

    def _counts(self) -> Kept | str:
        """Of the entries that were used."""
        table = self.item.table
        assert table is not None
        used, place = table[:, 1].unique(return_inverse=True)
        owner = self.owner[table[:, 0]]
        if 8 * self.count * len(used) > KEPT_BYTES:
            return _too_large(len(table), 8 * self.count * len(used))
        weight = self.rows_of("activation").clamp(min=1).reciprocal()[owner]
        counts = torch.zeros(self.count * len(used), dtype=torch.float64)
        counts.index_add_(0, owner * len(used) + place, weight)
        return KeptCounts(counts.view(self.count, len(used)))

    def _by_person(
        self, of: Callable[[Factored], Tensor], shape: tuple[int, ...], name: Quantity
    ) -> Tensor:
        """Weighted sums over each person's samples, one by one, ``[n, *shape]``."""
        weight = self.rows_of(name).clamp(min=1).reciprocal().tolist()
        found = torch.zeros(self.count, *shape, dtype=torch.float64)
        for owner, rows in self.calls:
            for sample, person in enumerate(owner.tolist()):
                one = of(rows.choose(torch.tensor([sample]))).detach()
                found[person] += one.double().cpu() * weight[person]
        return found

    def rows_of(self, quantity: Quantity) -> Tensor:
        """Number of rows of each person, ``[n]``."""
        positions = self.item.positions(quantity).double()
        return self.owner.bincount(positions, minlength=self.count)


def _too_large(rows: int, size: int) -> str:
    return (
        f"{rows} rows are too many for a null ({MAX_ROWS} at most), and sums over each "
        f"person's would take {size / 2**20:.0f} MiB ({KEPT_BYTES // 2**20} at most)"
    )
