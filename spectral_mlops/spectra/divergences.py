"""How far two spectra are apart.

Both spectra have shape ``[*, R]`` (unequal ``R`` is padded with zeros), are
non-negative, and are compared by rank position. All but `nuclear_log_ratio` are
scale-free. None is comparable between groups of different size without a null of
the same sizes. An all-zero spectrum gives NaN.
"""

from collections.abc import Callable
from math import log

import torch
from torch import Tensor
from torch.nn.functional import pad

from spectral_mlops.registry import Registry
from spectral_mlops.spectra.summaries import unit

LOG_FLOOR = 1e-6
"""Of the larger leading value: below it log-spectra are cut off."""

Divergence = Callable[[Tensor, Tensor], Tensor]
DIVERGENCES: Registry[str, Divergence] = Registry("divergence")


@DIVERGENCES.register("js")
def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """Jensen–Shannon divergence of ``p ∝ σ``, base 2; sees the tails.

    Args:
        a: Shape ``[*, R_a]``.
        b: Shape ``[*, R_b]``.

    Returns:
        Shape ``[*]``, between 0 and 1 (its square root is a metric).
    """
    return _js(*_distributions(a, b))


@DIVERGENCES.register("js_energy")
def jensen_shannon_energy(a: Tensor, b: Tensor) -> Tensor:
    """Jensen–Shannon divergence of ``p ∝ σ²``, base 2; sees the heads."""
    return _js(*_distributions(unit(a).square(), unit(b).square()))


@DIVERGENCES.register("hellinger")
def hellinger(a: Tensor, b: Tensor) -> Tensor:
    """Hellinger distance ``‖√p − √q‖ / √2`` of ``p ∝ σ``, between 0 and 1."""
    p, q = _distributions(a, b)
    return torch.linalg.vector_norm(p.sqrt() - q.sqrt(), dim=-1) / 2**0.5


@DIVERGENCES.register("wasserstein_log")
def wasserstein_log(a: Tensor, b: Tensor) -> Tensor:
    """Wasserstein-1 distance of ``log p`` and ``log q``, in nats.

    Sorted values of equal number are matched by rank, so this is the mean of
    ``|log p_i − log q_i|`` over the ranks at which either is nonzero; both are cut
    off at `LOG_FLOOR` times the larger leading value.
    """
    p, q = _distributions(a, b)
    top = torch.maximum(p.amax(-1, keepdim=True), q.amax(-1, keepdim=True))
    p, q = (x.sort(-1, descending=True).values for x in (p, q))
    ranks = ((p > 0) | (q > 0)).sum(-1)
    p, q = (torch.maximum(x, LOG_FLOOR * top).log() for x in (p, q))
    return (p - q).abs().sum(-1) / ranks


@DIVERGENCES.register("nuclear_log_ratio")
def nuclear_log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """``|log(Σσ_a / Σσ_b)|`` in nats; scale-bound, so pass both at one scale."""
    total_a, total_b = a.sum(-1), b.sum(-1)
    ratio = (total_a.log() - total_b.log()).abs()
    return ratio.masked_fill((total_a == 0) | (total_b == 0), torch.nan)


def _distributions(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Pad to one length and normalise to sum 1; NaN where a spectrum is all zero."""
    length = max(a.shape[-1], b.shape[-1], 1)
    a, b = (pad(x, (0, length - x.shape[-1])) for x in (a, b))
    return a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def _js(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon divergence in bits, clamped to [0, 1] against rounding."""
    entropy = torch.special.entr
    mixed = entropy((p + q) / 2).sum(-1)
    nats = mixed - (entropy(p).sum(-1) + entropy(q).sum(-1)) / 2
    return (nats / log(2.0)).clamp(0.0, 1.0)
