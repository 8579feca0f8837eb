"""What may be sent: names and values of metrics, parameters, tags and files."""

import math
import re
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path, PurePosixPath
from typing import SupportsFloat

import pandas as pd

from spectral_mlops.errors import InputError

Scalar = str | int | float | bool

NAME_LIMIT = 250
PARAM_LIMIT = 6000  # longer ones MLflow cuts with nothing but a warning
TAG_LIMIT = 8000

PNG = b"\x89PNG\r\n\x1a\n"
"""How every file of that kind begins."""

_NAME = re.compile(r"[\w./\- ]+")


def check_name(name: str, what: str) -> str:
    """Return a name that every store accepts, unchanged.

    Raises:
        InputError: If it is empty, longer than 250 characters, holds anything
            but letters, digits and ``_ . / - space``, or is not a plain path
            (``/a``, ``a/``, ``a//b``, ``../a``).
    """
    plain = (
        isinstance(name, str)
        and _NAME.fullmatch(name) is not None
        and str(PurePosixPath(name)) == name
        and not {"", ".", "..", "/"} & set(PurePosixPath(name).parts)
    )
    if not plain or len(name) > NAME_LIMIT:
        raise InputError(
            f"{what} {name!r}: use at most {NAME_LIMIT} letters, digits, '_', '.', "
            "'-', spaces and single '/' between parts."
        )
    return name


def check_key(key: str) -> str:
    """Return the key of an image, unchanged; files are named by it.

    Raises:
        InputError: If it is no name (`check_name`), or has other letters than ASCII's.
    """
    if not check_name(key, "Image").isascii():
        raise InputError(f"Image {key!r}: use letters of ASCII only.")
    return key


def check_image(path: Path) -> Path:
    """Return the path of a PNG, unchanged.

    Raises:
        InputError: If there is no such file, or it is of another kind.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path} to log.")
    with path.open("rb") as stream:
        if stream.read(len(PNG)) != PNG:
            raise InputError(f"{path} is no PNG: save the picture as one.")
    return path


def check_step(step: object) -> int:
    """Return a step as an ``int``; stores would cut 2.7 down to 2.

    Raises:
        InputError: If it is not a whole number.
    """
    if isinstance(step, bool) or not isinstance(step, Integral):
        raise InputError(f"step={step!r}: a step is a whole number.")
    return int(step)


def check_metrics(metrics: Mapping[str, SupportsFloat]) -> dict[str, float]:
    """Return checked names and plain floats, NaN and infinities included.

    Raises:
        InputError: If a name is unusable, or a value is not one number.
    """
    checked = {}
    for name, value in metrics.items():
        check_name(name, "Metric")
        try:
            if isinstance(value, str):
                raise TypeError
            checked[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"Metric '{name}' is {value!r}: a metric is one number."
            ) from error
    return checked


def finite_only(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the finite metrics, and ``nonfinite/metrics`` if any was not."""
    kept = {name: value for name, value in metrics.items() if math.isfinite(value)}
    if len(kept) < len(metrics):
        kept["nonfinite/metrics"] = float(len(metrics) - len(kept))
    return kept


def check_texts(values: Mapping[str, Scalar], what: str, limit: int) -> dict[str, str]:
    """Return parameters or tags as text.

    Raises:
        InputError: If a name is unusable, a value is not a scalar, or its text
            is longer than ``limit``; nothing is ever cut.
    """
    texts = {}
    for name, value in values.items():
        check_name(name, what)
        if not isinstance(value, str | int | float | bool):
            raise InputError(f"{what} '{name}' is {value!r}: give text or a number.")
        texts[name] = str(value)
        if len(texts[name]) > limit:
            raise InputError(
                f"{what} '{name}' has {len(texts[name])} characters and at most "
                f"{limit} are kept: shorten it, or log it with log_text."
            )
    return texts


def check_table(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a copy of a table that can be written as JSON.

    Raises:
        InputError: If a column holds what JSON has no word for, or two columns
            have one name.
    """
    try:
        frame.to_json(orient="split", index=False, date_format="iso")
        if not frame.columns.is_unique:
            raise ValueError("two columns have one name")
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"Table '{name}' cannot be written: {error}.") from error
    return frame.copy()


def redacted(uri: str) -> str:
    """Return an address with the password, if it has one, as ``***``."""
    return re.sub(r"(//[^/:@]*):[^/@]*@", r"\1:***@", uri)
