"""One matrix of subject relabellings, drawn once and applied to everything.

Evidence comes from subjects: labels move between people, within strata, and the
same relabelling holds for all layers, quantities, epochs and folds. Drawing anew
for each of them and averaging would break the dependence that the null needs.
Relatives are no strangers: where families are given they move as blocks (`exchange`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.errors import InputError
from spectral_mlops.inference.exchange import (
    Kind,
    count_distinct,
    draw_exchanges,
    kinds_of,
    list_distinct,
)

Families = Sequence[str] | None
"""One family per person; whoever has no relative is alone in theirs."""


@dataclass(frozen=True, eq=False)
class Relabellings:
    """Which relabellings of whom, as one null uses them everywhere.

    Attributes:
        people: Ids, in the order of the columns of ``codes``.
        codes: Group of each person under each relabelling, ``[P + 1, n]``, the
            observed labels first.
        exact: Whether these are all that there are, each of them once.
    """

    people: tuple[str, ...]
    codes: NDArray[np.int64]
    exact: bool

    @property
    def number(self) -> int:
        """Relabellings beside the observed labels, ``P``."""
        return len(self.codes) - 1

    @cached_property
    def digest(self) -> str:
        """Short digest of who is relabelled and how; equal ones mean one null."""
        return digest(self.people, self.codes)[:12]

    @property
    def text(self) -> str:
        """Which they are; where exact, the observed labels are among the number."""
        if self.exact:
            return f"exact, all {len(self.codes)} relabellings ({self.digest})"
        return f"{self.number} relabellings ({self.digest})"


def relabel(
    labels: Mapping[str, str],
    strata: Sequence[str],
    permutations: int,
    seed: int,
    families: Families = None,
) -> Relabellings:
    """Take every distinct relabelling once where there are few, else draw some.

    Where there are no more than ``permutations + 1`` (`distinct_relabellings`) all are
    listed, and p is exact: drawing would repeat some and leave others out.

    Args:
        labels: Label of each of ``n`` people by id; pass them sorted, so that a draw
            does not depend on batches.
        strata: One stratum per person; labels never leave it.
        permutations: Number ``P`` of relabellings wanted beside the observed one; 0
            gives the observed labels alone.
        seed: Of the draw, if one is needed.
        families: One family per person (`exchange.kinds_of`); all are strangers if
            not given.

    Raises:
        InputError: See `draw_relabellings`.
    """
    names = list(labels.values())
    exact = permutations > 0 and (
        distinct_relabellings(names, strata, families) <= permutations + 1
    )
    codes = (
        enumerate_relabellings(names, strata, permutations, families)
        if exact
        else draw_relabellings(names, strata, permutations, seed, families)
    )
    return Relabellings(tuple(labels), codes, exact)


def draw_relabellings(
    labels: Sequence[str],
    strata: Sequence[str],
    permutations: int,
    seed: int,
    families: Families = None,
) -> NDArray[np.int64]:
    """Permute labels over subjects within strata; the observed labels come first.

    Args:
        labels: One label per subject, length ``n``. Pass subjects in an order of
            their own (sorted ids), so that the draw does not depend on batches.
        strata: One stratum per subject; labels never leave it.
        permutations: Number ``P`` of relabellings beside the observed one.
        seed: Of the draw.
        families: One family per subject; see `relabel`.

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
    return _codes(labels)[draw_orders(strata, permutations, seed, families)]


def draw_orders(
    strata: Sequence[str], permutations: int, seed: int, families: Families = None
) -> NDArray[np.int64]:
    """Draw the moves behind `draw_relabellings`: whose label each subject gets.

    The same strata, number and seed give the same moves: ``codes[orders]`` is what
    `draw_relabellings` gives for any labels, so that statistics which move people
    (`nuisance.freedman_lane`) and statistics which move labels share one null.

    Args:
        strata: One stratum per subject, length ``n``.
        permutations: Number ``P`` of relabellings beside the observed one.
        seed: Of the draw.
        families: One family per subject; see `relabel`.

    Returns:
        Indices of subjects, shape ``[P + 1, n]``, ``0 … n - 1`` first.

    Raises:
        InputError: If ``permutations`` is negative, or families have another length.
    """
    if permutations < 0:
        raise InputError(f"{permutations=}: no negative number of permutations.")
    kinds = _kinds(strata, families)
    drawn = draw_exchanges(kinds, permutations, np.random.default_rng(seed))
    return np.concatenate([np.arange(len(strata))[None], drawn])


def distinct_relabellings(
    labels: Sequence[str], strata: Sequence[str], families: Families = None
) -> int:
    """Count the relabellings that differ, the observed one among them.

    Of strangers, the product over strata ``s`` of ``n_s! / Π_g n_sg!``. With ``D`` of
    them no p is below ``1 / D``, however many are drawn.

    Args:
        labels: One label per subject, length ``n``.
        strata: One stratum per subject.
        families: One family per subject; see `relabel`.

    Raises:
        InputError: If the lengths differ.
    """
    if len(labels) != len(strata):
        raise InputError(
            f"{len(labels)} labels, {len(strata)} strata: give one stratum per label."
        )
    return count_distinct(_kinds(strata, families), _codes(labels))


def enumerate_relabellings(
    labels: Sequence[str],
    strata: Sequence[str],
    permutations: int,
    families: Families = None,
) -> NDArray[np.int64]:
    """List every distinct relabelling once; the observed labels come first.

    In the place of `draw_relabellings` where no more than ``permutations + 1`` exist
    (`distinct_relabellings`): p is then exact, and nothing is left to chance.
    `relabel` chooses between the two.

    Args:
        labels: One label per subject, length ``n``.
        strata: One stratum per subject; labels never leave it.
        permutations: The most relabellings beside the observed one.
        families: One family per subject; see `relabel`.

    Returns:
        Codes into ``sorted(set(labels))``, shape ``[D, n]``.

    Raises:
        InputError: If there are more of them than that.
    """
    number = distinct_relabellings(labels, strata, families)
    if number > permutations + 1:
        raise InputError(
            f"There are {number} relabellings, more than permutations + 1 = "
            f"{permutations + 1}: draw some of them with draw_relabellings."
        )
    codes = _codes(labels)
    result = list_distinct(_kinds(strata, families), codes)
    observed = int(np.flatnonzero((result == codes).all(1))[0])
    result[[0, observed]] = result[[observed, 0]]
    return result


def spread_over_runs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over seeds within a fold, then over folds, relabelling by relabelling.

    Folds and seeds are never units of evidence: the same relabellings of the same
    people hold in all of them, so the average is one statistic under each
    relabelling, tested like any other (`significance.p_value`). Runs whose observed
    value is NaN are left out under every relabelling; a relabelling that is NaN in
    any run that is in becomes NaN, and so counts as reaching the observed one.

    Args:
        values: Shape ``[folds, seeds, P + 1]``, the observed labels first; NaN where
            a fold has fewer seeds.

    Returns:
        Shape ``[P + 1]``; all NaN if no run has an observed value.
    """
    means = [
        fold[known].mean(0) for fold in values if (known := ~np.isnan(fold[:, 0])).any()
    ]
    if not means:
        return np.full(values.shape[-1], np.nan)
    return np.asarray(np.mean(means, axis=0))


def digest(subjects: Sequence[str], relabellings: NDArray[np.int64]) -> str:
    """SHA-256 of who is relabelled and how; equal digests mean one null."""
    who = json.dumps([list(subjects), relabellings.shape])
    state = hashlib.sha256(who.encode())
    state.update(np.ascontiguousarray(relabellings, dtype="<i8").tobytes())
    return state.hexdigest()


def _codes(labels: Sequence[str]) -> NDArray[np.int64]:
    """Place of each label in ``sorted(set(labels))``."""
    codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)[1]
    return codes.astype(np.int64)


def _kinds(strata: Sequence[str], families: Families) -> tuple[Kind, ...]:
    """Who exchanges with whom.

    Raises:
        InputError: If the lengths differ.
    """
    if families is not None and len(families) != len(strata):
        raise InputError(
            f"{len(strata)} strata, {len(families)} families: give one per person."
        )
    return kinds_of(strata, families)
