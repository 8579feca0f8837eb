"""People passed in batches of which no rows stay, against all of them at once."""

import numpy as np
import pytest
import torch
from torch import nn

from spectral_mlops import SpectralMonitor
from spectral_mlops.errors import CaptureError
from spectral_mlops.hooks import condensed as module
from spectral_mlops.hooks.condensed import CondensedRows, condensed
from spectral_mlops.hooks.layers.convolution import ConvolutionRows, Geometry
from spectral_mlops.hooks.rows import Rows


def network(groups=1, stride=1):
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=groups),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=stride, groups=groups),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(54, 2),
    )


def people(n=13, size=(9, 8)):
    random = torch.Generator().manual_seed(7)
    x = torch.randn(n, 2, *size, generator=random)
    labels = ["a" if i % 3 else "b" for i in range(n)]
    x[1::3, :, :3] *= 2
    x[4] = 0
    return x, torch.arange(n) % 2, labels, [f"p{i:02d}" for i in range(n)]


def parts(x, y, labels, who, sizes):
    found, at = [], 0
    for n in sizes:
        one = slice(at, at + n)
        found.append((x[one], y[one], {"g": labels[one]}, who[one]))
        at += n
    return found


@pytest.fixture
def many(monkeypatch):
    """Twenty rows are many."""
    for name in ("hooks.condensed", "hooks.observed"):
        monkeypatch.setattr(f"spectral_mlops.{name}.MAX_ROWS", 20)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("copies", [200, 2**24])
def test_a_probe_of_unequal_batches_is_that_of_one(monkeypatch, many, groups, copies):
    monkeypatch.setattr(module, "COPY_BYTES", copies)
    made = []
    init = CondensedRows.__init__

    def noted(self, *words, **more):
        made.append(words)
        init(self, *words, **more)

    monitor = SpectralMonitor(network(groups))
    whole = monitor.probe(parts(*people(), (13,)))
    monkeypatch.setattr(CondensedRows, "__init__", noted)
    several = monitor.probe(iter(parts(*people(), (4, 2, 6, 1))))
    assert made  # something was condensed
    for one, other in zip(whole.spectra, several.spectra, strict=True):
        for name in ("layer", "quantity", "group", "rows", "samples", "shape"):
            assert getattr(one, name) == getattr(other, name)
        gap = np.abs(one.values - other.values).max(initial=0)
        assert gap <= 2e-6 * one.values.max(initial=0)
    tables = [x.divergences(permutations=19) for x in (whole, several)]
    for column in ("value", "null_mean", "z", "p"):
        np.testing.assert_allclose(*(t[column] for t in tables), rtol=1e-4, atol=1e-9)
    assert list(tables[0]["reason"]) == list(tables[1]["reason"])


def test_reformed_adjoints_keep_their_rows(many):
    monitor = SpectralMonitor(network())
    loss = nn.CrossEntropyLoss(reduction="sum")
    x, y, labels, who = people()
    found = [
        monitor.probe(parts(x, y, labels, who, sizes), loss, adjoint="reformed")
        for sizes in ((13,), (5, 8))
    ]
    tables = [x.divergences(permutations=19) for x in found]
    np.testing.assert_allclose(*(t["value"] for t in tables), rtol=1e-5)


def rows(size=(9, 8), n=3):
    torch.manual_seed(1)
    layer = nn.Conv2d(2, 4, 3)
    x = torch.randn(n, 2, *size)
    return ConvolutionRows(x, torch.randn_like(layer(x)), Geometry.of(layer))


def test_products_of_every_sample_are_left(many):
    before = rows()
    after = condensed(before)
    assert isinstance(after, CondensedRows)
    assert (len(after), after.shape) == (3, before.shape)
    assert after.nbytes < before.nbytes
    for side in ("activation", "adjoint"):
        x, y = (getattr(z, f"{side}_rows")()[0].double() for z in (before, after))
        torch.testing.assert_close(y.mT @ y, x.mT @ x)
        assert torch.equal(after.row_counts(side), before.row_counts(side))
    torch.testing.assert_close(after.matrices(), before.matrices())
    chosen = torch.tensor([2, 0])
    torch.testing.assert_close(
        after.choose(chosen).matrices(), before.choose(chosen).matrices()
    )
    pairs = condensed(rows(n=4)).fold(2)
    folded = rows(n=4).fold(2)
    x, y = folded.adjoint_rows()[0].double(), pairs.adjoint_rows()[0]
    torch.testing.assert_close(y.mT @ y, x.mT @ x)
    assert torch.equal(pairs.row_counts("adjoint"), folded.row_counts("adjoint"))
    torch.testing.assert_close(
        pairs.choose(torch.tensor([1])).matrices(),
        folded.choose(torch.tensor([1])).matrices(),
    )


def test_what_is_not_there_any_more_is_said(many):
    one = condensed(rows())
    for ask in (one.factors, one.gradients, lambda: one.plus(one)):
        with pytest.raises(CaptureError, match="condensed as their batch had passed"):
            ask()
    with pytest.raises(CaptureError, match=r"^Patches are asked"):
        one.activation_rows(patches=True)


def test_few_positions_large_products_and_numbers_that_are_none_stay(many):
    few = rows((5, 4))
    assert condensed(few) is few
    linear = Rows(torch.randn(2, 30, 3), torch.randn(2, 30, 4))
    assert condensed(linear) is linear
    broken = rows()
    broken.input[0, 0, 0, 0] = float("nan")
    assert condensed(broken) is broken
    nobody = rows().choose(torch.empty(0, dtype=torch.int64))
    assert condensed(nobody) is nobody
    torch.manual_seed(0)
    wide = nn.Conv2d(40, 30, 3)
    x = torch.randn(1, 40, 8, 7)
    large = ConvolutionRows(x, torch.randn_like(wide(x)), Geometry.of(wide))
    assert condensed(large) is large
