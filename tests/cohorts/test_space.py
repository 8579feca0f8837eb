from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from spectral_mlops.cohorts import FeatureSpace, check_cohort, load_cohort
from spectral_mlops.cohorts.space import networks_of
from spectral_mlops.config import CohortConfig
from spectral_mlops.errors import InputError

NETWORKS = ("SC1", "SC2", "AU1", "VI1", "VI2")


def columns(order, separator="-", turned=False):
    pairs = list(combinations(range(5), 2))
    if order == "lower":
        pairs = [(i, j) for i in range(5) for j in range(i)]
    if turned:
        pairs = [(j, i) for i, j in pairs]
    return [f"{NETWORKS[i]}{separator}{NETWORKS[j]}" for i, j in pairs]


@pytest.mark.parametrize("order", ["upper", "lower"])
@pytest.mark.parametrize("separator", ["-", "~", "__"])
@pytest.mark.parametrize("turned", [False, True])
def test_networks_from_their_connections(order, separator, turned):
    assert networks_of(columns(order, separator, turned), order) == NETWORKS


def test_names_in_another_order_say_nothing():
    assert networks_of(columns("upper"), "lower") == ()
    assert networks_of([f"#{k + 1}" for k in range(10)], "upper") == ()
    assert networks_of(["a-b", "a-c", "c-b"], "upper") == ()


@pytest.mark.parametrize("order", ["upper", "lower"])
def test_back_to_the_very_place(order):
    """A matrix cut by hand comes back, its diagonal unknown."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(2, 5, 5))
    matrix += matrix.swapaxes(1, 2)
    rows, cols = np.triu_indices(5, 1) if order == "upper" else np.tril_indices(5, -1)
    vectors = matrix[:, rows, cols]
    vectors[0, 3] = np.nan
    found = FeatureSpace(order).matrices(vectors)
    assert np.isnan(found[:, range(5), range(5)]).all()
    assert np.isnan(found[0, rows[3], cols[3]])
    assert np.isnan(found[0, cols[3], rows[3]])
    same = ~np.isnan(found)
    assert same.sum() == 2 * 20 - 2
    assert np.array_equal(found[same], matrix[same])
    assert np.array_equal(FeatureSpace(order).matrices(vectors[1]), found[1], True)


def test_volumes_are_no_matrices():
    with pytest.raises(InputError, match="no connections"):
        FeatureSpace(affine=np.eye(4)).matrices(np.zeros(3))


def test_a_simulated_cohort_knows_its_networks(small_folder):
    settings = {
        "preset": "easy",
        "people": 56,
        "seed": 3,
        "components": 12,
        "volumes": False,
        "folder": str(small_folder),
    }
    config = CohortConfig(settings=settings)
    check_cohort(config)
    space = load_cohort(config, Path()).space
    assert space.order == "upper"
    assert len(space.networks) == 12
    assert space.networks[0] == "SC1"
