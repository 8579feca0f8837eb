"""The parts of people that are kept, against matrices formed anew."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectral_mlops.spectra import batched
from spectral_mlops.spectra.batched import choose, compress, rows_of_group
from spectral_mlops.spectra.kept import Kept, KeptColumns, KeptCounts, KeptRows
from spectral_mlops.spectra.kept_gradients import (
    FormedGradients,
    GradientRows,
    KeptGradient,
)
from spectral_mlops.spectra.reduced import safe_exponent
from spectral_mlops.spectra.solve import ACCURACY
from tests.reference import padded, reference_singular_values, rows_of
from tests.spectra.engine import cancelling

OWNER = [0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5, 6]  # people have 3, 1, 2, … rows
CODES = [  # the third group's people come and go; -1 takes no part
    [0, 0, 1, 1, 1, -1, 0],
    [1, 0, 0, 1, 0, -1, 1],
    [0, 1, 1, 1, 0, 2, 0],
    [1, 1, 1, 0, 1, 1, -1],
    [1, 0, 1, 1, 1, 1, 1],
]
SHAPES = [(20, 5), (4, 30), (30, 40), (2, 3), (1, 6), (12, 1)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rows(d_in: int = 20, d_out: int = 5) -> tuple[Tensor, Tensor]:
    return normal(len(OWNER), d_in, seed=1), normal(len(OWNER), d_out, seed=2)


def gradient_of_rows(a: Tensor, d: Tensor) -> GradientRows:
    return GradientRows(compress(a), compress(d), torch.tensor(OWNER), 7)


def formed(a: Tensor, d: Tensor) -> FormedGradients:
    parts = [a[rows_of(OWNER, range(7), i)].T @ d[rows_of(OWNER, range(7), i)]
             for i in range(7)]  # fmt: skip
    return FormedGradients(torch.stack(parts).unsqueeze(1))


def columns(x: Tensor) -> KeptColumns:
    parts = [x[rows_of(OWNER, range(7), i)] for i in range(7)]
    return KeptColumns(torch.stack([p.T @ p for p in parts]).unsqueeze(1))


def close(found: Tensor, matrices: list[Tensor]) -> None:
    """Every spectrum against an SVD of its matrix."""
    assert len(found) == len(matrices)
    assert found.dtype == torch.float64
    for values, matrix in zip(found.numpy(), matrices, strict=True):
        expected = reference_singular_values(matrix)
        length = max(len(values), len(expected))
        top = expected.max(initial=0.0)
        np.testing.assert_allclose(
            padded(values, length), padded(expected, length), rtol=0, atol=1e-6 * top
        )
        assert (np.diff(values) <= 0).all()


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
    common = 2.0 ** safe_exponent(x)  # that extreme rows are divided by
    x, kept = x / scale, kept / (scale / common)
    torch.testing.assert_close(
        kept @ kept.mT, x @ x.mT, rtol=0, atol=1e-12 * (1 + r * d * rank)
    )


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


def chosen(x: Tensor, group: int) -> list[Tensor]:
    return [x[rows_of(OWNER, labels, group)] for labels in CODES]


@pytest.mark.parametrize("group", [0, 1, 2, 9])
@pytest.mark.parametrize("d", [1, 3, 7, 40])
def test_factors_by_rows_and_by_columns(group, d):
    x = normal(len(OWNER), d, seed=3)
    member = torch.tensor(CODES) == group
    for part in (KeptRows(compress(x), torch.tensor(OWNER)), columns(x)):
        close(part.spectra(member), chosen(x, group))


@pytest.mark.parametrize("group", [0, 1, 2, 9])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_by_rows_and_formed(group, shape):
    a, d = rows(*shape)
    member = torch.tensor(CODES) == group
    pairs = zip(chosen(a, group), chosen(d, group), strict=True)
    expected = [x.T @ y for x, y in pairs]
    for part in (gradient_of_rows(a, d), formed(a, d)):
        close(part.spectra(member), expected)
        close(part.formed_spectra(member), expected)


def test_counts_are_those_of_one_hot_rows():
    entry = torch.tensor([0, 4, 0, 4, 1, 1, 1, 0, 2, 2, 4, 4, 0])
    hot = torch.nn.functional.one_hot(entry, 5).double()
    counts = torch.zeros(7, 5, dtype=torch.float64)
    for row, person in enumerate(OWNER):
        counts[person, entry[row]] += 1
    member = torch.tensor(CODES) == 1
    close(KeptCounts(counts).spectra(member), chosen(hot, 1))


def test_blocks_are_joined():
    pairs = [(normal(13, 6, seed=s), normal(13, 4, seed=s + 1)) for s in (1, 5)]
    parts = torch.cat([formed(a, d).parts for a, d in pairs], 1)
    grams = torch.cat([columns(a).grams for a, _ in pairs], 1)
    member = torch.tensor(CODES) == 0
    found, factor = FormedGradients(parts).spectra(member), KeptColumns(grams)
    for i, labels in enumerate(CODES):
        at = rows_of(OWNER, labels, 0)
        blocks = [a[at].T @ d[at] for a, d in pairs]
        close(found[i : i + 1], [torch.block_diag(*blocks)])
        close(
            factor.spectra(member)[i : i + 1],
            [torch.block_diag(*(a[at] for a, _ in pairs))],
        )


def test_cancelling_rows_are_not_taken_from_the_gram():
    a, d = cancelling(6, 20, 15)
    owner = torch.arange(6)
    everyone = torch.ones(2, 6, dtype=torch.bool)
    everyone[1, 4] = False
    part = GradientRows(compress(a), compress(d), owner, 6)
    found = part.spectra(everyone)
    formed_anew = [a.T @ d, a[[0, 1, 2, 3, 5]].T @ d[[0, 1, 2, 3, 5]]]
    close(found, formed_anew)
    exact = reference_singular_values(formed_anew[0])
    assert exact[0] < ACCURACY * 10
    assert exact[1] > 1e-8


@pytest.mark.parametrize("kind", [gradient_of_rows, formed])
@pytest.mark.parametrize("shape", SHAPES)
def test_inner_products_of_people(kind, shape):
    a, d = rows(*shape)
    parts = [
        (a[at].T @ d[at]).flatten()
        for at in (rows_of(OWNER, range(7), i) for i in range(7))
    ]
    expected = torch.stack([torch.stack([x @ y for y in parts]) for x in parts])
    torch.testing.assert_close(kind(a, d).inner, expected)


@pytest.mark.parametrize("kind", [gradient_of_rows, formed])
@pytest.mark.parametrize("shape", SHAPES)
def test_leading_vectors_span_what_an_svd_finds(kind, shape):
    a, d = rows(*shape)
    part: KeptGradient = kind(a, d)
    member = torch.tensor(CODES) == 1
    values, basis = part.leading(member, 3)
    count = min(3, *shape, 13)
    wide = kind is gradient_of_rows and shape[0] > 13
    back = torch.linalg.qr(a.T).Q if wide else torch.eye(shape[0]).double()
    for i, labels in enumerate(CODES):
        at = rows_of(OWNER, labels, 1)
        matrix = a[at].T @ d[at]
        u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
        torch.testing.assert_close(values[i, :count], s[:count], rtol=1e-6, atol=1e-6)
        k = min(count, len(at))
        overlap = torch.linalg.svdvals(u[:, :k].T @ back @ basis[i, :, :k])
        torch.testing.assert_close(overlap, torch.ones_like(overlap))


@pytest.mark.parametrize("size", [1, 2500])
def test_chunks_change_nothing(monkeypatch, size):
    a, d = rows(30, 40)
    member = torch.tensor(CODES * 4) == 1
    parts: list[Kept] = [
        gradient_of_rows(a, d),
        formed(a, d),
        columns(d),
        KeptRows(compress(a), torch.tensor(OWNER)),
    ]
    whole = [part.spectra(member) for part in parts]
    angles = parts[0].leading(member, 2)[0]
    monkeypatch.setattr(batched, "CHUNK_BYTES", size)
    for part, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(part.spectra(member), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parts[0].leading(member, 2)[0], angles)


@pytest.mark.parametrize("power", [-700, -30, 30, 400])
def test_scale_is_no_matter(power):
    a, d = rows(30, 40)
    member = torch.tensor(CODES) == 0
    plain = gradient_of_rows(a, d).spectra(member)
    scaled = gradient_of_rows(a * 2.0**power, d).spectra(member)
    torch.testing.assert_close(
        scaled / scaled[:, :1], plain / plain[:, :1], rtol=1e-9, atol=1e-9
    )
