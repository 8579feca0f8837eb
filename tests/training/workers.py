"""What the processes of a distributed test run; started by `torchrun`.

Words: what to do, then folders that hold ``settings.json`` and take a run each.
"""

import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from spectral_mlops.config import RunConfig
from spectral_mlops.errors import InputError, ProcessError
from spectral_mlops.tracking import SpoolTracker
from spectral_mlops.training import assist, make_plan, read_plan, run
from spectral_mlops.training.checkpoint import Checkpoints
from spectral_mlops.training.distributed import Team, joined
from spectral_mlops.training.fold import FoldRun
from tests.networks import Gain
from tests.training import toys

assert toys.STEPS  # the import made the toy cohort known


class Gained(nn.Module):
    """A layer without a rule, whose parameter is replayed, between two with one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.gain = nn.Linear(inputs, 3), Gain(3)
        self.norm, self.output = nn.LayerNorm(3), nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.norm(self.gain(self.hidden(x).relu())))


class Interrupted(Exception):
    pass


def interrupt(epoch, metrics):
    if epoch == 1:
        raise Interrupted


def train(folder: Path, team: Team, *, resume: bool = False, on_epoch=None) -> None:
    def plan_of_it():
        if resume:
            return read_plan(folder / "run", Path(), finished=False)
        text = (folder / "settings.json").read_text()
        return make_plan(RunConfig.model_validate_json(text), Path())

    plan = team.in_turn(plan_of_it)
    if not team.first:
        assist(plan, "cpu", team)
        return
    with SpoolTracker(folder / "run") as tracker:
        how = {"name": "one", "figures": False, "resume": resume, "team": team}
        run(plan, tracker, folder / "run", on_epoch=on_epoch, **how)


def fail_on(rank: int, team: Team, error: Exception) -> None:
    """Fail in the forward pass of the second batch on one process."""
    predict, calls = torch.nn.Linear.forward, []

    def forward(self, x):
        calls.append(self)
        if team.rank == rank and len(calls) == 4:  # three layers in each network
            raise error
        return predict(self, x)

    torch.nn.Linear.forward = forward


def failing(folder: Path, team: Team, error: Exception, sentence: str) -> None:
    fail_on(1, team, error)
    expected = ProcessError if team.first else type(error)
    with pytest.raises(expected, match=sentence):
        train(folder, team)


def own_people(folder: Path, team: Team) -> None:
    """The processes have been given different settings."""
    text = (folder / "settings.json").read_text()
    settings = RunConfig.model_validate_json(text)
    if not team.first:
        training = settings.training.model_copy(update={"epochs": 9})
        settings = settings.model_copy(update={"training": training})
    plan = make_plan(settings, Path())
    with pytest.raises(InputError, match="2 processes of this run see different"):
        team.check_plan(plan)


def weights(folder: Path, team: Team) -> None:
    """All processes keep the same weights, bit for bit; dropout differs."""
    text = (folder / "settings.json").read_text()
    plan = team.in_turn(lambda: make_plan(RunConfig.model_validate_json(text), Path()))
    one = FoldRun(plan, 0, torch.device("cpu"), team=team)
    for epoch in range(3):
        one.train_epoch(epoch)
    told = team._gather({k: x.tolist() for k, x in one.model.state_dict().items()})
    assert told[0] == told[1]
    drawn = team._gather(torch.rand(3).tolist())
    assert drawn[0] != drawn[1]


def main() -> None:
    what, *folders = sys.argv[1:]
    warnings.simplefilter("error")
    with joined("cpu") as (team, _):
        group = weakref.ref(dist.group.WORLD)
        for folder in map(Path, folders):
            if what == "train":
                train(folder, team)
            elif what == "resume":
                train(folder, team, resume=True)
            elif what == "interrupt":
                Checkpoints.due = lambda self: True
                train(folder, team, on_epoch=interrupt)
            elif what == "refuse":
                failing(folder, team, InputError("No such row."), "No such row")
            elif what == "break":
                failing(folder, team, ZeroDivisionError("oh"), "oh")
            elif what == "settings":
                own_people(folder, team)
            else:
                weights(folder, team)
    assert group() is None  # or its threads outlive the interpreter
    print("done")


if __name__ == "__main__":
    main()
