"""How well held-out people are predicted, overall and per group."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of some people.

    Attributes:
        ids: Participant ids, length ``n``.
        targets: Class numbers, shape ``[n]``.
        probabilities: Shape ``[n, classes]``; rows sum to 1.
    """

    ids: tuple[str, ...]
    targets: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @classmethod
    def join(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Put people of several folds together."""
        return cls(
            tuple(who for part in parts for who in part.ids),
            np.concatenate([part.targets for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
        )

    @property
    def losses(self) -> NDArray[np.float64]:
        """Cross-entropy of each person, in nats, shape ``[n]``."""
        said = self.probabilities[np.arange(len(self.targets)), self.targets]
        return -np.log(np.clip(said, np.finfo(np.float64).tiny, None))

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self.losses.mean())

    @property
    def auc(self) -> float:
        """Area under the ROC curve (several classes: one against the rest, macro).

        NaN where a class is absent.
        """
        classes = self.probabilities.shape[1]
        if len(np.unique(self.targets)) < classes:
            return float("nan")
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

    def of(self, chosen: NDArray[np.bool_]) -> "Predictions":
        """Return those of some people, ``chosen`` of shape ``[n]``."""
        ids = tuple(who for who, take in zip(self.ids, chosen, strict=True) if take)
        return Predictions(ids, self.targets[chosen], self.probabilities[chosen])

    def per_group(self, labels: Sequence[str]) -> pd.DataFrame:
        """How well each group is predicted.

        Args:
            labels: Group of each person, length ``n``.

        Returns:
            Columns ``group, n, loss, accuracy, balanced_accuracy, auc, recall``; the
            first row is ``all``. A group without people of every class has no ``auc``
            (NaN), one with people of a single class has a ``recall`` instead. AUC of
            people of several folds compares what several networks say.
        """
        names = np.array(list(labels), dtype=np.str_)
        parts = [("all", self)]
        parts += [(str(g), self.of(names == g)) for g in np.unique(names)]
        return pd.DataFrame([{"group": name, **part.row()} for name, part in parts])

    def row(self) -> dict[str, float]:
        """Return every number of these people by name."""
        right = self.probabilities.argmax(1) == self.targets
        return {
            "n": len(self.ids),
            "loss": self.loss,
            "accuracy": float(right.mean()),
            "balanced_accuracy": self.balanced_accuracy,
            "auc": self.auc,
            "recall": self.recall,
        }
