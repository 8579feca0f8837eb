"""Held-out people: what is passed, in what mode, and a label-free output."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectral_mlops.errors import InputError
from spectral_mlops.hooks.groups import Groups, Labels, label_texts


class ProbeBatch(NamedTuple):
    """Held-out people: what the model takes, what it should say, who they are."""

    inputs: Any
    targets: Any
    groups: Groups
    subjects: Labels


def margin(outputs: Any) -> Tensor:
    """A label-free output per person, whose adjoints are the same for any labels.

    Args:
        outputs: Logits of shape ``[N, C]``, or ``[N]`` / ``[N, 1]``.

    Returns:
        Shape ``[N]``: the one output itself (a logit, or the number predicted in a
        regression), the second less the first of two, or the largest less the next of
        several.

    Raises:
        InputError: If the outputs are no such tensor.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim not in (1, 2):
        raise InputError(
            "The margin needs logits of shape [N, C]; the model returns "
            f"{tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs)}"
            ". Pass adjoint='loss' with a loss_function."
        )
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return outputs.flatten()
    if outputs.shape[1] == 2:
        return outputs[:, 1] - outputs[:, 0]
    top = outputs.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def classes_of(batches: Sequence[ProbeBatch]) -> dict[str, float]:
    """Return the values that targets take, by their text.

    Args:
        batches: Of the probe.

    Returns:
        At least one class, sorted by value.

    Raises:
        InputError: If targets are no tensors of one number per sample.
    """
    for batch in batches:
        if not isinstance(batch.targets, Tensor) or batch.targets.ndim != 1:
            raise InputError(
                "adjoint='reformed' takes the loss at each class in turn and needs "
                "targets of shape [N], one class number per sample."
            )
    values = torch.cat([batch.targets for batch in batches]).unique()
    return dict(zip(label_texts(values), values.tolist(), strict=True))


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; training flags, buffers and random state are put back."""
    flags = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])
