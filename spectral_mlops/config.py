"""Settings of a run: frozen, validated, read from TOML, never executed.

A component (cohort, model) is a ``name`` and its ``settings``; the package that
owns the registry validates those before anything is written. Unknown keys are
refused with the nearest known one.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spectral_mlops.errors import InputError
from spectral_mlops.registry import nearest

Layout = Literal["vector", "matrix", "volume", "sequence", "windows"]
"""What a network takes of one person: ``vector`` ``[kept]``, ``matrix`` ``[1, n, n]``,
``volume`` ``[1, x, y, z]``, ``sequence`` ``[T, C]``, ``windows`` ``[W, T, C]``."""


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Component(Settings):
    """Something chosen by name from a registry, with the settings it takes."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)


class CohortConfig(Component):
    """Where the people come from."""

    name: str = "simulated"


class ModelConfig(Component):
    """What is trained."""

    name: str = "mlp"


class TrainingConfig(Settings):
    """The loop: how long, how fast, in which folds."""

    task: Literal["classification", "regression"] = Field(
        "classification", description="whether a class is predicted, or a number"
    )
    target: str | None = Field(
        None,
        description="regression: column of numbers that is predicted; the cohort's "
        "label column if that holds numbers",
    )
    loss: Literal["mse", "huber"] = Field(
        "mse", description="regression: squared error, or Huber's from one SD"
    )
    epochs: int = Field(30, ge=1, description="passes over the training people")
    batch_size: int = Field(16, ge=2, description="people per step")
    folds: int = Field(5, ge=2, description="stratified cross-validation folds")
    split: Literal["stratified", "site"] = Field(
        "stratified",
        description="folds over target × site (of numbers, thirds × group × site), or "
        "one site left out each",
    )
    repeats: int = Field(1, ge=1, description="of the stratified folds, drawn anew")
    splits: Path | None = Field(
        None,
        description="folder with probe and folds to use, such as RUN/splits; nothing "
        "is drawn then",
    )
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(1e-3, ge=0)
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd")
    schedule: Literal["constant", "cosine", "step", "one-cycle"] = Field(
        "constant", description="of the learning rate, step by step"
    )
    warmup: float = Field(
        0.0, ge=0, lt=1, description="share of all steps in which the rate rises"
    )
    step_epochs: int = Field(10, ge=1, description="step: epochs between two falls")
    step_factor: float = Field(0.1, gt=0, lt=1, description="step: of each fall")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: every class weighs the same in the loss"
    )
    accumulate: int = Field(1, ge=1, description="batches in a step of the optimizer")
    clip_norm: float | None = Field(
        None, gt=0, description="longest gradient of a step; any if not given"
    )
    amp: Literal["none", "bfloat16", "float16"] = Field(
        "none",
        description="precision of the training's forward passes; float16 on "
        "CUDA only, with a scaled loss",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="epochs without a lower validation loss after which a network "
        "stops; the run ends when all have stopped",
    )
    seed: int = Field(0, ge=0, description="of folds, weights and batch order")
    seeds: int = Field(
        1, ge=1, description="networks per fold: other first weights and batch orders"
    )

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> "TrainingConfig":
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"momentum={self.momentum} is of optimizer='sgd', and the optimizer is "
                f"'{self.optimizer}'"
            )
        return self

    @model_validator(mode="after")
    def _of_one_task(self) -> "TrainingConfig":
        if self.task == "regression" and self.class_weights != "none":
            raise ValueError(
                f"class_weights='{self.class_weights}' is of task='classification': a "
                "number has no classes to weigh; leave it out"
            )
        given = {"target": self.target is not None, "loss": self.loss != "mse"}
        for name in [name for name, was in given.items() if was]:
            if self.task == "classification":
                raise ValueError(
                    f"{name}='{getattr(self, name)}' is of task='regression': classes "
                    "stand in the cohort's label column; set task, or leave it out"
                )
        return self


class SpectraConfig(Settings):
    """What is watched, and how often."""

    quantities: tuple[Literal["gradient", "activation", "adjoint"], ...] = Field(
        (), description="all three if not given"
    )
    batches_per_epoch: int = Field(8, ge=1, description="evenly spaced, watched")
    layers: tuple[str, ...] | None = Field(None, description="all if not given")
    directions: int = Field(
        3, ge=0, description="of the first layer, kept at first, middle, last epoch"
    )
    influence: bool = Field(True, description="of each group's step on each group")


class ComparisonConfig(Settings):
    """How groups are compared."""

    groupings: tuple[str, ...] = Field(
        (),
        description="columns of the people table; the label column if not given",
    )
    primary_quantity: Literal["gradient", "activation", "adjoint"] | None = Field(
        None,
        description="the one outcome declared beforehand: of the first grouping, on "
        "the probe, at the checkpoints chosen by validation loss; the margin's adjoint "
        "where watched, if not given; all else is exploratory",
    )
    divergence: str = Field(
        "js", description="how two spectra are compared; see spectra.statistics"
    )
    permutations: int = Field(199, ge=19, description="subject relabellings")
    seed: int = Field(0, ge=0, description="of the relabellings")
    probe_fraction: float = Field(0.25, gt=0, lt=1, description="held-out people")
    probe_seed: int = Field(0, ge=0, description="of who is held out")
    null_budget: float = Field(
        0.05,
        ge=0,
        description="share of the epochs' time that relabelling may take (a quarter of "
        "a second per epoch at least); every k-th epoch has a null, and the first and "
        "the last",
    )
    null_epochs: int | None = Field(
        None,
        ge=1,
        description="so many epochs have a null, evenly spaced, whatever it costs; "
        "takes the place of null_budget",
    )
    effect_people: int | None = Field(
        None,
        ge=2,
        description="of each group, in every subsample behind an effect size; half of "
        "the probe's smallest group if not given; effects compare at one number only",
    )
    effect_draws: int = Field(200, ge=20, description="subsamples")


class ControlsConfig(Settings):
    """What the primary outcome is held against (``train --controls``)."""

    run: bool = Field(False, description="as --controls does")
    init: bool = Field(True, description="the untrained network")
    input_surrogate: bool = Field(
        True, description="Gaussian people with each group's mean and covariance"
    )
    loss_matched: bool = Field(True, description="people of equal loss")
    matched: bool = Field(True, description="groups of equal size")
    permuted: bool = Field(True, description="labels permuted within strata")
    pseudo: bool = Field(True, description="random halves for groups")
    unrelated_target: bool = Field(
        True, description="networks trained on a random target"
    )
    nuisance: bool = Field(True, description="age, sex, site, motion for groups")
    input_spectrum: bool = Field(True, description="the spectrum of the inputs")
    nuisance_columns: tuple[str, ...] = Field(
        (), description="columns for groups; found by name if not given"
    )
    draws: int = Field(3, ge=1, description="of surrogate people")
    level: float = Field(0.05, gt=0, lt=1, description="p at which one beats another")


class ConfoundsConfig(Settings):
    """What is taken out of features, fitted on training people; nothing by itself."""

    regress: tuple[str, ...] = Field(
        (), description="columns whose linear share is taken out: age, sex, fd, site"
    )
    harmonise: str | None = Field(
        None, description="column of sites brought to one mean and spread by ComBat"
    )


class BaselinesConfig(Settings):
    """Simple predictions beside the network's, in the same folds."""

    run: bool = Field(True, description="linear, and confounds alone; with intervals")
    columns: tuple[str, ...] = Field(
        (), description="confounds; age, sex, site, motion by name if not given"
    )
    draws: int = Field(1000, ge=100, description="of people, behind intervals")


class TrackingConfig(Settings):
    """Where the run is recorded."""

    uri: str | None = Field(
        None, description="MLflow store, none or spool; sqlite here if unset"
    )
    experiment: str | None = Field(
        None, min_length=1, description="MLflow's; spectral_mlops if unset"
    )
    profile: Literal["sweep", "standard", "full"] = Field(
        "standard", description="how many metrics and points; sweeps take sweep"
    )


class RunConfig(Settings):
    """All settings of ``spectral-mlops train``."""

    cohort: CohortConfig = CohortConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    spectra: SpectraConfig = SpectraConfig()
    comparison: ComparisonConfig = ComparisonConfig()
    controls: ControlsConfig = ControlsConfig()
    confounds: ConfoundsConfig = ConfoundsConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    tracking: TrackingConfig = TrackingConfig()

    def flat(self) -> dict[str, str | int | float | bool]:
        """Return dotted names and plain values, as MLflow parameters want them."""
        return flatten(self.model_dump(mode="json"))


Model = TypeVar("Model", bound=BaseModel)


def flatten(
    nested: Mapping[str, Any], prefix: str = ""
) -> dict[str, str | int | float | bool]:
    """Flatten nested settings into dotted names; lists become ``256-128``."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            flat[prefix + name] = "-".join(map(str, value))
        elif value is not None:
            flat[prefix + name] = value
    return flat


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` laid over it, level by level."""
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = merge(below, value)
        merged[name] = value
    return merged


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: If the file is missing or is not TOML; names the line.
    """
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from error


def validate(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Build validated settings from plain values; a text is no number, and 3.0 no 3.

    Args:
        model: The settings class.
        values: Nested plain values, as TOML gives them.
        where: File or flag group the values came from, for the message.

    Returns:
        The frozen settings.

    Raises:
        InputError: For the first key that is unknown or has an impossible value.
    """
    try:
        plain = json.dumps(dict(values), default=str)
        return model.model_validate_json(plain, strict=True)
    except ValidationError as error:
        raise InputError(_first_error(model, error, where)) from error


def _first_error(model: type[BaseModel], error: ValidationError, where: str) -> str:
    """Say the first validation error as one sentence: key, value, expectation."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = list(_fields_at(model, path[:-1]))
        return (
            f"{where}: unknown key '{key}'; known here are {', '.join(known)}."
            f"{nearest(path[-1], known)}"
        )
    if first["type"] == "missing":
        return f"{where}: '{key}' is needed and missing."
    if first["type"] == "value_error":  # settings that do not go together
        inside = f"{key}: " if key else ""
        return f"{where}: {inside}{first['ctx']['error']}."
    return f"{where}: {key}={first['input']!r} is not usable: {first['msg']}."


def _fields_at(model: type[BaseModel], path: list[str]) -> tuple[str, ...]:
    """Return the field names of the settings class that ``path`` leads to."""
    for name in path:
        annotation = model.model_fields[name].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return tuple(model.model_fields)
