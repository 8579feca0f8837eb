"""What a trial may change: built in, written as data, or a function of the trial."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna

MAX_DEPTH = 3
BUILT_IN = "built-in 1"

Draw = Callable[[Any], Mapping[str, Any]]
"""A function of the trial that returns nested settings."""


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Draw depth, width, learning rate and dropout of the perceptron.

    The width halves from layer to layer, so that depth and width are two numbers
    whatever the depth.

    Returns:
        Nested settings to lay over a `config.RunConfig`.
    """
    depth = trial.suggest_int("depth", 1, MAX_DEPTH)
    width = trial.suggest_categorical("width", [16, 32, 64, 128])
    rate = trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True)
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    hidden = [max(8, width >> layer) for layer in range(depth)]
    return {
        "model": {"settings": {"hidden": hidden, "dropout": dropout}},
        "training": {"learning_rate": rate},
    }


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        source: Where it was written, for messages.
        digest: What tells it from others; a study has one.
        suggest: Draws settings.
        corners: Settings at the ends of every range and at every choice, each at
            least once, to be checked before the first trial.
        grouped: Whether settings may be drawn in some trials only.
        model: The model that settings belong to, if it is none of the space's own.
        content: What it was made from, plain data (`space_file.space_of`).
    """

    source: str
    digest: str
    suggest: Draw
    corners: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    grouped: bool = True
    model: str | None = None
    content: Any = field(default=None, repr=False)


def built_in() -> Space:
    """Return the space of the perceptron: depth, width, learning rate, dropout."""
    return Space("the built-in space", BUILT_IN, suggest, grouped=False, model="mlp")


def digest_of(content: Any) -> str:
    """Return a digest of plain data, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"model.settings.width": 8}`` into nested settings."""
    whole: dict[str, Any] = {}
    for name, value in dotted.items():
        *path, last = name.split(".")
        inner = whole
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return whole


class Corner:
    """Stands for a trial: draws what it is told, else the first there is.

    Args:
        told: Values by parameter.
    """

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.told = told
        self.ends: dict[str, list[Any]] = {}

    def suggest_int(self, name: str, low: int, high: int, **how: Any) -> Any:
        """Return the lower end unless told otherwise."""
        del how
        return self._end(name, [low, high])

    def suggest_float(self, name: str, low: float, high: float, **how: Any) -> Any:
        """Return the lower end unless told otherwise."""
        del how
        return self._end(name, [low, high])

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        """Return the first choice unless told otherwise."""
        return self._end(name, list(choices))

    def _end(self, name: str, ends: list[Any]) -> Any:
        self.ends[name] = ends
        return self.told.get(name, ends[0])


def corners_of(suggest: Draw) -> tuple[Mapping[str, Any], ...]:
    """Draw every end and every choice at least once, through all branches.

    Returns:
        Nested settings, one more than there are ends and choices beside the first.
    """
    waiting: list[dict[str, Any]] = [{}]
    seen: set[str] = set()
    found = []
    while waiting:
        told = waiting.pop(0)
        corner = Corner(told)
        found.append(suggest(corner))
        for name, ends in corner.ends.items():
            if name in seen:
                continue
            seen.add(name)
            waiting += [told | {name: end} for end in ends[1:] if end != ends[0]]
    return tuple(found)
