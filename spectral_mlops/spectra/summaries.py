"""Numbers that summarise one spectrum.

A spectrum is ``σ`` of shape ``[*, R]``, non-negative; zeros at its end change
nothing but where a docstring says so. Norms are scale-bound: they are at the
scale of the values passed in (`records.Spectrum.scaled`). Everything else is
scale-free. None of them is free of the group's size: see the design's warning on
comparing groups. An all-zero spectrum gives NaN, except for the norms (zero).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

RANK_THRESHOLD = 1e-6
"""Relative to the leading value; the accuracy of the singular values."""
SLOPE_FROM = 50
"""Fewest nonzero values that a power law is fitted to."""


def nuclear_norm(sigma: Tensor) -> Tensor:
    """Sum of the singular values; scale-bound. Shape ``[*]``."""
    return sigma.sum(-1)


def frobenius_norm(sigma: Tensor) -> Tensor:
    """Root of the sum of squares; scale-bound. Shape ``[*]``."""
    top = spectral_norm(sigma)
    return top * unit(sigma).square().sum(-1).sqrt().masked_fill(top == 0, 0.0)


def spectral_norm(sigma: Tensor) -> Tensor:
    """Largest singular value; scale-bound. Shape ``[*]``, 0 where ``R = 0``."""
    return sigma.amax(-1) if sigma.shape[-1] else sigma.sum(-1)


def spectral_entropy(sigma: Tensor) -> Tensor:
    """Entropy of ``p = σ / Σσ`` in nats: 0 for one direction, ``log R`` for equal.

    Args:
        sigma: Shape ``[*, R]``.

    Returns:
        Shape ``[*]``.
    """
    total = sigma.sum(-1, keepdim=True)
    entropy = torch.special.entr(sigma / total).sum(-1)
    return entropy.masked_fill(total.squeeze(-1) == 0, torch.nan)


def effective_rank(sigma: Tensor) -> Tensor:
    """Exponential of the spectral entropy (Roy & Vetterli, 2007).

    Args:
        sigma: Shape ``[*, R]``.

    Returns:
        Shape ``[*]``, between 1 and the number of nonzero values.
    """
    return spectral_entropy(sigma).exp()


def stable_rank(sigma: Tensor) -> Tensor:
    """``Σσ² / σ_1²``, between 1 and the rank. Shape ``[*]``."""
    energy = unit(sigma).square().sum(-1)
    return energy.masked_fill(spectral_norm(sigma) == 0, torch.nan)


def participation_ratio(sigma: Tensor) -> Tensor:
    """``(Σλ)² / Σλ²`` of the energies ``λ = σ²``, between 1 and the rank."""
    energy = unit(sigma).square()
    return energy.sum(-1).square() / energy.square().sum(-1)


def numerical_rank(sigma: Tensor) -> Tensor:
    """Number of values above `RANK_THRESHOLD` times the leading one; NaN if none."""
    top = spectral_norm(sigma).unsqueeze(-1)
    count = (sigma > RANK_THRESHOLD * top).sum(-1).to(sigma.dtype)
    return count.masked_fill(~(top.squeeze(-1) > 0), torch.nan)


def condition_number(sigma: Tensor) -> Tensor:
    """Leading value over the smallest nonzero one, at least 1. Shape ``[*]``."""
    top = spectral_norm(sigma)
    nonzero = sigma.masked_fill(~(sigma > 0), torch.inf)
    smallest = nonzero.amin(-1) if sigma.shape[-1] else top
    return (top / smallest).masked_fill(~(top > 0), torch.nan)


def leading_share(sigma: Tensor) -> Tensor:
    """``σ_1 / Σσ``, between ``1/R`` and 1. Shape ``[*]``."""
    return spectral_norm(sigma) / sigma.sum(-1)


def power_law_slope(sigma: Tensor) -> Tensor:
    """Least-squares slope of ``log σ`` on ``log rank`` over the nonzero values.

    Returns:
        Shape ``[*]``; NaN below `SLOPE_FROM` nonzero values, where a slope says
        nothing. `power_law_r2` stands beside it.
    """
    return _power_law(sigma)[0]


def power_law_r2(sigma: Tensor) -> Tensor:
    """Share of the variance of ``log σ`` that `power_law_slope` explains."""
    return _power_law(sigma)[1]


def unit(sigma: Tensor) -> Tensor:
    """Divide by the largest value, so that squares neither over- nor underflow."""
    return sigma / spectral_norm(sigma).unsqueeze(-1)


def _power_law(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and R², fitted with weight one on nonzero values of sorted spectra."""
    ordered = sigma.sort(-1, descending=True).values
    weight = (ordered > 0).to(ordered.dtype)
    count = weight.sum(-1)
    rank = torch.arange(1, sigma.shape[-1] + 1, device=sigma.device)
    x = rank.to(ordered.dtype).log().expand_as(ordered)
    y = torch.where(weight > 0, ordered, 1.0).log()
    x = (x - ((x * weight).sum(-1) / count).unsqueeze(-1)) * weight
    y = (y - ((y * weight).sum(-1) / count).unsqueeze(-1)) * weight
    xx, yy, xy = (x * x).sum(-1), (y * y).sum(-1), (x * y).sum(-1)
    unfit = (count < SLOPE_FROM) | sigma.isnan().any(-1)
    slope = (xy / xx).masked_fill(unfit, torch.nan)
    return slope, (xy.square() / (xx * yy)).masked_fill(unfit, torch.nan)


SUMMARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "nuclear_norm": nuclear_norm,
    "frobenius_norm": frobenius_norm,
    "spectral_norm": spectral_norm,
    "effective_rank": effective_rank,
    "stable_rank": stable_rank,
    "participation_ratio": participation_ratio,
    "numerical_rank": numerical_rank,
    "spectral_entropy": spectral_entropy,
    "condition_number": condition_number,
    "leading_share": leading_share,
    "power_law_slope": power_law_slope,
    "power_law_r2": power_law_r2,
}
"""What is measured on every spectrum; the name is the column in every table."""


def summarise(spectra: Sequence[Tensor]) -> list[dict[str, float]]:
    """Return every summary of each spectrum.

    Args:
        spectra: Each of shape ``[R]``, float64, ``R`` may differ (they are padded
            with zeros and summarised in one call); norms are at the scale given.
    """
    if not spectra:
        return []
    together = pad_sequence(list(spectra), batch_first=True)
    columns = {name: f(together).tolist() for name, f in SUMMARIES.items()}
    return [
        {name: column[i] for name, column in columns.items()}
        for i in range(len(spectra))
    ]
