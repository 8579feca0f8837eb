import gc
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch

from spectral_mlops.spectra import solver as module
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import LayerFactors, reduce_layers
from spectral_mlops.spectra.reduced import Reduced
from spectral_mlops.spectra.solve import solve
from spectral_mlops.spectra.solver import Solver
from tests.spectra.engine import normal


def problems(step: int, rows: int = 5) -> list[Reduced]:
    a, d = normal(rows, 1, 9, seed=step), normal(rows, 1, 8, seed=step + 1)
    return reduce_layers([LayerFactors(step, a, d)], Groups(rows, [None]))


@pytest.fixture
def solver():
    made = Solver(threaded=True)
    yield made
    made.close()


def threads() -> int:
    return sum(thread.name.startswith("spectra") for thread in threading.enumerate())


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("queue_bytes", [0, 3000, 2**26])
def test_everything_comes_back_in_order(threaded, queue_bytes):
    solver = Solver(threaded, queue_bytes)
    parts = [problems(step, rows=3 + step % 4) for step in range(12)]
    for part in parts:
        solver.submit(part)
    solved = solver.drain()
    expected = [one for part in parts for one in solve(part)]
    assert [one.key for one in solved] == [one.key for one in expected]
    for one, other in zip(solved, expected, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=1e-10)
    assert solver.drain() == []
    solver.close()


def test_the_thread_starts_late_and_stops(solver):
    before = threads()
    assert solver.drain() == []
    assert threads() == before
    for step in range(module.WORTH_JOBS - 1):
        solver.submit(problems(step))
    assert threads() == before
    solver.submit(problems(module.WORTH_JOBS))
    assert threads() == before + 1
    assert len(solver.drain()) == 3 * module.WORTH_JOBS
    solver.close()
    assert threads() == before
    solver.submit(problems(1))
    assert len(solver.drain()) == 3


def test_a_large_problem_waits_for_no_others(monkeypatch, solver):
    before = threads()
    size = sum(problem.nbytes for problem in problems(0))
    monkeypatch.setattr(module, "WORTH_BYTES", size + 1)
    solver.submit(problems(0))
    assert threads() == before
    solver.submit(problems(1))
    assert threads() == before + 1
    assert len(solver.drain()) == 6


def test_a_forgotten_solver_stops_its_thread():
    before = threads()
    forgotten = Solver(threaded=True)
    for step in range(module.WORTH_JOBS):
        forgotten.submit(problems(step))
    assert threads() == before + 1
    forgotten.drain()
    gone = weakref.ref(forgotten)
    del forgotten
    gc.collect()
    assert gone() is None
    deadline = time.monotonic() + 5
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == before


def test_what_waits_is_bounded(monkeypatch, solver):
    entered, release = threading.Event(), threading.Event()
    here = threading.get_ident()
    on = []

    def slow(given):
        on.append(threading.get_ident() == here)
        if threading.get_ident() != here:
            entered.set()
            release.wait(5)
        return solve(given)

    monkeypatch.setattr(module, "solve", slow)
    monkeypatch.setattr(module, "WORTH_JOBS", 1)
    size = sum(problem.nbytes for problem in problems(0))
    solver = Solver(queue_bytes=2 * size)
    solver.submit(problems(0))
    assert entered.wait(5)
    solver.submit(problems(1))
    solver.submit(problems(2))  # too much: here and now
    assert on == [False, True]
    release.set()
    assert [one.key.layer for one in solver.drain()] == [0] * 3 + [1] * 3 + [2] * 3
    solver.close()


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [(MemoryError(), "out of memory"), (ValueError("a mistake"), "failed"),
     (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory")],
)  # fmt: skip
def test_failures_are_marked_and_told_once(monkeypatch, threaded, error, status):
    def sometimes(given):
        if any(key.layer == 1 for problem in given for key in problem.keys):
            raise error
        return solve(given)

    monkeypatch.setattr(module, "solve", sometimes)
    solver = Solver(threaded)
    for step in range(3):
        solver.submit(problems(step))
    with pytest.warns(RuntimeWarning, match=f"3 of 9 spectra.*layer 1: {status}"):
        solved = solver.drain()
    assert [one.key.layer for one in solved] == [0] * 3 + [1] * 3 + [2] * 3
    assert [one.status for one in solved] == ["ok"] * 3 + [status] * 3 + ["ok"] * 3
    assert all(np.isnan(one.values).all() for one in solved[3:6])
    solver.submit(problems(1))
    assert {one.status for one in solver.drain()} == {status}  # said once
    solver.close()


def test_a_pickled_copy_starts_empty(solver):
    solver.submit(problems(0))
    copy = pickle.loads(pickle.dumps(solver))
    assert copy.drain() == []
    copy.submit(problems(1))
    assert {one.key.layer for one in copy.drain()} == {1}
    copy.close()
    assert {one.key.layer for one in solver.drain()} == {0}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_starts_empty(solver):
    solver.submit(problems(0))
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        empty = solver.drain() == []
        solver.submit(problems(1))
        os._exit(0 if empty and {s.key.layer for s in solver.drain()} == {1} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert {one.key.layer for one in solver.drain()} == {0}


def test_the_interpreter_ends_with_work_in_hand():
    """A thread that the interpreter does not wait for would abort the process."""
    code = """
import torch
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import LayerFactors, reduce_layers
from spectral_mlops.spectra.solver import Solver

solver = Solver(threaded=True)
groups = Groups(300, [None])
for i in range(20):
    rows = torch.randn(300, 1, 400)
    layer = LayerFactors(i, activation=rows, quantities=("activation",))
    solver.submit(reduce_layers([layer], groups))
"""
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, "")


def test_the_thread_is_only_used_where_a_core_is_idle(monkeypatch):
    monkeypatch.setattr(module, "_cores", lambda: 4)
    for number, idle in ((1, True), (3, True), (4, False), (8, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=number: n)
        assert Solver().beside(2**20 + 1) is idle
        assert Solver().beside(2**20)
        assert Solver(threaded=True).beside(2**30)
        assert not Solver(threaded=False).beside(0)
    before = threads()
    monkeypatch.setattr(module, "SMALL_BYTES", 0)
    own = Solver()
    own.submit(problems(3))
    assert threads() == before
    assert len(own.drain()) == 3
