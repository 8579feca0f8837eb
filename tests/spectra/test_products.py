import pytest
import torch

from spectral_mlops.spectra import products
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.products import column_products, row_grams
from tests.spectra.engine import normal

C, N, S, D_IN, D_OUT = 2, 9, 11, 5, 3
MEMBERS = [torch.tensor([8, 1, 4, 2]), torch.tensor([0, 7, 5])]


def chosen(x, i, members):
    return x[i, members].flatten(0, 1).double()


@pytest.mark.parametrize("copies", [1, 700, 5000, 2**25])
@pytest.mark.parametrize("channel_first", [False, True])
def test_products_in_slices_of_any_size(monkeypatch, copies, channel_first):
    monkeypatch.setattr(products, "COPY_BYTES", copies)
    a, d = normal(C, N, S, D_IN, seed=1), normal(C, N, S, D_OUT, seed=2)
    if channel_first:
        a = a.mT.contiguous().mT
    (stack,) = Groups(N, MEMBERS).stacks((0, 1))
    found = column_products(a, d, stack, (True, True))
    grams = row_grams(a, stack)
    for i in range(C):
        for g, members in enumerate(MEMBERS):
            x, y = chosen(a, i, members), chosen(d, i, members)
            torch.testing.assert_close(found.activation[i, g], x.mT @ x)
            torch.testing.assert_close(found.adjoint[i, g], y.mT @ y)
            torch.testing.assert_close(found.gradient[i, g], x.mT @ y)
            energy = torch.stack([x.square().sum(), y.square().sum()])
            torch.testing.assert_close(found.energy[i, g], energy)
            r = len(x)
            torch.testing.assert_close(grams[i, g, :r, :r], x @ x.mT)
            assert not grams[i, g, r:].any()


def test_only_what_is_asked_for():
    a, d = normal(C, N, S, D_IN, seed=1), normal(C, N, S, D_OUT, seed=2)
    (stack,) = Groups(N, MEMBERS).stacks((0, 1))
    assert column_products(a, None, stack, (True, False))[1:] == (None, None, None)
    found = column_products(a, d, stack, (False, False))
    assert found.activation is None
    assert found.adjoint is None
    full = column_products(a, d, stack, (True, True))
    torch.testing.assert_close(found.energy, full.energy)


def test_float64_copies_stay_under_the_limit(monkeypatch):
    limit, seen = 4000, []
    widen = products._widen

    def watched(*arguments):
        rows = widen(*arguments)
        seen.append(rows.numel() * 8)
        return rows

    monkeypatch.setattr(products, "COPY_BYTES", limit)
    monkeypatch.setattr(products, "_widen", watched)
    a = normal(1, N, 200, 4).mT.contiguous().mT
    (stack,) = Groups(N, [torch.arange(3)]).stacks((0,))
    column_products(a, None, stack, (True, False))
    assert max(seen) <= limit
    assert sum(seen) == 3 * 200 * 4 * 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_rows_themselves_are_not_written_to(dtype):
    a = normal(C, N, S, D_IN, dtype=dtype)
    before = a.clone()
    (stack,) = Groups(N, MEMBERS).stacks((0, 1))
    row_grams(a, stack)
    column_products(a, a, stack, (True, False))
    assert torch.equal(a, before)
