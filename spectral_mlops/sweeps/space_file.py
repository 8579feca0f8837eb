"""Search spaces as data: a TOML file of ranges, choices, layers and branches.

``[space."training.learning_rate"]`` holds one of three forms: a range (``low``,
``high``, ``log``, ``step``), ``choices``, or layers (``depth``, ``width``, ``taper``),
which draw a list of widths. Where ``model.name`` is ``lstm`` alone applies
``[space."model.name".when.lstm."model.settings.width"]``. A space may also be a
function: ``space = "module:function"``.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from pydantic import Field, PositiveInt, model_validator

from spectral_mlops.config import Settings, merge, read_toml, validate
from spectral_mlops.errors import InputError
from spectral_mlops.models.imported import import_function
from spectral_mlops.sweeps.space import (
    Draw,
    Space,
    built_in,
    corners_of,
    digest_of,
    nested,
)

Objective = Literal["auc", "auc,divergence", "constrained", "r2", "r2,divergence"]
Scalar = bool | int | float | str
FIRST_DRAWS = 3
MAY_VARY = ("model", "training")
FIXED = ("folds", "repeats", "seed", "seeds", "split", "splits", "task", "target")
"""Settings of training that decide who is in which fold, and what is learned: one
study, one answer."""


class Range(Settings):
    """Numbers from ``low`` to ``high``; whole ones if both ends are."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _ends_fit(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log=true needs low above 0, and it is {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log=true and step do not go together")
        if self.whole and isinstance(self.step, float):
            raise ValueError(f"step={self.step} between whole numbers; write low=0.0")
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, trial: Any, name: str) -> Any:
        """Draw one number."""
        if self.whole:
            step = 1 if self.step is None else self.step
            return trial.suggest_int(name, self.low, self.high, step=step, log=self.log)
        ends = float(self.low), float(self.high)
        return trial.suggest_float(name, *ends, step=self.step, log=self.log)


class Choices(Settings):
    """Values to choose from; a list among them is one value."""

    choices: tuple[Scalar | list[Scalar], ...] = Field(min_length=1)
    when: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _branches_are_choices(self) -> "Choices":
        texts = [_text(choice) for choice in self.choices]
        if len(set(texts)) < len(texts):
            raise ValueError("a choice stands there twice")
        for name in self.when:
            if name not in texts:
                raise ValueError(
                    f"when.{name} belongs to no choice; there are {', '.join(texts)}"
                )
        return self

    def draw(self, trial: Any, name: str) -> Any:
        """Draw one value."""
        # Optuna keeps plain values only: lists go in as their text.
        plain = {_text(x) if isinstance(x, list) else x: x for x in self.choices}
        return plain[trial.suggest_categorical(name, list(plain))]


class Layers(Settings):
    """Widths of a stack of layers, from its depth and the first width."""

    depth: tuple[PositiveInt, PositiveInt]
    width: tuple[PositiveInt, ...] = Field(min_length=1)
    taper: float = Field(1.0, gt=0, description="of each width to the one before")
    narrowest: PositiveInt = 1

    @model_validator(mode="after")
    def _depth_rises(self) -> "Layers":
        if self.depth[0] > self.depth[1]:
            raise ValueError(f"depth={list(self.depth)}: write the smaller end first")
        return self

    def draw(self, trial: Any, name: str) -> list[int]:
        """Draw ``depth`` widths."""
        depth = trial.suggest_int(f"{name}.depth", *self.depth)
        width = trial.suggest_categorical(f"{name}.width", list(self.width))
        return [
            max(self.narrowest, round(width * self.taper**layer))
            for layer in range(depth)
        ]


Form = Range | Choices | Layers
Tree = dict[str, tuple[Form, dict[str, "Tree"]]]
"""Per setting its form, and what is drawn beside each choice."""


class SweepSettings(Settings):
    """How trials are judged."""

    objective: Objective | None = Field(
        None, description="of the task, auc or r2, if not given"
    )
    tau: float = Field(2.0, description="constrained: largest divergence, z")


class SweepFile(Settings):
    """All of ``sweep.toml``."""

    sweep: SweepSettings = SweepSettings()
    space: dict[str, dict[str, Any]] | str | None = None


def read_sweep(
    path: Path | None, flags: Mapping[str, Any]
) -> tuple[Space | None, SweepSettings]:
    """Read a search space and how trials are judged.

    Args:
        path: A TOML file with ``space`` and ``sweep``.
        flags: Laid over its ``sweep``.

    Returns:
        The space (``None``: none was given) and the settings.

    Raises:
        InputError: If the file, a range, a choice or a branch cannot be used.
    """
    where = str(path or "options")
    given = merge(read_toml(path) if path else {}, {"sweep": dict(flags)})
    file = validate(SweepFile, given, where)
    if path is not None and not file.space:
        raise InputError(
            f'{where}: it has no [space]; write [space."training.learning_rate"] with '
            "low and high, or leave --space out for the built-in one."
        )
    if file.space is None or isinstance(file.space, str):
        return (function_space(file.space) if file.space else None), file.sweep
    return data_space(file.space, where), file.sweep


def data_space(tables: Mapping[str, Mapping[str, Any]], where: str) -> Space:
    """Return the space that tables describe.

    Args:
        tables: Per dotted setting its form.
        where: File, for messages.

    Raises:
        InputError: If a table cannot be used, or a setting may not vary.
    """
    tree = _tree(tables, where, ())
    _check_names(tree, where)

    def draw(trial: Any) -> dict[str, Any]:
        return nested(dict(_drawn(tree, trial, "")))

    return Space(where, digest_of(tables), draw, corners_of(draw), content=tables)


def function_space(name: str) -> Space:
    """Return the space of a user's own function of the trial.

    Args:
        name: ``module:function``, found from the current folder too. It takes an
            Optuna trial and returns settings, nested or by dotted names.

    Raises:
        InputError: If it cannot be imported.
    """
    function = import_function(name, "space")

    def draw(trial: Any) -> dict[str, Any]:
        drawn = function(trial)
        if not isinstance(drawn, Mapping):
            raise InputError(
                f"space '{name}' returned {type(drawn).__name__}: return settings, "
                'such as {"training.learning_rate": 1e-3}.'
            )
        _check_settings(drawn, name)
        return nested(drawn)

    digest = digest_of([name, _source(function)])
    first = _first_draws(draw, name)
    return Space(f"space '{name}'", digest, draw, first, content=name)


def space_of(content: Any, where: str) -> Space:
    """Return the space of a `Space.content`.

    Raises:
        InputError: If it cannot be used here.
    """
    if content is None:
        return built_in()
    if isinstance(content, str):
        return function_space(content)
    return data_space(content, where)


def _first_draws(draw: Draw, name: str) -> tuple[Mapping[str, Any], ...]:
    """Draw a few times in a study that is thrown away, so that mistakes show."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # nobody wants to hear of it
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    try:
        return tuple(draw(study.ask()) for _ in range(FIRST_DRAWS))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"space '{name}': drawing from it failed: {type(error).__name__}: {error}."
        ) from error


def _drawn(tree: Tree, trial: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Draw settings, those of a branch named after their choice.

    Two branches may draw one setting from other ranges, which Optuna allows under
    other names only.
    """
    for setting, (form, branches) in tree.items():
        value = form.draw(trial, prefix + setting)
        yield setting, value
        chosen = _text(value)
        if chosen in branches:
            yield from _drawn(branches[chosen], trial, f"{prefix}{chosen}/")


def _tree(
    tables: Mapping[str, Mapping[str, Any]], where: str, above: tuple[str, ...]
) -> Tree:
    tree: Tree = {}
    for setting, table in tables.items():
        place = f'{where}: space."{setting}"'
        _check_settings([setting], where)
        if setting in above:
            raise InputError(f"{place} is drawn already where this branch begins.")
        form = _form(table, place)
        beside = (*above, *tables)
        branches = form.when if isinstance(form, Choices) else {}
        tree[setting] = (
            form,
            {choice: _tree(below, where, beside) for choice, below in branches.items()},
        )
    return tree


def _form(table: Any, place: str) -> Form:
    """Tell a range, choices and layers apart by what they must have."""
    kinds: dict[str, type[Any]] = {"choices": Choices, "depth": Layers, "low": Range}
    if not isinstance(table, Mapping):
        raise InputError(f"{place}={table!r}: write a table, such as {{choices=[…]}}.")
    for key, kind in kinds.items():
        if key in table:
            return validate(kind, table, place)
    raise InputError(
        f"{place}: give low and high, choices, or depth and width; it has "
        f"{', '.join(table) or 'nothing'} (names with dots stand in quotes)."
    )


def _check_settings(names: Any, where: str) -> None:
    """Refuse what would make trials of one study about other people."""
    for name in names:
        first, _, rest = str(name).partition(".")
        if first not in MAY_VARY or rest in FIXED:
            raise InputError(
                f"{where}: '{name}' may not vary within a study, whose trials share "
                f"people, folds and comparison; settings of {' and '.join(MAY_VARY)} "
                f"may (but {', '.join(FIXED)})."
            )


def _check_names(tree: Tree, where: str) -> None:
    """Refuse two settings under one name of Optuna's."""
    seen: set[str] = set()

    def walk(part: Tree, prefix: str) -> None:
        for setting, (_, branches) in part.items():
            if prefix + setting in seen:
                raise InputError(
                    f"{where}: '{setting}' stands in two branches of one name "
                    f"('{prefix}'); rename one choice, or draw it once above both."
                )
            seen.add(prefix + setting)
            for choice, below in branches.items():
                walk(below, f"{prefix}{choice}/")

    walk(tree, "")


def _text(value: Any) -> str:
    """Return a choice as a TOML key would write it."""
    return value if isinstance(value, str) else json.dumps(value)


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # not written in Python, or not in a file
        return ""
