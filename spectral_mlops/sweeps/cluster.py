"""Workers of a study as jobs of SLURM: one array, requeued when SLURM takes a node.

SLURM says USR1 before a job's time is over, and before it takes the node for others
if it is set up to. The worker then stops its trial, gives its ticket back and asks to
be queued again; another trial takes the stopped one's place. TERM, which is all that
``scancel`` and ``scontrol requeue`` say, does the same without asking. One that is
told before it has a ticket takes none, be it that its people, or Python itself, are
still loading.
"""

import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from spectral_mlops.errors import InputError, TrackingError
from spectral_mlops.sweeps.sweep import Sweep
from spectral_mlops.sweeps.worker import work

if TYPE_CHECKING:
    from submitit import SlurmExecutor
    from submitit.core.utils import DelayedSubmission

WARNING = 90
"""Seconds before the end of its time at which a job is told."""
DRAIN = signal.SIGUSR2
"""Lets a worker end its trial and take no more."""
AT_ONCE = signal.SIGALRM
"""Ends a worker, which does not listen to it; before a KILL, SLURM says TERM."""
IN_VAIN = 10
"""A job stopped so often in a row before one of its trials ended stays stopped."""
PAUSE = 2.0
"""Seconds between two questions to SLURM."""
SHORT = {"cpus": "cpus-per-task", "gpus": "gpus-per-node"}
OURS = ("array", "error", "nodes", "ntasks", "ntasks-per-node", "output", "requeue",
        "signal")  # fmt: skip
"""What decides whether a worker can be told and queued again."""
TOO_EARLY = 128 + signal.SIGUSR1
"""Exit code of a worker that was told before Python had loaded what listens."""
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass
class Worker:
    """One worker of a study, as submitit pickles it.

    Attributes:
        study: Name.
        storage: Its address.
        runs: Folder below which each trial has its own.
        tracking: Where runs go; the study's store if not given.
        device: Where tensors live.
        threads: Of torch.
        trust: Whether code that the study names may run.
        in_vain: How often in a row it was begun before a trial of it had ended.
        drained: Whether it is to take no more trials, nor to be queued again.
    """

    study: str
    storage: str
    runs: Path
    tracking: str | None = None
    device: str = "cpu"
    threads: int = 1
    trust: bool = False
    in_vain: int = 0
    drained: bool = False

    def __call__(self, number: int) -> list[str]:
        """Run trials until no ticket is left; ask to be queued again if told to end.

        Args:
            number: Which of the array's it is.

        Returns:
            How each trial ended.
        """
        import torch

        torch.set_num_threads(self.threads)
        print(f"worker {number} of study '{self.study}'", flush=True)
        self.in_vain += 1
        for told_to_drain in (DRAIN, signal.SIGTERM):
            signal.signal(told_to_drain, self._drain)
        sweep = self._join()
        states: list[str] = []

        def on_trial(state: TrialState) -> None:
            states.append(state.name)
            self.in_vain = 0

        requeue = signal.getsignal(signal.SIGUSR1)  # submitit's
        with _told_to_end() as told:
            try:
                work(
                    sweep,
                    on_trial=on_trial,
                    stop=lambda: self.drained,
                    interrupted=lambda: bool(told),
                )
            except BaseException:  # what cleaned up may have failed of the interrupt
                if told != [signal.SIGUSR1]:
                    raise
                print("told to end: the ticket is given back", flush=True)
            if told == [signal.SIGUSR1] and callable(requeue) and not self.drained:
                requeue(signal.SIGUSR1, None)
        return states

    def _drain(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.drained = True

    def _join(self) -> Sweep:
        """Join the study, without our handlers: there is no ticket to give back yet.

        An interrupt in the midst of an import would leave half a module.
        """
        sweep = Sweep.of_study(
            self.study,
            self.storage,
            runs=self.runs,
            tracking=self.tracking,
            device=self.device,
            trust=self.trust,
        )
        try:
            for said in sweep.reconcile().mended:
                print(f"mended: {said}", flush=True)
        except TrackingError as error:
            print(error, flush=True)  # a store that is away may be back
        return sweep

    def checkpoint(self, number: int) -> "DelayedSubmission | None":
        """Return what submitit runs when the job has its turn again.

        Args:
            number: Which of the array's it is.

        Returns:
            The same worker; ``None``, which ends it, if it was drained, or if its
            trials need more time than its jobs get.
        """
        from submitit.core.utils import DelayedSubmission

        if self.drained or self.in_vain > IN_VAIN:
            return None
        return DelayedSubmission(self, number)


@dataclass
class Array:
    """Workers of a study as one array of jobs, watched as `crew.Crew` is.

    Attributes:
        sweep: The study, which wants trials (`Sweep.want`).
        worker: What each job does.
        size: How many.
        options: ``partition``, ``time``, ``mem``, ``cpus``, ``gpus`` or any long option
            of ``sbatch``.
        undelivered: Whether runs wait to be delivered.
        died: Whether all jobs ended before the trials did.
        job: Number of the array, once SLURM has taken it.
        living: How many wait, run or are queued again, as of the last look (`ended`).
    """

    sweep: Sweep
    worker: Worker
    size: int
    options: Mapping[str, str]
    undelivered: bool = False
    died: bool = False
    job: str = ""
    living: int = 0
    _told: bool = False
    _next_look: float = 0.0

    @property
    def logs(self) -> Path:
        """Folder of what jobs say.

        On a disk that all nodes see, and nobody else's to read: a storage's password
        goes through it.
        """
        return self.sweep.runs.absolute() / f"{self.worker.study}-cluster"

    def start(self) -> None:
        """Hand the workers to SLURM; once.

        Raises:
            InputError: If submitit or SLURM is missing, or SLURM refuses the options.
        """
        if self.job:
            return
        asked = parameters(self.worker.study, self.options)
        self.logs.mkdir(parents=True, exist_ok=True)
        self.logs.chmod(0o700)
        executor = _executor(self.logs)
        executor.update_parameters(**asked)
        try:
            with redirect_stderr(StringIO()):  # submitit says it, and so does the error
                jobs = executor.map_array(self.worker, range(self.size))
        except (RuntimeError, OSError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"--cluster slurm: the jobs were not taken ({said[-1]})."
            ) from error
        self.job, self.living = jobs[0].job_id.partition("_")[0], self.size

    def ended(self) -> list[str]:
        """Look how many are left; a sentence if all ended before the trials did."""
        if time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + PAUSE
        # Not submitit's own look: it asks a database that small clusters lack.
        asked = ["squeue", "--noheader", "--array", f"--jobs={self.job}"]
        shown = subprocess.run(asked, capture_output=True, text=True, check=False)
        if shown.returncode and "Invalid job id" not in shown.stderr:
            return []  # a controller that is away says nothing of the jobs
        self.living = len(shown.stdout.split("\n")) - 1 if not shown.returncode else 0
        counts = self.sweep.tickets.counts()
        if self.living:
            return []
        from spectral_mlops.tracking import undelivered_runs

        self.undelivered = bool(undelivered_runs(self.sweep.runs))
        left = counts["free"] + counts["taken"]
        if not left or self._told:
            return []
        self.died = True
        return [
            f"No job of {self.job} is left, and {left} trials are: see {self.logs}."
        ]

    def drain(self) -> None:
        """Let each end its trial, and take no more."""
        self._told = True
        self._scancel("--state=PENDING")
        self._scancel(f"--signal={DRAIN.name}")

    def interrupt(self) -> None:
        """Interrupt all trials; tickets go back."""
        self._told = True
        self._scancel()

    def kill(self) -> None:
        """End them at once; trials they leave behind are `Sweep.reconcile`'s."""
        self._told = True
        self._scancel("--state=PENDING")
        self._scancel(f"--signal={AT_ONCE.name}")
        self._scancel()  # what had not begun

    def wait(self) -> None:
        """Wait until all have ended."""
        while self.living:
            self.ended()
            time.sleep(1)

    def _scancel(self, *words: str) -> None:
        if self.job:
            asked = ["scancel", *words, self.job]
            subprocess.run(asked, check=False, capture_output=True)


def parameters(study: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Return submitit's parameters.

    Args:
        study: Name.
        options: See `submit`.

    Raises:
        InputError: If an option is not to be chosen.
    """
    asked = {SHORT.get(k, k.replace("_", "-")): value for k, value in options.items()}
    if taken := sorted(set(OURS) & set(asked)):
        raise InputError(
            f"--cluster-options {taken[0]}: workers have one node and one task each, "
            "and are told and queued again in one way; leave it out."
        )
    cpus = asked.get("cpus-per-task", "1")
    if not cpus.isdecimal() or int(cpus) < 1:
        raise InputError(f"--cluster-options cpus={cpus}: give a whole number.")
    return {
        "job_name": asked.pop("job-name", f"sweep-{study}"),
        "time": minutes(asked.pop("time", "60")),
        "additional_parameters": asked | {"signal": f"USR1@{WARNING}", "requeue": True},
        # srun has not taken this over from sbatch since SLURM 22.05.
        "srun_args": [f"--cpus-per-task={cpus}"],
        # Not left to the environment: a site may not hand it on.
        "setup": [
            "export SUBMITIT_PREEMPT_SIGNAL=USR1",
            f"export OMP_NUM_THREADS={cpus}",
        ],
        "teardown": [
            "code=$?",
            f'if [ $code -eq {TOO_EARLY} ] && [ "${{SLURM_RESTART_COUNT:-0}}" '
            f"-le {IN_VAIN} ]; then",
            '    scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            "exit $code",
        ],
    }


def minutes(text: str) -> int:
    """Read a time limit as SLURM writes it.

    Args:
        text: ``90``, ``90:00``, ``1:30:00``, ``2-12`` or ``2-12:00:00``.

    Returns:
        Minutes, rounded up.

    Raises:
        InputError: If it is none of these, or no time at all.
    """
    found = _TIME.fullmatch(text.strip())
    seconds = 0
    if found:
        days, *given = (int(part) if part else None for part in found.groups())
        parts = [part for part in given if part is not None]
        if days is not None:  # after a dash: hours first
            parts += [0] * (3 - len(parts))
        elif len(parts) == 1:
            parts = [0, *parts, 0]
        elif len(parts) == 2:
            parts = [0, *parts]
        seconds = (days or 0) * 86400 + parts[0] * 3600 + parts[1] * 60 + parts[2]
    if seconds < 1:
        raise InputError(
            f"--cluster-options time={text}: give minutes, 1:30:00 or 2-12:00:00."
        )
    return -(-seconds // 60)


def cluster_options(given: Sequence[str]) -> dict[str, str]:
    """Read ``key=value`` words.

    Raises:
        InputError: If one is not that.
    """
    options = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise InputError(
                f"--cluster-options {word}: give key=value, as in time=60."
            )
        options[key.lstrip("-")] = value
    return options


def _executor(folder: Path) -> "SlurmExecutor":
    try:
        from submitit import SlurmExecutor
    except ImportError as error:
        raise InputError(
            "--cluster slurm needs submitit: pip install 'spectral-mlops[cluster]'."
        ) from error
    try:
        # Preemption is what is expected: `IN_VAIN` ends what gets nowhere.
        return SlurmExecutor(folder=folder.absolute(), max_num_timeout=10**6)
    except RuntimeError as error:
        raise InputError(
            "--cluster slurm: there is no srun here; submit from a machine of the "
            "cluster."
        ) from error


@contextmanager
def _told_to_end() -> Iterator[list[int]]:
    """Make USR1 and TERM an interrupt, once; give which came."""
    told: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        if not told:  # what cleans up is not to be interrupted
            told.append(number)
            raise KeyboardInterrupt

    watched = (signal.SIGUSR1, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt) for number in watched}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
