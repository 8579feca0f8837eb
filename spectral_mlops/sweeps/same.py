"""What decides a study's numbers, and the refusal of a visit that would change it.

Trials of one study are compared with each other. A later visit may run elsewhere, on
more processes, for more trials; people, settings, space and objective stay.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna

from spectral_mlops.cohorts import check_cohort
from spectral_mlops.config import RunConfig
from spectral_mlops.errors import InputError
from spectral_mlops.models import check_model
from spectral_mlops.sweeps.objective import Judgement
from spectral_mlops.sweeps.recipe import Recipe
from spectral_mlops.sweeps.space import Space
from spectral_mlops.training import Plan

FREE = "tracking"
"""Settings that change no number of a trial: where it is tracked."""
SHOWN = 20
"""Characters of a digest in a message."""
CHOSEN = {"cohort": check_cohort, "model": check_model}
"""Settings that are those of a name, with defaults of its own."""


def check_settings(study: str, recipe: Recipe, config: RunConfig) -> None:
    """Refuse settings that would give a study's trials other numbers.

    What a path leads to is compared by its contents, once that is read (`people_of`).

    Args:
        study: Its name.
        recipe: What the study keeps of itself.
        config: Of this visit.

    Raises:
        InputError: Naming the first setting that differs, as it was and as it is.
    """
    kept = RunConfig.model_validate({**recipe.settings, FREE: {}})
    changed = list(_changed(kept, config))
    if not changed:
        return
    name, was, given = changed[0]
    more = f" (and {len(changed) - 1} more differ)" if len(changed) > 1 else ""
    raise InputError(
        f"Study '{study}' was made with {name}={_text(was)}, and here it is "
        f"{_text(given)}{more}: its trials would not be comparable; leave it out, or "
        "choose another --study."
    )


def people_of(plan: Plan) -> dict[str, str]:
    """Return whom a study is about, and by which relabellings they are compared."""
    settings = plan.config.comparison
    folds = hashlib.sha256()
    for fold in plan.folds:
        for ids in (fold.train_ids, fold.validation_ids):
            folds.update("\n".join([*ids, ""]).encode() + b"\0")
    return {
        "cohort": plan.cohort.digest,
        "probe": plan.probe.digest if plan.probe else "none",
        "set of folds": folds.hexdigest(),
        "set of relabellings": (
            f"{settings.permutations}, seed {settings.seed}, {settings.divergence}"
        ),
    }


def search_of(space: Space, judgement: Judgement) -> dict[str, str]:
    """Return what a study searches, and for what."""
    tau = f" ≤ {judgement.tau:g}" if judgement.objective == "constrained" else ""
    return {
        "search space": space.digest,
        "objective": f"{judgement.objective}{tau}",
        "primary quantity": judgement.quantity,
    }


def check_same(study: optuna.Study, about: str, mine: Mapping[str, str]) -> None:
    """Write down what a study is about, or refuse what is not that.

    Args:
        study: Any.
        about: User attribute it is kept in.
        mine: Of this visit; from `people_of` or `search_of`.

    Raises:
        InputError: Naming what differs.
    """
    known: dict[str, Any] = study.user_attrs.get(about, {})
    if not known:
        study.set_user_attr(about, dict(mine))
        return
    for what, here in mine.items():
        there = known.get(what, here)  # an older study may not have kept it
        if there != here:
            raise InputError(
                f"Study '{study.study_name}' was made with another {what} "
                f"({there[:SHOWN]} there, {here[:SHOWN]} here): its trials would not "
                "be comparable; choose another --study."
            )


def _changed(kept: RunConfig, given: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Give dotted name, old and new value of every setting that differs."""
    for section in RunConfig.model_fields:
        if section == FREE:
            continue
        was, now = getattr(kept, section), getattr(given, section)
        if section not in CHOSEN:
            yield from _unequal(section, dict(was), dict(now))
        elif was.name != now.name:
            yield f"{section}.name", was.name, now.name
        else:
            both = (dict(CHOSEN[section](chosen)) for chosen in (was, now))
            yield from _unequal(f"{section}.settings", *both)


def _unequal(
    section: str, was: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    for name, old in was.items():
        new = now.get(name)
        if old != new and not (_has_path(old) or _has_path(new)):
            yield f"{section}.{name}", old, new


def _has_path(value: Any) -> bool:
    parts = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(part, Path) for part in parts)


def _text(value: Any) -> str:
    """Return a value as it stands in a file of settings; ``none`` is not given."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
