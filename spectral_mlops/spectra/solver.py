"""Solving beside the training thread, in order and in bounded memory.

``torch.linalg`` and NumPy release the interpreter's lock, so a decomposition costs
the training thread nothing while there is a core to spare. What waits is solved
together: the longer the queue, the larger the stacks.
"""

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from spectral_mlops.spectra.drivers import is_out_of_memory
from spectral_mlops.spectra.reduced import Reduced, to_host
from spectral_mlops.spectra.solve import Solved, marked, solve

QUEUE_BYTES = 64 * 2**20
"""Waiting problems, rows held by reference included, above which `submit` solves."""

WORTH_JOBS, WORTH_BYTES = 4, 4 * 2**20
"""What has to wait, by number or by size, before the worker is woken: it is solved
together, and takes the interpreter's lock from training once."""

SMALL_BYTES = 2**20
"""Work that PyTorch does on one thread however many it has; rows of 128 people of
1024 numbers in float64."""


class Solver:
    """A queue of reduced problems and the thread that solves them.

    Made, submitted to and drained by one thread. The worker starts with the first
    problem and ends with `close`, with the solver or with the interpreter, whichever
    comes first. A forked child and an unpickled copy start empty and without a
    thread: what waits belongs to the original.

    Args:
        threaded: False solves in `drain`, on the calling thread; ``None`` all but
            small work where no core is idle: the threads of two teams on the same
            cores wait for each other.
        queue_bytes: How much may wait.
    """

    def __init__(
        self, threaded: bool | None = None, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        self._settings = (threaded, queue_bytes)
        self._warned = False
        self._pool: ThreadPoolExecutor | None = None
        self._reset()

    def beside(self, nbytes: int) -> bool:
        """Whether work on so much memory is done beside the calling thread."""
        threaded, _ = self._settings
        if threaded is None:
            return nbytes <= SMALL_BYTES or _cores() > torch.get_num_threads()
        return threaded

    def submit(
        self,
        problems: Sequence[Reduced] | Callable[[], Sequence[Reduced]],
        nbytes: int = 0,
    ) -> None:
        """Queue problems; solve them at once where too much is waiting already.

        Args:
            problems: Themselves, or what makes them; it is then called by the
                worker, or here where too much is waiting.
            nbytes: What a function keeps alive until it is called.
        """
        self._check_process()
        if callable(problems):
            job = _Job([], problems, nbytes)
        else:
            ready = [to_host(problem) for problem in problems]
            job = _Job(ready, None, sum(problem.nbytes for problem in ready))
        threaded, limit = self._settings
        arriving = any(problem.ready is not None for problem in job.problems)
        if self._queue.add(job, limit):
            self._queue.finish([job])
        elif self.beside(job.nbytes) or (
            threaded is None and arriving
        ):  # from another device
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="spectra")
            if self._queue.worth:
                # The work holds the queue, not the solver, which may be forgotten.
                self._pool.submit(self._queue.solve_waiting)

    def drain(self) -> list[Solved]:
        """Return every spectrum since the last call, in the order of submission.

        Solves what still waits on this thread, beside the worker.

        Raises:
            Exception: What a function given to `submit` raised, once all else is
                solved.

        Warns:
            RuntimeWarning: Once, if a spectrum is marked as out of memory or failed.
        """
        self._check_process()
        self._queue.solve_waiting()
        solved = self._queue.take_solved()
        lost = [s for s in solved if s.status in ("out of memory", "failed")]
        if lost and not self._warned:
            self._warned = True
            warnings.warn(
                f"{len(lost)} of {len(solved)} spectra could not be computed, the "
                f"first of layer {lost[0].key.layer}: {lost[0].status}. They are "
                "marked in the records; training is not affected.",
                RuntimeWarning,
                stacklevel=2,
            )
        return solved

    def close(self) -> None:
        """Stop the thread; what waits is dropped. May be used again afterwards."""
        self._check_process()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {"_settings": self._settings, "_warned": self._warned}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._queue = _Queue()
        self._pool = None

    def _check_process(self) -> None:
        if self._process != os.getpid():  # its lock may be held by a thread that is not
            self._reset()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Job:
    """Problems of one `Solver.submit`, and their spectra once there are any."""

    def __init__(
        self,
        problems: list[Reduced],
        make: Callable[[], Sequence[Reduced]] | None,
        nbytes: int,
    ) -> None:
        self.problems = problems
        self.make = make
        self.nbytes = nbytes
        self.waits = False
        self.solved: list[Solved] | None = None
        self.error: Exception | None = None

    def reduce(self) -> None:
        """Make the problems; what goes wrong is kept for `Solver.drain`."""
        make, self.make = self.make, None
        if make is not None:
            try:
                self.problems = [to_host(problem) for problem in make()]
            except Exception as error:  # training goes on
                self.error = error


class _Queue:
    """What both threads see; every attribute is guarded by ``changed``."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.jobs: list[_Job] = []
        self.waiting: deque[_Job] = deque()
        self.nbytes = 0

    def add(self, job: _Job, limit: int) -> bool:
        """Append a job; return True where it has to be solved by the caller."""
        with self.changed:
            self.jobs.append(job)
            if self.nbytes + job.nbytes > limit:
                return True
            self.nbytes += job.nbytes
            job.waits = True
            self.waiting.append(job)
            self.changed.notify_all()
            return False

    @property
    def worth(self) -> bool:
        """Whether so much waits that the worker is woken for it."""
        with self.changed:
            nbytes = sum(job.nbytes for job in self.waiting)
            return len(self.waiting) >= WORTH_JOBS or nbytes >= WORTH_BYTES

    def take_waiting(self) -> list[_Job]:
        """Return all that waits; the caller solves it."""
        jobs = list(self.waiting)
        self.waiting.clear()
        return jobs

    def finish(self, jobs: list[_Job]) -> None:
        """Solve jobs together and let go of their problems."""
        for job in jobs:
            job.reduce()
        solved = solve_marking([p for job in jobs for p in job.problems])
        start = 0
        with self.changed:
            for job in jobs:
                stop = start + sum(len(problem.keys) for problem in job.problems)
                job.solved = solved[start:stop]
                job.problems = []
                self.nbytes -= job.nbytes if job.waits else 0
                start = stop
            self.changed.notify_all()

    def solve_waiting(self) -> None:
        """Solve what waits on the calling thread, whichever that is."""
        with self.changed:
            jobs = self.take_waiting()
        if jobs:
            self.finish(jobs)

    def take_solved(self) -> list[Solved]:
        """Wait for the jobs in work, then empty the queue."""
        with self.changed:
            self.changed.wait_for(lambda: all(j.solved is not None for j in self.jobs))
            jobs, self.jobs = self.jobs, []
        failed = [job.error for job in jobs if job.error is not None]
        if failed:
            raise failed[0]
        return [spectrum for job in jobs for spectrum in job.solved or ()]


def solve_marking(problems: Sequence[Reduced]) -> list[Solved]:
    """`solve` that never raises: what fails is marked, the rest is solved.

    Args:
        problems: As for `solve`.

    Returns:
        As `solve`; where one call for all fails, each problem is tried alone.
    """
    try:
        return solve(problems)
    except Exception as error:  # whatever it is, training goes on
        if len(problems) == 1:
            status = "out of memory" if is_out_of_memory(error) else "failed"
            return marked(problems[0], status)
    return [spectrum for p in problems for spectrum in solve_marking([p])]
