"""Which axis of an array is time: told by what is known, never guessed.

The same program writes ``[T, C]`` in one file and ``[C, T]`` in the next, so each
file is decided by itself as far as it can be.
"""

from collections.abc import Mapping
from typing import Literal

from spectral_mlops.cohorts.series_files import Array, Series
from spectral_mlops.errors import InputError

Orientation = Literal["auto", "time-first", "components-first"]


def orient(
    series: Mapping[str, Series],
    components: int | None = None,
    timepoints: int | None = None,
    stated: Orientation = "auto",
) -> tuple[dict[str, Array], tuple[str, ...], str]:
    """Turn everyone's time courses to time × components.

    Args:
        series: By id.
        components: How many there are, if known.
        timepoints: How many there are, if known and the same for everyone.
        stated: The same orientation for every file that does not tell its own.

    Returns:
        Shape ``[T_i, C]`` by id, the names of components (none where no file has
        any), and a note on how it was decided.

    Raises:
        InputError: If the orientation of a file cannot be told, contradicts what is
            known, or files disagree in their components.
    """
    known = {
        who: _time_first(one, components, timepoints, stated)
        for who, one in series.items()
    }
    open_ones = [who for who, first in known.items() if first is None]
    note = "time is the first axis"
    if open_ones:
        shared, note = _by_shared_axis([series[who] for who in open_ones])
        known |= dict.fromkeys(open_ones, shared)
    turned = {
        who: one.values if known[who] else one.values.T for who, one in series.items()
    }
    flipped = sum(not first for first in known.values())
    if flipped:
        note += f"; {flipped} of {len(known)} people's arrays were turned"
    return turned, _shared_components(series, turned, components), note


def _time_first(
    one: Series, components: int | None, timepoints: int | None, stated: Orientation
) -> bool | None:
    """Return what is known of one file, None if nothing is."""
    shape = one.values.shape
    if one.time_first:
        if stated == "components-first" and one.names:
            raise InputError(
                f"{one.path}: its columns have names, so time is the first axis, not "
                "orientation='components-first'."
            )
        return True
    if stated != "auto":
        return stated == "time-first"
    for size, along, word in ((components, 1, "components"), (timepoints, 0, "time")):
        if size is None:
            continue
        if size not in shape:
            raise InputError(
                f"{one.path} has shape {shape}, and neither axis is {size} long, as "
                f"{'components' if along else 'timepoints'}={size} says."
            )
        if shape[0] != shape[1]:
            return shape[along] == size
        raise InputError(
            f"{one.path} has shape {shape}: which axis is {word} cannot be told; set "
            "orientation='time-first' or 'components-first'."
        )
    return None


def _by_shared_axis(series: list[Series]) -> tuple[bool, str]:
    """Take the only axis that has one length for everybody as that of components."""
    first, second = ({one.values.shape[axis] for one in series} for axis in (0, 1))
    if len(first) > 1 and len(second) == 1:
        return True, f"components are the second axis: {second.pop()} for everyone"
    if len(second) > 1 and len(first) == 1:
        return False, f"components are the first axis: {first.pop()} for everyone"
    shapes = sorted({one.values.shape for one in series})
    raise InputError(
        f"{series[0].path}: shapes {', '.join(map(str, shapes[:3]))} do not tell which "
        "axis is time; set components=, timepoints= or orientation=."
    )


def _shared_components(
    series: Mapping[str, Series], turned: Mapping[str, Array], components: int | None
) -> tuple[str, ...]:
    """Refuse files that differ in their components; return the names."""
    ids = list(series)
    first, width = series[ids[0]], turned[ids[0]].shape[1]
    if components is not None and width != components:
        raise InputError(
            f"{first.path} has {width} components where components={components}."
        )
    for who in ids[1:]:
        one = series[who]
        if turned[who].shape[1] != width:
            raise InputError(
                f"{one.path} has {turned[who].shape[1]} components but {first.path} "
                f"has {width}; all people need the same ones."
            )
        if one.names != first.names:
            raise InputError(
                f"{one.path} names its components otherwise than {first.path}; all "
                "people need the same ones in the same order."
            )
    return first.names
