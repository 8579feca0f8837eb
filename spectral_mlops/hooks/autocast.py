"""Whether autocast is on, and how to do without it."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_is_on(device: str) -> bool:
    """Whether autocast is on; some devices (meta) know none."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which autocast is off."""
    if not autocast_is_on(device):  # as is usual in a backward pass
        return nullcontext()
    return torch.autocast(device, enabled=False)
