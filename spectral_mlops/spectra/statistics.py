"""Statistics of two groups, each computed under every relabelling.

All are symmetric in the groups, and larger where the groups are further apart, so
that large values count against "the labels mean nothing". All depend on the groups'
sizes, which relabelling keeps. The divergences of `divergences.DIVERGENCES` are used
as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from spectral_mlops.errors import InputError
from spectral_mlops.records import DEGENERATE, QUANTITIES, Quantity
from spectral_mlops.registry import Registry
from spectral_mlops.spectra.divergences import DIVERGENCES, Divergence
from spectral_mlops.spectra.kept import Spanning
from spectral_mlops.spectra.kept_gradients import KeptGradient
from spectral_mlops.spectra.null import Relabelled
from spectral_mlops.spectra.summaries import effective_rank

LEADING = 3
"""Largest dimension of the subspaces whose angle is taken."""


class Statistic(ABC):
    """A number for two groups of people.

    Attributes:
        quantities: What it exists for.
    """

    quantities: tuple[Quantity, ...] = QUANTITIES

    @abstractmethod
    def under(self, relabelled: Relabelled, a: int, b: int) -> Tensor:
        """Return it under every relabelling.

        Args:
            relabelled: One quantity at one layer.
            a: Code of a group.
            b: Code of another.

        Returns:
            Shape ``[P + 1]``, float64; NaN where it does not exist.
        """

    def lacks(self, relabelled: Relabelled) -> str:
        """Say why it does not exist for what was kept, if so."""
        return ""


class OfSpectra(Statistic):
    """A function of two spectra ``[*, R]``, as divergences are."""

    def __init__(self, function: Divergence) -> None:
        self.function = function

    def under(self, relabelled: Relabelled, a: int, b: int) -> Tensor:
        """See `Statistic`."""
        return self.function(*relabelled.spectra(a, b))


class OfGradients(Statistic):
    """A function of the gradients of people, known for gradients only."""

    quantities = ("gradient",)

    def __init__(
        self, function: Callable[[KeptGradient, Tensor, Tensor], Tensor]
    ) -> None:
        self.function = function

    def under(self, relabelled: Relabelled, a: int, b: int) -> Tensor:
        """See `Statistic`."""
        kept = relabelled.kept
        assert isinstance(kept, KeptGradient)
        return self.function(kept, relabelled.member(a), relabelled.member(b))


class OfSubspaces(Statistic):
    """A function of the leading singular subspaces of two groups."""

    def __init__(self, function: Callable[[Spanning, Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def under(self, relabelled: Relabelled, a: int, b: int) -> Tensor:
        """See `Statistic`."""
        kept = relabelled.kept
        assert isinstance(kept, Spanning)
        return self.function(kept, relabelled.member(a), relabelled.member(b))

    def lacks(self, relabelled: Relabelled) -> str:
        """See `Statistic`."""
        kept = relabelled.kept
        if not isinstance(kept, Spanning):
            return "the directions of one-hot rows are their entries: there is no angle"
        if kept.blocks > 1:
            return (
                f"{kept.blocks} independent blocks have no one subspace to take an "
                "angle of"
            )
        return ""


STATISTICS: Registry[str, Statistic] = Registry("statistic")

for _name in DIVERGENCES:
    STATISTICS.register(_name)(OfSpectra(DIVERGENCES.get(_name)))


def find_statistic(name: str) -> Statistic:
    """Return a statistic, or a divergence that was registered later."""
    if name not in STATISTICS and name in DIVERGENCES:
        return OfSpectra(DIVERGENCES.get(name))
    return STATISTICS.get(name)


def function_of_spectra(name: str) -> Divergence:
    """Return the function of two spectra behind a statistic.

    Raises:
        UnknownNameError: If there is no such statistic.
        InputError: If it is one of gradients alone, not of their spectra.
    """
    statistic = find_statistic(name)
    if isinstance(statistic, OfSpectra):
        return statistic.function
    known = [x for x in STATISTICS if isinstance(STATISTICS.get(x), OfSpectra)]
    raise InputError(
        f"'{name}' compares gradients, not spectra of every quantity: choose one of "
        f"{', '.join(known)} for a run, or ask result.divergences for it."
    )


def effective_rank_difference(a: Tensor, b: Tensor) -> Tensor:
    """``|erank_a − erank_b|``: two-sided, the sign is in the records' summaries.

    Args:
        a: Spectra, shape ``[*, R_a]``.
        b: Spectra, shape ``[*, R_b]``.

    Returns:
        Shape ``[*]``; NaN where a spectrum is all zero.
    """
    return (effective_rank(a) - effective_rank(b)).abs()


def unbiased_squared_norm(inner: Tensor, member: Tensor) -> Tensor:
    """Squared norm of the mean gradient without the noise of single people.

    ``(‖G‖² − Σ_i ‖G_i‖²) / (n (n − 1))`` over the ``n`` people of a group. Its
    expectation is that of one person's gradient, squared, whatever ``n``; it may be
    negative.

    Args:
        inner: Inner products of people's gradients, shape ``[n, n]``.
        member: Boolean ``[P, n]``.

    Returns:
        Shape ``[P]``; NaN for fewer than two people.
    """
    chosen = member.to(torch.float64)
    n = chosen.sum(1)
    pairs = ((chosen @ inner) * chosen).sum(1) - chosen @ inner.diagonal()
    return torch.where(n < 2, torch.nan, pairs / (n * (n - 1)))


def unbiased_norm_ratio(kept: KeptGradient, a: Tensor, b: Tensor) -> Tensor:
    """``|log|`` of the ratio of two `unbiased_squared_norm`; scale-free.

    Args:
        kept: Gradients of ``n`` people.
        a: Who is in the first group, boolean ``[P, n]``.
        b: Who is in the second.

    Returns:
        Shape ``[P]``; NaN where an estimate is not positive.
    """
    first, second = (unbiased_squared_norm(kept.inner, x) for x in (a, b))
    ratio = (first.clamp_min(0.0).log() - second.clamp_min(0.0).log()).abs()
    return torch.where((first > 0) & (second > 0), ratio, torch.nan)


def gradient_cosine(kept: KeptGradient, a: Tensor, b: Tensor) -> Tensor:
    """One less the cosine of two group gradients: 0 for one direction, 2 opposite.

    Args:
        kept: Gradients of ``n`` people.
        a: Who is in the first group, boolean ``[P, n]``.
        b: Who is in the second.

    Returns:
        Shape ``[P]``; NaN where a group gradient is zero.
    """
    a, b = a.to(torch.float64), b.to(torch.float64)
    left, right = a @ kept.inner, b @ kept.inner
    norms = (left * a).sum(1).clamp_min(0.0).sqrt()
    norms = norms * (right * b).sum(1).clamp_min(0.0).sqrt()
    cosine = ((left * b).sum(1) / norms).clamp(-1.0, 1.0)
    return torch.where(norms > 0, 1.0 - cosine, torch.nan)


def principal_angle(kept: Spanning, a: Tensor, b: Tensor) -> Tensor:
    """Largest principal angle of two groups' leading singular subspaces.

    Of the gradient and the activations they lie in the layer's input space, of the
    adjoints in its output space.

    Their dimension is `LEADING`, or the smallest rank of a group under any
    relabelling (values above `DEGENERATE` of the first), one number for all, so that
    it knows nothing of the observed labels.

    Args:
        kept: The parts of ``n`` people.
        a: Who is in the first group, boolean ``[P, n]``.
        b: Who is in the second.

    Returns:
        Shape ``[P]``, radians in ``[0, π/2]``; NaN where a group's part is zero.
    """
    (s, u), (t, v) = (kept.leading(x, LEADING) for x in (a, b))
    both = torch.stack([s, t])
    ranks = (both > DEGENERATE * both[..., :1]).sum(-1)  # [2, P]
    zero = (ranks == 0).any(0)
    if zero.all():
        return torch.full((len(a),), torch.nan, dtype=torch.float64)
    k = int(ranks[:, ~zero].min())
    u, v = u[..., :k], v[..., :k]
    overlap = u.mT @ v
    cosine = torch.linalg.svdvals(overlap)[:, -1]
    apart = v - u @ overlap
    squares = torch.linalg.eigvalsh(apart.mT @ apart)[:, -1]
    angle = torch.atan2(squares.clamp_min(0.0).sqrt(), cosine)
    return angle.masked_fill(zero, torch.nan)


STATISTICS.register("effective_rank_difference")(OfSpectra(effective_rank_difference))
STATISTICS.register("unbiased_norm_ratio")(OfGradients(unbiased_norm_ratio))
STATISTICS.register("gradient_cosine")(OfGradients(gradient_cosine))
STATISTICS.register("principal_angle")(OfSubspaces(principal_angle))
