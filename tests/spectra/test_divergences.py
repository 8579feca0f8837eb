import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectral_mlops.errors import UnknownNameError
from spectral_mlops.spectra.divergences import (
    DIVERGENCES,
    LOG_FLOOR,
    hellinger,
    jensen_shannon,
    jensen_shannon_energy,
    nuclear_log_ratio,
    wasserstein_log,
)
from tests.reference import padded, reference_js

SCALE_FREE = ["js", "js_energy", "hellinger", "wasserstein_log"]
SPECTRA = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-4, 1e3)), min_size=1, max_size=20
).filter(any)


def spectrum(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normalised(values, length):
    return padded(values, length) / sum(values)


def test_the_table():
    assert list(DIVERGENCES) == [*SCALE_FREE, "nuclear_log_ratio"]
    with pytest.raises(UnknownNameError, match=r"divergence 'jss'.*mean 'js'"):
        DIVERGENCES.get("jss")


@settings(deadline=None, max_examples=60)
@given(a=SPECTRA, b=SPECTRA)
def test_jensen_shannon_against_scipy(a, b):
    value = float(jensen_shannon(spectrum(*a), spectrum(*b)))
    assert value == pytest.approx(reference_js(a, b), rel=1e-10, abs=1e-12)
    energy = float(jensen_shannon_energy(spectrum(*a), spectrum(*b)))
    squares = reference_js([x * x for x in a], [x * x for x in b])
    assert energy == pytest.approx(squares, rel=1e-10, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(a=SPECTRA, b=SPECTRA)
def test_hellinger_by_the_bhattacharyya_coefficient(a, b):
    length = max(len(a), len(b))
    overlap = np.sqrt(normalised(a, length) * normalised(b, length)).sum()
    value = float(hellinger(spectrum(*a), spectrum(*b)))
    assert value**2 == pytest.approx(1 - overlap, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(a=SPECTRA, b=SPECTRA)
def test_wasserstein_against_scipy(a, b):
    length = max(len(a), len(b))
    a, b = (sorted(padded(x, length), reverse=True) for x in (a, b))
    ranks = max(np.count_nonzero(a), np.count_nonzero(b))
    p, q = (np.array(x[:ranks]) / sum(x) for x in (a, b))
    floor = LOG_FLOOR * max(p.max(), q.max())
    expected = scipy.stats.wasserstein_distance(
        np.log(np.maximum(p, floor)), np.log(np.maximum(q, floor))
    )
    value = float(wasserstein_log(spectrum(*a), spectrum(*b)))
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_closed_forms():
    a, b = spectrum(1.0, 0.0), spectrum(1.0, 1.0)
    js = 1.5 - 0.75 * math.log2(3)
    assert float(jensen_shannon(a, b)) == pytest.approx(js, rel=1e-12)
    expected = math.sqrt(1 - math.sqrt(0.5))
    assert float(hellinger(a, b)) == pytest.approx(expected, rel=1e-12)
    # p = (2/3, 1/3) and q = (1/2, 1/2): the logs differ by log 4/3 and log 3/2.
    value = float(wasserstein_log(spectrum(2.0, 1.0), b))
    assert value == pytest.approx(math.log(2) / 2, rel=1e-12)
    value = float(nuclear_log_ratio(spectrum(3.0, 1.0), spectrum(0.5)))
    assert value == pytest.approx(math.log(8), rel=1e-12)


@pytest.mark.parametrize("function", [jensen_shannon, jensen_shannon_energy, hellinger])
def test_disjoint_supports_are_as_far_as_can_be(function):
    value = float(function(spectrum(2.0, 0.0, 1.0, 0.0), spectrum(0.0, 5.0, 0.0, 0.1)))
    assert value == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_equal_spectra_are_at_zero_also_under_padding_and_scale(name):
    a = spectrum(5.0, 2.0, 0.1)
    assert DIVERGENCES.get(name)(a, a) == 0
    assert DIVERGENCES.get(name)(a, spectrum(5.0, 2.0, 0.1, 0.0, 0.0)) == 0
    if name in SCALE_FREE:
        assert DIVERGENCES.get(name)(a, a * 2.0**30) == 0


@pytest.mark.parametrize("name", list(DIVERGENCES))
@settings(deadline=None, max_examples=25)
@given(a=SPECTRA, b=SPECTRA)
def test_symmetric_and_not_negative(name, a, b):
    function = DIVERGENCES.get(name)
    forth, back = (
        float(function(spectrum(*x), spectrum(*y))) for x, y in ((a, b), (b, a))
    )
    assert forth == pytest.approx(back, rel=1e-12, abs=1e-15)
    assert forth >= 0
    if name in ("js", "js_energy", "hellinger"):
        assert forth <= 1 + 1e-12


@pytest.mark.parametrize("name", SCALE_FREE)
@settings(deadline=None, max_examples=25)
@given(a=SPECTRA, b=SPECTRA, power=st.integers(-600, 600))
def test_scale_means_nothing(name, a, b, power):
    function = DIVERGENCES.get(name)
    plain = function(spectrum(*a), spectrum(*b))
    scaled = function(spectrum(*a) * 2.0**power, spectrum(*b))
    assert float(scaled) == pytest.approx(float(plain), rel=1e-12, abs=1e-15)


def test_energies_see_the_head_and_plain_values_the_tail():
    head = spectrum(1.0, *[0.01] * 100), spectrum(1.2, *[0.01] * 100)
    tail = spectrum(1.0, *[0.01] * 100), spectrum(1.0, *[0.02] * 50)
    assert jensen_shannon(*tail) > jensen_shannon_energy(*tail)
    assert jensen_shannon(*tail) > jensen_shannon(*head)


@pytest.mark.parametrize("name", list(DIVERGENCES))
@pytest.mark.parametrize("empty", [0, 1, 5])
def test_a_spectrum_of_zeros_gives_nan(name, empty):
    a, b = spectrum(2.0, 1.0, 0.5), torch.zeros(empty, dtype=torch.float64)
    for pair in ((a, b), (b, a), (b, b)):
        assert DIVERGENCES.get(name)(*pair).isnan()


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_one_bad_member_leaves_the_others_right(name):
    function = DIVERGENCES.get(name)
    a, b = spectrum(2.0, 1.0, 0.5), spectrum(1.5, 1.5)
    together = function(
        torch.stack([a, a * 0, a * torch.nan, a]), torch.stack([b, b, b, b * 3])
    )
    assert together.shape == (4,)
    assert float(together[0]) == pytest.approx(float(function(a, b)), rel=1e-14)
    assert float(together[3]) == pytest.approx(float(function(a, b * 3)), rel=1e-14)
    assert together[1:3].isnan().all()


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_zeros_behind_both_change_nothing(name):
    function = DIVERGENCES.get(name)
    a, b = spectrum(5.0, 2.0, 0.1), spectrum(4.0, 4.0)
    more = (torch.cat([x, x.new_zeros(6)]) for x in (a, b))
    assert float(function(*more)) == pytest.approx(float(function(a, b)), rel=1e-12)
