import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectral_mlops.spectra import null
from spectral_mlops.spectra.divergences import DIVERGENCES
from spectral_mlops.spectra.null import (
    RelabelFactors,
    choose,
    compress,
    relabelled_divergence,
    relabelled_spectra,
    rows_of_group,
)
from tests.reference import (
    padded,
    reference_js,
    reference_singular_values,
    relabelled_values,
    rows_of,
)

QUANTITIES = ["gradient", "activation", "adjoint"]
OWNER = [0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5, 6]  # people have 3, 1, 2, … rows
CODES = [  # the third group's people come and go; -1 takes no part
    [0, 0, 1, 1, 1, -1, 0],
    [1, 0, 0, 1, 0, -1, 1],
    [0, 1, 1, 1, 0, 2, 0],
    [1, 1, 1, 0, 1, 1, -1],
    [1, 0, 1, 1, 1, 1, 1],
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rows() -> tuple[Tensor, Tensor]:
    return normal(len(OWNER), 20, seed=1), normal(len(OWNER), 5, seed=2)


def factors() -> RelabelFactors:
    a, d = rows()
    return RelabelFactors(compress(a), compress(d), torch.tensor(OWNER))


@settings(deadline=None, max_examples=40)
@given(
    r=st.integers(0, 9),
    d=st.integers(1, 14),
    rank=st.integers(0, 5),
    scale=st.sampled_from([1e-200, 1e-30, 1.0, 1e30, 1e150]),
    seed=st.integers(0, 50),
)
def test_compressed_rows_have_the_same_gram(r, d, rank, scale, seed):
    x = normal(r, rank, seed=seed) @ normal(rank, d, seed=seed + 1) * scale
    kept = compress(x)
    assert kept.shape[0] == r
    assert kept.shape[1] <= max(min(r, d), d if d <= r else 0)
    before, after = (x / scale) @ (x / scale).mT, (kept / scale) @ (kept / scale).mT
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12 * (1 + r * d * rank))


@pytest.mark.parametrize(("r", "d"), [(5, 30), (1, 4), (5, 5), (6, 2), (0, 3)])
def test_compressed_rows_have_no_more_columns_than_rows(r, d):
    assert compress(normal(r, d, seed=1)).shape == (r, min(r, d))


def test_compressed_rows_keep_small_directions():
    left = torch.linalg.qr(normal(5, 3, seed=1)).Q
    right = torch.linalg.qr(normal(12, 3, seed=2)).Q
    values = torch.tensor([1.0, 1e-5, 1e-10], dtype=torch.float64)
    found = reference_singular_values(compress((left * values) @ right.mT))
    np.testing.assert_allclose(found[:3], values.numpy(), rtol=1e-4)


def test_compressed_rows_are_float64_and_free_of_the_graph():
    x = normal(3, 8).float().requires_grad_()
    kept = compress(x)
    assert kept.dtype == torch.float64
    assert not kept.requires_grad
    assert not compress(torch.zeros(3, 8)).any()
    half = compress(torch.full((2, 4), 6e4).half())  # its square is no half
    torch.testing.assert_close(half @ half.mT, torch.full((2, 2), 4 * 6e4**2).double())


def test_choose_gathers_zero_rows_for_minus_one():
    x = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    index = torch.tensor([[2, -1], [0, 0]])
    expected = [[[5, 6], [0, 0]], [[1, 2], [1, 2]]]
    assert choose(x, index).tolist() == expected
    assert choose(x, torch.tensor([[-1]])).tolist() == [[[0, 0]]]


def test_rows_of_group_are_those_of_its_people():
    codes = torch.tensor(CODES)
    found = rows_of_group(torch.tensor(OWNER), codes == 1)
    expected = [rows_of(OWNER, labels, 1) for labels in CODES]
    assert found.shape == (len(CODES), max(map(len, expected)))
    for row, wanted in zip(found.tolist(), expected, strict=True):
        assert sorted(i for i in row if i >= 0) == wanted
        assert row.count(-1) == found.shape[1] - len(wanted)


def test_rows_of_a_group_without_people():
    nobody = torch.zeros(3, 7, dtype=torch.bool)
    assert rows_of_group(torch.tensor(OWNER), nobody).shape == (3, 0)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("group", [0, 1, 2])
def test_relabelled_spectra_equal_a_plain_loop(quantity, group):
    a, d = rows()
    kept = factors()
    index = rows_of_group(kept.owner, torch.tensor(CODES) == group)
    found = relabelled_spectra(quantity, kept.activation, kept.adjoint, index)
    assert len(found) == len(CODES)
    for values, labels in zip(found.numpy(), CODES, strict=True):
        chosen = rows_of(OWNER, labels, group)
        expected = relabelled_values(quantity, a, d, chosen)[: len(values)]
        top = expected.max(initial=0.0)
        np.testing.assert_allclose(
            values, padded(expected, len(values)), rtol=0, atol=1e-6 * top
        )


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_relabelled_divergence_equals_a_plain_loop(quantity):
    a, d = rows()
    found = relabelled_divergence(
        quantity, factors(), torch.tensor(CODES), (0, 1), "js"
    )
    expected = [
        reference_js(
            *(
                relabelled_values(quantity, a, d, rows_of(OWNER, labels, group))
                for group in (0, 1)
            )
        )
        for labels in CODES
    ]
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len({round(x, 9) for x in expected}) == len(CODES)


def test_every_divergence_is_asked_for_by_name():
    for name in DIVERGENCES:
        found = relabelled_divergence(
            "adjoint", factors(), torch.tensor(CODES), (0, 1), name
        )
        assert found.isfinite().all(), name
    pair = [
        reference_singular_values(rows()[1][rows_of(OWNER, CODES[0], group)])
        for group in (0, 1)
    ]
    found = relabelled_divergence(
        "adjoint", factors(), torch.tensor(CODES), (0, 1), "nuclear_log_ratio"
    )
    expected = abs(np.log(pair[0].sum() / pair[1].sum()))
    assert float(found[0]) == pytest.approx(expected, rel=1e-9)


def test_the_pair_may_be_any_of_the_groups():
    codes = torch.tensor([[0, 0, 1, 1, 2, 2, 2], [2, 0, 1, 0, 2, 1, 2]])
    a, d = rows()
    found = relabelled_divergence("gradient", factors(), codes, (1, 2), "js")
    for value, labels in zip(found, codes.tolist(), strict=True):
        spectra = [
            relabelled_values("gradient", a, d, rows_of(OWNER, labels, group))
            for group in (1, 2)
        ]
        assert float(value) == pytest.approx(reference_js(*spectra), rel=1e-6)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_relabelling_without_one_group_is_nan_alone(quantity):
    codes = torch.tensor([[0, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, -1]])
    found = relabelled_divergence(quantity, factors(), codes, (0, 1), "js")
    assert found.isnan().tolist() == [False, True]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_group_nobody_is_ever_in(quantity):
    found = relabelled_divergence(
        quantity, factors(), torch.tensor(CODES), (0, 7), "js"
    )
    assert found.isnan().all()


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("size", [1, 2500])
def test_chunks_change_nothing(monkeypatch, quantity, size):
    kept = factors()
    index = rows_of_group(kept.owner, torch.tensor(CODES * 4) == 1)
    whole = relabelled_spectra(quantity, kept.activation, kept.adjoint, index)
    monkeypatch.setattr(null, "CHUNK_BYTES", size)
    parts = relabelled_spectra(quantity, kept.activation, kept.adjoint, index)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)


def test_swapping_two_groups_changes_nothing():
    codes = torch.tensor(CODES[:2])
    swapped = torch.tensor([[1, 1, 0, 0, 0, -1, 1], [0, 1, 1, 0, 1, -1, 0]])
    found = relabelled_divergence("gradient", factors(), codes, (0, 1), "js")
    back = relabelled_divergence("gradient", factors(), swapped, (0, 1), "js")
    torch.testing.assert_close(found, back, rtol=1e-9, atol=0)
