"""Models of a user's own, by ``module:function``.

Importing runs that module's code: a name from a user's own settings is imported, one
that stands in a run's folder only on ``--trust``.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from pydantic import ConfigDict
from torch import nn

from spectral_mlops.config import Layout, Settings
from spectral_mlops.errors import InputError

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
AS_THEY_STAND: tuple[Layout, ...] = ("vector", "sequence", "windows", "volume")


class ImportedSettings(Settings):
    """Any; the function says what it takes."""

    model_config = ConfigDict(extra="allow")


def is_imported(name: str) -> bool:
    """Whether a model's name is that of a function to import."""
    return ":" in name


def import_function(name: str, what: str) -> Callable[..., Any]:
    """Import a function of the user's own, from the current folder too.

    Args:
        name: ``module:function`` or ``package.module:function``.
        what: What it is for, in a message.

    Raises:
        InputError: If it cannot be imported, or is no function.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    known = here in sys.path
    if not known:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"{what} '{name}': importing {module_name} failed: "
            f"{type(error).__name__}: {error}."
        ) from error
    finally:
        if not known:
            sys.path.remove(here)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(
            f"{what} '{name}': {module_name} has no function '{attribute}'; write "
            "module:function."
        )
    return function


def find_function(name: str) -> tuple[Callable[..., nn.Module], tuple[Layout, ...]]:
    """Import a function, from the current folder too.

    Args:
        name: ``module:function`` or ``package.module:function``.

    Returns:
        The function ``(inputs, outputs, **settings) -> nn.Module``, and what its model
        takes: its attribute ``takes``, any features as they stand if it has none.

    Raises:
        InputError: If it cannot be imported, or is no function.
    """
    function = import_function(name, "model")
    takes = getattr(function, "takes", AS_THEY_STAND)
    layouts = (takes,) if isinstance(takes, str) else tuple(takes)
    if unknown := [layout for layout in layouts if layout not in LAYOUTS]:
        raise InputError(
            f"model '{name}': takes='{unknown[0]}' is no layout; choose from "
            f"{', '.join(LAYOUTS)}."
        )
    return function, layouts


def builder(name: str, function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Return what builds the model from settings, and says what goes wrong."""

    def build(inputs: Any, outputs: int, settings: ImportedSettings) -> nn.Module:
        try:
            model = function(inputs, outputs, **settings.model_dump())
        except Exception as error:
            raise InputError(
                f"model '{name}': called with inputs={inputs}, outputs={outputs} and "
                f"its settings, it failed: {type(error).__name__}: {error}."
            ) from error
        if not isinstance(model, nn.Module):
            raise InputError(
                f"model '{name}': returned {type(model).__name__}, not an nn.Module."
            )
        return model

    return build
