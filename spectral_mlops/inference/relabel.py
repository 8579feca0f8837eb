"""One matrix of subject relabellings, drawn once and applied to everything.

Evidence comes from subjects: labels move between people, within strata, and the
same relabelling holds for all layers, quantities, epochs and folds. Drawing anew
for each of them and averaging would break the dependence that the null needs.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.errors import InputError


def draw_relabellings(
    labels: Sequence[str], strata: Sequence[str], permutations: int, seed: int
) -> NDArray[np.int64]:
    """Permute labels over subjects within strata; the observed labels come first.

    Args:
        labels: One label per subject, length ``n``. Pass subjects in an order of
            their own (sorted ids), so that the draw does not depend on batches.
        strata: One stratum per subject; labels never leave it.
        permutations: Number ``P`` of relabellings beside the observed one.
        seed: Of the draw.

    Returns:
        Codes into ``sorted(set(labels))``, shape ``[P + 1, n]``.

    Raises:
        InputError: If the lengths differ or ``permutations`` is negative.
    """
    if len(labels) != len(strata) or permutations < 0:
        raise InputError(
            f"{len(labels)} labels, {len(strata)} strata, {permutations=}: give one "
            "stratum per label and no negative number of permutations."
        )
    codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)[1]
    drawn = np.tile(codes.astype(np.int64), (permutations + 1, 1))
    generator = np.random.default_rng(seed)
    where = np.asarray(strata, dtype=str)
    for stratum in np.unique(where):
        members = np.flatnonzero(where == stratum)
        drawn[1:, members] = generator.permuted(drawn[1:, members], axis=1)
    return drawn


def digest(subjects: Sequence[str], relabellings: NDArray[np.int64]) -> str:
    """SHA-256 of who is relabelled and how; equal digests mean one null."""
    who = json.dumps([list(subjects), relabellings.shape])
    state = hashlib.sha256(who.encode())
    state.update(np.ascontiguousarray(relabellings, dtype="<i8").tobytes())
    return state.hexdigest()
