"""One number per subject: what single people pull, with age, motion and site held.

Spectra belong to groups and cannot be adjusted for a person's age. A person's own
gradient can be described: how large it is, and how far it points where everybody's
does. These numbers are compared between groups with nuisance columns held
(`inference.nuisance`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from spectral_mlops.errors import InputError
from spectral_mlops.inference.nuisance import freedman_lane
from spectral_mlops.spectra.kept_gradients import KeptGradient
from spectral_mlops.validity import (
    Families,
    Observed,
    People,
    Strata,
    labels_of_people,
    refuse_gaps,
    same_partition,
    target_of_people,
    validity,
    with_families,
)

SCALARS = ("log_norm", "cosine")


def subject_scalars(observed: Sequence[Observed]) -> pd.DataFrame:
    """Describe each person's gradient at each layer.

    Each person's rows are weighted by one over their number, so that scan length does
    not matter. From inner products of people's gradients, which need no formed one.

    Args:
        observed: The batches that parts of people were kept of.

    Returns:
        One row per layer and person: ``log_norm``, the natural logarithm of the
        gradient's Frobenius norm (at the scale of the batch; only differences between
        people mean something), and ``cosine`` with the sum over everybody in the
        batch, in [-1, 1]; means over batches. NaN for a person whose gradient is zero.
    """
    rows: list[tuple[str, str, float, float]] = []
    for seen in observed:
        for name, layer in seen.layers.items():
            kept = layer.kept.get("gradient")
            if not isinstance(kept, KeptGradient):
                continue
            inner = kept.inner.numpy()
            squares = np.diagonal(inner)
            with np.errstate(divide="ignore", invalid="ignore"):
                norms = np.where(squares > 0, np.log(squares) / 2, np.nan)
                whole = np.sqrt(squares * max(float(inner.sum()), 0.0))
                cosines = np.where(whole > 0, inner.sum(1) / whole, np.nan)
            rows += [
                (name, person, float(norm), float(cosine))
                for person, norm, cosine in zip(
                    seen.people, norms, cosines.clip(-1, 1), strict=True
                )
            ]
    frame = pd.DataFrame(rows, columns=["layer", "subject", *SCALARS])
    return frame.groupby(["layer", "subject"], sort=False, as_index=False).mean()


def adjusted(
    observed: Sequence[Observed],
    source: str,
    grouping: str,
    nuisance: Mapping[str, Mapping[str, Any]],
    strata: Strata,
    by_target: bool,
    permutations: int,
    seed: int,
    families: Families | None = None,
) -> pd.DataFrame:
    """Compare groups on every scalar at every layer, nuisance columns held.

    Freedman & Lane's permutation; the same moves for all layers and scalars, so that
    ``p_max`` is adjusted over them.

    Args:
        observed: See `subject_scalars`.
        source: ``train`` or ``probe``.
        grouping: Name of a grouping.
        nuisance: ``{name: {subject: value}}``, numbers or names (sex, site).
        strata: ``{name: {subject: stratum}}`` that residuals stay within.
        by_target: Whether they also stay within the target's classes, where the
            grouping is not the target.
        permutations: Moves beside none.
        seed: Of the moves.
        families: ``{subject: family}``; residuals of relatives move as blocks.

    Returns:
        One row per layer and scalar: ``statistic`` (|t| of two groups, else F),
        ``value``, ``p``, ``p_max``, ``subjects``, ``nuisance`` and ``reason``. No p
        where relabelling these people is no test (`validity`).

    Raises:
        InputError: If a column says nothing about somebody, or there is no such
            grouping.
    """
    if not observed or grouping not in observed[0].groupings:
        known = ", ".join(observed[0].groupings) if observed else "none"
        raise InputError(f"No grouping '{grouping}' was kept; there is {known}.")
    table = subject_scalars(observed).pivot(index="subject", columns="layer")
    table = table.sort_index()
    people = [str(person) for person in table.index]
    labels = labels_of_people(observed, grouping)
    target = target_of_people(observed)
    valid, testable = validity(source, observed, labels, target)
    if by_target and target is not None and not same_partition(labels, target):
        strata = {**strata, "target": target}
    for kind, columns in (("nuisance", nuisance), ("strata", strata)):
        for name, column in columns.items():
            refuse_gaps(kind, name, column, people)
    within, named, words = with_families(
        people,
        [" × ".join(c[i] for c in strata.values()) for i in people],
        " × ".join(strata) or "none",
        families,
    )
    if testable and named is not None:
        # With nuisance columns more moves differ; groups alone are counted.
        own = {person: labels[person] for person in people}
        codes = np.empty((0, len(people)), dtype=np.int64)
        blocks = People(own, within, words, codes, families=named)
        refusal = blocks.refusal(grouping, blocks.groups)
        valid, testable = refusal or valid, not refusal
    found = freedman_lane(
        table.to_numpy(np.float64),
        [labels[person] for person in people],
        {name: [column[i] for i in people] for name, column in nuisance.items()},
        strata=within,
        permutations=permutations,
        seed=seed,
        families=named,
    )
    return pd.DataFrame(
        {
            "layer": table.columns.get_level_values("layer"),
            "scalar": table.columns.get_level_values(0),
            "grouping": grouping,
            "statistic": found.statistic,
            "value": found.values[0],
            "p": found.p if testable else np.nan,
            "p_max": found.p_max if testable else np.nan,
            "subjects": len(people),
            "nuisance": " + ".join(nuisance) or "none",
            "reason": [x or ("" if testable else valid) for x in found.reasons],
        }
    )
