"""The command of a worker of several processes, one of which misbehaves."""

import os
import sys

from spectral_mlops import cli
from spectral_mlops.config import RunConfig, merge
from spectral_mlops.sweeps import processes
from spectral_mlops.training.optimisation import Optimisation


def see_others() -> None:
    """Make another plan than the first process."""
    make = processes.make_plan

    def other(config, workdir):
        settings = merge(config.model_dump(mode="json"), {"comparison": {"seed": 9}})
        return make(RunConfig.model_validate(settings), workdir)

    processes.make_plan = other


def fail() -> None:
    """Fail in the third batch."""
    backward, calls = Optimisation.backward, []

    def broken(self, loss):
        calls.append(loss)
        if len(calls) == 3:
            raise ZeroDivisionError("by hand")
        backward(self, loss)

    Optimisation.backward = broken


if __name__ == "__main__":
    what, rank = sys.argv.pop(1).split("-")
    if os.environ["RANK"] == rank:
        {"others": see_others, "fail": fail}[what]()
    cli.main()
