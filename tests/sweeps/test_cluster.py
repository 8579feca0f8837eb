"""Workers as jobs of SLURM: what is handed in, and what becomes of it."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.sweeps.cluster import (
    IN_VAIN,
    Array,
    Worker,
    cluster_options,
    minutes,
    parameters,
)
from spectral_mlops.sweeps.tickets import Tickets
from tests.conftest import ROOT
from tests.sweeps.jobs import STORAGE, check_totals


@pytest.mark.slow
@pytest.mark.slurm
def test_an_array_of_three_runs_what_a_study_wants(
    command,
    cheap,
    uri,
    cluster,
    monkeypatch,
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = ["sweep", "--config", cheap, "--tracking", uri, "--heartbeat", 2]
    words += ["--cluster", "slurm", "--workers", 3]
    refused = ("--study", "refused", "--cluster-options", "partition=none")
    code, _, err = command(*words, *refused)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "Invalid partition name" in err
    words += ["--cluster-options", "mem=600M", "--cluster-options", "time=0:30:00"]
    code, out, err = command(*words, "--study", "tiny", "--trials", 5)
    assert (code, err) == (0, ""), out
    (job,) = re.findall(r"squeue --array --jobs (\d+)", out)
    logs = Path("runs/tiny-cluster").resolve()
    assert str(logs) in out
    assert "Its page: runs/tiny-study" in out
    assert logs.stat().st_mode & 0o777 == 0o700
    for number in range(3):
        text = (logs / f"{job}_{number}_0_log.out").read_text()
        assert f"worker {number} of study 'tiny'" in text
    study = optuna.load_study(study_name="tiny", storage=STORAGE)
    check_totals(study, uri, 5)


def test_time_limits_are_read_as_slurm_writes_them():
    asked = ("90", "90:00", "1:30:00", "0-1:30", "1:29:01", "2-12", "2-12:00:00")
    found = {text: minutes(text) for text in asked}
    assert set(found.values()) == {90, 60 * 60}
    assert [text for text in asked if found[text] == 3600] == ["2-12", "2-12:00:00"]
    for text in ("", "0", "an hour", "1:2:3:4", "-5", "1-", "1.5"):
        with pytest.raises(InputError, match=r"cluster-options time="):
            minutes(text)


def test_options_become_those_of_sbatch():
    given = cluster_options(
        ["partition=long", "cpus=3", "--gres=gpu:a=1", "job_name=x"]
    )
    made = parameters("tiny", given)
    assert (made["job_name"], made["time"]) == ("x", 60)
    assert made["srun_args"] == ["--cpus-per-task=3"]
    assert made["additional_parameters"] == {
        "partition": "long",
        "cpus-per-task": "3",
        "gres": "gpu:a=1",
        "signal": "USR1@90",
        "requeue": True,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cluster", "pbs", "--workers", 2], "there is slurm"),
        (["--cluster", "slurm"], "needs --workers"),
        (["--cluster", "slurm", "--workers", 0], "needs --workers"),
        (["--cluster-options", "mem=1G"], "those of --cluster slurm"),
        (["mem"], "give key=value"),
        (["nodes=2"], "one node and one task"),
        (["signal=USR2"], "leave it out"),
        (["cpus=many"], "give a whole number"),
        (["time=soon"], "give minutes"),
    ],
)
def test_what_cannot_be_handed_in_is_one_sentence_and_leaves_nothing(
    command, words, said
):
    if words[0][0] != "-":
        words = ["--cluster", "slurm", "--workers", 2, "--cluster-options", *words]
    code, _, err = command("sweep", "--tracking", "none", *words)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert said in err
    assert list(Path().iterdir()) == []


def array_of(sweep=None, **told):
    return Array(
        sweep or stand_in(), Worker("tiny", STORAGE, Path("runs")), 2, {}, **told
    )


def stand_in(free=1):
    counts = {"free": free, "taken": 0, "spent": 2}
    return SimpleNamespace(
        runs=Path("runs"), tickets=SimpleNamespace(counts=lambda: counts)
    )


def test_missing_programs_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="no srun here"):
        array_of().start()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"spectral-mlops\[cluster\]"):
        array_of().start()


def stand_in_for(monkeypatch, name, script):
    """Put a stand-in for a program of SLURM first."""
    Path("bin").mkdir(exist_ok=True)
    program = Path("bin", name).absolute()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def squeue(monkeypatch, script):
    stand_in_for(monkeypatch, "squeue", script)


def test_jobs_are_handed_in_and_left_alone(command, cheap, monkeypatch):
    stand_in_for(monkeypatch, "srun", "exit 1")
    stand_in_for(monkeypatch, "sbatch", "cp $1 batch; echo Submitted batch job 7")
    words = ["--config", cheap, "--tracking", "none", "--trials", 4, "--no-wait"]
    words += ["--cluster", "slurm", "--workers", 2, "--cluster-options", "cpus=2"]
    code, out, err = command("sweep", *words, "--cluster-options", "time=1:00:00")
    assert (code, err) == (0, "")
    assert "Jobs 7_0 to 7_1" in out
    assert "Its page" not in out
    batch = Path("batch").read_text()
    said = ("array=0-1%2", "cpus-per-task=2", "requeue", "signal=USR1@90", "time=60")
    assert all(f"#SBATCH --{option}\n" in batch for option in said)
    assert "export SUBMITIT_PREEMPT_SIGNAL=USR1" in batch
    assert "code=$?\nif [ $code -eq 138 ] &&" in batch
    study = optuna.load_study(study_name="sweep", storage=STORAGE)
    assert Tickets(study, STORAGE).counts() == {"free": 4, "taken": 0, "spent": 0}
    one = ["--tracking", "none", "--cluster", "slurm", "--workers", 1, "--no-wait"]
    code, out, err = command("sweep", *one)
    assert (code, err) == (0, "")
    assert "Job 7:  squeue" in out


def test_a_controller_that_is_away_ends_nothing(monkeypatch):
    squeue(monkeypatch, "echo 'Unable to contact slurm controller' >&2; exit 1")
    array = array_of(job="7", living=2)
    assert array.ended() == []
    assert array.living == 2


def test_jobs_that_ended_before_the_trials_did_are_told_of(monkeypatch):
    squeue(monkeypatch, "echo 7_1 PD")
    array = array_of(job="7", living=2)
    assert array.ended() == []
    assert array.living == 1
    squeue(monkeypatch, "echo 'slurm_load_jobs error: Invalid job id' >&2; exit 1")
    assert array.ended() == []  # asked a moment ago
    array._next_look = 0
    (sentence,) = array.ended()
    assert "1 trials" in sentence
    assert array.living == 0
    done = array_of(stand_in(free=0), job="7", living=2)
    assert done.ended() == []
    assert done.living == 0


def test_a_worker_that_gets_nowhere_is_not_queued_for_ever():
    worker = Worker("tiny", STORAGE, Path("runs"), in_vain=IN_VAIN)
    again = worker.checkpoint(3)
    assert (again.function, again.args) == (worker, (3,))
    worker.in_vain += 1
    assert worker.checkpoint(3) is None
