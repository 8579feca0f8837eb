import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spectral_mlops import SpectralMonitor
from spectral_mlops.errors import CaptureError, InputError
from spectral_mlops.schedule import EvenlySpaced
from tests.hooks.conftest import hooks_on
from tests.small_run import epoch, network, people, probe_batches


def test_watched_training_is_bit_for_bit_the_unwatched_one():
    x, y, sex, who = people()
    trained = []
    for every in (1, 2, None):
        model = network(dropout=0.5)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        monitor = SpectralMonitor(
            model,
            schedule=(lambda epoch, step: False) if every is None else None,
            every=every or 1,
        )
        torch.manual_seed(1)
        for number in range(3):
            epoch(model, optimizer, monitor, x, y, sex, who)
            result = monitor.collect(number)
            if every:
                result.divergences(permutations=19)
                held = [f"held-{person}" for person in who]
                monitor.probe([(x, y, {"dx": y}, held)], epoch=number)
            else:
                assert result.spectra == []
        trained.append(
            (model.state_dict(), optimizer.state_dict(), torch.get_rng_state())
        )
    for weights, state, random in trained[:2]:
        assert torch.equal(random, trained[2][2])
        for name, value in weights.items():
            assert torch.equal(value, trained[2][0][name])
        for a, b in zip(
            state["state"].values(), trained[2][1]["state"].values(), strict=True
        ):
            assert all(torch.equal(a[k], b[k]) for k in a)


def test_every_nth_step_is_watched_and_the_others_carry_no_hook():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model, every=3)
    for step in range(5):
        with monitor.watch(y[:4], who[:4]) as captured:
            assert (captured is not None) == (step % 3 == 0)
            assert bool(hooks_on(model)) == (step % 3 == 0)
            cross_entropy(model(x[:4]), y[:4]).backward()
    assert hooks_on(model) == 0
    result = monitor.collect()
    assert result.batches == 2
    assert {s.step for s in result.spectra} == {0, 3}


def test_only_the_epochs_asked_for_are_watched():
    x, y, sex, who = people()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = SpectralMonitor(model, epochs=[1])
    watched = []
    for _ in range(3):
        epoch(model, optimizer, monitor, x, y, sex, who)
        watched.append(monitor.collect().batches)
    assert watched == [0, 4, 0]


def test_epochs_count_from_zero_and_collect_empties_the_monitor():
    x, y, sex, who = people()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = SpectralMonitor(model)
    numbers = []
    for _ in range(3):
        steps = epoch(model, optimizer, monitor, x, y, sex, who)
        result = monitor.collect()
        numbers.append(result.epoch)
        assert result.batches == steps
        assert {s.step for s in result.spectra} == set(range(steps))
    assert numbers == [0, 1, 2]
    assert monitor.collect(epoch=7).spectra == []


def test_evenly_spaced_schedules_need_the_number_of_steps():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model, schedule=EvenlySpaced(2))
    with pytest.raises(InputError, match="begin_epoch"):
        monitor.start(y[:4], who[:4])
    monitor.begin_epoch(0, steps=6)
    watched = []
    for _ in range(6):
        watched.append(monitor.start(y[:4], who[:4]) is not None)
        cross_entropy(model(x[:4]), y[:4]).backward()
        monitor.stop()
    assert watched == [True, False, False, True, False, False]


def test_start_twice_and_stop_without_backward_are_refused():
    _, y, _, who = people()
    monitor = SpectralMonitor(network())
    monitor.start(y[:4], who[:4])
    with pytest.raises(CaptureError, match="stop"):
        monitor.start(y[:4], who[:4])
    with pytest.raises(CaptureError, match="Nothing was captured"):
        monitor.stop()


def test_an_exception_leaves_no_hook_and_the_monitor_usable():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model)

    def fail():
        with monitor.watch(y[:4], who[:4]):
            model(x[:4])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert hooks_on(model) == 0
    with monitor.watch(y[:4], who[:4]):
        cross_entropy(model(x[:4]), y[:4]).backward()
    assert monitor.collect().batches == 1


def test_state_goes_on_where_it_was():
    monitor = SpectralMonitor(network(), every=2)
    monitor.begin_epoch(4, steps=9)
    other = SpectralMonitor(network(), every=2)
    other.load_state_dict(monitor.state_dict())
    assert other.collect().epoch == 4


def test_the_time_budget_watches_the_first_step():
    x, y, _, who = people()
    model = network()
    monitor = SpectralMonitor(model, every="auto")
    for _ in range(3):
        with monitor.watch(y[:4], who[:4]):
            cross_entropy(model(x[:4]), y[:4]).backward()
    result = monitor.collect()
    assert {s.step for s in result.spectra} >= {0}
    assert monitor._steps.schedule.spent > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every": 0}, "at least 1"),
        ({"every": "often"}, "'auto'"),
        ({"schedule": 3}, "function"),
        ({"aggregate": "median"}, "'batch'"),
        ({"distributed": "on"}, "'auto' or 'off'"),
        ({"groups": {"dx": []}}, "at least one group"),
        ({"permutations": -1}, "not below zero"),
        ({"reduction": "none"}, "'mean' or 'sum'"),
        ({"layers": ["9"]}, "holds no parameters"),
    ],
)
def test_impossible_settings_are_refused_at_once(settings, words):
    with pytest.raises((InputError, LookupError), match=words):
        SpectralMonitor(network(), **settings)


# -- the probe ---------------------------------------------------------------------


def test_a_model_may_change_between_steps():
    x, y, _, who = people()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 4), nn.Linear(4, 2))
    monitor = SpectralMonitor(model)

    def layers():
        with monitor.watch({"dx": y}, who):
            cross_entropy(model(x), y).backward()
        return {s.layer for s in monitor.collect().spectra}

    assert layers() == {"0", "1"}
    model[1] = nn.Linear(4, 2)  # a new head
    assert layers() == {"0", "1"}
    model.insert(1, nn.Linear(4, 4))
    assert layers() == {"0", "1", "2"}
    model[0].requires_grad_(False)  # nothing then reaches it
    assert layers() == {"1", "2"}


def test_a_copy_of_a_monitor_watches_the_copied_model():
    x, y, _, who = people()
    monitor = SpectralMonitor(nn.Linear(9, 2), strict=True)
    with monitor.watch({"dx": y}, who):
        cross_entropy(monitor.model(x), y).backward()
    twin = copy.deepcopy(monitor)
    assert twin.model is not monitor.model
    with twin.watch({"dx": y}, who):
        cross_entropy(twin.model(x), y).backward()
    assert len(twin.collect().spectra) == len(monitor.collect().spectra)


def test_a_model_without_rows_is_described_by_replay():
    class Own(nn.LSTM):
        pass

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = Own(3, 2, batch_first=True)

        def forward(self, x):
            return self.lstm(x.unflatten(1, (3, 3)))[0][:, -1]

    x, y, _, who = people()
    torch.manual_seed(0)
    model = Recurrent()
    monitor = SpectralMonitor(model)
    with monitor.watch({"dx": y}, who):
        cross_entropy(model(x), y).backward()
    result = monitor.collect()
    assert max(monitor.additivity.values()) < 1e-5
    assert {s.layer for s in result.spectra} == {
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
    }
    held = [f"held-{person}" for person in who]
    one = monitor.probe([(x, y, {"dx": y}, held)])
    two = monitor.probe(probe_batches(x, y, held))
    for a, b in zip(one.spectra, two.spectra, strict=True):
        assert (a.group, a.samples, a.batch_samples) == (
            b.group,
            b.samples,
            b.batch_samples,
        )
        np.testing.assert_allclose(a.values, b.values, atol=1e-5 * a.values[0])
    table = one.divergences(19)
    assert table["value"].notna().all()
    assert table["p"].isna().all()
    assert table["reason"].str.contains("nothing is known of single people").all()
