"""Time courses of unequal length brought into one array, by an explicit policy."""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.series_files import Array
from spectral_mlops.errors import InputError

Lengths = Literal["raise", "crop", "window", "pad"]


def crop(series: Mapping[str, Array]) -> tuple[dict[str, Array], str]:
    """Cut everyone to the shortest, keeping the first time points."""
    shortest = min(len(one) for one in series.values())
    longer = sum(len(one) > shortest for one in series.values())
    cut = {who: one[:shortest] for who, one in series.items()}
    return cut, f"lengths='crop': the first {shortest} time points; {longer} were cut"


def check_equal(series: Mapping[str, Array], where: object) -> None:
    """Refuse unequal lengths, and say what may be done about them.

    Raises:
        InputError: If lengths differ.
    """
    counts = Counter(len(one) for one in series.values())
    if len(counts) > 1:
        shown = ", ".join(f"{n} people of {t}" for t, n in sorted(counts.items())[:4])
        raise InputError(
            f"{where}: time courses have {len(counts)} different lengths ({shown} time "
            "points); set lengths='crop', 'window' (with window=) or 'pad'."
        )


def windows(
    series: Mapping[str, Array], window: int | None, stride: int | None, where: object
) -> tuple[NDArray[np.float32], str]:
    """Cut everyone into windows; the windows of a person stay one person.

    Everyone keeps as many windows as the shortest has, the first ones.

    Args:
        series: Shape ``[T_i, C]`` by id.
        window: Time points of a window.
        stride: From one start to the next; ``window`` if not given.
        where: The files, for messages.

    Returns:
        Float32 ``[people, windows, window, C]`` and a note.

    Raises:
        InputError: If no length is given, or somebody is shorter than it.
    """
    if window is None:
        raise InputError("lengths='window' needs window=, the time points of one.")
    step = stride or window
    short = [who for who, one in series.items() if len(one) < window]
    if short:
        raise InputError(
            f"{where}: {short[0]} has {len(series[short[0]])} time points, fewer than "
            f"one window of {window}; choose a shorter window=."
        )
    counts = [(len(one) - window) // step + 1 for one in series.values()]
    fewest = min(counts)
    cut = np.stack(
        [
            np.stack([one[k * step : k * step + window] for k in range(fewest)])
            for one in series.values()
        ]
    ).astype(np.float32)
    note = f"lengths='window': {fewest} windows of {window} time points, stride {step}"
    left = sum(counts) - fewest * len(counts)
    if left:
        note += f"; {left} further windows of longer people were left out"
    return cut, note


def pad(
    series: Mapping[str, Array],
) -> tuple[NDArray[np.float32], NDArray[np.intp] | None, str]:
    """Put everyone into one array, zeros after the end of each.

    Args:
        series: Shape ``[T_i, C]`` by id.

    Returns:
        Float32 ``[people, T, C]``, the length of each (None where all are equal),
        and a note.
    """
    lengths = np.array([len(one) for one in series.values()], dtype=np.intp)
    width = next(iter(series.values())).shape[1]
    padded = np.zeros((len(series), int(lengths.max()), width), dtype=np.float32)
    for row, one in zip(padded, series.values(), strict=True):
        row[: len(one)] = one
    if (lengths == lengths[0]).all():
        return padded, None, f"{lengths[0]} time points of {width} components"
    note = (
        f"lengths='pad': {lengths.min()} to {lengths.max()} time points of {width} "
        "components, zeros after the end"
    )
    return padded, lengths, note
