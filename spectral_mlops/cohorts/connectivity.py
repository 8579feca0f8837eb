"""Simulated connectivity: one population, its people, and a known group effect.

Everything happens in *log space*, where any symmetric matrix is a covariance:

    ``L_i = L0 + effect · g_i · Δ + a_i · Δ + individuality_i + s_i · S``
    ``C_i = normalised exp(L_i)``, with a ridge of 2 %

``g_i`` is 1 for patients and 0 for controls. ``Δ`` raises the connections of
subcortical with sensory networks and lowers those among sensory networks: known
support, known sign. ``a_i`` is normal variation along ``Δ`` itself; without it
the groups would part almost perfectly although each connection differs little.
``s_i`` is −½ or ½ by scanner where scanners differ (preset ``confounded``), else 0;
``S`` is a fixed pattern over all connections. The population (``L0``, ``Δ``, ``S``,
modes of individuality) is always the same; only people depend on a seed. The layout
of 53 networks in seven domains is that of NeuroMark 1.0 (Du et al., 2020); sizes of
effects were set by comparison with published cohorts of schizophrenia.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.errors import InputError

Array = NDArray[np.float64]

DOMAINS = {"SC": 5, "AU": 2, "SM": 9, "VI": 9, "CC": 17, "DM": 7, "CB": 4}
"""Number of networks per domain of NeuroMark 1.0, in the order of its file."""
SENSORY = ("AU", "SM", "VI")

POPULATION_SEED = 53
HYPER, HYPO = 0.10, -0.07  # Δ: subcortical with sensory, among sensory networks
ALONG_EFFECT = 0.82  # SD of a_i, in units of the effect of preset 'realistic'
INDIVIDUAL_SD = 0.25  # of each connection, in log space
MODES, DECAY = 40, 0.35  # low-rank half of individuality: amplitude of mode k: k^-decay
RIDGE = 0.02
SITE_SEED = 54
SITE_SHIFT = 0.13  # SD of S over connections; some 6 % of the variance of one


@dataclass(frozen=True, eq=False)
class Population:
    """What all simulated people share.

    Attributes:
        networks: Name of each network, its domain and number: ``SC1``.
        mean: Mean log-covariance ``L0``, shape ``[C, C]``.
        delta: Group effect ``Δ`` of size 1, shape ``[C, C]``, zero diagonal.
        modes: Directions of individuality, shape ``[modes, C(C-1)/2]``, row-major
            upper triangle; mean square over connections sums to 1 over modes.
    """

    networks: tuple[str, ...]
    mean: Array
    delta: Array
    modes: Array


def domain_sizes(components: int) -> dict[str, int]:
    """Return how many of ``components`` networks fall into each domain.

    53 gives NeuroMark's own sizes; other numbers keep their proportions, by
    largest remainder, with at least one network per domain.

    Raises:
        InputError: If there are fewer networks than domains.
    """
    if components < len(DOMAINS):
        raise InputError(
            f"components={components}: the simulated brain has {len(DOMAINS)} domains "
            f"({', '.join(DOMAINS)}) and needs at least one network in each."
        )
    total = sum(DOMAINS.values())
    spare = components - len(DOMAINS)
    shares = {
        name: spare * (size - 1) / (total - len(DOMAINS))
        for name, size in DOMAINS.items()
    }
    sizes = {name: 1 + int(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: -(shares[name] % 1))
    for name in by_remainder[: components - sum(sizes.values())]:
        sizes[name] += 1
    return sizes


def population(components: int = 53) -> Population:
    """Build the population that every simulated cohort of this size is drawn from.

    ``L0`` is the logarithm of a factor model's correlation: one global factor,
    one factor per domain, correlated between domains.

    Args:
        components: Number of networks, at least one per domain.

    Returns:
        Its mean, its group effect and its modes of individuality.
    """
    rng = np.random.default_rng([POPULATION_SEED, components])
    sizes = domain_sizes(components)
    networks = tuple(f"{name}{k + 1}" for name, n in sizes.items() for k in range(n))
    domain = np.repeat(np.arange(len(sizes)), list(sizes.values()))  # [C]

    mixing = rng.normal(size=(len(sizes), 10))
    between = mixing @ mixing.T
    scale = np.sqrt(np.diag(between))
    between /= np.outer(scale, scale)  # [D, D] correlation of the domains' factors
    loading = rng.uniform(0.5, 0.75, size=components)
    general = rng.normal(0.42, 0.12, size=components)
    shared = np.outer(loading, loading) * between[np.ix_(domain, domain)]
    covariance = shared + np.outer(general, general)
    covariance += 0.45 * np.eye(components)
    mean = _logarithm(_normalised(covariance))

    names = np.array([list(sizes)[index] for index in domain])
    subcortical = (names == "SC").astype(np.float64)  # [C]
    sensory = np.isin(names, SENSORY).astype(np.float64)
    delta = HYPO * np.outer(sensory, sensory)
    delta += HYPER * (np.outer(subcortical, sensory) + np.outer(sensory, subcortical))
    np.fill_diagonal(delta, 0.0)

    modes: Array = rng.normal(size=(MODES, components * (components - 1) // 2))
    modes *= np.arange(1, MODES + 1)[:, None] ** -DECAY
    modes /= np.sqrt((modes**2).mean(axis=1).sum())
    return Population(networks, mean, delta, modes)


def site_pattern(components: int) -> Array:
    """Return how the log-covariances of two scanners differ, the same in every cohort.

    Args:
        components: Number of networks ``C``.

    Returns:
        Symmetric, zero diagonal, shape ``[C, C]``.
    """
    rng = np.random.default_rng([SITE_SEED, components])
    upper = np.triu(rng.normal(scale=SITE_SHIFT, size=(components, components)), 1)
    return upper + upper.T


def draw_correlations(
    world: Population,
    patients: NDArray[np.bool_],
    effect: float,
    seed: Sequence[int],
    shift: Array | None = None,
) -> Array:
    """Draw each person's correlation matrix.

    Args:
        world: The population.
        patients: Who belongs to the affected group, shape ``[people]``.
        effect: Multiplier of ``Δ``; 0 makes the groups exchangeable.
        seed: Entropy of the people's random stream; the same people are drawn
            whatever the effect.
        shift: Added to each person's log-covariance, shape ``[people, C, C]``; what
            scanners do.

    Returns:
        Symmetric positive definite with unit diagonal, shape ``[people, C, C]``.
    """
    rng = np.random.default_rng(list(seed))
    people, edges = len(patients), world.modes.shape[1]
    shared = rng.normal(size=(people, len(world.modes))) @ world.modes
    own = rng.normal(size=(people, edges))
    along = ALONG_EFFECT * rng.normal(size=people) + effect * patients
    rows, columns = np.triu_indices(len(world.mean), 1)
    logs = np.repeat(world.mean[None], people, axis=0)  # [people, C, C]
    individual = INDIVIDUAL_SD * np.sqrt(0.5) * (shared + own)
    logs[:, rows, columns] += individual
    logs[:, columns, rows] += individual
    logs += along[:, None, None] * world.delta
    if shift is not None:
        logs += shift
    values, vectors = np.linalg.eigh(logs)
    covariance = (vectors * np.exp(values)[:, None, :]) @ vectors.swapaxes(1, 2)
    correlation = _normalised(covariance)
    return (correlation + RIDGE * np.eye(len(world.mean))) / (1 + RIDGE)


def _normalised(covariance: Array) -> Array:
    """Scale covariances ``[*, C, C]`` to a unit diagonal."""
    scale = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    return covariance / (scale[..., :, None] * scale[..., None, :])


def _logarithm(matrix: Array) -> Array:
    """Return the matrix logarithm of a symmetric positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.log(values)) @ vectors.T
