"""Frozen records as plain tables, which a checkpoint keeps and reads back safely."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")


def plain(records: Iterable[Any]) -> list[dict[str, Any]]:
    """Turn frozen records into what ``torch.load(weights_only=True)`` reads."""
    return [
        {item.name: _plain(getattr(record, item.name)) for item in fields(record)}
        for record in records
    ]


def rebuilt(rows: Iterable[Mapping[str, Any]], kind: type[T]) -> list[T]:
    """Turn what `plain` gave into records again, bit for bit."""
    return [
        kind(
            **{
                name: value.numpy() if isinstance(value, torch.Tensor) else value
                for name, value in row.items()
            }
        )
        for row in rows
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    return value.item() if isinstance(value, np.generic) else value
