"""Age, sex, motion, site: as numbers, taken out of features, or named in a warning.

Everything is fitted on training people and then applied to anyone; the target never
enters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.cohorts.cohort import listed
from spectral_mlops.cohorts.columns import concept_of
from spectral_mlops.errors import InputError

Array = NDArray[np.float64]

CONCEPTS = ("age", "sex", "site", "fd")
"""What the confound-only baseline looks for, by the concept of a column's name."""
MOST_LEVELS = 30
"""More different texts than that are no categories, but damaged numbers, or names."""
WARN_BELOW = 0.05
"""p of the site × group table below which sites and groups are said to go together."""


@dataclass(frozen=True, eq=False)
class Design:
    """Columns of a table of people as numbers, as training people have them.

    Numbers are z-scored (a gap is the training mean, 0); of texts every level but the
    first gets a column of zeros and ones (a gap, or a level that nobody in training
    had, is all zeros).

    Attributes:
        numbers: Mean and SD by column.
        levels: Sorted levels by column.
    """

    numbers: dict[str, tuple[float, float]]
    levels: dict[str, tuple[str, ...]]

    @classmethod
    def fit(cls, people: pd.DataFrame, columns: Sequence[str]) -> "Design":
        """Read off what the columns hold.

        Args:
            people: Of training only.
            columns: Of ``people``.

        Raises:
            InputError: If a column of texts has too many different ones.
        """
        numbers: dict[str, tuple[float, float]] = {}
        levels: dict[str, tuple[str, ...]] = {}
        for name in columns:
            column = people[name]
            if pd.api.types.is_numeric_dtype(column):
                values = column.to_numpy(np.float64)
                known = values[np.isfinite(values)]
                spread = float(known.std()) if len(known) else 0.0
                mean = float(known.mean()) if len(known) else 0.0
                numbers[name] = (mean, spread or 1.0)
            else:
                levels[name] = tuple(sorted({str(x) for x in column.dropna()}))
                if len(levels[name]) > MOST_LEVELS:
                    raise InputError(
                        f"Column '{name}' has {len(levels[name])} different texts, "
                        f"such as {listed(levels[name][:2])}: a confound is a number, "
                        f"or one of at most {MOST_LEVELS} categories."
                    )
        return cls(numbers, levels)

    def matrix(self, people: pd.DataFrame) -> Array:
        """Return anyone's columns as numbers, shape ``[people, width]``."""
        parts = []
        for name, (mean, spread) in self.numbers.items():
            values = (people[name].to_numpy(np.float64) - mean) / spread
            parts.append(np.where(np.isfinite(values), values, 0.0)[:, None])
        for name, known in self.levels.items():
            texts = people[name].astype(object).to_numpy()
            parts += [
                np.array([str(x) == level for x in texts], dtype=np.float64)[:, None]
                for level in known[1:]
            ]
        return np.hstack([np.zeros((len(people), 0)), *parts])

    def strangers(self, people: pd.DataFrame) -> tuple[str, str] | None:
        """Return a column and a level in it that nobody in training had, if any."""
        for name, known in self.levels.items():
            new = {str(x) for x in people[name].dropna()} - set(known)
            if new:
                return name, min(new)
        return None


@dataclass(frozen=True, eq=False)
class ConfoundRegression:
    """What confounds explain linearly, taken out of features.

    ``x − (D − mean D) B`` with ``B`` the least-squares coefficients of training people
    (an intercept beside): the training mean of every feature stays what it was.

    Attributes:
        design: How the columns become numbers.
        centre: Training mean of the design, shape ``[width]``.
        slopes: Shape ``[width, features]``.
    """

    design: Design
    centre: Array
    slopes: Array

    @classmethod
    def fit(
        cls,
        features: NDArray[np.floating],
        people: pd.DataFrame,
        columns: Sequence[str],
    ) -> "ConfoundRegression":
        """Fit on training people.

        Args:
            features: Shape ``[people, *shape]``.
            people: In the same order.
            columns: Confounds, of ``people``.

        Raises:
            InputError: If a value is missing, a column is the same for everyone, or
                the columns cannot be told apart in these people.
        """
        check_known(people, columns)
        for name in columns:
            if people[name].nunique() < 2:
                raise InputError(
                    f"confounds.regress names '{name}', which is "
                    f"{people[name].iloc[0]} for all {len(people)} training people of "
                    "a fold: nothing can be regressed on it; leave it out."
                )
        design = Design.fit(people, columns)
        numbers = design.matrix(people)
        centre = numbers.mean(axis=0)
        centred = numbers - centre
        if np.linalg.matrix_rank(centred) < centred.shape[1]:
            raise InputError(
                f"confounds.regress: {', '.join(columns)} make {centred.shape[1]} "
                f"columns that {len(people)} training people cannot tell apart; name "
                "fewer."
            )
        flat = np.asarray(features, dtype=np.float64).reshape(len(people), -1)
        slopes = np.linalg.lstsq(centred, flat - flat.mean(axis=0), rcond=None)[0]
        return cls(design, centre, slopes)

    def transform(
        self, features: NDArray[np.floating], people: pd.DataFrame
    ) -> NDArray[np.float32]:
        """Take out of anyone's features what their confounds explain.

        Args:
            features: Shape ``[people, *shape]``.
            people: In the same order.

        Returns:
            A new float32 array of the same shape.

        Raises:
            InputError: If a value is missing, or a category was not in training.
        """
        columns = [*self.design.numbers, *self.design.levels]
        check_known(people, columns)
        if (new := self.design.strangers(people)) is not None:
            raise InputError(
                f"confounds.regress names '{new[0]}', and nobody with {new[0]}="
                f"{new[1]} is in training: what it does to features is not known "
                "there; leave the column out, or use training.split='stratified'."
            )
        explained = (self.design.matrix(people) - self.centre) @ self.slopes
        flat = np.asarray(features, dtype=np.float64).reshape(len(people), -1)
        return (flat - explained).reshape(features.shape).astype(np.float32)


def check_known(people: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse people of whom a confound is not known.

    Raises:
        InputError: Naming the first column, and who.
    """
    for name in columns:
        gaps = people.index[people[name].isna()]
        if len(gaps):
            raise InputError(
                f"The confound '{name}' is missing for {len(gaps)} people "
                f"({listed(gaps)}); fill it in, leave them out, or do not regress it."
            )


def confound_columns(people: pd.DataFrame, target: str) -> list[str]:
    """Return the columns that look like age, sex, site or motion and vary.

    Args:
        people: Table of people.
        target: The column predicted, which is never one of them.
    """
    names = [str(name) for name in people.columns if str(name) != target]
    return [
        name
        for name in names
        if concept_of(name) in CONCEPTS
        and people[name].nunique() > 1
        and (
            pd.api.types.is_numeric_dtype(people[name])
            or people[name].nunique() <= MOST_LEVELS
        )
    ]


def site_warning(people: pd.DataFrame, group: str, site: str = "site") -> str:
    """Say that groups go with sites, where they do.

    Args:
        people: Table of people.
        group: Column of groups.
        site: Column of sites.

    Returns:
        One sentence with the table and Cramér's V; empty where there is no such
        column, one site, or no association at p < 0.05 (chi-squared).
    """
    if site not in people or group == site or people[site].nunique() < 2:
        return ""
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import association

    known = people[people[site].notna()]
    table = pd.crosstab(known[site].map(str), known[group].map(str))
    if min(table.shape) < 2 or chi2_contingency(table).pvalue >= WARN_BELOW:
        return ""
    strength = association(table.to_numpy(), method="cramer")
    rows = [
        f"{name}: {', '.join(f'{n} {label}' for label, n in row.items())}"
        for name, row in table.iterrows()
    ]
    return (
        f"'{group}' goes with '{site}' (Cramér's V {strength:.2f}; {'; '.join(rows)}): "
        "what a network tells of one it may have from the other. Labels move within "
        f"'{site}'; harmonising or regressing '{site}' out takes the groups with it."
    )
