import numpy as np
import pytest
import torch

from spectral_mlops.spectra import products
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.randomised import TOP_VALUES
from spectral_mlops.spectra.reduce import QUANTITIES, LayerFactors
from tests.spectra.engine import close, expected_values, normal, spectra

LIMIT = 90


def decaying(n: int, s: int, d: int, seed: int) -> torch.Tensor:
    rank = min(n * s, d)
    left = torch.linalg.qr(normal(n * s, rank, seed=seed).double()).Q
    right = torch.linalg.qr(normal(d, rank, seed=seed + 1).double()).Q
    values = 0.8 ** torch.arange(rank, dtype=torch.float64)
    return ((left * values) @ right.mT).float().unflatten(0, (n, s))


def layer(n: int, s: int, d_in: int, d_out: int) -> LayerFactors:
    return LayerFactors("x", decaying(n, s, d_in, 1), decaying(n, s, d_out, 3))


@pytest.mark.parametrize("shape", [(100, 1, 120, 110), (50, 5, 130, 95)])
@pytest.mark.parametrize("copies", [2**25, 2**15])
def test_leading_values_and_what_they_leave_out(monkeypatch, shape, copies):
    monkeypatch.setattr(products, "COPY_BYTES", copies)
    own = layer(*shape)
    groups = Groups(shape[0], [None])
    found = spectra([own], groups, largest=LIMIT)
    for quantity in QUANTITIES:
        one = found["x", 0, quantity]
        expected = expected_values(own, groups.members[0], quantity)
        assert (one.route, one.status, one.exact) == ("randomised", "ok", False)
        assert len(one.values) == TOP_VALUES
        errors = expected[:TOP_VALUES] - one.values
        np.testing.assert_allclose(errors, 0, atol=1e-6 * expected[0])
        tail = np.sqrt((expected**2).sum() - (one.values**2).sum())
        assert errors.max() <= one.bound
        assert one.bound == pytest.approx(tail, abs=1e-7 * expected[0])
        energy = (expected**2).sum()
        assert one.summaries == pytest.approx(
            {
                "frobenius_norm": energy**0.5,
                "stable_rank": energy / expected[0] ** 2,
                "participation_ratio": energy**2 / (expected**4).sum(),
            },
            rel=1e-6,
        )


def test_a_flat_spectrum_says_how_far_off_it_may_be():
    own = LayerFactors("x", normal(100, 1, 140), normal(100, 1, 120, seed=1))
    groups = Groups(100, [None])
    found = spectra([own], groups, largest=LIMIT)
    for quantity in QUANTITIES:
        one = found["x", 0, quantity]
        expected = expected_values(own, groups.members[0], quantity)
        missed = expected[:TOP_VALUES] - one.values
        assert 0 < missed.max() <= one.bound
        assert (missed >= -1e-9 * expected[0]).all()


def test_only_what_is_large_is_sketched():
    own = layer(100, 1, 120, 60)
    groups = Groups(100, [torch.arange(30), torch.arange(30, 100), None])
    found = spectra([own], groups, largest=LIMIT)
    large = {key for key, one in found.items() if one.route == "randomised"}
    assert large == {("x", 2, "activation")}
    for key, one in found.items():
        if key not in large:
            close(one, expected_values(own, groups.members[key.group], key.quantity))


def test_formed_gradients_blocks_and_extreme_sizes():
    matrix = decaying(100, 1, 110, 5).squeeze(1).double()
    for size in (1.0, 1e250, 1e-250):
        stack = torch.stack([matrix, 2 * matrix]).unsqueeze(0) * size
        given = LayerFactors("f", gradient=stack, quantities=("gradient",))
        one = spectra([given], Groups(3, [None]), largest=LIMIT)["f", 0, "gradient"]
        values = np.linalg.svd(matrix.numpy(), compute_uv=False)[:TOP_VALUES]
        union = np.sort(np.concatenate([values, 2 * values]))[::-1]
        np.testing.assert_allclose(one.values / size, union, atol=1e-6)
        assert one.summaries is not None
        norm = one.summaries["frobenius_norm"] / size
        assert norm == pytest.approx(5**0.5 * float(torch.linalg.norm(matrix)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_and_zero(bad):
    own = layer(100, 1, 120, 110)
    rows = own.activation.clone()
    rows[3, 0, 4] = bad
    given = [
        LayerFactors("bad", rows, quantities=("activation",)),
        LayerFactors("zero", rows * 0 if bad == 0 else torch.zeros_like(rows),
                     quantities=("activation",)),
    ]  # fmt: skip
    found = spectra(given, Groups(100, [None]), largest=LIMIT)
    one = found["bad", 0, "activation"]
    assert (one.status, one.route) == ("non-finite", "randomised")
    assert np.isnan(one.values).all()
    zero = found["zero", 0, "activation"]
    assert not zero.values.any()
    assert zero.bound == 0


def test_random_state_is_untouched_and_runs_repeat():
    own = layer(100, 1, 120, 110)
    before = torch.get_rng_state()
    first, second = (
        spectra([own], Groups(100, [None]), largest=LIMIT) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    for key, one in first.items():
        assert np.array_equal(one.values, second[key].values)
