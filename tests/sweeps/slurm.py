"""A SLURM of one node on the loopback, made of Debian's own programs."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.tracking.servers import LOOPBACK, Server, free_port, running

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
SBIN = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"
CORES, MEMORY = 3, 3000
"""What the node says it has; nothing holds jobs to it."""
CONFIGURATION = """
ClusterName=spectral
SlurmctldHost={host}({loopback})
SlurmctldPort={controller}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=20
DefMemPerCPU=900
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr={loopback} Port={node} CPUs={cores} RealMemory={memory}
PartitionName=short Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def without_slurm() -> str:
    """Return why there can be no SLURM here; empty if there can."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=SBIN)]
    if missing:
        return f"no {', '.join(missing)} here"
    return "" if os.geteuid() == 0 else "a node of SLURM needs root"


def called(*words: str) -> str:
    """Run a program of SLURM, and return what it said."""
    shown = subprocess.run(words, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, f"{words}: {shown.stderr}"
    return shown.stdout


@contextmanager
def munge(folder: Path) -> Iterator[None]:
    """Run MUNGE with a key of its own, by which SLURM's programs trust each other."""
    key, place = folder / "munge.key", folder / "munge.socket"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    words = [str(shutil.which("munged", path=SBIN)), "--foreground", "--force"]
    words += [f"--key-file={key}", f"--socket={place}"]
    for name in ("pid", "log", "seed"):
        words.append(f"--{name}-file={folder / f'munge.{name}'}")
    with (folder / "munge.said").open("w") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said)
    try:
        for _ in range(80):
            assert process.poll() is None, (folder / "munge.said").read_text()
            if place.exists():
                break
            time.sleep(0.25)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_idle() -> None:
    for _ in range(120):
        shown = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"],
            capture_output=True,
            text=True,
            check=False,
        )
        if shown.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    raise TimeoutError(f"the node is not idle: {shown.stdout}{shown.stderr}")


@contextmanager
def slurm() -> Iterator[Path]:
    """Run a SLURM; give its configuration, which is in ``SLURM_CONF`` meanwhile."""
    if why := without_slurm():
        pytest.skip(why)
    # Not below tmp_path, whose name is too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="spectral-slurm-"))
    host, ports = socket.gethostname(), (free_port(), free_port())
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=host,
            loopback=LOOPBACK,
            folder=folder,
            controller=ports[0],
            node=ports[1],
            cores=CORES,
            memory=MEMORY,
        )
    )
    controller, node = (
        [str(shutil.which(name, path=SBIN)), "-D", "-f", str(configuration)]
        for name in ("slurmctld", "slurmd")
    )
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        set_for_clients = stack.enter_context(pytest.MonkeyPatch.context())
        set_for_clients.setenv("SLURM_CONF", str(configuration))
        stack.enter_context(munge(folder))
        stack.enter_context(running(_in(folder, "controller", controller, ports[0])))
        stack.enter_context(running(_in(folder, "node", [*node, "-N", host], ports[1])))
        _wait_until_idle()
        stack.callback(_end_jobs)
        yield configuration


def _in(folder: Path, name: str, words: list[str], port: int) -> Server:
    (folder / name).mkdir()
    return Server(words, folder / name, port)


def _end_jobs() -> None:
    """End what a failed test left, before the node is gone."""
    subprocess.run(["scancel", "--signal=KILL", "--user=root"], check=False)
    subprocess.run(["scancel", "--user=root"], check=False)
    for _ in range(60):
        if not called("squeue", "--noheader"):
            return
        time.sleep(0.5)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    with slurm() as configuration:
        yield configuration
