"""What is taken out of features before they are scaled: sites, then confounds.

Fitted on the training people of a fold, applied to anyone. Nothing unless asked for.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_mlops.cohorts.cohort import Cohort
from spectral_mlops.cohorts.confounds import ConfoundRegression, Design, check_known
from spectral_mlops.cohorts.harmonise import ComBat
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.registry import nearest


@dataclass(frozen=True)
class Adjustment:
    """Steps fitted on training people; ``Adjustment()`` does nothing.

    Attributes:
        sites: Harmonisation, if asked for; it comes first.
        confounds: Regression, if asked for.
    """

    sites: ComBat | None = None
    confounds: ConfoundRegression | None = None

    @classmethod
    def fit(
        cls,
        cohort: Cohort,
        rows: NDArray[np.intp],
        regress: Sequence[str] = (),
        harmonise: str | None = None,
    ) -> "Adjustment":
        """Fit on training people.

        Args:
            cohort: The people.
            rows: Of the training people.
            regress: Columns whose linear share is taken out.
            harmonise: Column of sites that are brought to one mean and spread.
        """
        sites, confounds = None, None
        people = cohort.people.iloc[rows]
        features: NDArray[np.floating] = cohort.features[rows] if regress else _NONE
        if harmonise:
            labels = people[harmonise].map(str).tolist()
            features = cohort.features[rows]
            sites = ComBat.fit(features, labels, harmonise)
            features = sites.transform(features, labels)
        if regress:
            confounds = ConfoundRegression.fit(features, people, regress)
        return cls(sites, confounds)

    def apply(self, cohort: Cohort, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return some people's features, adjusted; as they are where nothing is asked.

        Args:
            cohort: The people.
            rows: Whose.

        Returns:
            Float32, shape ``[len(rows), *shape]``.
        """
        features = cohort.features[rows]
        people = cohort.people.iloc[rows]
        if self.sites is not None:
            labels = people[self.sites.column].map(str).tolist()
            features = self.sites.transform(features, labels)
        if self.confounds is not None:
            features = self.confounds.transform(features, people)
        return features

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return plain arrays to store, as `from_arrays` takes them."""
        arrays: dict[str, NDArray[np.generic]] = {}
        if self.sites is not None:
            arrays["sites"] = np.array([self.sites.column, *self.sites.sites])
            arrays |= {f"sites_{name}": getattr(self.sites, name) for name in _SITES}
        if self.confounds is not None:
            design = self.confounds.design
            arrays["design"] = np.array(json.dumps([design.numbers, design.levels]))
            arrays["centre"] = self.confounds.centre
            arrays["slopes"] = self.confounds.slopes
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "Adjustment":
        """Rebuild an adjustment from `to_arrays`.

        Raises:
            InputError: If an array is missing or damaged.
        """
        floats = {
            name: np.asarray(array, dtype=np.float64)
            for name, array in arrays.items()
            if name not in ("sites", "design")
        }
        sites, confounds = None, None
        try:
            if "sites" in arrays:
                column, *names = (str(name) for name in arrays["sites"])
                parts = [floats[f"sites_{name}"] for name in _SITES]
                sites = ComBat(column, tuple(names), *parts)
            if "design" in arrays:
                numbers, levels = json.loads(str(arrays["design"]))
                design = Design(
                    {name: (mean, sd) for name, (mean, sd) in numbers.items()},
                    {name: tuple(known) for name, known in levels.items()},
                )
                parts = [floats["centre"], floats["slopes"]]
                confounds = ConfoundRegression(design, *parts)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"A stored adjustment is not complete ({error}); train again."
            ) from error
        return cls(sites, confounds)


_SITES = ("mean", "spread", "shift", "scale")
_NONE = np.zeros((0, 0), dtype=np.float32)


def check_adjustment(
    cohort: Cohort,
    regress: Sequence[str],
    harmonise: str | None,
    folds: Iterable[tuple[Sequence[str], Sequence[str]]],
) -> None:
    """Refuse what cannot be taken out, before anything is trained.

    Args:
        cohort: The people.
        regress: Columns to regress.
        harmonise: Column of sites.
        folds: Ids of training people and of all others, of each fold.

    Raises:
        InputError: If features have no fixed meaning (time courses), a column is the
            target, has gaps, or does not vary in a fold's training people, or a
            category is missing there.
        UnknownNameError: If there is no such column.
    """
    named = {"confounds.regress": regress}
    named["confounds.harmonise"] = [harmonise] if harmonise else []
    for setting, columns in named.items():
        for name in columns:
            _check_column(cohort, setting, name)
    columns = [*regress, *named["confounds.harmonise"]]
    if columns and cohort.modality == "timecourses":
        raise InputError(
            "confounds: a time point is not the same in two people, so nothing can be "
            "taken out of time courses; do it in connectivity (modality='fnc'), or "
            "regress them when the courses are made."
        )
    if not columns:
        return
    check_known(cohort.people, columns)
    for train, others in folds:
        known = cohort.people.iloc[cohort.rows(train)]
        rest = cohort.people.iloc[cohort.rows(others)]
        nothing = np.zeros((len(known), 1))
        if regress:
            fitted = ConfoundRegression.fit(nothing, known, regress)
            fitted.transform(np.zeros((len(rest), 1)), rest)
        if harmonise:
            labels = known[harmonise].map(str).tolist()
            ComBat.fit(nothing, labels, harmonise).transform(
                np.zeros((len(rest), 1)), rest[harmonise].map(str).tolist()
            )


def _check_column(cohort: Cohort, setting: str, name: str) -> None:
    columns = [str(column) for column in cohort.people.columns]
    if name not in columns:
        raise UnknownNameError(
            f"{setting} names '{name}', which is no column of the people of "
            f"{cohort.source}: choose from {', '.join(columns)}."
            f"{nearest(name, columns)}"
        )
    if name == cohort.target:
        raise InputError(
            f"{setting} names '{name}', the target: what is predicted cannot be taken "
            "out of what it is predicted from."
        )
    if setting == "confounds.harmonise":
        Design.fit(cohort.people.assign(**{name: cohort.people[name].map(str)}), [name])
