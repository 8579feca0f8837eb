"""Models by name: a settings class and a constructor each."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import nn

from spectral_mlops.config import Component, Settings, validate
from spectral_mlops.registry import Registry


class ModelEntry(NamedTuple):
    """What the registry holds: how to check settings, and how to build."""

    settings: type[Settings]
    build: Callable[[int, int, Any], nn.Module]


MODELS: Registry[str, ModelEntry] = Registry("model")
Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


def register_model(name: str, settings: type[Settings]) -> Callable[[Builder], Builder]:
    """File a class or function ``(inputs, outputs, settings) -> nn.Module``."""

    def file(build: Builder) -> Builder:
        MODELS.register(name)(ModelEntry(settings, build))
        return build

    return file


def check_model(component: Component) -> Settings:
    """Validate a model's settings without building it.

    Raises:
        UnknownNameError: If there is no model of that name.
        InputError: If a setting is unknown or impossible.
    """
    entry = MODELS.get(component.name)
    return validate(entry.settings, component.settings, f"model '{component.name}'")


def build_model(component: Component, inputs: int, outputs: int) -> nn.Module:
    """Build a model from its name and settings.

    Args:
        component: Name and settings.
        inputs: Number of features per person.
        outputs: Number of classes.

    Raises:
        UnknownNameError: If there is no model of that name.
        InputError: If a setting is unknown or impossible.
    """
    settings = check_model(component)
    return MODELS.get(component.name).build(inputs, outputs, settings)
