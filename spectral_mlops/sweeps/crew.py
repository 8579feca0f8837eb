"""Workers as processes of this machine: started, watched, told to end."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from spectral_mlops.sweeps.recipe import known_store
from spectral_mlops.sweeps.sweep import Sweep
from spectral_mlops.tracking.choose import NONE, SPOOL

DONE, UNDELIVERED = 0, 3
"""Exit codes of a worker that came to its end."""


@dataclass
class Crew:
    """Several ``sweep worker`` processes on one study.

    Addresses go to them through the environment: what stands on a command line can be
    read by all users of a machine, passwords too.

    Attributes:
        sweep: The study, which wants trials (`Sweep.want`).
        storage: Address of its database.
        size: How many.
        threads: Of each; its share of the cores if not given.
        trust: Whether code that the study names may run.
        undelivered: Whether a worker could not deliver everything.
        died: How many ended that nobody told to.
    """

    sweep: Sweep
    storage: str
    size: int
    threads: int | None = None
    trust: bool = False
    undelivered: bool = False
    died: int = 0
    _processes: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _told: bool = False

    def start(self) -> None:
        """Start them; each writes what it says to a file of its own."""
        self._log(1).parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, self.size + 1):
            with self._log(number).open("wb") as log:
                self._processes[number] = subprocess.Popen(
                    self._words(),
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C here reaches them once, from us
                )

    @property
    def living(self) -> int:
        """How many have not been seen to end (`ended`)."""
        return len(self._processes)

    def ended(self) -> list[str]:
        """Look who ended since the last call; a sentence about each that died.

        The ticket of one that died is free at once.
        """
        said = []
        for number, process in list(self._processes.items()):
            if (code := process.poll()) is None:
                continue
            del self._processes[number]
            self.undelivered |= code == UNDELIVERED
            if code in (DONE, UNDELIVERED):
                continue
            worker = f"{socket.gethostname()[:100]}:{process.pid}"
            self.sweep.tickets.silence(worker)
            if not self._told:
                self.died += 1
                said.append(self._obituary(number, code))
        return said

    def drain(self) -> None:
        """Let each end its trial, and take no more."""
        self._tell(signal.SIGTERM)

    def interrupt(self) -> None:
        """Interrupt all trials; tickets go back."""
        self._tell(signal.SIGINT)

    def kill(self) -> None:
        """End them at once; trials they leave behind are `Sweep.reconcile`'s."""
        self._tell(signal.SIGKILL)

    def wait(self) -> None:
        """Wait until all have ended."""
        for process in self._processes.values():
            process.wait()
        self.ended()

    def _tell(self, what: signal.Signals) -> None:
        self._told = True
        for process in self._processes.values():
            process.send_signal(what)

    def _obituary(self, number: int, code: int) -> str:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        log = self._log(number)
        lines = log.read_text("utf-8", errors="replace").strip().splitlines()
        last = f" ({lines[-1].strip()[:200]})" if lines and code > 0 else ""
        return f"Worker {number} {how}{last}; its trial is tried again. See {log}."

    def _log(self, number: int) -> Path:
        name = f"{self.sweep.study.study_name}-workers"
        return self.sweep.runs / name / f"{os.getpid()}-{number}.log"

    def _words(self) -> list[str]:
        share = max(1, len(os.sched_getaffinity(0)) // self.size)
        words = [sys.executable, "-m", "spectral_mlops.cli", "sweep", "worker"]
        words += ["--study", self.sweep.study.study_name]
        words += ["--runs", str(self.sweep.runs), "--device", self.sweep.device]
        words += ["--threads", str(self.threads or share)]
        return [*words, *(["--trust"] if self.trust else [])]

    def _environment(self) -> dict[str, str]:
        environment = os.environ | {"OPTUNA_STORAGE": self.storage}
        uri = known_store(self.sweep.config)["uri"]
        if uri is not None and uri not in (NONE, SPOOL):
            environment["MLFLOW_TRACKING_URI"] = uri
        return environment
