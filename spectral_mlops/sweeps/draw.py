"""From what was drawn to a plan: settings laid over the study's own, and checked."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna

from spectral_mlops.cohorts import inputs_of, layout_for
from spectral_mlops.config import RunConfig, merge, validate
from spectral_mlops.errors import InputError, UnknownNameError
from spectral_mlops.models import check_built, check_model, model_entry
from spectral_mlops.sweeps.space import Space
from spectral_mlops.sweeps.space_file import MAY_VARY
from spectral_mlops.training import Plan


class UnusableDraw(ValueError):
    """Drawn settings that do not go together: this trial fails, others may not."""


def settle(base: RunConfig, drawn: Mapping[str, Any], where: str) -> RunConfig:
    """Lay drawn settings over the study's; another model has settings of its own.

    Args:
        base: What every trial starts from.
        drawn: Nested settings.
        where: For messages.

    Raises:
        InputError: If a setting is unknown or impossible.
    """
    settings = base.model_dump(mode="json")
    name = drawn.get("model", {}).get("name", base.model.name)
    if name != base.model.name:
        settings["model"] = {"name": name, "settings": {}}
    config = validate(RunConfig, merge(settings, drawn), where)
    model = check_model(config.model).model_dump(mode="json")
    resolved = merge(config.model_dump(mode="json"), {"model": {"settings": model}})
    return validate(RunConfig, resolved, where)


def plan_with(plan: Plan, config: RunConfig) -> Plan:
    """Return the study's plan with a trial's settings.

    Raises:
        InputError: If the model does not take these people, or cannot be built.
    """
    name = config.model.name
    layout = layout_for(plan.cohort, model_entry(name).takes, name)
    check_built(config.model, inputs_of(plan.cohort, layout), plan.task.outputs)
    return replace(plan, config=config)


def draw_plan(trial: optuna.Trial, space: Space, plan: Plan, config: RunConfig) -> Plan:
    """Draw a trial's settings; all else is the study's.

    Args:
        trial: Running.
        space: The study's.
        plan: The study's, with the settings of the space's first corner.
        config: What every trial starts from.

    Raises:
        UnusableDraw: If no run can be made of what was drawn.
    """
    try:
        study = plan.config.model_dump(mode="json")
        for vary in MAY_VARY:
            study[vary] = getattr(config, vary).model_dump(mode="json")
        study["tracking"]["profile"] = "sweep"
        base = validate(RunConfig, study, "study")
        return plan_with(
            plan, settle(base, space.suggest(trial), f"trial {trial.number}")
        )
    except (InputError, UnknownNameError) as error:
        raise UnusableDraw(str(error)) from error


def settled_corners(space: Space, config: RunConfig) -> list[RunConfig]:
    """Return settings at the corners of a space, before people are loaded.

    Raises:
        InputError: If some corner cannot be used, or the space is not for this model.
    """
    if space.model is not None and config.model.name != space.model:
        raise InputError(
            f"{space.source} is for the model '{space.model}', and model.name is "
            f"'{config.model.name}': write a space of its own for --space."
        )
    return [settle(config, corner, space.source) for corner in space.corners]
