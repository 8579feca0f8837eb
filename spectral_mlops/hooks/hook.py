"""A hook that stays behind when the model is copied or saved."""

from collections.abc import Callable
from typing import Any


class Hook:
    """A hook that copies of the model, made in the meantime, do not take along."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return no_hook

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _give_no_hook, ()


def _give_no_hook() -> Callable[..., None]:
    return no_hook


def no_hook(*args: Any, **kwargs: Any) -> None:
    """What stands in a copied or saved model in the place of a hook."""
