"""One step of training: optimizer, rate, loss weights, accumulation, precision.

The rate is a function of the step alone, so a run that goes on from a checkpoint needs
no state of a schedule.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import ceil, cos, pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from spectral_mlops.config import TrainingConfig
from spectral_mlops.errors import InputError
from spectral_mlops.training.task import task_of

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
ONE_CYCLE_RISE = 0.3
"""Share of the steps in which a one-cycle rate rises, unless warmup says."""
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1e-4
"""First rate over the highest, and last over the first, as PyTorch's one-cycle has."""


class Optimisation:
    """How the weights of one network are changed.

    Args:
        model: The network, on its device.
        config: Settings of the training.
        device: Where it is.
        targets: Of every training person, as the loss takes them, shape ``[n]``.
        classes: Number of classes, if there are any.
        shared: Whether batches are passed in shares, so that no loss is a mean over
            what is passed at once.

    Raises:
        InputError: If the device cannot compute as the settings want.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        device: torch.device,
        targets: NDArray[Any],
        classes: int,
        shared: bool = False,
    ) -> None:
        check_precision(config, device.type)
        self._mean = config.accumulate == 1 and not shared
        self._model, self._config, self._device = model, config, device
        more: dict[str, Any] = {}
        if config.optimizer == "sgd":
            more["momentum"] = config.momentum
        self.optimizer = OPTIMIZERS[config.optimizer](
            model.parameters(),
            lr=config.learning_rate,  # type: ignore[call-arg]
            weight_decay=config.weight_decay,
            **more,
        )
        half = config.amp == "float16"
        self.scaler = torch.amp.GradScaler(device.type) if half else None
        self._task = task_of(config, classes)
        self._weights: NDArray[np.float64] | None = None
        self._loss_weights: Tensor | None = None
        if config.class_weights != "none":
            self._weights = class_weights(config, targets, classes)
            self._loss_weights = torch.from_numpy(self._weights).float().to(device)

    def masses(self, targets: Sequence[NDArray[Any]]) -> list[float]:
        """Return what the loss of each batch is divided by.

        It is the sum of the weights of all people in the same step of the optimizer:
        their number, unless classes are weighted.

        Args:
            targets: Of each batch of an epoch, in order.
        """
        own = [float(np.size(batch)) for batch in targets]
        if self._weights is not None:
            own = [float(self._weights[batch].sum()) for batch in targets]
        together = self._config.accumulate
        sums = [sum(own[i : i + together]) for i in range(0, len(own), together)]
        return [sums[i // together] for i in range(len(own))]

    def scale_of(self, mass: float) -> float | None:
        """Return the loss's own scale ``c``; none where it is a mean over the batch."""
        plain = self._loss_weights is None and self._mean
        return None if plain else 1 / mass

    def begin(self, epoch: int, batch: int, batches: int) -> None:
        """Begin a batch: of the first of a step, gradients are cleared.

        Args:
            epoch: Counted from 0.
            batch: Of the epoch, counted from 0.
            batches: Of every epoch.
        """
        if batch % self._config.accumulate:
            return
        self.optimizer.zero_grad()
        if self._config.schedule == "constant" and not self._config.warmup:
            return
        steps = ceil(batches / self._config.accumulate)
        step = epoch * steps + batch // self._config.accumulate
        rate = self._config.learning_rate * rate_factor(self._config, step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass: reduced precision, if asked for."""
        if self._config.amp == "none":
            return nullcontext()
        return torch.autocast(self._device.type, getattr(torch, self._config.amp))

    def loss(self, outputs: Tensor, targets: Tensor, mass: float) -> Tensor:
        """Return the batch's share of the step's loss.

        Args:
            outputs: Of the network, shape ``[N, outputs]``.
            targets: As the task has them, shape ``[N]``.
            mass: From `masses`.
        """
        if self._mean:
            return self._task.mean_loss(outputs, targets, self._loss_weights)
        return self._task.loss(outputs, targets, self._loss_weights) / mass

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to that of the step."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def ends_step(self, batch: int, batches: int) -> bool:
        """Whether weights change after a batch."""
        return batch == batches - 1 or not (batch + 1) % self._config.accumulate

    def end(self, batch: int, batches: int) -> None:
        """End a batch: after the last of a step, weights change."""
        if not self.ends_step(batch, batches):
            return
        if self._config.clip_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self._model.parameters(), self._config.clip_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, after a step."""
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "scaler": scaler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])


def check_precision(config: TrainingConfig, device: str) -> None:
    """Refuse a precision that a device has not.

    Raises:
        InputError: For float16 elsewhere than on CUDA.
    """
    if config.amp == "float16" and not device.startswith("cuda"):
        raise InputError(
            f"training.amp='float16' needs --device cuda, not {device}: choose "
            "'bfloat16' or 'none'."
        )


def is_plain(config: TrainingConfig) -> bool:
    """Whether a step is one mean loss and one step at one rate, whatever optimizer."""
    known = {"optimizer", "learning_rate", "weight_decay", "momentum"}
    known |= {"epochs", "batch_size", "folds", "seed", "seeds"}
    plain = TrainingConfig().model_dump(exclude=known)
    return config.model_dump(exclude=known) == plain


def class_weights(
    config: TrainingConfig, targets: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    """Return the weight of each class in the loss.

    ``balanced`` is ``n / (classes · n_k)``, so that every class weighs the same in all
    and people weigh 1 on average.

    Args:
        config: Settings of the training.
        targets: Of the training people.
        classes: Number of classes.

    Returns:
        Shape ``[classes]``.
    """
    if config.class_weights == "none":
        return np.ones(classes)
    counts = np.bincount(targets, minlength=classes)
    return len(targets) / (classes * np.maximum(counts, 1))


def rate_factor(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step over the one that was set.

    ``cosine`` falls to zero over all steps, ``step`` by ``step_factor`` every
    ``step_epochs``, ``one-cycle`` rises from 1/25 and falls to
    1/250000 by half cosines.
    ``warmup`` is the share of all steps in which the others rise linearly before they
    begin, and in which ``one-cycle`` rises (0.3 if 0).

    Args:
        config: Settings of the training.
        step: Counted from 0 over the whole run.
        steps_per_epoch: Steps of the optimizer in an epoch.
    """
    total = config.epochs * steps_per_epoch
    if config.schedule == "one-cycle":
        return _one_cycle(step, total, config.warmup or ONE_CYCLE_RISE)
    warm = int(config.warmup * total)
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "cosine":
        return (1 + cos(pi * (step - warm) / (total - warm))) / 2
    if config.schedule == "step":
        return float(
            config.step_factor ** (step // steps_per_epoch // config.step_epochs)
        )
    return 1.0


def _one_cycle(step: int, total: int, rise: float) -> float:
    """Smith and Topin's policy, in the form that PyTorch gives it."""
    peak = max(rise * total - 1, 0.0)
    if step <= peak:
        done = step / peak if peak else 1.0
        return _half_cosine(ONE_CYCLE_START, 1.0, done)
    done = (step - peak) / (total - 1 - peak)
    return _half_cosine(1.0, ONE_CYCLE_START * ONE_CYCLE_END, done)


def _half_cosine(first: float, last: float, done: float) -> float:
    return last + (first - last) * (1 + cos(pi * done)) / 2
