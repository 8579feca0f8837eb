import time

import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.schedule import (
    Decided,
    EvenlySpaced,
    EveryNth,
    NullEpochs,
    TimeBudget,
    evenly_spaced,
)


def watched(schedule, steps, epoch=0):
    return [step for step in range(steps) if schedule.watches(epoch, step, steps)]


@pytest.mark.parametrize(
    ("n", "expected"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (9, [0])]
)
def test_every_nth_step_of_each_epoch(n, expected):
    assert watched(EveryNth(n), 7) == watched(EveryNth(n), 7, epoch=5) == expected
    assert EveryNth(n).watches(0, 2 * n, None)


@pytest.mark.parametrize("n", [0, -1])
def test_less_than_every_step_is_refused(n):
    with pytest.raises(InputError, match=f"every={n}: must be at least 1"):
        EveryNth(n)
    with pytest.raises(InputError, match=rf"EvenlySpaced\({n}\)"):
        EvenlySpaced(n)


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [(1, 7, [0]), (2, 7, [0, 3]), (3, 10, [0, 3, 6]), (8, 8, [*range(8)]),
     (8, 3, [0, 1, 2]), (8, 1, [0]), (4, 0, []), (0, 4, [])],
)  # fmt: skip
def test_evenly_spaced_numbers(count, total, expected):
    found = evenly_spaced(count, total)
    assert found == expected
    assert all(type(x) is int for x in found)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("total", [1, 2, 7, 8, 9, 100])
def test_evenly_spaced_steps_are_as_many_as_asked_and_apart(count, total):
    found = watched(EvenlySpaced(count), total)
    assert found == evenly_spaced(count, total)
    assert len(found) == min(count, total)
    gaps = [b - a for a, b in zip(found, [*found[1:], total], strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_evenly_spaced_must_know_the_number_of_steps():
    with pytest.raises(InputError, match=r"begin_epoch\(epoch, steps="):
        EvenlySpaced(3).watches(0, 0, None)


def test_a_users_function_decides():
    asked = []

    def decision(epoch, step):
        asked.append((epoch, step))
        return epoch + step if step else None

    schedule = Decided(decision)
    assert schedule.watches(2, 1, None) is True
    assert schedule.watches(2, 0, 9) is False
    assert asked == [(2, 1), (2, 0)]


def test_a_time_budget_is_kept_to(monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    schedule = TimeBudget(share=0.1)
    assert schedule.watches(0, 0, None)  # the first step, at no time at all
    schedule.spent += 2.0
    clock[0] += 3.0
    assert not schedule.watches(0, 1, None)
    clock[0] = 119.9
    assert not schedule.watches(0, 2, None)
    clock[0] = 120.1
    assert schedule.watches(0, 3, None)
    schedule.spent += 2.0
    assert not schedule.watches(1, 0, None)


def test_a_time_budget_over_a_whole_run(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    schedule = TimeBudget()
    seen = 0
    for step in range(4000):
        clock[0] += 1.0
        if schedule.watches(step // 100, step % 100, 100):
            seen += 1
            schedule.spent += 0.5
            clock[0] += 0.5
    # Half a second of watching per step: 5 % of the time is every tenth.
    assert seen == pytest.approx(0.05 * clock[0] / 0.5, abs=1)


def epochs_with_a_null(null, epochs):
    return [epoch for epoch in range(epochs) if epoch in null]


@pytest.mark.parametrize(
    ("null_seconds", "epoch_seconds", "budget", "every", "expected"),
    [
        (2.0, 10.0, 0.05, 4, [0, 4, 8, 9]),
        (2.1, 10.0, 0.05, 5, [0, 5, 9]),
        (0.4, 10.0, 0.05, 1, list(range(10))),
        (0.0, 0.0, 0.05, 1, list(range(10))),
        (60.0, 10.0, 0.05, 10, [0, 9]),
        (1.0, 0.1, 0.05, 4, [0, 4, 8, 9]),  # a quarter of a second an epoch is free
        (1.0, 10.0, 0.0, 10, [0, 9]),
    ],
)
def test_nulls_keep_to_their_share_of_the_time(
    null_seconds, epoch_seconds, budget, every, expected
):
    null = NullEpochs(10, budget)
    assert epochs_with_a_null(null, 10) == [0, 9]  # before it is decided
    null.decide(null_seconds, epoch_seconds)
    assert null.every == every
    assert epochs_with_a_null(null, 10) == expected
    room = max(budget * epoch_seconds, 0.25 if budget else 0.0)
    assert every == 10 or null_seconds <= every * room
    assert every == 1 or null_seconds > (every - 1) * room  # the smallest
    null.decide(1000.0, 1.0)
    assert null.every == every  # once and for all
    resumed = NullEpochs(10, 0.5)
    resumed.load_state_dict(null.state_dict())
    assert epochs_with_a_null(resumed, 10) == expected


def test_fixed_epochs_cost_what_they_cost():
    null = NullEpochs(10, 0.05, fixed=[9, 6])
    null.decide(1000.0, 1.0)
    assert epochs_with_a_null(null, 10) == [6, 9]
    assert null.every is None
    assert null.state_dict() == {"every": None}


def test_a_single_epoch_has_its_null():
    assert epochs_with_a_null(NullEpochs(1, 0.0), 1) == [0]
