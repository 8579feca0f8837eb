"""Other libraries on the same steps: what their hooks cost, where installed.

They compute other things (per-sample gradients, saturation) and none has groups;
the columns say what a user pays beside a plain step. None is a dependency.
"""

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.cases import Case
from experiments.benchmarks.measure import BASE, alternate, paired_ratio
from experiments.benchmarks.variants import Unwatched, Watched


class _Peer(Unwatched):
    share = 0.25


class BackPack(_Peer):
    """Per-sample gradients by module hooks (``BatchGrad``)."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        backpack = import_module("backpack")
        self.model, self.loss = backpack.extend(self.model), backpack.extend(self.loss)
        self.computing = backpack.backpack
        self.extension = import_module("backpack.extensions").BatchGrad

    def around(self) -> Any:
        """Its context of an extension."""
        return self.computing(self.extension())


class Opacus(_Peer):
    """Per-sample gradients by module hooks (``GradSampleModule``)."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.model = import_module("opacus").GradSampleModule(self.model)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Drop the samples' gradients after use, as it asks its users to."""
        yield
        for parameter in self.model.parameters():
            parameter.grad_sample = None


class TorchFunc(_Peer):
    """``vmap`` of ``grad``, beside the ordinary backward."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)

        def one(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            output = torch.func.functional_call(self.model, parameters, (x[None],))
            return self.loss(output, y[None])

        self.samples = torch.func.vmap(
            torch.func.grad(one), in_dims=(None, 0, 0), randomness="different"
        )

    def differentiate(self, inputs: Tensor, targets: Tensor) -> None:
        """Forward and backward, then every sample's gradient."""
        super().differentiate(inputs, targets)
        parameters = {k: p.detach() for k, p in self.model.named_parameters()}
        self.samples(parameters, inputs, targets)


class Delve(_Peer):
    """Covariances of layer outputs, and their saturation at the end of a window."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.folder = tempfile.TemporaryDirectory()
        delve = import_module("delve")
        logging.getLogger("delve").setLevel(logging.WARNING)
        self.tracker = delve.SaturationTracker(
            self.folder.name, save_to="csv", modules=self.model, device="cpu"
        )

    def finish(self) -> None:
        """Saturation of what was seen."""
        self.tracker.add_saturations()


PEERS: dict[str, Callable[[Case], Unwatched]] = {
    "BackPACK": BackPack,
    "Opacus": Opacus,
    "torch.func": TorchFunc,
    "Delve": Delve,
}


def measure_peers(
    cases: Iterable[Case], rounds: int, window: int, budget: float
) -> Iterator[dict[str, Any]]:
    """One row per case: the ratio of each peer, or why there is none."""
    for case in cases:
        row: dict[str, Any] = {"case": case.name, "title": case.title}
        for name, make in {"ours": Watched, **PEERS}.items():
            row[name] = _ratio(case, make, rounds, window, budget)
        yield row


def _ratio(
    case: Case,
    make: Callable[[Case], Unwatched],
    rounds: int,
    window: int,
    budget: float,
) -> float | str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a peer's warnings are not ours to heed
            variants = {BASE: Unwatched(case), "peer": make(case)}
            seconds = alternate(
                variants,
                rounds=rounds,
                window=window,
                chunk=max(1, window // 2),
                budget=budget,
            )
    except ModuleNotFoundError:
        return "not installed"
    except Exception as error:  # whatever a peer raises is its cell of the table
        return f"fails: {type(error).__name__}"
    return paired_ratio(seconds["peer"], seconds[BASE]).median
