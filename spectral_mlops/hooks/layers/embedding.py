"""``nn.Embedding`` and ``nn.EmbeddingBag``: A is one-hot, and kept as indices."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_mlops.hooks.rows import MAX_BYTES, Factored, samples_first
from spectral_mlops.hooks.rules import Call, RowRule, register_rows


@dataclass(frozen=True, eq=False)
class EmbeddingRows(Factored):
    """One call of an embedding.

    Attributes:
        index: Which row of the table each position takes, ``[N, S]``.
        adjoint: Shape ``[N, S, d_out]``, zero where nothing is learned.
        taken: Whether a position is part of the input, ``[N, S]``; padded ones are
            not.
        table: Number of its entries, ``d_in``.
    """

    index: Tensor
    adjoint: Tensor
    taken: Tensor
    table: int

    def __len__(self) -> int:
        return len(self.index)

    def choose(self, samples: Tensor) -> Self:
        """See `Contributions`."""
        at = samples.to(self.index.device)
        return replace(
            self,
            index=self.index[at],
            adjoint=self.adjoint[at],
            taken=self.taken[at],
        )

    def fold(self, k: int) -> Self:
        """See `Contributions`."""
        size = len(self) // k
        return replace(
            self,
            index=self.index.reshape(size, -1),
            adjoint=self.adjoint.reshape(size, -1, self.adjoint.shape[-1]),
            taken=self.taken.reshape(size, -1),
        )

    def plus(self, later: Self) -> Self:
        """See `Contributions`."""
        return replace(self, adjoint=self.adjoint + later.adjoint)

    def gradients(self) -> dict[str, Tensor]:
        """Adjoints added up by entry, ``[entries, d_out]``."""
        blank = self.adjoint.new_zeros(self.table, self.adjoint.shape[-1])
        rows = self.adjoint.flatten(0, 1)
        return {"weight": blank.index_add(0, self.index.flatten(), rows)}

    @property
    def shape(self) -> tuple[int, int]:
        """``(entries, d_out)``."""
        return self.table, self.adjoint.shape[-1]

    def activation_rows(self, patches: bool = False) -> Tensor:
        """One-hot rows ``[1, N, S, entries]``; `entries` says the same in little."""
        rows = F.one_hot(self.index, self.table) * self.taken.unsqueeze(-1)
        return rows.to(self.adjoint.dtype).unsqueeze(0)

    def adjoint_rows(self) -> Tensor:
        """Shape ``[1, N, S, d_out]``."""
        return self.adjoint.unsqueeze(0)

    @property
    def nbytes(self) -> int:
        """Of indices and adjoints."""
        return self.index.nbytes + self.adjoint.nbytes

    def row_counts(self, side: str) -> Tensor:
        """Positions that are part of the input."""
        return self.taken.sum(1).cpu()

    def entries(self) -> Tensor:
        """Sample and entry of every position that is part of the input."""
        places = self.taken.nonzero()
        return torch.stack([places[:, 0], self.index[self.taken]], 1).cpu()

    def matrices(self) -> Tensor:
        """Shape ``[1, entries, d_out]``."""
        return self.gradients()["weight"].unsqueeze(0)

    def factors(self, max_bytes: int = MAX_BYTES) -> tuple[Tensor, Tensor]:
        """Indices ``[N, S]`` in the place of one-hot rows, and the adjoint."""
        return self.index, self.adjoint


@register_rows(nn.Embedding)
class EmbeddingRule(RowRule):
    """``padding_idx`` learns nothing and is no part of the input."""

    def rows(self, layer: Any, call: Call) -> EmbeddingRows:
        """Flatten the positions."""
        index = samples_first(call.input.unsqueeze(-1), call.batch_dim).squeeze(-1)
        adjoint = samples_first(call.adjoint, call.batch_dim)
        taken = torch.ones_like(index, dtype=torch.bool)
        if layer.padding_idx is not None:
            taken = index != layer.padding_idx
        adjoint = adjoint * taken.unsqueeze(-1)
        if layer.scale_grad_by_freq:
            adjoint = adjoint / _frequency(index, layer.num_embeddings)
        return EmbeddingRows(index, adjoint, taken, layer.num_embeddings)


@register_rows(nn.EmbeddingBag)
class EmbeddingBagRule(RowRule):
    """A bag is a sample; its members are positions.

    A mean divides the adjoint of a member by the size of its bag. A maximum hands
    each component of the adjoint to the member that has it.
    """

    def batch_size(
        self, layer: Any, given: Mapping[str, Any], batch_dim: int
    ) -> int | None:
        """Without an axis of members, offsets tell the bags."""
        x = given["input"]
        if x.ndim == 2:
            return len(x)
        return len(given["offsets"]) - bool(layer.include_last_offset)

    def rows(self, layer: Any, call: Call) -> EmbeddingRows:
        """Lay the bags side by side, padded to the longest."""
        index, weights, taken = _bags(layer, call.given)
        if layer.padding_idx is not None:
            taken = taken & (index != layer.padding_idx)
        if layer.mode == "max":
            share = _maximal(layer.weight.detach()[index], taken)
        else:
            share = (weights * taken).unsqueeze(-1)
            if layer.mode == "mean":
                share = share / taken.sum(1).clamp(min=1)[:, None, None]
        adjoint = call.adjoint.unsqueeze(1) * share.to(call.adjoint.dtype)
        if layer.scale_grad_by_freq:
            adjoint = adjoint * _factors_of_frequency(layer, call, index, taken)
        return EmbeddingRows(index, adjoint, taken, layer.num_embeddings)


def _frequency(index: Tensor, entries: int) -> Tensor:
    """How often each position's entry occurs in the whole call, ``[N, S, 1]``."""
    return torch.bincount(index.flatten(), minlength=entries)[index].unsqueeze(-1)


def _factors_of_frequency(
    layer: Any, call: Call, index: Tensor, taken: Tensor
) -> Tensor:
    """Return what a bag's kernel makes of the frequency of entries, ``[N, S, 1]``.

    NOTE: asked of the kernel itself, since the CPU's divides by the frequency of
    another entry than the member's (PyTorch 2.13).
    """
    ones = torch.ones_like(call.adjoint[:, :1])
    table = ones.new_ones(layer.num_embeddings, 1).requires_grad_()
    with torch.enable_grad():
        sums = F.embedding_bag(
            call.input,
            table,
            call.given.get("offsets"),
            mode="sum",
            scale_grad_by_freq=True,
            include_last_offset=layer.include_last_offset,
            padding_idx=layer.padding_idx,
        )
    (scaled,) = torch.autograd.grad(sums, table, ones)
    count = torch.bincount(index[taken], minlength=layer.num_embeddings)
    return (scaled.squeeze(1) / count.clamp(min=1))[index].unsqueeze(-1)


def _bags(layer: Any, given: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices, weights and whether there is a member, each ``[N, longest]``."""
    flat: Tensor = given["input"]
    weights = given.get("per_sample_weights")
    weights = torch.ones_like(flat, dtype=torch.float64) if weights is None else weights
    if flat.ndim == 2:
        return flat, weights, torch.ones_like(flat, dtype=torch.bool)
    starts = given["offsets"]
    if layer.include_last_offset:
        ends, starts = starts[1:], starts[:-1]
    else:
        ends = torch.cat([starts[1:], starts.new_tensor([len(flat)])])
    lengths = ends - starts
    place = torch.arange(int(lengths.max()) if len(lengths) else 0, device=flat.device)
    taken = place < lengths.unsqueeze(1)
    if not len(flat):
        return taken.long(), taken.double(), taken
    at = (starts.unsqueeze(1) + place).clamp(max=len(flat) - 1)
    return flat[at] * taken, weights[at], taken


def _maximal(vectors: Tensor, taken: Tensor) -> Tensor:
    """Whether a member has the bag's maximum (the first that has), ``[N, S, d]``."""
    known = vectors.masked_fill(~taken.unsqueeze(-1), -torch.inf)
    if not known.shape[1]:
        return known
    best = (known == known.amax(1, keepdim=True)) & taken.unsqueeze(-1)
    return best & (best.cumsum(1) == 1)
