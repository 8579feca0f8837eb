"""Rows of samples with very many positions, as few that have the same products.

A spectrum, and a null, only need ``AᵀA``, ``ΔᵀΔ`` and ``AᵀΔ`` of each sample where
positions are many. Of a volume's first convolution these are a few kilobytes where the
rows are megabytes, so that held-out people may pass in batches of which no rows stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn, Self

import torch
from torch import Tensor

from spectral_mlops.errors import CaptureError
from spectral_mlops.hooks.layer_rows import LayerRows
from spectral_mlops.hooks.layers.convolution import ConvolutionRows
from spectral_mlops.hooks.rows import MAX_BYTES, Factored
from spectral_mlops.spectra import drivers
from spectral_mlops.spectra.null import MAX_ROWS

COPY_BYTES = 16 * 2**20
"""Float64 copies of rows that may exist at once."""
SIDES = ("activation", "adjoint")


@dataclass(frozen=True, eq=False)
class CondensedRows(Factored):
    """Samples of a convolution of which products alone are left.

    Attributes:
        rows: By side, ``[B, N, d, d]`` float64: for each sample as many rows as there
            are columns, whose Gram is that of all its rows.
        parts: Each sample's gradient, ``[N, B, d_in, d_out/B]``; ``[N, B, 0, 0]``
            where it is not wanted.
        counts: By side, how many rows each sample had, ``[N]``.
        size: ``(d_in, d_out)``.
    """

    rows: Mapping[str, Tensor]
    parts: Tensor
    counts: Mapping[str, Tensor]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.parts)

    def choose(self, samples: Tensor) -> Self:
        """See `Contributions`."""
        at = samples.cpu()
        return replace(
            self,
            rows={side: x[:, at] for side, x in self.rows.items()},
            parts=self.parts[at],
            counts={side: x[at] for side, x in self.counts.items()},
        )

    def fold(self, k: int) -> Self:
        """See `Contributions`."""
        return replace(
            self,
            rows={
                side: x.unflatten(1, (-1, k)).flatten(2, 3)
                for side, x in self.rows.items()
            },
            parts=self.parts.unflatten(0, (-1, k)).sum(1),
            counts={
                side: x.unflatten(0, (-1, k)).sum(1) for side, x in self.counts.items()
            },
        )

    def plus(self, later: Self) -> NoReturn:
        """Refused: adjoints of two passes cannot be added once they are condensed."""
        del later
        self._refuse("adjoints of a further backward pass")

    def gradients(self) -> NoReturn:
        """Refused: what is left has the gradient as a matrix alone."""
        self._refuse("gradients of parameters")

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)``."""
        return self.size

    def activation_rows(self, patches: bool = False) -> Tensor:
        """Rows with the Gram of the input's, ``[B, N, d, d]``."""
        if patches:
            self._refuse("patches")
        return self.rows["activation"]

    def adjoint_rows(self) -> Tensor:
        """Rows with the Gram of the adjoint's, ``[B, N, d, d]``."""
        return self.rows["adjoint"]

    def row_counts(self, side: str) -> Tensor:
        """How many rows there were."""
        return self.counts[side if side == "activation" else "adjoint"]

    @property
    def nbytes(self) -> int:
        """Of what is left."""
        return self.parts.nbytes + sum(x.nbytes for x in self.rows.values())

    def matrices(self) -> Tensor:
        """The gradient, ``[B, d_in, d_out/B]``."""
        return self.parts.sum(0)

    def factors(self, max_bytes: int = MAX_BYTES) -> NoReturn:
        """Refused: the rows are not there any more."""
        del max_bytes
        self._refuse("factors")

    def _refuse(self, what: str) -> NoReturn:
        raise CaptureError(
            f"{what[0].upper()}{what[1:]} are asked of rows that were condensed as "
            "their batch had passed: pass people in one batch."
        )


def condense(layer: LayerRows, gradient: bool = True) -> LayerRows:
    """Condense what a layer's calls of convolutions kept, where that is smaller.

    Args:
        layer: Its rows.
        gradient: Whether gradients are wanted.
    """
    calls = [(who, condensed(rows, gradient)) for who, rows in layer.calls]
    return replace(layer, calls=calls)


def condensed(rows: Factored, gradient: bool = True) -> Factored:
    """Condense one call, or return it as it is.

    As it is stays what has few positions (of which a null may keep the rows), what
    would grow, and what is not finite.

    Args:
        rows: Of the call.
        gradient: Whether its gradient is wanted.
    """
    if not isinstance(rows, ConvolutionRows) or not len(rows):
        return rows
    d_in, d_out = rows.shape
    blocks = rows.geometry.groups
    counts = {side: rows.row_counts(side) for side in SIDES}
    if min(int(x.min()) for x in counts.values()) <= MAX_ROWS:
        return rows
    widths = rows.input.shape[1], d_out
    left = len(rows) * (4 * d_in * d_out + sum(8 * w * w for w in widths)) // blocks
    if left > rows.nbytes:
        return rows
    with torch.no_grad():
        grams = {
            "activation": _grams(rows.activation_rows().detach()),
            "adjoint": _grams(rows.adjoint_rows().detach()),
        }
        if not all(bool(x.isfinite().all()) for x in grams.values()):
            return rows
        parts = rows.adjoint.new_zeros(len(rows), blocks, 0, 0, device="cpu")
        if gradient:
            one = [torch.tensor([i]) for i in range(len(rows))]
            parts = torch.stack([rows.choose(i).matrices().cpu() for i in one])
    of_rows = {side: _rows_of(gram) for side, gram in grams.items()}
    return CondensedRows(of_rows, parts, counts, (d_in, d_out))


def _grams(x: Tensor) -> Tensor:
    """Grams of each sample's columns, ``[B, N, S, d]`` to ``[B, N, d, d]``."""
    blocks, samples, positions, d = x.shape
    found = torch.zeros(blocks, samples, d, d, dtype=torch.float64)
    length = max(16, COPY_BYTES // (8 * blocks * d))
    for i in range(samples):
        for start in range(0, positions, length):
            part = x[:, i, start : start + length].double()
            found[:, i] += (part.mT @ part).cpu()
    return found


def _rows_of(grams: Tensor) -> Tensor:
    """Rows with these Grams, ``[B, N, d, d]``."""
    return drivers.root(grams.flatten(0, 1)).mT.unflatten(0, grams.shape[:2])
