"""A window is one batch of all its batches."""

import numpy as np
import pytest
import torch
from torch import nn

from spectral_mlops import SpectralMonitor, capture
from spectral_mlops.errors import InputError
from tests.hooks.conftest import LABELS, hooks_on, loss_of
from tests.networks import Gain, Tied


class Everything(nn.Module):
    """A layer of every kind of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(6, 4)
        self.conv = nn.Conv1d(4, 6, 2, groups=2)
        self.gru = nn.GRU(6, 3, batch_first=True)
        self.own = Gain(3)
        self.tied = Tied()
        self.last = nn.Linear(3, 4)

    def forward(self, index):
        hidden = self.gru(self.conv(self.word(index).mT).mT)[0]
        return self.tied(self.last(self.own(hidden)))


def batches():
    generator = torch.Generator().manual_seed(4)
    for size in (7, 4, 5):
        yield torch.randint(0, 6, (size, 5), generator=generator), LABELS[:size]


@pytest.mark.parametrize("conv_rows", ["positions", "patches"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_window_equals_one_batch_of_everybody(dtype, conv_rows):
    torch.manual_seed(0)
    model = Everything().to(dtype)
    how = {"reduction": "sum", "conv_rows": conv_rows}
    monitor = SpectralMonitor(model, aggregate="window", **how)
    whole, labels = [], []
    for index, groups in batches():
        with monitor.watch(groups, subjects=[f"p{i}" for i in range(len(groups))]):
            model(index).square().sum().backward()
        whole.append(index)
        labels += groups
    found = {(s.layer, s.quantity, s.group): s for s in monitor.collect(0).spectra}
    with capture(model, labels, **how) as captured:
        model(torch.cat(whole)).square().sum().backward()
    expected = captured.spectra()
    assert found.keys() == {(s.layer, s.quantity, s.group) for s in expected}
    for s in expected:
        window = found[s.layer, s.quantity, s.group]
        assert (window.samples, window.rows) == (s.samples, s.rows)
        assert window.batch_samples == 16
        assert window.subjects <= 7
        n = min(len(s.values), len(window.values))
        top = s.values[0]
        np.testing.assert_allclose(window.values[:n], s.values[:n], atol=1e-6 * top)
        assert (s.values[n:] < 1e-6 * top).all()
        assert (window.values[n:] < 1e-6 * top).all()
    assert not monitor.collect(1).spectra


def test_windows_follow_each_other():
    model = nn.Linear(3, 2).double()
    monitor = SpectralMonitor(model, aggregate="window")
    x = torch.randn(7, 3).double()
    for _ in range(2):
        with monitor.watch(LABELS):
            loss_of(model(x)).backward()
        result = monitor.collect()
        assert {s.samples for s in result.spectra if s.group == "b"} == {4}
        assert result.batches == 1
    with monitor.watch(LABELS):
        x[0, 0] = torch.nan
        loss_of(model(x)).backward()
    status = {(s.quantity, s.group): s.status for s in monitor.collect().spectra}
    assert status["activation", "b"] == "non-finite"
    assert status["activation", "a"] == "ok"


def test_samples_without_a_person_are_somebody_else_each_time():
    model = nn.Linear(3, 2).double()
    monitor = SpectralMonitor(model, aggregate="window")
    for who in (None, None, ["p"] * 7):
        with monitor.watch(LABELS, who):
            loss_of(model(torch.ones(7, 3).double())).backward()
    pooled = [s for s in monitor.collect().spectra if s.group == "all"]
    assert {s.subjects for s in pooled} == {15}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"dx": ["a", "c"]}, "group 'c' is not in groups= .a, b."),
        ({"sex": ["a", "b"]}, "Grouping 'sex' is not in groups= .dx."),
    ],
)
def test_groups_that_were_not_announced_are_refused(labels, words):
    model = nn.Linear(3, 2)
    monitor = SpectralMonitor(model, aggregate="window", groups={"dx": ["a", "b"]})
    with pytest.raises(InputError, match=words), monitor.watch(labels):
        pass
    assert hooks_on(model) == 0
    with monitor.watch({"dx": ["b", "b"]}):
        model(torch.ones(2, 3)).sum().backward()
    unlisted = pytest.raises(InputError, match="'z' is not in groups=")
    with unlisted, monitor.watch({"dx": ["b", "b"]}):
        monitor.relabel({"dx": ["b", "z"]})
    assert hooks_on(model) == 0
    assert {s.group for s in monitor.collect().spectra} == {"all", "b"}


def test_a_large_table_is_refused_with_a_way_out():
    model = nn.Embedding(5000, 2)
    monitor = SpectralMonitor(model, aggregate="window")
    with pytest.raises(InputError, match="quantities="), monitor.watch(list("ab")):
        model(torch.tensor([[1], [2]])).sum().backward()
    with pytest.raises(InputError, match="'batch' or 'window'"):
        SpectralMonitor(model, aggregate="mean")
