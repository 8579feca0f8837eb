"""Models by name: a settings class, a constructor and what it takes, each."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from spectral_mlops.config import Component, Layout, Settings, validate
from spectral_mlops.models.imported import (
    ImportedSettings,
    builder,
    find_function,
    is_imported,
)
from spectral_mlops.registry import Registry

Inputs = int | tuple[int, ...]
"""One person's features: the width of vectors, else the shape."""


class ModelEntry(NamedTuple):
    """What the registry holds: how to check settings, how to build, what it takes."""

    settings: type[Settings]
    build: Callable[[Any, int, Any], nn.Module]
    takes: tuple[Layout, ...] = ("vector",)


MODELS: Registry[str, ModelEntry] = Registry("model")
Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


def register_model(
    name: str, settings: type[Settings], takes: Layout | tuple[Layout, ...] = "vector"
) -> Callable[[Builder], Builder]:
    """File a class or function ``(inputs, outputs, settings) -> nn.Module``.

    Args:
        name: What users write.
        settings: Its settings.
        takes: The layout of a batch (`config.Layout`), or several, the preferred one
            first: ``inputs`` is the width of vectors, else the shape of one person's
            features, without the channel of volumes.

    Returns:
        The decorator.
    """
    layouts = (takes,) if isinstance(takes, str) else tuple(takes)

    def file(build: Builder) -> Builder:
        MODELS.register(name)(ModelEntry(settings, build, layouts))
        return build

    return file


def model_entry(name: str) -> ModelEntry:
    """Return a model's entry; ``module:function`` is imported.

    Raises:
        UnknownNameError: If there is no model of that name.
        InputError: If a function cannot be imported.
    """
    if not is_imported(name):
        return MODELS.get(name)
    function, takes = find_function(name)
    return ModelEntry(ImportedSettings, builder(name, function), takes)


def check_model(component: Component) -> Settings:
    """Validate a model's settings without building it.

    Raises:
        UnknownNameError: If there is no model of that name.
        InputError: If a setting is unknown or impossible.
    """
    entry = model_entry(component.name)
    return validate(entry.settings, component.settings, f"model '{component.name}'")


def build_model(component: Component, inputs: Inputs, outputs: int) -> nn.Module:
    """Build a model from its name and settings.

    Args:
        component: Name and settings.
        inputs: Number of features per person of vectors, else their shape.
        outputs: Number of classes.

    Raises:
        UnknownNameError: If there is no model of that name.
        InputError: If a setting is unknown or impossible.
    """
    settings = check_model(component)
    return model_entry(component.name).build(inputs, outputs, settings)


def check_built(component: Component, inputs: Inputs, outputs: int) -> None:
    """Build a model once, for what only building tells; random state stays.

    Models from here take no memory; a user's own may need real numbers to be built.

    Args:
        component: See `build_model`.
        inputs: See `build_model`.
        outputs: See `build_model`.

    Raises:
        InputError: If it cannot be built.
    """
    device = "cpu" if is_imported(component.name) else "meta"
    with torch.device(device), torch.random.fork_rng(devices=[]):
        build_model(component, inputs, outputs)
