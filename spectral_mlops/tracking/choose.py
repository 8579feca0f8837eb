"""Which tracker a run's settings mean."""

from pathlib import Path

from spectral_mlops.tracking.base import Tracker
from spectral_mlops.tracking.spooled import Notice, SpoolTracker

NONE, SPOOL = "none", "spool"


def open_tracker(
    tracking: str | None,
    experiment: str | None = None,
    folder: str | Path | None = None,
    *,
    notice: Notice | None = None,
) -> Tracker:
    """Return the tracker that ``--tracking`` names.

    Args:
        tracking: ``none`` (nothing is kept but what the run itself leaves in its
            folder), ``spool`` (the folder alone; ``spectral-mlops sync`` can send it
            later), or the address of an MLflow store (see `open_store`).
        experiment: See `MlflowTracker`.
        folder: The run's.
        notice: See `SpoolTracker`.
    """
    if tracking == NONE:
        from spectral_mlops.tracking.memory import NoTracker

        return NoTracker()
    if tracking == SPOOL:
        return SpoolTracker(folder, notice=notice)
    from spectral_mlops.tracking.mlflow import MlflowTracker

    return MlflowTracker(
        experiment=experiment, tracking_uri=tracking, folder=folder, notice=notice
    )
