"""Retrainings side by side: in this process, or in several."""

import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

import torch

from spectral_mlops.errors import SpectralError
from spectral_mlops.training.retrain_batched import can_batch, chunk_size, measure_batch
from spectral_mlops.training.retrain_permute import TargetShuffle
from spectral_mlops.training.retrain_statistic import Statistic, measure_training

Finished = list[tuple[int, Statistic]]
Work = tuple[TargetShuffle, bool, str]
"""How targets are permuted, whether networks are trained as one, and where."""


def retrainings(
    shuffle: TargetShuffle,
    numbers: Sequence[int],
    workers: int,
    batched: bool = True,
    device: str = "cpu",
) -> Generator[tuple[int, Statistic], None, None]:
    """Retrain on some permutations, and yield each as soon as it is there.

    Args:
        shuffle: How targets are permuted.
        numbers: Which permutations.
        workers: Processes; with 1 the work is done here.
        batched: Train several networks as one where that is possible.
        device: Where tensors live.

    Yields:
        Number and statistic, in the order they finish.

    Raises:
        SpectralError: If a worker was killed; what was yielded stays.
    """
    size = chunk_size(shuffle.plan) if batched and can_batch(shuffle.plan) else 1
    rounds = -(-len(numbers) // (size * workers))  # everybody works in every round
    size = max(1, -(-len(numbers) // max(1, rounds * workers)))
    chunks = [numbers[i : i + size] for i in range(0, len(numbers), size)]
    if workers == 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield from _measure(shuffle, chunk, batched, device)
        return
    yield from _shared_out((shuffle, batched, device), deque(chunks), workers)


def _shared_out(
    work: Work, waiting: deque[Sequence[int]], workers: int
) -> Generator[tuple[int, Statistic], None, None]:
    """Hand chunks to processes, one at a time; none outlives this generator."""
    context = multiprocessing.get_context("spawn")
    busy: list[Connection] = []
    processes = []
    try:
        for _ in range(min(workers, len(waiting))):
            ours, theirs = context.Pipe()
            busy.append(ours)
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            processes.append(process)
            with _ctrl_c_is_ours():
                process.start()
            theirs.close()
        for connection in busy:  # they have been importing side by side
            connection.send(work)
            connection.send(waiting.popleft())
        while busy:
            ready = wait(busy)
            for connection in [one for one in busy if one in ready]:
                answer: Finished | Exception = connection.recv()
                if isinstance(answer, Exception):
                    raise answer
                if waiting:
                    connection.send(waiting.popleft())
                else:
                    connection.send(None)
                    busy.remove(connection)
                yield from answer
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise SpectralError(
            "A worker was killed, perhaps for want of memory: what is finished is "
            "kept; run the same command again, with fewer --workers."
        ) from error
    finally:  # also Ctrl-C: nobody waits for trainings that nobody wants
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


@contextmanager
def _ctrl_c_is_ours() -> Iterator[None]:
    """Processes started in here ignore Ctrl-C from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may, and gets Ctrl-C
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection) -> None:
    """Work for the parent, on one thread."""
    torch.set_num_threads(1)
    try:
        shuffle, batched, device = connection.recv()
        while (chunk := connection.recv()) is not None:
            connection.send(_measure(shuffle, chunk, batched, device))
    except EOFError:
        return  # the parent is gone
    except Exception as error:
        connection.send(error)


def _measure(
    shuffle: TargetShuffle, chunk: Sequence[int], batched: bool, device: str
) -> Finished:
    plans = [shuffle.permuted(number) for number in chunk]
    if batched and can_batch(shuffle.plan):
        return list(zip(chunk, measure_batch(plans, device), strict=True))
    found = [measure_training(plan, device).values for plan in plans]
    return list(zip(chunk, found, strict=True))
