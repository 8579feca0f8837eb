"""One scan under two ids: trained on under one, it is no stranger under the other."""

import numpy as np

from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.errors import InputError

FEWEST = 10
"""Features below which two people may well have the same ones."""
SAMPLE = 4096
"""Features that are looked at first, evenly spaced."""


def check_copies(cohort: Cohort) -> None:
    """Refuse people who share all features, bit for bit.

    Args:
        cohort: Of any modality; a memory map is read at some places only, and whole
            where two people agree there.

    Raises:
        InputError: Naming the first two, and how many more pairs there are.
    """
    features = cohort.features.reshape(len(cohort.features), -1)
    width = features.shape[1]
    if width < FEWEST:
        return
    places = np.linspace(0, width - 1, min(width, SAMPLE)).astype(np.intp)
    first: dict[bytes, list[int]] = {}
    found = []
    for row, one in enumerate(features):
        alike = first.setdefault(one[places].tobytes(), [])
        same = next((k for k in alike if np.array_equal(features[k], one)), None)
        if same is None:
            alike.append(row)
        else:
            found.append((cohort.people.index[same], cohort.people.index[row]))
    if not found:
        return
    (a, b), more = found[0], len(found) - 1
    raise InputError(
        f"{cohort.source}: {a} and {b} have the same {width} features, bit for bit"
        f"{f' ({more} more such pairs)' if more else ''}: one scan under two ids, or a "
        "file in the place of another; repair, or leave one of them out."
    )
