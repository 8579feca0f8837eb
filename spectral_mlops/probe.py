"""Held-out people: in what mode they are passed, by what output, and what it shows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectral_mlops.epoch_spectra import EpochSpectra
from spectral_mlops.errors import InputError
from spectral_mlops.hooks.condensed import condense
from spectral_mlops.hooks.context import capture
from spectral_mlops.hooks.groups import Groups, Labels, label_texts
from spectral_mlops.hooks.layer_rows import LayerRows, LoneMatrix, Measurable
from spectral_mlops.hooks.measure import measure
from spectral_mlops.observe import observe
from spectral_mlops.reformed import reform
from spectral_mlops.validity import Families, Strata

ADJOINTS = ("margin", "loss", "reformed")
LossFunction = Callable[[Any, Any], Tensor]


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


class Probe:
    """One set of held-out people, to be passed once or more.

    Args:
        model: Left as it is.
        batches: Of the people; taken one at a time, and not kept, unless adjoints are
            re-formed. Of several batches, rows of many positions do not stay either
            (`hooks.condensed`).
        watch: Gives a context for one batch; told whether its adjoints are to be
            label-free.
        pooled: Whether to measure all people together, too.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[ProbeBatch],
        watch: Callable[[ProbeBatch, bool], capture],
        pooled: bool,
    ) -> None:
        self._model, self._batches = model, batches
        self._watch, self._pooled = watch, pooled

    def spectra(
        self,
        loss_function: LossFunction | None,
        epoch: int,
        adjoint: str,
        strata: Strata,
        families: Families,
    ) -> EpochSpectra:
        """Pass everybody, and keep what nulls are formed of.

        Args:
            loss_function: See `SpectralMonitor.probe`.
            epoch: See there.
            adjoint: See there.
            strata: What labels move within.
            families: Who moves as a whole.

        Raises:
            InputError: If there are no batches, or the loss is missing.
        """
        if adjoint not in ADJOINTS:
            raise InputError(
                f"adjoint='{adjoint}': choose 'margin', 'loss' or 'reformed'."
            )
        if adjoint != "margin" and loss_function is None:
            raise InputError(f"adjoint='{adjoint}' needs the loss_function.")
        classes: dict[str, float] = {}
        if adjoint == "reformed":
            self._batches = held = list(self._batches)
            classes = classes_of(held) if held else {}

        def scalar_of(outputs: Any, targets: Any) -> Tensor:
            if adjoint == "margin" or loss_function is None:
                return margin(outputs).sum()
            return loss_function(outputs, targets)

        def at(value: float) -> LossFunction:
            return lambda outputs, y: scalar_of(outputs, torch.full_like(y, value))

        free = adjoint == "margin"
        keep = adjoint == "reformed"
        found = self.passed(scalar_of, label_free=free, keep=keep)
        seen = observe(found, trained_on=False, label_free=free)
        result = EpochSpectra(
            epoch,
            "probe",
            measure(found),
            1,
            [] if seen is None else [seen],
            strata,
            families=families,
        )
        if adjoint == "reformed" and found.layers:
            by_class = {
                name: self.passed(at(value), keep=True).layers
                for name, value in classes.items()
            }
            result.reformed = reform(found.layers, by_class, strata, families)
        return result

    def passed(
        self, scalar_of: LossFunction, label_free: bool = False, keep: bool = False
    ) -> Measurable:
        """Pass all batches once, as one set of people.

        Args:
            scalar_of: Of ``(outputs, targets)``; what adjoints are derivatives of.
            label_free: Whether it looks at no targets.
            keep: Whether all rows are wanted as they are.

        Raises:
            InputError: If there are no batches.
        """
        trained = [p for p in self._model.parameters() if p.requires_grad]
        layers: dict[str, LayerRows] = {}
        lone: dict[str, LoneMatrix] = {}
        found: Measurable | None = None
        with undisturbed(self._model), torch.enable_grad():
            for number, batch in enumerate(self._batches):
                with self._watch(batch, label_free) as captured:
                    scalar = scalar_of(self._model(batch.inputs), batch.targets)
                    torch.autograd.grad(scalar, trained, allow_unused=True)
                found = captured.measurable(self._pooled)
                condensing = number > 0 and not keep and not found.wanted.patches
                gradient = "gradient" in found.wanted.quantities
                if condensing and number == 1:
                    layers = {k: condense(x, gradient) for k, x in layers.items()}
                for layer in found.layers:
                    own = condense(layer, gradient) if condensing else layer
                    before = layers.setdefault(own.layer, LayerRows(own.layer, []))
                    before.calls.extend(own.calls)
                for matrix in found.lone:
                    name = matrix.parameter
                    lone[name] = lone[name].plus(matrix) if name in lone else matrix
        if found is None:
            raise InputError("probe: there are no batches of held-out people.")
        return found._replace(layers=list(layers.values()), lone=list(lone.values()))
