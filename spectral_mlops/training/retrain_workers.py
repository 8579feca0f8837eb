"""Retrainings side by side: in this process, or in several."""

import multiprocessing
import os
import signal
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from spectral_mlops.errors import SpectralError
from spectral_mlops.training.retrain_batched import can_batch, chunk_size, measure_batch
from spectral_mlops.training.retrain_permute import TargetShuffle
from spectral_mlops.training.retrain_statistic import Statistic, measure_training

Finished = list[tuple[int, Statistic]]


def retrainings(
    shuffle: TargetShuffle, numbers: Sequence[int], workers: int, batched: bool = True
) -> Generator[tuple[int, Statistic], None, None]:
    """Retrain on some permutations, and yield each as soon as it is there.

    Args:
        shuffle: How targets are permuted.
        numbers: Which permutations.
        workers: Processes; with 1 the work is done here.
        batched: Train several networks as one where that is possible.

    Yields:
        Number and statistic, in the order they finish.

    Raises:
        SpectralError: If a worker was killed; what was yielded stays.
    """
    size = 1
    if batched and can_batch(shuffle.plan):
        size = min(chunk_size(shuffle.plan), -(-len(numbers) // workers))
    chunks = [numbers[i : i + size] for i in range(0, len(numbers), max(size, 1))]
    if workers == 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield from _measure(shuffle, chunk, batched)
        return
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(workers, len(chunks)), context, initializer=_start, initargs=(shuffle,)
    )
    done = False
    try:
        for future in as_completed(
            [pool.submit(_work, chunk, batched) for chunk in chunks]
        ):
            yield from future.result()
        done = True
    except BrokenProcessPool as error:
        raise SpectralError(
            "A worker was killed, perhaps for want of memory: what is finished is "
            "kept; run the same command again, with fewer --workers."
        ) from error
    finally:
        if not done:  # Ctrl-C: nobody waits for trainings that nobody wants
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
        pool.shutdown(wait=True)


_shuffle: TargetShuffle | None = None
"""Of a worker process; sent to it once."""


def _start(shuffle: TargetShuffle) -> None:
    """Prepare a worker: one thread, and Ctrl-C is the parent's business."""
    global _shuffle
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    _shuffle = shuffle


def _work(chunk: Sequence[int], batched: bool) -> Finished:
    assert _shuffle is not None
    return _measure(_shuffle, chunk, batched)


def _measure(shuffle: TargetShuffle, chunk: Sequence[int], batched: bool) -> Finished:
    plans = [shuffle.permuted(number) for number in chunk]
    if batched and can_batch(shuffle.plan):
        return list(zip(chunk, measure_batch(plans), strict=True))
    found = [measure_training(plan).values for plan in plans]
    return list(zip(chunk, found, strict=True))
