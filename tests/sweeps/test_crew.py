"""Processes that die, and what is said of them; no study behind."""

import io
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from rich.console import Console

from spectral_mlops.cli import crew as shown
from spectral_mlops.cli import terminal
from spectral_mlops.cli.crew import WIDTH, live_trials, settings_in_short
from spectral_mlops.config import RunConfig
from spectral_mlops.sweeps.crew import Crew
from spectral_mlops.sweeps.objective import Judgement


@pytest.fixture
def crew(monkeypatch):
    silenced = []
    sweep = SimpleNamespace(
        study=SimpleNamespace(study_name="s"),
        runs=Path("runs"),
        device="cpu",
        tickets=SimpleNamespace(silence=silenced.append),
        config=RunConfig(tracking={"uri": "none"}),
    )

    def make(code, size=1):
        words = [sys.executable, "-c", code]
        monkeypatch.setattr(Crew, "_words", lambda self: words)
        made = Crew(sweep, "postgresql://me:secret@host/db", size)
        made.start()
        return made, silenced

    return make


def all_that_ended(crew):
    said = []
    while crew.living:
        said += crew.ended()
    return said


def test_one_that_dies_is_told_once_and_its_ticket_is_free(crew):
    made, silenced = crew("print('Error: no people'); raise SystemExit(2)", 2)
    processes = [process.pid for process in made._processes.values()]
    said = all_that_ended(made)
    assert len(said) == made.died == 2
    assert "Worker 1 ended with code 2 (Error: no people)" in " ".join(said)
    assert sorted(silenced) == sorted(f"{socket.gethostname()}:{p}" for p in processes)
    assert made.ended() == []


def test_one_that_is_killed_is_told(crew):
    made, _ = crew("import time; time.sleep(600)")
    made._processes[1].send_signal(signal.SIGKILL)
    (said,) = all_that_ended(made)
    assert "was ended by signal 9; its trial is tried again" in said


def test_those_who_were_told_to_end_are_not_mourned(crew):
    made, silenced = crew("import time; time.sleep(600)", 2)
    made.drain()
    made.wait()
    assert (made.living, made.died, len(silenced)) == (0, 0, 2)


def test_addresses_go_through_the_environment(crew):
    made, silenced = crew(
        "import os, sys; sys.exit(3 if 'secret' in os.environ['OPTUNA_STORAGE'] else 9)"
    )
    assert all_that_ended(made) == []
    assert (made.undelivered, silenced) == (True, [])


def test_the_words_of_a_worker_have_no_password():
    sweep = SimpleNamespace(
        study=SimpleNamespace(study_name="s"), runs=Path("runs"), device="cpu"
    )
    words = Crew(sweep, "postgresql://me:secret@host/db", 2, trust=True)._words()
    assert "secret" not in " ".join(words)
    assert words[-1] == "--trust"
    assert Crew(sweep, "sqlite:///x", 2, threads=5)._words()[-1] == "5"
    assert Crew(sweep, "sqlite:///x", 1000)._words()[-1] == "1"


def test_settings_are_shown_in_short():
    params = {"training.learning_rate": 0.00123456, "adam/model.name": "mlp", "n": 3}
    assert settings_in_short(params) == "learning_rate=0.00123 name=mlp n=3"
    assert settings_in_short({}) == ""
    assert len(settings_in_short({"x": "y" * 200})) == WIDTH


def test_trials_of_this_process_are_shown_as_they_run(monkeypatch):
    """In a terminal, the running one too, and nothing stays; elsewhere nothing."""
    study = optuna.create_study(direction="maximize")
    sweep = SimpleNamespace(
        study=study,
        judgement=Judgement("auc", 2.0, "adjoint"),
        tickets=SimpleNamespace(counts=lambda: {"free": 2, "taken": 0, "spent": 0}),
    )
    written = {True: io.StringIO(), False: io.StringIO()}
    for terminal_, out in written.items():
        console = Console(file=out, force_terminal=terminal_, width=100, height=30)
        monkeypatch.setattr(shown, "console", console)
        monkeypatch.setattr(terminal, "console", console)
        with live_trials(sweep) as told:
            trial = study.ask()
            trial.suggest_float("rate", 0.5, 0.5)
            trial.report(0.625, 0)
            told["on_epoch"](0, {"train/loss": 0.25, "val/auc": 0.625})
            trial.set_user_attr("divergence.adjoint", 1.5)
            study.tell(trial, 0.75)
            told["on_trial"](None)
    said = written[True].getvalue()
    for word in ("RUNNING", "0.625", "rate=0.5", "loss 0.250", "COMPLETE", "+1.50"):
        assert word in said
    assert said.index("RUNNING") < said.index("COMPLETE")
    assert "1/2" in said
    assert written[False].getvalue() == ""
