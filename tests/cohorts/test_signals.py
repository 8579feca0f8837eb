import numpy as np
import pytest
from scipy.linalg import cholesky

from spectral_mlops.cohorts.connectivity import draw_correlations, population
from spectral_mlops.cohorts.signals import AUTOCORRELATION, draw_signals


@pytest.fixture
def correlations():
    return draw_correlations(population(7), np.array([True, False, True]), 1.0, (2,))


def test_signals_equal_the_recursion_written_out(correlations):
    drawn = list(draw_signals(correlations, 6, (4, 3)))
    for i, signal in enumerate(drawn):
        noise = np.random.default_rng([4, 3, i]).normal(size=(6, 7))
        factor = cholesky(correlations[i], lower=True)
        expected = [factor @ noise[0]]
        for t in range(1, 6):
            new = np.sqrt(1 - 0.36**2) * factor @ noise[t]
            expected.append(0.36 * expected[-1] + new)
        np.testing.assert_allclose(signal, expected, rtol=0, atol=1e-12)


def test_space_and_time_part(correlations):
    """Lagged covariances of many short draws are the lag's power times C."""
    many = np.repeat(correlations[:1], 20_000, axis=0)
    drawn = np.stack(list(draw_signals(many, 4, (0,))))  # [draws, T, C]
    for first, lag in ((0, 0), (3, 0), (0, 1), (1, 2)):
        product = np.einsum("nc,nd->cd", drawn[:, first], drawn[:, first + lag])
        expected = AUTOCORRELATION**lag * correlations[0]
        np.testing.assert_allclose(product / 20_000, expected, rtol=0, atol=0.04)


def test_people_do_not_depend_on_those_after_them(correlations):
    alone = next(draw_signals(correlations[:1], 5, (1,)))
    np.testing.assert_array_equal(alone, next(draw_signals(correlations, 5, (1,))))
    assert next(draw_signals(correlations, 1, (1,))).shape == (1, 7)
