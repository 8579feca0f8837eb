import time

import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.schedule import (
    Decided,
    EvenlySpaced,
    EveryNth,
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
