"""What stands beside a p: what could have been seen, and how much it varies."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from spectral_mlops.errors import InputError
from spectral_mlops.inference.comparison import Comparison
from spectral_mlops.inference.significance import TIE, Array
from spectral_mlops.inference.whole_families import WholeFamilies


@dataclass(frozen=True)
class DetectableEffect:
    """The smallest effect that a test would find with the wanted power.

    Attributes:
        critical: Value that the statistic has to exceed for ``p ≤ alpha``.
        null_mean: Mean over relabellings, the observed labels left out.
        null_sd: Their SD.
        value: Mean of the statistic at which it exceeds ``critical`` with the power
            wanted, in units of the statistic.
        effect: ``value - null_mean``, in units of the statistic.
        z: ``effect / null_sd``.
        alpha: Of the test.
        power: Wanted.
        reason: Why there is none; empty if there is one.
    """

    critical: float
    null_mean: float
    null_sd: float
    value: float
    effect: float
    z: float
    alpha: float
    power: float
    reason: str


def smallest_detectable(
    values: Array, alpha: float = 0.05, power: float = 0.8
) -> DetectableEffect:
    """Smallest effect with the wanted power, under a shift of the null distribution.

    ``p ≤ alpha`` needs a value above the ``⌊alpha (P + 1)⌋``-th largest relabelling,
    ``critical``. If an effect only shifted the statistic, whose spread over new
    people is taken to be that over relabellings and to be normal below its mean,
    ``critical + z_power · SD`` would exceed it with probability ``power``.

    An approximation: spread over people is not spread over relabellings, divergences
    are skewed and bounded, and an effect also widens the null (people of a mixture
    are relabelled). Read it as the order of magnitude that the data could have
    shown. It depends on the null alone, never on the observed value; power *at* the
    observed effect would only repeat p (Hoenig & Heisey 2001, The American
    Statistician 55, 19-24).

    Args:
        values: Shape ``[P + 1]``, the observed labels first (not used).
        alpha: Of the test, between 0 and 1.
        power: Between 0 and 1.

    Returns:
        The effect; NaN with a reason if relabellings are too few or all alike.

    Raises:
        InputError: If ``alpha`` or ``power`` is no such share.
    """
    if not (0 < alpha < 1 and 0 < power < 1):
        raise InputError(f"{alpha=}, {power=}: give shares between 0 and 1.")
    null = values[1:]
    rank = int(alpha * len(values) * (1 + TIE))
    known = null[~np.isnan(null)]
    mean = float(known.mean()) if len(known) else float("nan")
    sd = float(known.std()) if len(known) else float("nan")
    ordered = np.sort(np.where(np.isnan(null), np.inf, null))[::-1]
    critical = float(ordered[rank - 1]) if 0 < rank <= len(null) else float("nan")
    reason = ""
    if np.isnan(critical):
        reason = f"{len(null)} relabellings cannot give p ≤ {alpha:g}"
    elif np.isinf(critical):
        reason = "too many relabellings have no value"
    elif not sd > TIE * abs(mean):
        reason = "all relabellings give the same value"
    value = critical + float(norm.ppf(power)) * sd if not reason else float("nan")
    effect = value - mean
    z = effect / sd if not reason else float("nan")
    return DetectableEffect(critical, mean, sd, value, effect, z, alpha, power, reason)


def detectable_of(comparisons: Iterable[Comparison]) -> list[dict[str, object]]:
    """`smallest_detectable` of each comparison, to stand beside its value.

    Returns:
        One row per comparison: whose it is, ``value``, ``critical``,
        ``smallest_detectable`` and ``reason``; NaN where there is no test.
    """
    rows: list[dict[str, object]] = []
    for item in comparisons:
        found = smallest_detectable(item.values)
        tested = item.testable and item.has_null
        rows.append(
            {
                "layer": item.layer,
                "quantity": item.quantity,
                "grouping": item.grouping,
                "group_a": item.group_a,
                "group_b": item.group_b,
                "value": float(item.values[0]),
                "critical": found.critical if tested else float("nan"),
                "smallest_detectable": found.value if tested else float("nan"),
                "reason": found.reason if tested else item.reason,
            }
        )
    return rows


@dataclass(frozen=True)
class SubsampleInterval:
    """How a statistic varies over subsamples of these subjects.

    Attributes:
        median: Over draws.
        low: Their 2.5 % quantile.
        high: Their 97.5 % quantile.
        sd: Their SD.
        m: Subjects per draw (of each group, if groups were given).
        n: Subjects (of the smallest group).
        draws: How many gave a value.
        lost: How many gave NaN.
    """

    median: float
    low: float
    high: float
    sd: float
    m: int
    n: int
    draws: int
    lost: int

    @property
    def sampling_sd(self) -> float:
        """SD over fresh samples of ``m`` subjects: ``sd / √(1 - m/n)``.

        First order only, see `subsample_interval`.
        """
        return float(self.sd / np.sqrt(1 - self.m / self.n))


def subsample_interval(
    statistic: Callable[[Sequence[str]], float],
    ids: Sequence[str],
    m: int,
    draws: int = 200,
    *,
    groups: Sequence[str] | None = None,
    families: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> SubsampleInterval:
    """Describe a statistic over subsamples of ``m`` subjects, without replacement.

    The interval holds 95 % of the values that ``m`` of *these* subjects give. It is
    no confidence interval of a population's value:

    - Its centre is the statistic at size ``m``, not at ``n``. Rank, nuclear norm and
      divergences change with size, so intervals are compared at the same ``m`` only.
    - Its width is that of sampling from ``n`` people. For a mean of one number per
      subject, draws without replacement have variance ``S²/m · (1 - m/n)``, fresh
      samples of ``m`` people ``σ²/m``: the interval is narrower by ``√(1 - m/n)``,
      and vanishes as ``m`` nears ``n``. At ``m = n/2`` the variance is ``S²/n``, that
      of the full sample. To first order the same holds for every smooth statistic
      (delete-d jackknife: Shao & Wu 1989, Annals of Statistics 17, 1176-1197);
      `SubsampleInterval.sampling_sd` divides it out.
    - Resampling with replacement is no way out: a subject drawn twice is two equal
      rows, which lowers ranks and distorts spectra.

    Args:
        statistic: Of a list of ids, in the order of ``ids``; NaN draws are counted.
        ids: The subjects, each once.
        m: Subjects per draw; with ``groups``, of each group.
        draws: Number of subsamples.
        groups: One label per subject, if ``m`` of each are to be drawn. With groups
            of unequal size the factor above is that of the smallest group, the
            farthest from 1.
        families: One family per subject, drawn whole or not at all; the factor is
            then about that of the number of families.
        seed: Of the draws.

    Returns:
        Median and quantiles over draws; NaN if none gave a value.

    Raises:
        InputError: If ``m`` is not below the number of subjects (of any group).
    """
    labels = ["all"] * len(ids) if groups is None else [str(g) for g in groups]
    if len(labels) != len(ids) or len(set(ids)) != len(ids) or draws < 1:
        raise InputError(
            f"{len(ids)} ids ({len(set(ids))} different), {len(labels)} groups, "
            f"{draws=}: give each subject once, with one group, and at least one draw."
        )
    codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)[1]
    smallest = int(np.bincount(codes).min()) if len(codes) else 0
    if not 0 < m < smallest:
        raise InputError(
            f"{m=}: draw at least 1 and fewer than {smallest} subjects, all there are "
            "in the smallest group; who is always drawn does not vary."
        )
    if families is not None and not WholeFamilies(codes, families).ways(m):
        raise InputError(f"{m=}: {no_whole_families(m, codes, families)}.")
    chosen = draw_subsamples(np.tile(codes, (draws, 1)), m, seed, families)
    found = [
        statistic([ids[j] for j in np.flatnonzero(row).tolist()]) for row in chosen
    ]
    return interval_of(np.array(found, dtype=np.float64), m, smallest)


def draw_subsamples(
    codes: NDArray[np.int64],
    m: int,
    seed: int | np.random.Generator,
    families: Sequence[Hashable] | None = None,
) -> NDArray[np.bool_]:
    """Draw ``m`` subjects of each group, without replacement.

    Args:
        codes: Group of each subject, one row a draw, shape ``[draws, n]``; below 0
            for those who take no part.
        m: Subjects per group, at most the size of the smallest; with families, such
            that whole ones have it (`WholeFamilies.ways`).
        seed: Of the draws, or random numbers to go on with.
        families: One family per subject, drawn whole or not at all.

    Returns:
        Who is drawn, shape ``[draws, n]``.
    """
    generator = np.random.default_rng(seed)
    chosen = np.zeros(codes.shape, dtype=bool)
    for row, drawn in zip(codes, chosen, strict=True):
        if families is not None:
            drawn[:] = WholeFamilies(row, families).draw(m, generator)
            continue
        for code in np.unique(row[row >= 0]):
            drawn[generator.choice(np.flatnonzero(row == code), m, replace=False)] = 1
    return chosen


def no_whole_families(
    m: int, codes: NDArray[np.int64], families: Sequence[Hashable]
) -> str:
    """Say that no whole families have ``m`` people of each group, and what they have.

    Args:
        m: Wanted.
        codes: Group of each person, below 0 for those who take no part, ``[n]``.
        families: Family of each.
    """
    whole = WholeFamilies(codes, families)
    smallest = min(np.bincount(codes[codes >= 0]))
    sizes = [str(size) for size in range(1, smallest) if whole.ways(size)]
    said = f"they can have {', '.join(sizes)}" if sizes else "nor any other number"
    return f"no whole families have {m} people of each group ({said})"


def interval_of(values: Array, m: int, n: int) -> SubsampleInterval:
    """Describe values of subsamples; see `subsample_interval`.

    Args:
        values: One per draw; NaN draws are counted.
        m: Subjects per draw and group.
        n: Subjects of the smallest group.
    """
    known = values[~np.isnan(values)]
    low, median, high, sd = [np.nan] * 4
    if len(known):
        low, median, high = np.quantile(known, [0.025, 0.5, 0.975]).tolist()
        sd = float(known.std())
    lost = len(values) - len(known)
    return SubsampleInterval(median, low, high, sd, m, n, len(known), lost)


@dataclass(frozen=True)
class Spread:
    """How much a number varies over folds or seeds: a description, no evidence.

    Runs share people, so they are not units: nothing here is a standard error, and
    dividing ``sd`` by the root of ``runs`` would not make it one.

    Attributes:
        mean: Over runs that have a value.
        sd: Sample SD; NaN for fewer than two runs.
        low: Smallest.
        high: Largest.
        runs: How many have a value.
    """

    mean: float
    sd: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class RunSpread:
    """Spread over folds, and over seeds within a fold.

    Attributes:
        folds: Of the folds' means over seeds.
        seeds: Of all runs less the mean of their own fold; ``sd`` has one degree of
            freedom less for each fold.
    """

    folds: Spread
    seeds: Spread


def spread(values: Sequence[float]) -> Spread:
    """Mean, SD and range over runs; NaN runs are left out.

    Args:
        values: One per run.
    """
    return _spread(np.asarray(values, dtype=np.float64), lost=1)


def run_spread(values: Array) -> RunSpread:
    """Part the variability of runs into that over folds and that over seeds.

    Args:
        values: Observed statistic, shape ``[folds, seeds]``; NaN where there is none.
    """
    known = ~np.isnan(values)
    rows = [row[k] for row, k in zip(values, known, strict=True) if k.any()]
    means = np.array([row.mean() for row in rows])
    within = [row - row.mean() for row in rows]
    deviations = np.concatenate(within) if within else np.empty(0)
    return RunSpread(_spread(means, lost=1), _spread(deviations, lost=len(rows)))


def _spread(values: Array, lost: int) -> Spread:
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return Spread(np.nan, np.nan, np.nan, np.nan, 0)
    free = len(known) - lost
    squares = float(np.square(known - known.mean()).sum())
    sd = float(np.sqrt(squares / free)) if free > 0 else float("nan")
    low, high = float(known.min()), float(known.max())
    return Spread(float(known.mean()), sd, low, high, len(known))
