"""Contexts for the batches of a run: one set of settings, one survey of the model."""

from typing import Any

from torch import nn

from spectral_mlops.hooks.context import capture
from spectral_mlops.hooks.groups import Groups
from spectral_mlops.hooks.survey import Survey


class Captures:
    """Makes a `capture` for each batch.

    Args:
        model: To be watched.
        settings: Of `capture`, the same for all batches unless given again.

    Raises:
        InputError: If a setting cannot be used.
    """

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        self.model, self._settings = model, settings
        self._survey = Survey(model, settings["layers"])
        self.of([0])  # refuse bad settings now

    def of(self, groups: Groups, **more: Any) -> capture:
        """Return a context for one batch.

        Args:
            groups: See `capture`.
            more: Settings of this batch.
        """
        settings = self._settings | more
        captured = capture(self.model, groups, survey=self._survey, **settings)
        self._survey = captured.survey  # a fresh one where the model has changed
        return captured

    def begin_anew(self) -> None:
        """Look again for weights that are used outside of their layers."""
        self._survey.outside = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy watches a copy of the model."""
        return self.__dict__ | {"_survey": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._survey = Survey(self.model, self._settings["layers"])
