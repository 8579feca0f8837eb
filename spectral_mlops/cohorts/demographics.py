"""Simulated people: group, age, sex, site and head motion, like a real cohort."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spectral_mlops.errors import InputError

CONTROLS, PATIENTS = 74, 72  # of COBRE's 146; other sizes keep the proportion
MEN = {"control": 0.69, "patient": 0.81}
SITES = ("A", "B")
AGE_MEAN, AGE_SD, AGE_RANGE = 38.0, 12.5, (18.0, 65.0)
FD_MEDIAN, FD_LOG_SD, FD_LOG_SHIFT = 0.20, 0.45, 0.15  # mm; patients move more


def group_sizes(people: int) -> dict[str, int]:
    """Return how many of ``people`` are controls and patients (74 to 72).

    Raises:
        InputError: If there would be fewer than two people in a group.
    """
    controls = round(people * CONTROLS / (CONTROLS + PATIENTS))
    sizes = {"control": controls, "patient": people - controls}
    if min(sizes.values()) < 2:
        raise InputError(
            f"people={people}: a simulated cohort needs at least two controls and two "
            "patients; ask for 4 people or more."
        )
    return sizes


def draw_people(
    people: int, effect: float, seed: Sequence[int], site_group_corr: float = 0.0
) -> pd.DataFrame:
    """Draw the table of people, groups interleaved at random.

    Sites are balanced within groups, or go with them as closely as asked for: the
    counts are the nearest that people allow, not drawn. The groups' different shares
    of men and their different motion shrink with effects below 1 and vanish at 0, so
    that the groups of the preset ``null`` are exchangeable in everything.

    Args:
        people: Number of people.
        effect: Size of the group effect, 0 for none.
        seed: Entropy of the random stream.
        site_group_corr: Correlation of site with group, 0 (balanced) to 1 (each
            group has a site of its own).

    Returns:
        Index ``participant_id``, columns ``group``, ``age``, ``sex``, ``site``,
        ``fd`` (mean framewise displacement in mm).
    """
    rng = np.random.default_rng(list(seed))
    sizes = group_sizes(people)
    group = np.repeat(list(sizes), list(sizes.values()))
    sites = [np.resize(rng.permutation(SITES), n) for n in sizes.values()]
    if site_group_corr:
        sites = [
            np.repeat(order, [most := round(n * (1 + site_group_corr) / 2), n - most])
            for n, order in zip(sizes.values(), (SITES, SITES[::-1]), strict=True)
        ]
    site = np.concatenate(sites)
    mixed = rng.permutation(people)
    group, site = group[mixed], site[mixed]
    patient = group == "patient"

    strength = min(effect, 1.0)
    balanced = np.mean(list(MEN.values()))
    share = np.where(patient, MEN["patient"], MEN["control"])
    men = rng.uniform(size=people) < balanced + strength * (share - balanced)
    shift = FD_LOG_SHIFT * strength * patient
    fd = FD_MEDIAN * np.exp(FD_LOG_SD * rng.normal(size=people) + shift)
    digits = max(3, len(str(people)))
    return pd.DataFrame(
        {
            "group": group,
            "age": _ages(rng, people).round(1),
            "sex": np.where(men, "M", "F"),
            "site": site,
            "fd": fd.round(4),
        },
        index=pd.Index(
            [f"sub-{number:0{digits}d}" for number in range(1, people + 1)],
            name="participant_id",
        ),
    )


def _ages(rng: np.random.Generator, people: int) -> np.ndarray:
    """Draw ages from the normal distribution cut to the range, by rejection."""
    low, high = AGE_RANGE
    drawn = rng.normal(AGE_MEAN, AGE_SD, size=people)
    while (outside := (drawn < low) | (drawn > high)).any():
        drawn[outside] = rng.normal(AGE_MEAN, AGE_SD, size=outside.sum())
    return drawn
