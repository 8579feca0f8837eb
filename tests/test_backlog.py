import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spectral_mlops import SpectralMonitor, backlog, capture
from spectral_mlops.spectra.solver import Solver
from tests.small_run import network, people


def solving_late():
    """A solver whose thread gets nothing done before collect."""

    class Busy:
        def submit(self, work):
            """Leave it to `Solver.drain`."""

    solver = Solver(threaded=True)
    solver._pool = Busy()
    return solver


@pytest.mark.filterwarnings("ignore:.*spectra could not be computed:RuntimeWarning")
def test_what_is_written_to_before_it_is_reduced_is_marked():
    x, y, _, who = people()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2))
    stashed = []
    model[1].register_forward_hook(lambda m, a, o: stashed.append(o))
    monitor = SpectralMonitor(model)
    monitor._backlog.solver = solving_late()
    for step in range(2):
        with monitor.watch({"dx": y}, who):
            cross_entropy(model(x), y).backward()
        if step:
            stashed[-1].detach().zero_()
    first, second = [
        {s.status for s in monitor_spectra if s.step == step}
        for monitor_spectra in [monitor.collect().spectra]
        for step in (0, 1)
    ]
    assert first == {"ok"}
    assert second == {"failed"}
    assert monitor.collect().spectra == []


def test_no_null_is_formed_of_what_was_written_to():
    x, y, _, who = people()
    model = nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2))
    stashed = []
    model[1].register_forward_hook(lambda m, a, o: stashed.append(o))
    monitor = SpectralMonitor(model, null_batches=2)
    monitor._backlog.solver = solving_late()
    for step in range(2):
        with monitor.watch({"dx": y}, who):
            cross_entropy(model(x), y).backward()
        if not step:
            stashed[-1].detach().zero_()
    with pytest.warns(RuntimeWarning, match="could not be computed"):
        result = monitor.collect()
    table = result.divergences(19)
    said = table[table["null"] != "none"]["null"]
    assert len(said)
    assert said.str.contains("1 of 2 watched batches").all()


@pytest.mark.parametrize("together", [1, 3000, 2**23])
def test_batches_that_waited_are_reduced_together(monkeypatch, together):
    """Each has the numbers of its own `capture`; labels and sizes differ."""
    x, y, sex, who = people()
    model, calls = network(), []
    real = backlog.reduce_batches
    monkeypatch.setattr(backlog, "TOGETHER_BYTES", together)
    monkeypatch.setattr(
        backlog, "reduce_batches", lambda found: calls.append(len(found)) or real(found)
    )
    monitor = SpectralMonitor(model)
    monitor._backlog.solver = solving_late()
    expected = []
    for step in range(7):
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(step))
        some = some[: len(x) - step % 2].tolist()
        labels = {"sex": [sex[i] for i in some], "even": [i % 2 for i in some]}
        own = [who[i] for i in some]
        with capture(model, labels, subjects=own) as alone:
            cross_entropy(model(x[some]), y[some]).backward()
        with monitor.watch(labels, own, targets=y[some]):
            cross_entropy(model(x[some]), y[some]).backward()
        expected += [(step, one) for one in alone.spectra()]
    found = {(s.step, *cell_of(s)): s for s in monitor.collect().spectra}
    assert len(found) == len(expected)
    for step, one in expected:
        other = found[step, *cell_of(one)]
        assert (one.samples, one.rows) == (other.samples, other.rows)
        scale = other.values.max(initial=0.0)
        np.testing.assert_allclose(other.values, one.values, rtol=0, atol=1e-9 * scale)
    assert sum(calls) == 7
    assert len(calls) == {1: 7, 2**23: 1}.get(together, len(calls))
    assert together != 3000 or 1 < len(calls) < 7


def cell_of(one):
    return one.layer, one.quantity, one.grouping, one.group


@pytest.mark.parametrize("aggregate", ["batch", "window"])
def test_a_null_needs_no_rows_of_the_batch(aggregate):
    x, y, sex, who = people()
    model = network()
    monitor = SpectralMonitor(model, aggregate=aggregate)
    with monitor.watch({"sex": sex}, who, targets=y):
        cross_entropy(model(x), y).backward()
    (pending,) = monitor._backlog.observed
    if aggregate == "batch":
        result = monitor.collect()  # waits for the worker
    assert not hasattr(pending, "measurable")
    if aggregate == "window":
        result = monitor.collect()
    assert result.divergences(39)["p"].notna().any()


def test_an_input_buffer_that_is_used_again_does_no_harm():
    x, y, _, who = people()
    torch.manual_seed(0)
    model = nn.Linear(9, 2)
    monitor, buffer = SpectralMonitor(model), x.clone()
    monitor._backlog.solver = solving_late()
    with monitor.watch({"dx": y}, who):
        cross_entropy(model(buffer), y).backward()
    buffer.zero_()
    found = {(s.quantity, s.group): s for s in monitor.collect().spectra}
    expected = torch.linalg.svdvals(x.double())
    np.testing.assert_allclose(
        found["activation", "all"].values, expected[:9], rtol=1e-5
    )
