"""Which numbers tell how well people are predicted, by task, and what they are called.

A run's settings say its task (``training.task``); whoever writes or reads its metrics
and tables finds their names here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WORDS = {
    "loss": "loss",
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "recall": "recall",
    "r2": "R²",
    "mae": "mean absolute error",
    "pearson": "correlation",
}
"""What a measure is called."""


@dataclass(frozen=True)
class Measures:
    """The measures of one task; names are keys of `WORDS`.

    Attributes:
        task: As in ``training.task``.
        overall: Of everyone, ``val/<name>`` and ``final/<name>``; the first is the
            headline, of which larger is better.
        lower: Those of which smaller is better, beside the loss.
        judged: Also of the probe, ``final/probe_<name>``, and of simple models,
            ``baseline/<model>_<name>``.
        groups: Of each group, section ``val_<curve>/`` to name.
        told: The one a bar per group shows.
        bounded: Whether that is between 0 and 1.
        unit: Of the loss.
        linear: What the simple model of the features is.
    """

    task: str
    overall: tuple[str, ...]
    lower: tuple[str, ...]
    judged: tuple[str, ...]
    groups: Mapping[str, str]
    told: str
    bounded: bool
    unit: str
    linear: str

    @property
    def headline(self) -> str:
        """The one number that stands for all."""
        return self.overall[0]

    @property
    def words(self) -> str:
        """What the headline is called."""
        return WORDS[self.headline]


CLASSIFICATION = Measures(
    task="classification",
    overall=("auc", "balanced_accuracy"),
    lower=(),
    judged=("auc",),
    groups={
        "loss": "loss",
        "acc": "accuracy",
        "bacc": "balanced_accuracy",
        "auc": "auc",
        "recall": "recall",
    },
    told="accuracy",
    bounded=True,
    unit="nats",
    linear="L2 logistic regression",
)
REGRESSION = Measures(
    task="regression",
    overall=("r2", "mae", "pearson"),
    lower=("mae",),
    judged=("r2", "mae"),
    groups={name: name for name in ("loss", "r2", "mae", "pearson")},
    told="mae",
    bounded=False,
    unit="SDs of the target, squared",
    linear="ridge regression",
)
MEASURES = {one.task: one for one in (CLASSIFICATION, REGRESSION)}


def measures_of(settings: Mapping[str, Any]) -> Measures:
    """Return the measures of a run.

    Args:
        settings: Of the run, nested; one that says no task is of a version that knew
            classification alone.
    """
    training = settings.get("training") or {}
    return MEASURES[str(training.get("task", CLASSIFICATION.task))]
