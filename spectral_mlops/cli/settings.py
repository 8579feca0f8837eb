"""From flags and files to settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral_mlops.errors import InputError

if TYPE_CHECKING:
    from spectral_mlops.config import RunConfig


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn given dotted flags into nested settings."""
    tree: dict[str, Any] = {}
    for dotted, value in values.items():
        if value is None:
            continue
        *path, name = dotted.split(".")
        inner = tree
        for part in path:
            inner = inner.setdefault(part, {})
        inner[name] = value
    return tree


def given_settings(config: Path | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Lay flags over the config file; nothing is checked, nothing added."""
    from spectral_mlops.config import merge, read_toml

    return merge(read_toml(config) if config else {}, flags)


def read_settings(config: Path | None, flags: Mapping[str, Any]) -> "RunConfig":
    """Lay flags over the config file and validate."""
    from spectral_mlops.config import RunConfig, validate

    given = given_settings(config, flags)
    return validate(RunConfig, given, str(config or "options"))


def prepare_torch(device: str, threads: int) -> None:
    """Set the number of threads, and refuse a device that is not there."""
    import torch

    torch.set_num_threads(threads)
    known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if device not in known:
        raise InputError(f"--device {device}: here there is {' and '.join(known)}.")


def numbers(flag: str, text: str | None) -> list[int] | None:
    """Read ``64,32``.

    Raises:
        InputError: If that is not a list of whole numbers.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"{flag} {text}: give whole numbers, as in 64,32.") from error


def store_only(tracking: str | None) -> str | None:
    """Return the address, unless it names no MLflow store.

    Raises:
        InputError: If it is ``spool`` or ``none``.
    """
    from spectral_mlops.tracking.choose import NONE, SPOOL

    if tracking in (NONE, SPOOL):
        raise InputError(
            f"--tracking {tracking}: give the address of an MLflow store, such as "
            "sqlite:///mlflow.db."
        )
    return tracking


def free(folder: Path) -> Path:
    """Return the folder, or the first numbered one that does not exist."""
    number, unused = 1, folder
    while unused.exists():
        number += 1
        unused = folder.with_name(f"{folder.name}-{number}")
    return unused
