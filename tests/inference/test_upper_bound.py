"""Upper bounds: by closed form, by simulation of the model, and of people."""

import numpy as np
import pytest
from scipy.stats import norm

from spectral_mlops.errors import InputError
from spectral_mlops.inference.significance import standardise
from spectral_mlops.inference.upper_bound import upper_bound

NORMAL = norm.ppf((np.arange(1999) + 0.5) / 1999)
NORMAL = NORMAL / NORMAL.std()


@pytest.mark.parametrize("z", [-2.0, 0.0, 1.5, 4.0])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_of_a_normal_null_it_is_a_closed_form(z, level):
    found = upper_bound(np.append(z, NORMAL), level)
    rare = norm.cdf(z - found) / norm.cdf(z)
    assert rare == pytest.approx(1 - level, rel=1e-6)
    # never nearer than the plain inversion, and at most a little farther for large z
    assert found >= z + norm.ppf(level)
    assert found > 0


def test_far_out_it_is_the_plain_inversion():
    assert upper_bound(np.append(6.0, NORMAL)) == pytest.approx(6 + 1.6449, abs=1e-3)


@pytest.mark.parametrize("z", [-0.8, 0.5, 3.0])
def test_of_a_skewed_null_it_is_that_of_simulated_distances(z):
    """Squared distances in 4 dimensions, drawn as such."""
    rng = np.random.default_rng(0)
    squares = rng.chisquare(4, size=400_000)
    mean, sd = 4.0, np.sqrt(8.0)
    found = upper_bound(np.append(z, (squares - mean) / sd))
    shift = np.sqrt(found * sd)  # noncentrality λ: E z = λ / sd
    far = rng.normal(loc=[shift, 0, 0, 0], size=(400_000, 4)) ** 2
    below = (far.sum(1) <= mean + z * sd).mean()
    assert below == pytest.approx(0.05 * (squares <= mean + z * sd).mean(), rel=0.1)


@pytest.mark.parametrize("effect", [0.0, 0.8, 1.2])
def test_it_holds_the_mean_of_new_people(effect):
    """15 people a group, distance of means in 3 dimensions, groups truly apart."""
    rng = np.random.default_rng(5)
    labels = np.repeat([1.0, 0.0], 15)
    moved = np.stack([labels, *(rng.permutation(labels) for _ in range(99))])
    weights = moved / 15 - (1 - moved) / 15
    z, bounds = [], []
    for _ in range(400):
        people = rng.normal(size=(30, 3))
        people[:15, 0] += effect
        values = standardise(((weights @ people) ** 2).sum(1))
        z.append(values[0])
        bounds.append(upper_bound(values))
    assert np.mean(np.array(bounds) >= np.mean(z)) >= 0.95
    assert np.median(np.array(bounds) - z) < 8


def test_fewer_than_chance_is_no_precise_answer():
    low, none = (upper_bound(np.append(z, NORMAL)) for z in (-3.0, 0.0))
    assert 0.7 < low < none


@pytest.mark.parametrize(
    "values",
    [[1.0], [1.0, 0.0], [np.nan, 0.0, 1.0], [1.0, 0.0, np.nan], [1.0, 2.0, 2.0]],
)
def test_without_relabellings_there_is_none(values):
    assert np.isnan(upper_bound(np.array(values)))


def test_a_level_is_a_share():
    with pytest.raises(InputError, match="level=95"):
        upper_bound(np.append(0.0, NORMAL), 95)
