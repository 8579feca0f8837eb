import numpy as np
import pytest
from scipy.linalg import expm

from spectral_mlops.cohorts import connectivity
from spectral_mlops.cohorts.connectivity import (
    DOMAINS,
    SENSORY,
    domain_sizes,
    draw_correlations,
    population,
    site_pattern,
)
from spectral_mlops.errors import InputError


@pytest.mark.parametrize("components", [7, 8, 12, 28, 53, 105])
def test_every_domain_has_networks(components):
    sizes = domain_sizes(components)
    assert sum(sizes.values()) == components
    assert list(sizes) == list(DOMAINS)
    assert min(sizes.values()) >= 1
    assert domain_sizes(53) == DOMAINS


def test_fewer_networks_than_domains_are_refused():
    with pytest.raises(InputError, match=r"components=6: .* 7 domains"):
        domain_sizes(6)


def test_the_effect_has_its_support_and_signs():
    world = population(53)
    domain = [name.rstrip("0123456789") for name in world.networks]
    for i, j in np.ndindex(53, 53):
        pair = {domain[i], domain[j]}
        expected = 0.0
        if i != j and pair <= set(SENSORY):
            expected = connectivity.HYPO
        elif "SC" in pair and pair & set(SENSORY):
            expected = connectivity.HYPER
        assert world.delta[i, j] == expected


def test_people_equal_the_formula_computed_one_by_one():
    world = population(9)
    patients = np.array([True, False, True, True])
    drawn = draw_correlations(world, patients, 2.0, (3, 1))
    rng = np.random.default_rng([3, 1])
    scores = rng.normal(size=(4, connectivity.MODES))
    own = rng.normal(size=(4, 36))
    along = rng.normal(size=4)
    for i in range(4):
        log = np.zeros((9, 9))
        log[np.triu_indices(9, 1)] = (
            connectivity.INDIVIDUAL_SD / np.sqrt(2) * (scores[i] @ world.modes + own[i])
        )
        log = log + log.T + world.mean
        amount = connectivity.ALONG_EFFECT * along[i] + 2.0 * patients[i]
        covariance = expm(log + amount * world.delta)
        scale = np.diag(1 / np.sqrt(np.diag(covariance)))
        expected = (scale @ covariance @ scale + 0.02 * np.eye(9)) / 1.02
        np.testing.assert_allclose(drawn[i], expected, rtol=0, atol=1e-10)


def test_all_matrices_are_correlations():
    drawn = draw_correlations(population(53), np.arange(40) % 2 == 0, 2.0, (0,))
    np.testing.assert_allclose(drawn[:, range(53), range(53)], 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(drawn, drawn.swapaxes(1, 2), rtol=0, atol=1e-12)
    assert np.linalg.eigvalsh(drawn).min() > 0.02 / 1.02 - 1e-9


def test_without_an_effect_groups_do_not_enter():
    world = population(12)
    group = np.array([True, False, True, False, False])
    first = draw_correlations(world, group, 0.0, (7,))
    np.testing.assert_array_equal(first, draw_correlations(world, ~group, 0.0, (7,)))
    with_effect = draw_correlations(world, group, 1.0, (7,))
    np.testing.assert_array_equal(with_effect[~group], first[~group])
    assert np.abs(with_effect[group] - first[group]).max() > 0.05


def test_the_population_does_not_depend_on_a_seed():
    first, again = population(20), population(20)
    np.testing.assert_array_equal(first.mean, again.mean)
    np.testing.assert_array_equal(first.modes, again.modes)


def test_scanners_shift_log_covariances():
    world, group = population(9), np.array([True, False, False])
    side = np.array([-0.5, 0.5, 0.0])[:, None, None]
    shifted = draw_correlations(world, group, 0.0, (5,), side * site_pattern(9))
    plain = draw_correlations(world, group, 0.0, (5,))
    np.testing.assert_array_equal(shifted[2], plain[2])
    assert np.abs(shifted[:2] - plain[:2]).max(axis=(1, 2)).min() > 0.01
    assert np.linalg.eigvalsh(shifted).min() > 0
    np.testing.assert_array_equal(site_pattern(9), site_pattern(9).T)
