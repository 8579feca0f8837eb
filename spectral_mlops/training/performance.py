"""How well held-out people are predicted, overall and per group."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, roc_auc_score


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
        said = self.probabilities.argmax(1)
        return float(balanced_accuracy_score(self.targets, said))

    def per_group(self, labels: Sequence[str]) -> pd.DataFrame:
        """Loss and accuracy per group.

        Args:
            labels: Group of each person, length ``n``.

        Returns:
            Columns ``group, n, loss, accuracy``; the first row is ``all``.
        """
        right = self.probabilities.argmax(1) == self.targets
        table = pd.DataFrame(
            {
                "group": list(labels),
                "loss": self.losses,
                "accuracy": right.astype(float),
            }
        )
        groups = table.groupby("group").agg(
            n=("loss", "size"), loss=("loss", "mean"), accuracy=("accuracy", "mean")
        )
        whole = pd.DataFrame(
            {
                "group": ["all"],
                "n": [len(table)],
                "loss": [self.loss],
                "accuracy": [float(right.mean())],
            }
        )
        return pd.concat([whole, groups.reset_index()], ignore_index=True)
