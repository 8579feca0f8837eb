"""Who trains, who validates, and who is set aside: by person, never by sample.

The probe is drawn first and never touched again; folds are drawn over the rest.
Both depend on ids and seed, not on the order of rows. Members of a family (column
``family`` or ``family_id``) are never apart: relatives are alike, and one of them in
training would tell of the other.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spectral_mlops.cohorts.families import draw_families, families_of
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.registry import nearest

MINIMUM = 12
"""Fewest held-out people per group that make a probe worth having."""
UNKNOWN = "n/a"
"""Stratum of people whose site (or other secondary column) is not known."""


@dataclass(frozen=True)
class Probe:
    """People whom no training, validation, scaling or selection ever touches.

    Attributes:
        ids: Sorted.
        strata: Columns within which they were drawn.
    """

    ids: tuple[str, ...]
    strata: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Return the SHA-256 over the ids, by which two runs know their probe."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()


@dataclass(frozen=True)
class Fold:
    """One fold of a cross-validation.

    Attributes:
        train_ids: Sorted; everything fitted is fitted on these.
        validation_ids: Sorted.
        strata: Columns that the folds are balanced over.
        note: What the user should know about that, or empty.
    """

    train_ids: tuple[str, ...]
    validation_ids: tuple[str, ...]
    strata: tuple[str, ...]
    note: str = ""


def set_probe_aside(
    people: pd.DataFrame,
    grouping: str,
    fraction: float = 0.25,
    minimum: int = MINIMUM,
    strata: Sequence[str] = ("group", "site"),
    seed: int = 0,
) -> tuple[Probe | None, str]:
    """Draw the probe: the same fraction of each group, spread over strata.

    Each group gives ``round(fraction · n_g)`` people, shared among its strata by
    largest remainder. Families come as a whole, and then only nearly so.

    Args:
        people: Index of ids; columns ``grouping`` and, where present, ``strata``
            and ``family`` or ``family_id``.
        grouping: Column of the groups that will be compared.
        fraction: Share of each group, between 0 and 1.
        minimum: Fewest people per group that make a probe worth having.
        strata: Further columns to balance; those absent are left out.
        seed: Of the draw.

    Returns:
        The probe and what it holds; or None and the reason.

    Raises:
        InputError: If the fraction is not between 0 and 1, or a label is missing.
        UnknownNameError: If there is no such grouping.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction={fraction}: choose a share between 0 and 1.")
    columns = _present(people, grouping, strata)
    table = _stratum_table(people, columns)
    quota = {
        str(group): round(fraction * len(members))
        for group, members in table.groupby(grouping)
    }
    counts = ", ".join(f"{n} {group}" for group, n in quota.items())
    short = [group for group, n in quota.items() if n < minimum]
    if short:
        return None, (
            f"No probe: {fraction:.0%} of {len(people)} people would be {counts}, and "
            f"'{short[0]}' needs at least {minimum}; use a larger cohort or fraction."
        )
    rng = np.random.default_rng([seed, len(table)])
    share_of: dict[str, int] = {}
    for group, members in table.groupby(grouping):
        sizes = members[columns].agg(_CELL.join, axis=1).value_counts().sort_index()
        shares = _allocate(sizes.tolist(), quota[str(group)])
        share_of |= dict(zip(sizes.index, shares, strict=True))
    cells = table[columns].agg(_CELL.join, axis=1)
    families = families_of(people)
    if families is None:
        chosen = [
            who
            for cell, share in share_of.items()
            for who in rng.permutation(cells.index[cells == cell].to_numpy())[:share]
        ]
        kept = ""
    else:
        chosen = draw_families(families, cells, table[grouping], share_of, rng)
        drawn = table.loc[chosen, grouping].value_counts()
        counts = ", ".join(f"{drawn[group]} {group}" for group in quota)
        kept = ", families together"
    probe = Probe(tuple(sorted(chosen)), tuple(columns))
    return probe, (
        f"Probe of {len(chosen)} people ({counts}), by {' × '.join(columns)}{kept}."
    )


def fold_splits(
    people: pd.DataFrame,
    folds: int,
    seed: int = 0,
    strata: Sequence[str] = ("group", "site"),
    probe: Probe | None = None,
    repeats: int = 1,
) -> list[Fold]:
    """Split everyone outside the probe into stratified folds.

    Args:
        people: Index of ids; columns ``strata``.
        folds: At least 2.
        seed: Of the draw.
        strata: The target first, which must exist; further columns are balanced
            too if present, the last ones first left out until every combination has a
            person for each fold (the folds' ``note`` says so).
        probe: People to leave out.
        repeats: How many times all are split, each time otherwise; the first time is
            that of ``repeats=1``.

    Returns:
        One fold after another, and one repeat after another; within a repeat validation
        parts are disjoint and cover everyone, and families are never apart.

    Raises:
        InputError: If a group is smaller than the number of folds, a label is
            missing, or the probe holds part of a family.
        UnknownNameError: If the target is no column, or the probe is of other
            people.
    """
    if folds < 2:
        raise InputError(f"folds={folds}: a cross-validation has at least 2.")
    if repeats < 1:
        raise InputError(f"repeats={repeats}: everyone is split at least once.")
    target = strata[0]
    columns = _present(people, target, strata)
    table, families = _outside(_stratum_table(people, columns), people, probe)
    sizes = table[target].value_counts()
    if len(sizes) == 0 or sizes.min() < folds:
        smallest = f"'{sizes.idxmin()}' has {sizes.min()}" if len(sizes) else "it has 0"
        raise InputError(
            f"folds={folds}: of column '{target}', {smallest} people outside the "
            "probe, fewer than folds; ask for fewer folds."
        )
    note, wanted = "", columns
    cells = table[columns].agg(_CELL.join, axis=1)
    while len(columns) > 1 and cells.value_counts().min() < folds:
        note = (
            f" alone: some combinations of {' × '.join(columns)} have fewer than "
            f"{folds} people."
        )
        columns = columns[:-1]
        cells = table[columns].agg(_CELL.join, axis=1)
    if columns != wanted:
        named = " × ".join(f"'{name}'" for name in columns)
        note = f"Folds are balanced over {named}{note}"
    ids = table.index.to_numpy()
    related = None if families is None else families[table.index]
    return [
        Fold(tuple(ids[train]), tuple(ids[held]), tuple(columns), note)
        for words in ([seed, number] for number in range(repeats))
        for train, held in _split(cells, folds, _one_seed(*words), related)
    ]


def site_splits(
    people: pd.DataFrame,
    target: str | None,
    site: str = "site",
    probe: Probe | None = None,
) -> list[Fold]:
    """Leave one site out at a time: train on all others, validate on it.

    Args:
        people: Index of ids; columns ``target`` and ``site``.
        target: Column of classes that is predicted; none if a number is.
        site: Column of sites.
        probe: People to leave out; they may be of any site.

    Returns:
        One fold a site, in the order of their names.

    Raises:
        InputError: If there are fewer than two sites, somebody's is not known, a site
            lacks a label of the target (its AUC would mean nothing), or a family is of
            two sites.
        UnknownNameError: If there is no such column.
    """
    columns = [*_present(people, site, [])]
    columns += [] if target is None else _present(people, target, [])
    table, families = _outside(_stratum_table(people, columns), people, probe)
    sites = sorted(set(table[site]))
    if len(sites) < 2:
        raise InputError(
            f"training.split='site': everyone outside the probe is of {site}="
            f"{sites[0] if sites else UNKNOWN}; leaving one site out needs two."
        )
    labels = set() if target is None else set(table[target])
    folds: list[Fold] = []
    for name in sites:
        here = (table[site] == name).to_numpy()
        there = set() if target is None else set(table.loc[here, target])
        lacking = sorted(labels - there)
        if lacking:
            raise InputError(
                f"training.split='site': outside the probe nobody of {site}={name} has "
                f"{target}={lacking[0]}, so that its AUC means nothing; join it with "
                "another site, or leave it out."
            )
        if families is not None:
            own, others = families[table.index[here]], families[table.index[~here]]
            if both := set(own) & set(others):
                raise InputError(
                    f"training.split='site': family '{min(both)}' is of {site}={name} "
                    "and of another; leave all but one of its members out."
                )
        note = f"Fold {len(folds)}: {site} {name} held out, {here.sum()} people."
        ids = table.index.to_numpy()
        folds.append(Fold(tuple(ids[~here]), tuple(ids[here]), (site,), note))
    return folds


def crossfit_probes(
    people: pd.DataFrame,
    k: int = 3,
    grouping: str = "group",
    strata: Sequence[str] = ("group", "site"),
    seed: int = 0,
) -> list[Probe]:
    """Deal everyone into ``k`` disjoint probes, for cohorts too small for one.

    The run is repeated ``k`` times, each with one of them held out; the p-values are
    combined by ``min(1, 2 · mean p)``, which holds however they depend on one
    another (everyone trains in ``k − 1`` of the runs).

    Args:
        people: See `set_probe_aside`.
        k: Number of probes, at least 2.
        grouping: Column of the groups that will be compared.
        strata: Further columns to balance; those absent, or too small for ``k``
            parts, are left out.
        seed: Of the draw.

    Returns:
        Probes that are disjoint, cover everyone, and keep families together.

    Raises:
        InputError: If a group has fewer people than there are probes, or a label is
            missing.
    """
    others = [name for name in strata if name != grouping]
    return [
        Probe(fold.validation_ids, fold.strata)
        for fold in fold_splits(people, k, seed, (grouping, *others))
    ]


def check_apart(probe: Probe | None, folds: Sequence[Fold]) -> None:
    """Refuse a probe of people who train or validate.

    Raises:
        InputError: Naming the first of them.
    """
    aside = set(probe.ids) if probe else set()
    used = {who for fold in folds for who in (*fold.train_ids, *fold.validation_ids)}
    if touched := sorted(aside & used):
        raise InputError(
            f"The probe holds {len(touched)} people who train or validate, the first "
            f"{touched[0]}; draw the folds outside the probe (fold_splits(probe=…))."
        )


def _outside(
    table: pd.DataFrame, people: pd.DataFrame, probe: Probe | None
) -> tuple[pd.DataFrame, "pd.Series[str] | None"]:
    """Return the table without the probe, and families if there are any.

    Raises:
        InputError: If the probe holds part of a family.
        UnknownNameError: If it is of other people.
    """
    families = families_of(people)
    if probe is None:
        return table, families
    strangers = sorted(set(probe.ids) - set(table.index))
    if strangers:
        raise UnknownNameError(
            f"The probe holds {len(strangers)} people who are not in the cohort, "
            f"the first {strangers[0]}; use the probe of this cohort."
        )
    table = table.drop(index=list(probe.ids))
    if families is not None:
        both = set(families[list(probe.ids)]) & set(families[table.index])
        if both:
            raise InputError(
                f"Family '{min(both)}' stands in the probe and outside; draw the probe "
                "with set_probe_aside, which keeps families together."
            )
    return table, families


def _one_seed(seed: int, repeat: int) -> int:
    """Return a seed of its own for every repeat, and the plain one for the first."""
    if not repeat:
        return seed
    return int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])


_CELL = "\x1f"
"""Between the labels of a combination of strata."""


def _split(
    cells: pd.Series, folds: int, seed: int, families: pd.Series | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return training and held-out positions of each fold."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = cells.to_numpy(dtype=object)
    if families is None:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        return list(splitter.split(labels, labels))
    if families.nunique() < folds:
        raise InputError(
            f"folds={folds}: outside the probe there are {families.nunique()} families "
            "and they stay together; ask for fewer folds."
        )
    grouped = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(grouped.split(labels, labels, families.to_numpy()))


def _present(people: pd.DataFrame, first: str, others: Sequence[str]) -> list[str]:
    """Return ``first`` and those of the others that are columns, each once."""
    if first not in people.columns:
        known = [str(name) for name in people.columns]
        raise UnknownNameError(
            f"There is no column '{first}' to group people by; there are "
            f"{', '.join(known)}.{nearest(first, known)}"
        )
    return list(dict.fromkeys([first, *(o for o in others if o in people.columns)]))


def _stratum_table(people: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return the columns as text, sorted by id, gaps in later ones as a stratum."""
    missing = people.index[people[columns[0]].isna()]
    if len(missing):
        raise InputError(
            f"'{columns[0]}' is missing for {len(missing)} people, the first "
            f"{missing[0]}; label them or leave them out."
        )
    table = people[columns].astype(object)
    table = table.where(table.notna(), UNKNOWN).map(str)
    table.index = pd.Index([str(who) for who in people.index], dtype=object)
    return table.sort_index()


def _allocate(sizes: list[int], total: int) -> list[int]:
    """Share ``total`` out in proportion to sizes, by largest remainder.

    Ties go to the earlier stratum.
    """
    exact = [size * total / sum(sizes) for size in sizes]
    shares = [int(share) for share in exact]
    order = sorted(range(len(sizes)), key=lambda k: (shares[k] - exact[k], k))
    for k in order[: total - sum(shares)]:
        shares[k] += 1
    return shares
