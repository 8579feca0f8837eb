"""The loop: folds trained side by side, watched, validated, probed, tracked."""

from spectral_mlops.training.again import read_plan
from spectral_mlops.training.loop import assist, train
from spectral_mlops.training.plan import Plan, make_plan
from spectral_mlops.training.result import RunResult
from spectral_mlops.training.run import FinishedRun, run

__all__ = [
    "FinishedRun",
    "Plan",
    "RunResult",
    "assist",
    "make_plan",
    "read_plan",
    "run",
    "train",
]
