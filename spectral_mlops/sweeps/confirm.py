"""The chosen trial once more, with other people held out.

A trial chosen among many looks better than it is on the people it was chosen with.
Its settings are trained again with a second probe: the first probe's people go back
to training, and others, who trained before, are held out in their place. Their
divergence had no part in the choice; the accuracy of their validation had.
"""

import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from spectral_mlops.cohorts import set_probe_aside
from spectral_mlops.config import RunConfig, merge, validate
from spectral_mlops.errors import InputError, TrackingError
from spectral_mlops.models import is_imported
from spectral_mlops.report.runs import read_run_config
from spectral_mlops.sweeps.familywise import TrialNull, finished_null, p_over_trials
from spectral_mlops.sweeps.recipe import study_measures
from spectral_mlops.sweeps.study import read_study
from spectral_mlops.tracking import open_tracker
from spectral_mlops.tracking.load import fetch_run
from spectral_mlops.training import Plan, make_plan, run
from spectral_mlops.training.loop import OnEpoch, Progress
from spectral_mlops.training.plan import STRATA, draw_folds

KEPT = "confirmed."
"""Prefix of a study's user attributes, one a trial."""
COLUMNS = ("trial", "probe", "people")
JUDGED = ("divergence", "upper", "p", "p_max")


@dataclass(frozen=True)
class Confirmed:
    """A trial on the first probe and on the second.

    Attributes:
        trial: Its number.
        run: MLflow run of the second training, empty if it has none.
        first_people: Of the study's probe.
        people: Of the second probe.
        probe: The second probe's digest.
        accuracy: Of validation people, trained again; AUC, or R² of a number.
        divergence: z on the second probe, ``None`` if it could not be formed.
        null: Its null, as `TrialNull.attributes` gives it.
    """

    trial: int
    run: str
    first_people: int
    people: int
    probe: str
    accuracy: float
    divergence: float | None
    null: dict[str, Any]


@dataclass(frozen=True)
class Confirmation:
    """What `confirm` did.

    Attributes:
        table: See `confirmations`, of this trial.
        folder: Files of the new run.
        undelivered: What MLflow did not get.
        where: How to look at it.
    """

    table: pd.DataFrame
    folder: Path
    undelivered: int
    where: str


def confirm(
    name: str,
    storage: str,
    *,
    number: int | None = None,
    runs: Path = Path("runs"),
    tracking: str | None = None,
    device: str = "cpu",
    trust: bool = False,
    progress: Progress | None = None,
    on_epoch: OnEpoch | None = None,
) -> Confirmation:
    """Train a trial's settings again with a second probe, as a run ``confirm``.

    The second probe is always the same one, so that nobody can draw until one
    pleases. What is found is kept in the study's user attributes.

    Args:
        name: Of the study.
        storage: Its database.
        number: Of the trial; the best of those allowed, by accuracy, if not given.
        runs: Folder of the study's runs.
        tracking: Where MLflow is; as the trial's settings say if not given.
        device: Where tensors live.
        trust: Whether code that the trial's settings name may run.
        progress: Told ``(what, done, total)``.
        on_epoch: Called with the epoch and its metrics.

    Raises:
        InputError: If there is no such trial, its people are not here, or they are
            too few for a second probe.
    """
    study = read_study(name, storage)
    trial = _chosen(study, number)
    with _files_of(study, trial, runs, tracking) as folder:
        config = read_run_config(folder, finished=False)
    if is_imported(config.model.name) and not trust:
        raise InputError(
            f"Trial {trial.number} names code to run, model.name='{config.model.name}':"
            " if you trust the study, and what that name is here, add --trust."
        )
    plan = make_plan(config, Path.cwd(), progress)
    _check_people(study, plan)
    second = second_plan(plan)
    assert second.probe is not None
    assert plan.probe is not None
    uri = tracking or _known(plan.config.tracking.uri)
    title = f"{name}-{trial.number:05d}-confirm"
    made = runs / f"{title}-{uuid.uuid4().hex[:8]}"
    tracker = open_tracker(uri, plan.config.tracking.experiment, made)
    tags = {
        "spectral.kind": "confirm",
        "spectral.confirms": str(trial.user_attrs.get("mlflow.run_id", "")),
        "optuna.study": name,
        "optuna.trial_number": str(trial.number),
    }
    with tracker:
        finished = run(
            second,
            tracker,
            made,
            name=title,
            tags=tags,
            on_epoch=on_epoch,
            device=device,
            progress=progress,
        )
        run_id = ""
        with suppress(TrackingError):  # a store that is away gives none
            run_id = tracker.run_id
    metrics = finished.result.metrics
    z = metrics.get(f"final/divergence_{plan.primary_quantity}", math.nan)
    null = TrialNull.of(second, finished.result)
    found = Confirmed(
        trial.number,
        run_id,
        len(plan.probe.ids),
        len(second.probe.ids),
        second.probe.digest,
        metrics[f"final/{plan.task.measures.headline}"],
        z if math.isfinite(z) else None,
        null.attributes() if null else {},
    )
    study.set_user_attr(f"{KEPT}{trial.number}", asdict(found))
    table = confirmations(study)
    mine = table[table["trial"] == trial.number]
    return Confirmation(mine, finished.folder, tracker.undelivered, tracker.where)


def second_plan(plan: Plan) -> Plan:
    """Hold others out: as many as the first probe has, none of whom is in it.

    Raises:
        InputError: If there is no first probe, the plan's splits were given, or too
            few people are left.
    """
    if plan.probe is None:
        raise InputError(f"There is no first probe. {plan.probe_note}")
    if plan.config.training.splits is not None:
        raise InputError(
            "training.splits says who is held out; a second probe would need others."
        )
    rest = plan.cohort.people.drop(index=list(plan.probe.ids))
    share = len(plan.probe.ids) / len(rest)
    settings = plan.config.comparison
    if share >= 1:
        raise InputError(
            f"comparison.probe_fraction={settings.probe_fraction:g}: outside the first "
            "probe there is no room for another of its size."
        )
    seed = settings.probe_seed + 1
    probe, note = set_probe_aside(
        rest,
        plan.primary,
        share,
        strata=(plan.cohort.target, *STRATA),
        seed=seed,
    )
    if probe is None:
        raise InputError(f"There is no second probe: outside the first, {note}")
    settings_too = {
        "comparison": {"probe_seed": seed},
        "tracking": {"profile": "standard"},
    }
    whole = merge(plan.config.model_dump(mode="json"), settings_too)
    config = validate(RunConfig, whole, "the trial's settings")
    folds = draw_folds(config, plan.cohort, probe, plan.primary)
    said = (
        f"Second probe, without the {len(plan.probe.ids)} people of the first: {note}"
    )
    return replace(
        plan, config=config, probe=probe, probe_note=said, folds=tuple(folds)
    )


def confirmations(study: optuna.Study) -> pd.DataFrame:
    """Return all confirmed trials, on the first probe and on the second.

    Returns:
        Two rows a trial, columns `COLUMNS`, the accuracy's (``auc`` or ``r2``) and
        `JUDGED`: ``p_max`` is adjusted over all finished trials on the first probe,
        over the confirmed ones on the second.
    """
    kept = sorted(
        (
            Confirmed(**value)
            for name, value in study.user_attrs.items()
            if name.startswith(KEPT)
        ),
        key=lambda one: one.trial,
    )
    accuracy = study_measures(study).headline
    trials = study.get_trials(deepcopy=False)
    quantity = study.user_attrs.get("search", {}).get("primary quantity", "adjoint")
    before = [finished_null(trial) for trial in trials]
    after = [TrialNull.read(one.null) for one in kept]
    first, second = p_over_trials(before)[0], p_over_trials(after)[0]
    rows: list[tuple[Any, ...]] = []
    for place, one in enumerate(kept):
        seen = trials[one.trial].user_attrs
        was = seen.get(accuracy), seen.get(f"divergence.{quantity}")
        null, then = before[one.trial], after[place]
        rows += [
            _row(one.trial, "first", one.first_people, *was, null, first[one.trial]),
            _row(
                one.trial,
                "second",
                one.people,
                one.accuracy,
                one.divergence,
                then,
                second[place],
            ),
        ]
    table = pd.DataFrame(rows, columns=[*COLUMNS, accuracy, *JUDGED])
    return table.astype(dict.fromkeys((accuracy, *JUDGED), float))


def _check_people(study: optuna.Study, plan: Plan) -> None:
    """Refuse people, or a first probe, that are not the study's."""
    mine = {
        "cohort": plan.cohort.digest,
        "probe": plan.probe.digest if plan.probe else "none",
    }
    known = study.user_attrs.get("people", {})
    if any(known.get(what, digest) != digest for what, digest in mine.items()):
        raise InputError(
            f"The people of {plan.cohort.source} are not those of study "
            f"'{study.study_name}', or another probe is held out: go to the folder it "
            "was made in, or restore them."
        )


def _row(
    trial: int,
    probe: str,
    people: int,
    accuracy: float | None,
    z: float | None,
    null: TrialNull | None,
    p_max: float,
) -> tuple[Any, ...]:
    p, upper = (null.p, null.upper) if null else (math.nan, math.nan)
    return trial, probe, people, accuracy, z, upper, p, p_max


def _chosen(study: optuna.Study, number: int | None) -> FrozenTrial:
    """Return the trial asked for, or the best of those allowed."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if number is not None:
        for trial in finished:
            if trial.number == number:
                return trial
        there = ", ".join(str(trial.number) for trial in finished[:20]) or "none"
        raise InputError(
            f"Study '{study.study_name}' has no finished trial {number}; there is "
            f"{there}."
        )
    allowed = [t for t in finished if not any(x > 0 for x in t.constraints.values())]
    if not allowed:
        raise InputError(
            f"No trial of study '{study.study_name}' finished and is allowed; run "
            "more, or name one with --trial."
        )
    return max(allowed, key=lambda trial: float(trial.values[0]))


@contextmanager
def _files_of(
    study: optuna.Study, trial: FrozenTrial, runs: Path, tracking: str | None
) -> Iterator[Path]:
    """Give the folder of a trial's run: here, or fetched from MLflow."""
    uid = str(trial.user_attrs.get("uid", ""))
    folder = runs / f"{study.study_name}-{trial.number:05d}-{uid[:8]}"
    if (folder / "config.json").is_file():
        yield folder
        return
    run_id = trial.user_attrs.get("mlflow.run_id")
    if run_id is None:
        raise InputError(
            f"The run of trial {trial.number} is not in {runs}, and MLflow has none; "
            "name the folder of the study's runs with --runs."
        )
    with TemporaryDirectory(prefix="spectral-") as name:
        fetch_run(str(run_id), Path(name), tracking)
        yield Path(name)


def _known(uri: str | None) -> str | None:
    """Return an address as settings have it, ``None`` if its password is hidden."""
    return None if uri is None or "***" in uri else uri
