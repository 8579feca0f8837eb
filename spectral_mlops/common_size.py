"""Groups of different size at one size: subsamples of equally many people.

The spectrum of a group depends on how many people are in it; drawn side by side,
two groups of 40 and 12 people would differ for that alone. Here every group is
described by random subsets of ``m`` of its people. For display: the interval is that
of the subsets, which overlap, and not one of new people.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral_mlops.errors import InputError
from spectral_mlops.inference.effects import draw_subsamples, no_whole_families
from spectral_mlops.inference.whole_families import WholeFamilies
from spectral_mlops.spectra.null import Relabelled
from spectral_mlops.spectra.statistics import function_of_spectra
from spectral_mlops.spectra.summaries import effective_rank
from spectral_mlops.validity import (
    Families,
    Observed,
    People,
    Strata,
    draw_people,
    labels_of_people,
    refuse_gaps,
    target_of_people,
)

COLUMNS = (
    "layer",
    "quantity",
    "grouping",
    "group_a",
    "group_b",
    "statistic",
    "m",
    "median",
    "low",
    "high",
)
Numbers = dict[tuple[str, str, str, str, str], list[Tensor]]


def at_common_size(
    observed: Sequence[Observed],
    m: int | None,
    draws: int,
    seed: int,
    statistic: str,
    families: Families | None = None,
) -> pd.DataFrame:
    """Describe groups, and pairs of them, by subsets of the same number of people.

    Args:
        observed: The batches that parts of people were kept of.
        m: People per subset; half of the smallest group, at least 2, if ``None``, or
            what comes next below it that whole families have.
        draws: Number of subsets.
        seed: Of the draws; the same subsets at every layer and quantity.
        statistic: Of two spectra, beside the effective rank of each group.
        families: ``{subject: family}``; whom a batch has of one is in a subset as a
            whole or not at all.

    Returns:
        One row per layer, quantity, grouping and group (``effective_rank``,
        ``group_b`` empty) or pair of groups (the statistic): ``median`` over subsets
        and their 2.5 and 97.5 % quantiles, means over batches taken first. Batches
        that hold fewer than ``m`` people of a group are left out of its rows, and
        those without whole families of ``m`` people of every group from all.

    Raises:
        InputError: If ``m`` is above the size of every group of a grouping, below
            one, or what no batch's whole families have.
    """
    function = function_of_spectra(statistic)
    rows: list[tuple[object, ...]] = []
    for grouping in observed[0].groupings if observed else ():
        members = [_members(seen, grouping) for seen in observed]
        sizes = [len(x) for groups in members for x in groups.values()]
        size = _common_size(observed, members, families) if m is None else m
        if not 1 <= size <= max(sizes):
            raise InputError(
                f"m={size}: the batches kept hold {min(sizes)} to {max(sizes)} people "
                f"of a group of '{grouping}'; choose between 1 and {max(sizes)}."
            )
        rng = np.random.default_rng(seed)
        found: Numbers = {}
        why = ""
        for seen, groups in zip(observed, members, strict=True):
            names = [name for name, people in groups.items() if len(people) >= size]
            row, kin = _row(seen, groups, names), _kin(seen, families)
            if kin is not None and not WholeFamilies(row, kin).ways(size):
                why = no_whole_families(size, row, kin)
                continue
            drawn = draw_subsamples(np.tile(row, (draws, 1)), size, rng, kin)
            codes = torch.from_numpy(np.where(drawn, row, -1))
            for layer, kept in seen.layers.items():
                for quantity, part in kept.kept.items():
                    relabelled = Relabelled(part, codes)
                    spectra = relabelled.spectra(*range(len(names)))
                    of = dict(zip(names, spectra, strict=True))
                    for name in names:
                        key = (layer, quantity, name, "", "effective_rank")
                        found.setdefault(key, []).append(effective_rank(of[name]))
                    for a, b in combinations(names, 2):
                        key = (layer, quantity, a, b, statistic)
                        found.setdefault(key, []).append(function(of[a], of[b]))
        if not found and why:
            raise InputError(f"m={size}: in no batch kept, {why}.")
        for (layer, quantity, a, b, what), values in found.items():
            mean = torch.stack(values).nanmean(0).numpy()
            known = mean[np.isfinite(mean)]
            low, middle, high = (
                np.quantile(known, (0.025, 0.5, 0.975)) if len(known) else (np.nan,) * 3
            )
            rows.append(
                (layer, quantity, grouping, a, b, what, size, middle, low, high)
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


Cell = tuple[str, str, str, str]
Draws = dict[Cell, NDArray[np.float64]]


class Subsampled(NamedTuple):
    """A statistic of subsamples of ``m`` people per group.

    Attributes:
        values: Of the observed groups, ``[draws]`` per layer, quantity and pair.
        chance: Of the pair's people relabelled, as many a group, likewise.
        m: People per group and draw; 0 where nothing was drawn.
        n: People in the smallest group.
        reason: Why nothing was drawn, or empty.
    """

    values: Draws
    chance: Draws
    m: int
    n: int
    reason: str = ""


def subsampled(
    observed: Sequence[Observed],
    grouping: str,
    m: int | None,
    draws: int,
    strata: Strata,
    seed: int,
    statistic: str,
    families: Families | None = None,
) -> Subsampled:
    """Compare subsamples of equally many people, and relabelled ones of that size.

    A divergence of ``m`` people a group is above zero without any difference between
    groups; what relabelled groups of ``m`` people show is the zero to measure from.

    Args:
        observed: The probe, in one batch.
        grouping: Whose groups.
        m: People per group; half of the smallest group, at least 2, if ``None``, or
            what comes next below it that whole families have.
        draws: Number of subsamples; the same people in every network of a probe.
        strata: What labels move within, beside the target if it is not the grouping.
        seed: Of relabellings and draws.
        statistic: Of two spectra.
        families: ``{subject: family}``, relabelled as blocks, and drawn whole or not
            at all.

    Returns:
        The draws; none, with a reason, where groups have no more than ``m`` people or
        no whole families have ``m``, and no relabelled ones where labels cannot move.

    Raises:
        InputError: If there are several batches.
    """
    if len(observed) != 1:
        raise InputError(
            f"{len(observed)} batches were kept: subsamples are drawn of a probe that "
            "is one batch."
        )
    (seen,) = observed
    labels = labels_of_people(observed, grouping)
    target = target_of_people(observed)
    groups = sorted(set(labels.values()))
    smallest = min(Counter(labels.values()).values())
    size = max(2, smallest // 2) if m is None else m
    if not 1 <= size < smallest:
        why = f"the smallest group has {smallest} people: no subsamples of {size}"
        return Subsampled({}, {}, 0, smallest, why)
    pairs: dict[tuple[str, str], People] = {}
    for pair in combinations(groups, 2):
        moved = {who: label for who, label in labels.items() if label in pair}
        pairs[pair] = draw_people(
            moved, grouping, target, strata, draws, seed, families
        )
    related = [
        (people.codes[0], people.families)
        for people in pairs.values()
        if people.families is not None
    ]
    whole = [WholeFamilies(*one) for one in related]
    if m is None:
        below = (s for s in range(size, 0, -1) if all(one.ways(s) for one in whole))
        size = next(below, size)
    for one, (row, kin) in zip(whole, related, strict=True):
        if not one.ways(size):
            return Subsampled({}, {}, 0, smallest, no_whole_families(size, row, kin))
    values: Draws = {}
    chance: Draws = {}
    for pair, people in pairs.items():
        as_they_are = np.tile(people.codes[0], (draws, 1))
        some = (
            people.codes if people.exact and len(people.codes) > 1 else people.codes[1:]
        )
        relabelled = some[np.arange(draws) % len(some)] if len(some) else some
        for found, codes in ((values, as_they_are), (chance, relabelled)):
            if not len(codes):  # labels cannot move, and show no chance
                continue
            who = draw_subsamples(codes, size, seed, people.families)
            drawn = np.where(who, codes, -1)
            chosen = replace(people, codes=drawn).columns(seen.people, draws - 1)
            found |= _of_subsamples(seen, chosen, pair, statistic)
    return Subsampled(values, chance, size, smallest)


def _of_subsamples(
    seen: Observed, codes: Tensor, pair: tuple[str, str], statistic: str
) -> Draws:
    """The statistic of codes 0 and 1 at every layer and quantity, ``[draws]``."""
    function = function_of_spectra(statistic)
    found: Draws = {}
    for layer, kept in seen.layers.items():
        for quantity, part in kept.kept.items():
            first, second = Relabelled(part, codes).spectra(0, 1)
            found[layer, quantity, *pair] = function(first, second).numpy()
    return found


def _members(seen: Observed, grouping: str) -> dict[str, list[int]]:
    """Places of each group's people, groups sorted by name."""
    labels = labels_of_people([seen], grouping)
    groups: dict[str, list[int]] = {name: [] for name in sorted(set(labels.values()))}
    for place, person in enumerate(seen.people):
        groups[labels[person]].append(place)
    return groups


def _row(
    seen: Observed, groups: dict[str, list[int]], names: Sequence[str]
) -> NDArray[np.int64]:
    """Code of each person in the order of some groups, -1 for all others, ``[n]``."""
    row = np.full(len(seen.people), -1, dtype=np.int64)
    for code, name in enumerate(names):
        row[groups[name]] = code
    return row


def _kin(seen: Observed, families: Families | None) -> list[str] | None:
    """The family of each person, if any have relatives."""
    if not families:
        return None
    refuse_gaps("column", "families", families, seen.people)
    return [families[person] for person in seen.people]


def _common_size(
    observed: Sequence[Observed],
    members: Sequence[dict[str, list[int]]],
    families: Families | None,
) -> int:
    """Half of the smallest group, or what whole families have next below it."""
    half = max(2, min(len(x) for groups in members for x in groups.values()) // 2)
    possible = [half]
    for seen, groups in zip(observed, members, strict=True):
        kin = _kin(seen, families)
        if kin is not None:
            row = _row(seen, groups, [*groups])
            possible.append(WholeFamilies(row, kin).largest(half))
    return min(possible) or half
