"""A cohort: people, what is known of them, and one array of features per person.

``features[i]`` belongs to ``people.index[i]``, always; rows are found by id.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.cohorts.space import SOMEWHERE, FeatureSpace
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.records import CohortSummary
from spectral_mlops.registry import nearest

SHOWN = 5
"""How many ids or names a message shows before it says how many more there are."""


def listed(names: Iterable[object]) -> str:
    """Return the first few names, and how many more there are."""
    known = [str(name) for name in names]
    rest = len(known) - SHOWN
    return ", ".join(known[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True, eq=False)
class Cohort:
    """People and their features, checked once and never changed.

    Attributes:
        people: One row a person; index ``participant_id`` (str), columns at least
            the target, and whatever else is known (age, sex, site, fd).
        features: Float32, shape ``[people, *shape]``, read-only.
        modality: ``fnc`` (vectors of connections) or ``volume``.
        target: Column of ``people`` that is predicted.
        positive: Label of the target counted as positive.
        source: Where the cohort came from, in words or as a path.
        notes: What was found and decided while reading, to be shown to the user.
        space: Where the features stand, as far as it is known.

    Raises:
        InputError: If lengths disagree, ids repeat, a feature is not finite, a
            person has no target label, or there are fewer than two groups.
    """

    people: pd.DataFrame
    features: NDArray[np.float32]
    modality: str
    target: str
    positive: str
    source: str
    notes: tuple[str, ...] = ()
    space: FeatureSpace = SOMEWHERE

    def __post_init__(self) -> None:
        people = self.people.copy()
        people.index = pd.Index(people.index.map(str), name="participant_id")
        features = np.ascontiguousarray(self.features, dtype=np.float32).view()
        features.flags.writeable = False
        object.__setattr__(self, "people", people)
        object.__setattr__(self, "features", features)
        self._check_rows()
        self._check_target()

    @property
    def labels(self) -> NDArray[np.str_]:
        """Return the target of each person, shape ``[people]``."""
        return np.array([str(label) for label in self.people[self.target]], dtype=str)

    @property
    def groups(self) -> dict[str, int]:
        """Return the number of people per label of the target, by label."""
        labels, counts = np.unique(self.labels, return_counts=True)
        return {str(label): int(n) for label, n in zip(labels, counts, strict=True)}

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 over ids, attributes and features, in row order."""
        table = {
            "target": self.target,
            "modality": self.modality,
            "ids": list(self.people.index),
            "shape": list(self.features.shape),
            "columns": {
                str(name): [str(value) for value in column]
                for name, column in self.people.items()
            },
        }
        digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
        digest.update(self.features.astype("<f4", copy=False).data)
        return digest.hexdigest()

    def summary(self) -> CohortSummary:
        """Return what a run records of its people: no data, no ids."""
        return CohortSummary(self.digest, self.source, len(self.people), self.groups)

    def rows(self, ids: Iterable[str]) -> NDArray[np.intp]:
        """Return the positions of people, in the order asked for.

        Args:
            ids: Participant ids.

        Returns:
            Positions into ``people`` and ``features``, shape ``[len(ids)]``.

        Raises:
            UnknownNameError: If an id is not of this cohort.
        """
        asked = [str(identity) for identity in ids]
        positions = self.people.index.get_indexer(pd.Index(asked, dtype=object))
        unknown = [name for name, at in zip(asked, positions, strict=True) if at < 0]
        if unknown:
            raise UnknownNameError(
                f"{len(unknown)} of {len(asked)} ids are not in the cohort "
                f"{self.source}: {listed(unknown)}; its {len(self.people)} ids look "
                f"like {self.people.index[0]}."
                f"{nearest(unknown[0], list(self.people.index))}"
            )
        return np.asarray(positions, dtype=np.intp)

    def _check_rows(self) -> None:
        """Refuse rows that do not stand for one person with usable features."""
        index = self.people.index
        if not len(index):
            raise InputError(f"{self.source}: there are no people; list at least two.")
        if len(index) != len(self.features):
            raise InputError(
                f"{self.source}: {len(index)} people but {len(self.features)} rows of "
                "features; give one row a person, in the same order."
            )
        repeated = index[index.duplicated()]
        if len(repeated):
            raise InputError(
                f"{self.source}: the id {repeated[0]} stands more than once "
                f"({len(repeated)} repeated rows); keep one row a person."
            )
        flat = self.features.reshape(len(index), -1)
        bad = ~np.isfinite(flat)
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            raise InputError(
                f"{self.source}: {int(bad.sum())} features are not finite, the first "
                f"that of {index[row]} at position {column}; repair or leave out."
            )

    def _check_target(self) -> None:
        """Refuse a target that is absent, incomplete, or the same for everyone."""
        columns = [str(name) for name in self.people.columns]
        if self.target not in columns:
            raise InputError(
                f"{self.source}: there is no column '{self.target}' to predict; there "
                f"are {', '.join(columns)}.{nearest(self.target, columns)}"
            )
        missing = self.people.index[self.people[self.target].isna()]
        if len(missing):
            raise InputError(
                f"{self.source}: '{self.target}' is missing for {len(missing)} people "
                f"({listed(missing)}); label them or leave them out."
            )
        groups = self.groups
        if len(groups) < 2:
            raise InputError(
                f"{self.source}: everyone has {self.target}={', '.join(groups)}; "
                "comparing groups needs at least two."
            )
        if self.positive not in groups:
            raise InputError(
                f"{self.source}: positive='{self.positive}' is no label of "
                f"'{self.target}'; its labels are {', '.join(groups)}."
                f"{nearest(self.positive, list(groups))}"
            )
