"""A cohort: people, what is known of them, and one array of features per person.

``features[i]`` belongs to ``people.index[i]``, always; rows are found by id.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spectral_mlops.cohorts.mapped import MappedFile
from spectral_mlops.cohorts.space import SOMEWHERE, FeatureSpace
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.records import CohortSummary
from spectral_mlops.registry import nearest

CHUNK_BYTES = 1 << 26
"""Features are checked and hashed in pieces of about this size."""

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
        features: Float32, shape ``[people, *shape]``, read-only. A memory map of
            native float32 stays one; it is read in pieces and never copied.
        modality: ``fnc`` (vectors of connections, ``[people, edges]``), ``volume``
            (``[people, X, Y, Z]``) or ``timecourses`` (``[people, T, C]``, or
            ``[people, windows, T, C]``).
        target: Column of ``people`` that is predicted.
        positive: Label of the target counted as positive; empty where the target is
            a number, which has no groups.
        source: Where the cohort came from, in words or as a path.
        notes: What was found and decided while reading, to be shown to the user.
        space: Where the features stand, as far as it is known.
        lengths: Of time courses ``[people, T, C]``, how many time points each
            person has, shape ``[people]``; what follows is zero padding. None
            where everyone has all ``T``.

    Raises:
        InputError: If lengths disagree, ids repeat, a feature is not finite, a
            person has no target label or number, there are fewer than two groups or
            numbers, or padding is not zero.
    """

    people: pd.DataFrame
    features: NDArray[np.float32]
    modality: str
    target: str
    positive: str
    source: str
    notes: tuple[str, ...] = ()
    space: FeatureSpace = SOMEWHERE
    lengths: NDArray[np.intp] | None = None

    def __post_init__(self) -> None:
        people = self.people.copy()
        people.index = pd.Index(people.index.map(str), name="participant_id")
        object.__setattr__(self, "people", people)
        object.__setattr__(self, "features", _frozen(self.features))
        self._check_rows()
        self._check_lengths()
        self._check_target()

    def __getstate__(self) -> dict[str, Any]:
        mapped = MappedFile.of(self.features)
        return self.__dict__ | ({} if mapped is None else {"features": mapped})

    def __setstate__(self, state: dict[str, Any]) -> None:
        features = state["features"]
        if isinstance(features, MappedFile):
            features = features.open()
        self.__dict__.update(state, features=_frozen(features))

    @property
    def labels(self) -> NDArray[np.str_]:
        """Return the target of each person, shape ``[people]``."""
        return np.array([str(label) for label in self.people[self.target]], dtype=str)

    @property
    def numeric(self) -> bool:
        """Whether the target is a number."""
        return not self.positive

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """Return the target of each person as a number, shape ``[people]``.

        Raises:
            InputError: Naming who has none.
        """
        column = self.people[self.target]
        found = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
        wrong = [i for i, x in enumerate(found) if not np.isfinite(x)]
        if wrong:
            who, cell = self.people.index[wrong[0]], column.iloc[wrong[0]]
            raise InputError(
                f"{self.source}: '{self.target}' of {len(wrong)} people is no number, "
                f"of {who} it is '{cell}'; a number is predicted where everybody has "
                "one."
            )
        return found

    @property
    def groups(self) -> dict[str, int]:
        """Return the number of people per label of the target; none of a number."""
        if self.numeric:
            return {}
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
        if self.lengths is not None:
            digest.update(self.lengths.astype("<i8").data)
        for _, rows in self._pieces():
            digest.update(rows.astype("<f4", copy=False).data)
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
        first, count = "", 0
        for start, rows in self._pieces():
            bad = ~np.isfinite(rows.reshape(len(rows), -1))
            if not count and bad.any():
                row, column = (int(i) for i in np.argwhere(bad)[0])
                first = f"{index[start + row]} at position {column}"
            count += int(bad.sum())
        if count:
            raise InputError(
                f"{self.source}: {count} features are not finite, the first "
                f"that of {first}; repair or leave out."
            )

    def _check_lengths(self) -> None:
        """Refuse time courses without components, and lengths that are not theirs."""
        series = self.modality == "timecourses"
        if series and self.features.ndim not in (3, 4):
            raise InputError(
                f"{self.source}: time courses of shape {self.features.shape}; expected "
                "[people, time, components] or [people, windows, time, components]."
            )
        if self.lengths is None:
            return
        if not series or self.features.ndim != 3:
            raise InputError(
                f"{self.source}: lengths belong to time courses of shape [people, "
                f"time, components], not to '{self.modality}' of shape "
                f"{self.features.shape}; leave them out."
            )
        lengths = np.asarray(self.lengths)
        people, longest = self.features.shape[:2]
        if lengths.shape != (people,) or lengths.dtype.kind not in "iu":
            raise InputError(
                f"{self.source}: lengths of shape {lengths.shape} and type "
                f"{lengths.dtype}; expected one whole number for each of {people} "
                "people."
            )
        for who, length, rows in zip(
            self.people.index, lengths.tolist(), self.features, strict=True
        ):
            if not 1 <= length <= longest:
                raise InputError(
                    f"{self.source}: {who} has length {length}; expected 1 to "
                    f"{longest} time points."
                )
            if rows[length:].any():
                raise InputError(
                    f"{self.source}: {who} has length {length}, but values other than "
                    "zero after it; padding must be zero."
                )
        lengths = lengths.astype(np.intp)
        lengths.flags.writeable = False
        object.__setattr__(self, "lengths", lengths)

    def _pieces(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield rows of features, a bounded amount at a time, and where they start."""
        one = max(1, self.features[:1].nbytes)
        step = max(1, CHUNK_BYTES // one)
        for start in range(0, len(self.features), step):
            yield start, np.asarray(self.features[start : start + step])

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
        if self.numeric:
            if np.ptp(self.numbers) == 0:
                raise InputError(
                    f"{self.source}: everyone has {self.target}={self.numbers[0]:g}; "
                    "there is nothing to predict."
                )
            return
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


def _frozen(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return a read-only view as contiguous native float32; a copy only if it must."""
    kept = features
    if not (
        isinstance(features, np.memmap)
        and features.dtype == np.float32
        and features.dtype.isnative
        and features.flags.c_contiguous
    ):
        kept = np.ascontiguousarray(features, dtype=np.float32)
    view = kept.view()
    view.flags.writeable = False
    return view
