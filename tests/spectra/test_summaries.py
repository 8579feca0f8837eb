import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectral_mlops.spectra.summaries import (
    RANK_THRESHOLD,
    SLOPE_FROM,
    SUMMARIES,
    condition_number,
    effective_rank,
    frobenius_norm,
    leading_share,
    nuclear_norm,
    numerical_rank,
    participation_ratio,
    power_law_r2,
    power_law_slope,
    spectral_entropy,
    spectral_norm,
    stable_rank,
    summarise,
)

NORMS = {"nuclear_norm", "frobenius_norm", "spectral_norm"}
SLOPES = {"power_law_slope", "power_law_r2"}


def spectrum(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_table_names_every_summary_by_its_function():
    assert {name: function.__name__ for name, function in SUMMARIES.items()} == {
        name: name for name in SUMMARIES
    }
    assert set(SUMMARIES) == NORMS | SLOPES | {
        "effective_rank", "stable_rank", "participation_ratio", "numerical_rank",
        "spectral_entropy", "condition_number", "leading_share",
    }  # fmt: skip


@pytest.mark.parametrize("value", [1e-200, 0.25, 7.0, 1e200])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_equal_values(count, value):
    sigma = spectrum(*[value] * count)
    expected = {
        nuclear_norm: count * value,
        frobenius_norm: math.sqrt(count) * value,
        spectral_norm: value,
        effective_rank: count,
        stable_rank: count,
        participation_ratio: count,
        numerical_rank: count,
        spectral_entropy: math.log(count),
        condition_number: 1,
        leading_share: 1 / count,
    }
    for function, number in expected.items():
        assert float(function(sigma)) == pytest.approx(number, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("count", [2, 5, 30])
def test_geometric_values(count, ratio):
    sigma = 3.0 * ratio ** torch.arange(count, dtype=torch.float64)

    def series(power):
        return (1 - ratio ** (power * count)) / (1 - ratio**power)

    p = [ratio**i / series(1) for i in range(count)]
    entropy = -sum(x * math.log(x) for x in p)
    expected = {
        nuclear_norm: 3 * series(1),
        frobenius_norm: 3 * math.sqrt(series(2)),
        spectral_norm: 3,
        spectral_entropy: entropy,
        effective_rank: math.exp(entropy),
        stable_rank: series(2),
        participation_ratio: series(2) ** 2 / series(4),
        numerical_rank: sum(ratio**i > RANK_THRESHOLD for i in range(count)),
        condition_number: ratio ** -(count - 1),
        leading_share: 1 / series(1),
    }
    for function, number in expected.items():
        assert float(function(sigma)) == pytest.approx(number, rel=1e-9)


def test_entropy_against_scipy():
    sigma = spectrum(5.0, 2.5, 0.3, 0.01, 0.0)
    assert float(spectral_entropy(sigma)) == pytest.approx(
        scipy.stats.entropy(sigma.numpy()), rel=1e-12
    )


def test_numerical_rank_stops_at_its_threshold():
    sigma = spectrum(2.0, 2.0 * RANK_THRESHOLD * 1.01, 2.0 * RANK_THRESHOLD * 0.99)
    assert numerical_rank(sigma) == 2
    assert float(condition_number(sigma)) == pytest.approx(1 / 0.99e-6)


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=70),
    zeros=st.integers(0, 9),
    power=st.integers(-90, 90),
)
def test_zeros_and_scale_change_nothing_that_they_should_not(values, zeros, power):
    sigma = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    changed = torch.cat([sigma, sigma.new_zeros(zeros)]) * 2.0**power
    for name, function in SUMMARIES.items():
        factor = 2.0**power if name in NORMS else 1.0
        before, after = float(function(sigma)) * factor, float(function(changed))
        assert after == pytest.approx(before, rel=1e-9, nan_ok=True, abs=1e-12), name


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=30))
def test_ranks_keep_their_order_and_bounds(values):
    sigma = torch.tensor(values, dtype=torch.float64)
    slack = 1 + 1e-9
    # Rényi entropies fall with their order: of σ, of σ², of σ² at infinity.
    assert float(stable_rank(sigma)) * slack >= 1
    assert stable_rank(sigma) <= participation_ratio(sigma) * slack
    assert participation_ratio(sigma) <= effective_rank(sigma) * slack
    assert effective_rank(sigma) <= len(values) * slack
    assert 1 / len(values) <= leading_share(sigma) * slack
    assert leading_share(sigma) <= slack


@pytest.mark.parametrize("slope", [-0.5, -1.0, -2.5])
@pytest.mark.parametrize("count", [SLOPE_FROM, 200])
@pytest.mark.parametrize("zeros", [0, 7])
def test_an_exact_power_law(slope, count, zeros):
    sigma = 4.0 * torch.arange(1, count + 1, dtype=torch.float64) ** slope
    sigma = torch.cat([sigma, sigma.new_zeros(zeros)])
    assert float(power_law_slope(sigma)) == pytest.approx(slope, rel=1e-9)
    assert float(power_law_r2(sigma)) == pytest.approx(1.0, rel=1e-9)


def test_a_bent_law_against_scipy():
    rank = np.arange(1, 81)
    values = np.exp(-0.05 * rank) / rank
    fit = scipy.stats.linregress(np.log(rank), np.log(values))
    sigma = torch.from_numpy(values)
    assert float(power_law_slope(sigma)) == pytest.approx(fit.slope, rel=1e-9)
    assert float(power_law_r2(sigma)) == pytest.approx(fit.rvalue**2, rel=1e-9)
    assert power_law_r2(sigma) < 0.99


def test_the_order_of_the_values_means_nothing_to_the_slope():
    sigma = torch.arange(1, 71, dtype=torch.float64) ** -1.5
    assert float(power_law_slope(sigma.flip(0))) == pytest.approx(-1.5)


def test_no_slope_below_its_number_of_values():
    sigma = torch.arange(1, SLOPE_FROM, dtype=torch.float64) ** -1.0
    sigma = torch.cat([sigma, sigma.new_zeros(40)])
    assert power_law_slope(sigma).isnan()
    assert power_law_r2(sigma).isnan()


@pytest.mark.parametrize("length", [0, 1, 60])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_no_values_and_zeros_have_norms_and_nothing_else(length, batch):
    for name, function in SUMMARIES.items():
        found = function(torch.zeros(*batch, length, dtype=torch.float64))
        assert found.shape == batch
        assert (found == 0).all() if name in NORMS else found.isnan().all(), name


@pytest.mark.parametrize("length", [3, 60])
@pytest.mark.parametrize("number", [1, "all"])
def test_nan_gives_nan(length, number):
    sigma = torch.ones(length, dtype=torch.float64)
    sigma[: length if number == "all" else number] = torch.nan
    for name, function in SUMMARIES.items():
        assert function(sigma).isnan(), name


def test_nan_and_zeros_in_one_member_leave_the_others_right():
    good = torch.arange(60, 0, -1, dtype=torch.float64)
    batch = torch.stack([torch.full_like(good, torch.nan), good, good * 0, good])
    for name, function in SUMMARIES.items():
        found = function(batch)
        assert (
            float(found[1])
            == float(found[3])
            == pytest.approx(float(function(good)), rel=1e-12)
        ), name


def test_summarise_equals_one_by_one():
    spectra = [
        spectrum(3.0, 2.0, 0.5),
        torch.arange(1, 81, dtype=torch.float64) ** -1.1,
        torch.zeros(4, dtype=torch.float64),
        spectrum(),
        spectrum(torch.nan, torch.nan),
        spectrum(2.0),
    ]
    together = summarise(spectra)
    assert len(together) == len(spectra)
    for sigma, row in zip(spectra, together, strict=True):
        assert list(row) == list(SUMMARIES)
        for name, function in SUMMARIES.items():
            assert isinstance(row[name], float)
            assert row[name] == pytest.approx(
                float(function(sigma)), rel=1e-12, nan_ok=True
            ), name


def test_summarise_nothing_and_the_empty_spectrum_alone():
    assert summarise([]) == []
    assert summarise([spectrum()])[0]["spectral_norm"] == 0.0
