"""What a study keeps of itself, so that a worker needs its name and storage alone."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna

from spectral_mlops.config import RunConfig, merge, validate
from spectral_mlops.errors import InputError
from spectral_mlops.models.imported import is_imported
from spectral_mlops.sweeps.space import Space
from spectral_mlops.sweeps.space_file import SweepSettings, space_of
from spectral_mlops.sweeps.study import read_study
from spectral_mlops.tracking.checks import redacted
from spectral_mlops.tracking.choose import NONE, SPOOL
from spectral_mlops.tracking.measures import Measures, measures_of

ATTRIBUTE = "recipe"
PIECE = 1900
"""Characters of one user attribute; some databases take few more."""


@dataclass(frozen=True)
class Recipe:
    """What every trial of a study is made by.

    Attributes:
        settings: What trials start from (`config.RunConfig`); where they are tracked
            without a password.
        space: What the space was made from: tables, ``module:function``, or ``None``
            for the built-in one.
        judged: Objective and tau.
        options: How the study stops trials.
    """

    settings: Mapping[str, Any]
    space: Any = None
    judged: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def keep(self, study: optuna.Study) -> None:
        """Write it into the study's user attributes, in pieces; at once or not."""
        settings = {**self.settings, "tracking": dict(self.settings["tracking"])}
        if uri := settings["tracking"].get("uri"):
            settings["tracking"]["uri"] = redacted(uri)
        whole = [settings, self.space, dict(self.judged), dict(self.options)]
        text = json.dumps(whole)  # keys in their order: settings are drawn in it
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        if study.user_attrs.get(ATTRIBUTE, {}).get("digest") == digest:
            return
        pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
        for number, piece in enumerate(pieces):
            study.set_user_attr(f"{ATTRIBUTE}.{digest}.{number}", piece)
        kept = {"digest": digest, "pieces": len(pieces)}
        study.set_user_attr(ATTRIBUTE, kept)

    @classmethod
    def of(cls, study: optuna.Study) -> "Recipe | None":
        """Read a study's; ``None`` if it has none."""
        attributes = study.user_attrs
        if (kept := attributes.get(ATTRIBUTE)) is None:
            return None
        pieces = range(kept["pieces"])
        names = [f"{ATTRIBUTE}.{kept['digest']}.{number}" for number in pieces]
        return cls(*json.loads("".join(attributes[name] for name in names)))

    def config(
        self, tracking: str | None = None, given: Mapping[str, Any] | None = None
    ) -> RunConfig:
        """Return the settings, checked.

        Args:
            tracking: Where runs go; as the study says if not given.
            given: Nested settings laid over the study's.
        """
        told = merge(self.settings, given or {})
        if isinstance(known := told["tracking"], Mapping):  # else validation says so
            uri = tracking or _full_address(known.get("uri"))
            told["tracking"] = {**known, "uri": uri}
        return validate(RunConfig, told, "the study's settings")

    def sweep_settings(self, given: Mapping[str, Any] | None = None) -> SweepSettings:
        """Return how trials are judged, checked.

        Args:
            given: Laid over what the study says.
        """
        return validate(SweepSettings, merge(self.judged, given or {}), "the study")

    def made_space(self) -> Space:
        """Return the space."""
        return space_of(self.space, "the study's space")

    def code(
        self, given: Mapping[str, Any] | None = None, space: Space | None = None
    ) -> list[str]:
        """Return the names of code to run that a user did not give.

        Args:
            given: Nested settings that the user gave.
            space: The user's, if any.
        """
        names: list[str] = []
        if space is None:
            names += _model_names(self.space)
            names += [self.space] if isinstance(self.space, str) else []
        if "name" not in (given or {}).get("model", {}):
            names.append(str(self.settings["model"]["name"]))
        return [name for name in names if is_imported(name)]

    def check_trust(
        self,
        study: str,
        trust: bool,
        given: Mapping[str, Any] | None = None,
        space: Space | None = None,
    ) -> None:
        """Refuse to run code that a database names, unless the user trusts it.

        Args:
            study: Its name.
            trust: Whether the user does.
            given: See `code`.
            space: See `code`.

        Raises:
            InputError: If it names some, and there is no ``trust``.
        """
        if not trust and (code := self.code(given, space)):
            raise InputError(
                f"Study '{study}' names code to run, '{code[0]}': if you trust its "
                "storage, and what that name is here, add --trust."
            )


def _model_names(tables: Any) -> Iterator[str]:
    """Find every model that a space may choose."""
    if not isinstance(tables, Mapping):
        return
    for name, inner in tables.items():
        if name == "model.name" and isinstance(inner, Mapping):
            yield from map(str, inner.get("choices", ()))
        yield from _model_names(inner)


def study_measures(study: optuna.Study) -> Measures:
    """Return by what a study's trials are judged; classes if it does not say."""
    recipe = Recipe.of(study)
    return measures_of(recipe.settings if recipe else {})


def kept_recipe(study: str, storage: str) -> Recipe | None:
    """Return what a study keeps of itself; ``None`` if there is no such study."""
    try:
        return Recipe.of(read_study(study, storage))
    except InputError:  # what is wrong is said where it is used
        return None


def known_store(config: RunConfig) -> dict[str, str | None]:
    """Return where runs go, also from another folder."""
    uri, experiment = config.tracking.uri, config.tracking.experiment
    if uri not in (NONE, SPOOL):
        from spectral_mlops.tracking.store import experiment_name, resolve_uri

        uri, experiment = resolve_uri(uri), experiment or experiment_name()
    return {"uri": uri, "experiment": experiment}


def _full_address(uri: str | None) -> str | None:
    """Return the address of a study's store, with the password if it has one.

    Raises:
        InputError: If nobody says the password.
    """
    if uri is None or "***" not in uri:
        return uri
    asked = os.environ.get("MLFLOW_TRACKING_URI")
    if asked is None or redacted(asked) != uri:
        raise InputError(
            f"The study's runs go to {uri}: give that address, with its password, by "
            "--tracking or MLFLOW_TRACKING_URI."
        )
    return asked
