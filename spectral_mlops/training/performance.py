"""How well held-out people are predicted, overall and per group."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

Array = NDArray[np.float64]
HUBER_AT = 1.0
"""Error, in SDs of the target, from which Huber's loss is linear."""


@dataclass(frozen=True, eq=False)
class Said(ABC):
    """What a model says of some people; arrays have a row a person.

    Attributes:
        ids: Participant ids, length ``n``.
        targets: What is true, shape ``[n]``.
    """

    ids: tuple[str, ...]
    targets: NDArray[Any]

    @property
    @abstractmethod
    def losses(self) -> Array:
        """Loss of each person, as training has it, shape ``[n]``."""

    @property
    @abstractmethod
    def strata(self) -> NDArray[np.int64]:
        """Kinds of people whose numbers are given, shape ``[n]``."""

    @property
    @abstractmethod
    def columns(self) -> dict[str, Array]:
        """What was said, as columns of a table."""

    @abstractmethod
    def row(self) -> dict[str, float]:
        """Return every number of these people by name."""

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Put people of several folds together."""
        first = parts[0]
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in first._arrays()
        }
        ids = tuple(who for part in parts for who in part.ids)
        return replace(first, ids=ids, **arrays)

    def of(self, chosen: NDArray[np.bool_]) -> Self:
        """Return those of some people, ``chosen`` of shape ``[n]``."""
        ids = tuple(who for who, take in zip(self.ids, chosen, strict=True) if take)
        arrays = {name: values[chosen] for name, values in self._arrays().items()}
        return replace(self, ids=ids, **arrays)

    @property
    def loss(self) -> float:
        """Mean of `losses`."""
        return float(self.losses.mean())

    def per_group(self, labels: Sequence[str]) -> pd.DataFrame:
        """How well each group is predicted.

        Args:
            labels: Group of each person, length ``n``.

        Returns:
            Columns ``group`` and those of `row`; the first row is ``all``. Of people of
            several folds they compare what several networks say.
        """
        names = np.array(list(labels), dtype=np.str_)
        parts = [("all", self)]
        parts += [(str(g), self.of(names == g)) for g in np.unique(names)]
        return pd.DataFrame([{"group": name, **part.row()} for name, part in parts])

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}


@dataclass(frozen=True, eq=False)
class Predictions(Said):
    """Classes, and how probable each is.

    Attributes:
        ids: Participant ids, length ``n``.
        targets: Class numbers, shape ``[n]``.
        probabilities: Shape ``[n, classes]``; rows sum to 1.
    """

    probabilities: Array

    @property
    def losses(self) -> Array:
        """Cross-entropy of each person, in nats, shape ``[n]``."""
        said = self.probabilities[np.arange(len(self.targets)), self.targets]
        return -np.log(np.clip(said, np.finfo(np.float64).tiny, None))

    @property
    def strata(self) -> NDArray[np.int64]:
        """Classes, shape ``[n]``."""
        return self.targets

    @property
    def columns(self) -> dict[str, Array]:
        """A probability for each class."""
        return {f"p_{k}": p for k, p in enumerate(self.probabilities.T)}

    @property
    def auc(self) -> float:
        """Area under the ROC curve (several classes: one against the rest, macro).

        NaN where a class is absent.
        """
        classes = self.probabilities.shape[1]
        if len(np.unique(self.targets)) < classes:
            return float("nan")
        if classes == 2 and np.isfinite(self.probabilities).all():
            return _area(self.targets == 1, self.probabilities[:, 1])
        scores = self.probabilities[:, 1] if classes == 2 else self.probabilities
        return float(roc_auc_score(self.targets, scores, multi_class="ovr"))

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that are present."""
        right = self.probabilities.argmax(1) == self.targets
        present = np.unique(self.targets)
        return float(np.mean([right[self.targets == c].mean() for c in present]))

    @property
    def recall(self) -> float:
        """Share told rightly of people of one class; NaN where there are several."""
        one = len(np.unique(self.targets)) == 1
        return self.balanced_accuracy if one else float("nan")

    def row(self) -> dict[str, float]:
        """Return every number of these people by name.

        People without every class have no ``auc`` (NaN), people of a single class a
        ``recall`` instead.
        """
        right = self.probabilities.argmax(1) == self.targets
        return {
            "n": len(self.ids),
            "loss": self.loss,
            "accuracy": float(right.mean()),
            "balanced_accuracy": self.balanced_accuracy,
            "auc": self.auc,
            "recall": self.recall,
        }


@dataclass(frozen=True, eq=False)
class Estimates(Said):
    """Numbers, in the units of the target.

    Attributes:
        ids: Participant ids, length ``n``.
        targets: Shape ``[n]``.
        values: What was predicted, shape ``[n]``.
        sd: Of the target of those people that each prediction was learned from, shape
            ``[n]``; the loss is in its units.
        huber: Whether the loss is Huber's, else the squared error.
    """

    values: Array
    sd: Array
    huber: bool = False

    @property
    def losses(self) -> Array:
        """Squared error of each person in SDs of the target, or Huber's, ``[n]``."""
        error = np.abs(self.targets - self.values) / self.sd
        if not self.huber:
            return error**2
        far = HUBER_AT * (error - HUBER_AT / 2)
        return np.where(error <= HUBER_AT, error**2 / 2, far)

    @property
    def strata(self) -> NDArray[np.int64]:
        """One kind of people, shape ``[n]``."""
        return np.zeros(len(self.ids), dtype=np.int64)

    @property
    def columns(self) -> dict[str, Array]:
        """The predicted numbers."""
        return {"predicted": self.values}

    @property
    def r2(self) -> float:
        """Coefficient of determination: 1 less squared errors over those of the mean.

        The mean is that of these very people. NaN where all have one target.
        """
        if np.ptp(self.targets) == 0:
            return float("nan")
        spread = ((self.targets - self.targets.mean()) ** 2).sum()
        return float(1 - ((self.targets - self.values) ** 2).sum() / spread)

    @property
    def mae(self) -> float:
        """Mean absolute error, in the units of the target."""
        return float(np.abs(self.targets - self.values).mean())

    @property
    def pearson(self) -> float:
        """Correlation of predicted and true; NaN where either is the same for all."""
        if np.ptp(self.targets) == 0 or np.ptp(self.values) == 0:
            return float("nan")
        return float(np.corrcoef(self.targets, self.values)[0, 1])

    def row(self) -> dict[str, float]:
        """Return every number of these people by name.

        People of one target have neither ``r2`` nor ``pearson`` (NaN).
        """
        return {
            "n": len(self.ids),
            "loss": self.loss,
            "r2": self.r2,
            "mae": self.mae,
            "pearson": self.pearson,
        }


def _area(positive: NDArray[np.bool_], scores: Array) -> float:
    """Area under the ROC curve as the share of pairs told rightly; half for a tie.

    By ranks (Mann & Whitney 1947): the curve itself takes twenty times as long, and
    each epoch asks for every fold and group.
    """
    n, some = len(positive), int(positive.sum())
    above = rankdata(scores)[positive].sum() - some * (some + 1) / 2
    return float(above / (some * (n - some)))
