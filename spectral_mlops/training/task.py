"""What networks learn: classes, or a number; everything that differs between the two.

The loop, the folds and the intervals ask the run's `Task` and know neither.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, huber_loss, mse_loss

from spectral_mlops.config import TrainingConfig
from spectral_mlops.tracking.measures import CLASSIFICATION, REGRESSION, Measures
from spectral_mlops.training.intervals import METRICS, METRICS_OF_NUMBERS, Metric
from spectral_mlops.training.performance import (
    HUBER_AT,
    Estimates,
    Predictions,
    Said,
)

Array = NDArray[np.float64]
Rows = NDArray[np.floating]
Fitted = Callable[[tuple[str, ...], NDArray[Any], Rows], Said]
"""A simple model: of ids, targets and rows ``[n, d]`` it gives what it says."""
THIRDS = ("low", "middle", "high")


@dataclass(frozen=True)
class TargetScale:
    """Mean and SD of the target of some training people; 0 and 1 of classes."""

    mean: float = 0.0
    sd: float = 1.0


class Task(ABC):
    """One kind of target.

    Attributes:
        outputs: Of the network.
        measures: Names of the numbers that tell how well people are predicted.
        metrics: The same for weighted people, by name.
        features: Strength of the simple model of features.
        confounds: Strength of that of confounds.
    """

    outputs: int
    measures: Measures
    metrics: Mapping[str, Metric]
    features: float
    confounds: float

    @abstractmethod
    def scale(self, targets: NDArray[Any]) -> TargetScale:
        """Fit what targets are learned in, on training people ``[n]``."""

    @abstractmethod
    def learned(self, targets: NDArray[Any], scale: TargetScale) -> NDArray[Any]:
        """Return targets as the loss takes them, shape ``[n]``."""

    @abstractmethod
    def strata(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        """Return what groups' labels stay within: classes, or thirds, shape ``[n]``.

        Args:
            targets: Of everybody.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the sum of everybody's loss, or of what is weighted by class.

        Args:
            outputs: Shape ``[N, outputs]``.
            targets: From `learned`, shape ``[N]``.
            weights: Of each class; none if all weigh the same.
        """

    @abstractmethod
    def mean_loss(
        self, outputs: Tensor, targets: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Return the mean of everybody's loss; see `loss`."""

    @abstractmethod
    def said(
        self,
        ids: tuple[str, ...],
        targets: NDArray[Any],
        outputs: Tensor,
        scale: TargetScale,
    ) -> Said:
        """Return what a network says of people, in the units of the target.

        Args:
            ids: Of the people, length ``n``.
            targets: Their own, shape ``[n]``.
            outputs: Of the network, shape ``[n, outputs]``.
            scale: Of its training people.
        """

    @abstractmethod
    def fit(self, rows: Rows, targets: NDArray[Any], strength: float) -> Fitted:
        """Fit a simple model.

        Args:
            rows: Of training people, shape ``[n, d]``.
            targets: Their own, shape ``[n]``.
            strength: `features` or `confounds`; the inverse of the L2 penalty.
        """


class Classification(Task):
    """Classes, learned by cross-entropy.

    Args:
        classes: How many.
    """

    measures = CLASSIFICATION
    metrics = METRICS
    features = 10.0  # of rows of mean square length 1 (C = 10/d in z-scores)
    confounds = 1.0
    STEPS = 5000

    def __init__(self, classes: int) -> None:
        self.outputs = classes

    def scale(self, targets: NDArray[Any]) -> TargetScale:
        """Nothing is scaled."""
        return TargetScale()

    def learned(self, targets: NDArray[Any], scale: TargetScale) -> NDArray[Any]:
        """Class numbers as they are."""
        return targets

    def strata(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        """Classes."""
        return targets

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Cross-entropy in nats."""
        return cross_entropy(outputs, targets, weights, reduction="sum")

    def mean_loss(
        self, outputs: Tensor, targets: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Cross-entropy in nats."""
        return cross_entropy(outputs, targets, weights)

    def said(
        self,
        ids: tuple[str, ...],
        targets: NDArray[Any],
        outputs: Tensor,
        scale: TargetScale,
    ) -> Predictions:
        """Probabilities."""
        return Predictions(ids, targets, outputs.double().softmax(1).cpu().numpy())

    def fit(self, rows: Rows, targets: NDArray[Any], strength: float) -> Fitted:
        """Logistic regression with an L2 penalty."""
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=strength, max_iter=self.STEPS).fit(rows, targets)

        def say(ids: tuple[str, ...], true: NDArray[Any], rows: Rows) -> Predictions:
            probabilities = np.zeros((len(ids), self.outputs))
            probabilities[:, model.classes_] = model.predict_proba(rows)
            return Predictions(ids, true, probabilities)

        return say


class Regression(Task):
    """One number, learned in SDs of the training people's around their mean.

    Args:
        huber: Whether by Huber's loss, linear from an error of one SD; else by the
            squared error.
    """

    outputs = 1
    measures = REGRESSION
    metrics = METRICS_OF_NUMBERS
    # Of rows of mean square length 1: as if features explained half of the variance.
    features = 1.0
    confounds = 1.0

    def __init__(self, huber: bool = False) -> None:
        self.huber = huber

    def scale(self, targets: NDArray[Any]) -> TargetScale:
        """Mean and SD."""
        return TargetScale(float(targets.mean()), float(targets.std()))

    def learned(self, targets: NDArray[Any], scale: TargetScale) -> NDArray[Any]:
        """Z-scores, float32."""
        return ((targets - scale.mean) / scale.sd).astype(np.float32)

    def strata(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        """Thirds of everybody, 0 to 2; equal targets are in one third."""
        lower, upper = np.quantile(targets, [1 / 3, 2 / 3])
        return (targets > lower).astype(np.int64) + (targets > upper)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Squared errors in SDs, or Huber's."""
        return self._loss(outputs, targets, "sum")

    def mean_loss(
        self, outputs: Tensor, targets: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Squared errors in SDs, or Huber's."""
        return self._loss(outputs, targets, "mean")

    def said(
        self,
        ids: tuple[str, ...],
        targets: NDArray[Any],
        outputs: Tensor,
        scale: TargetScale,
    ) -> Estimates:
        """Numbers."""
        z = outputs.double().flatten().cpu().numpy()
        return self._estimates(ids, targets, z, scale)

    def fit(self, rows: Rows, targets: NDArray[Any], strength: float) -> Fitted:
        """Ridge regression of the z-scored target."""
        from sklearn.linear_model import Ridge

        scale = self.scale(targets)
        z = (targets - scale.mean) / scale.sd
        model = Ridge(alpha=1 / strength).fit(rows, z)

        def say(ids: tuple[str, ...], true: NDArray[Any], rows: Rows) -> Estimates:
            return self._estimates(ids, true, model.predict(rows), scale)

        return say

    def _loss(self, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        said = outputs.float().flatten()
        if self.huber:
            return huber_loss(said, targets, reduction=reduction, delta=HUBER_AT)
        return mse_loss(said, targets, reduction=reduction)

    def _estimates(
        self, ids: tuple[str, ...], targets: NDArray[Any], z: Array, scale: TargetScale
    ) -> Estimates:
        values = scale.mean + scale.sd * z
        return Estimates(ids, targets, values, np.full(len(ids), scale.sd), self.huber)


def task_of(config: TrainingConfig, classes: int) -> Task:
    """Return the task that the settings name.

    Args:
        config: Settings of the training.
        classes: How many the target has, if it has any.
    """
    if config.task == "regression":
        return Regression(config.loss == "huber")
    return Classification(classes)
