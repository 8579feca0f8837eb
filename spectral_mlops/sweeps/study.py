"""Studies in Optuna's storage: made, opened again, read as a table."""

from collections.abc import Sequence
from pathlib import Path

import optuna
import pandas as pd
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from spectral_mlops.errors import InputError
from spectral_mlops.registry import nearest
from spectral_mlops.sweeps.objective import Judgement, experimental
from spectral_mlops.sweeps.stale import why_failed
from spectral_mlops.sweeps.storage import open_storage
from spectral_mlops.tracking.checks import redacted


def open_study(
    name: str, storage: str, judgement: Judgement, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """Make a study, or open the one of that name.

    Args:
        name: Of the study.
        storage: Address of a database.
        judgement: How its trials are judged.
        pruner: Which trials are stopped early (`stopping.Stopping`).

    Raises:
        InputError: If Optuna cannot use the storage.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            study_name=name,
            storage=open_storage(storage),
            directions=judgement.directions,
            pruner=pruner,
            load_if_exists=True,
        )
    except (SQLAlchemyError, ValueError, ImportError) as error:
        raise _unusable(storage, error) from error
    if not study.user_attrs:
        with experimental():
            study.set_metric_names(judgement.names)
        study.set_user_attr("optuna", optuna.__version__)
    return study


def read_study(name: str, storage: str) -> optuna.Study:
    """Open a study that exists.

    Raises:
        InputError: If Optuna cannot use the storage, or has no such study in it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if _no_file(storage):
            names = []
        else:
            opened = open_storage(storage)
            names = optuna.get_all_study_names(storage=opened)
        if name in names:
            return optuna.load_study(study_name=name, storage=opened)
    except (SQLAlchemyError, ValueError, ImportError) as error:
        raise _unusable(storage, error) from error
    raise InputError(
        f"There is no study '{name}' in {redacted(storage)}; there is "
        f"{', '.join(names) or 'none'}.{nearest(name, names)}"
    )


def _no_file(storage: str) -> bool:
    """Tell an SQLite file that is not there, which opening would make."""
    url = make_url(storage)
    file = url.database if url.get_backend_name() == "sqlite" else None
    return bool(file) and not Path(str(file)).exists()


def trials_table(
    study: optuna.Study, quantities: Sequence[str], accuracy: str = "auc"
) -> pd.DataFrame:
    """Return one row per trial.

    Args:
        study: Any.
        quantities: Whose divergences are shown.
        accuracy: What accuracy is measured by, ``auc`` or ``r2``.

    Returns:
        Columns ``trial, state``, the accuracy's, one per parameter,
        ``divergence.<quantity>``, ``run, infeasible, error``. The accuracy of a trial
        that was pruned is its last.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        first = trial.values[0] if trial.values else None
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name,
                accuracy: attributes.get(accuracy, first),
                **trial.params,
                **{
                    f"divergence.{quantity}": attributes.get(f"divergence.{quantity}")
                    for quantity in quantities
                },
                "run": attributes.get("mlflow.run_id"),
                "infeasible": attributes.get("infeasible"),
                "error": why_failed(trial),
            }
        )
    return pd.DataFrame(rows)


def _unusable(storage: str, error: Exception) -> InputError:
    reason = redacted(str(error).strip().splitlines()[0][:300])
    return InputError(
        f"--storage {redacted(storage)}: Optuna cannot use it ({reason}); a file here "
        "is sqlite:///optuna.db."
    )
