"""A study that keeps what its workers need; tickets through the command line."""

from pathlib import Path

import optuna

from tests.sweeps.test_sweep_command import SPACE, config  # noqa: F401


def states(study="two"):
    loaded = optuna.load_study(study_name=study, storage="sqlite:///optuna.db")
    return [trial.state.name for trial in loaded.get_trials()]


def test_a_worker_needs_name_and_storage_alone(command, config):  # noqa: F811
    Path("sweep.toml").write_text(SPACE)
    words = ["--config", config, "--space", "sweep.toml", "--tracking", "none"]
    words += ["--study", "two"]
    code, _, err = command("sweep", *words, "--trials", 3, "--workers", 0)
    assert (code, err) == (0, "")
    assert states() == []
    Path("sweep.toml").unlink()
    code, out, err = command("sweep", "worker", "--study", "two", "--trials", 1)
    assert (code, err) == (0, "")
    assert "1 COMPLETE" in out
    assert "wants 2 more" in out
    code, out, err = command("sweep", "--study", "two")  # goes on, adds nothing
    assert (code, err) == (0, "")
    assert states() == ["COMPLETE"] * 3
    code, out, _ = command("sweep", "worker", "--study", "two")
    assert "none" in out
    assert states() == ["COMPLETE"] * 3


def test_workers_are_refused_in_one_sentence(command, config):  # noqa: F811
    code, _, err = command("sweep", "worker", "--study", "two")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert not Path("optuna.db").exists()
    Path("space.py").write_text("def draw(trial):\n    return {}\n")
    Path("sweep.toml").write_text('space = "space:draw"\n')
    words = ["--config", config, "--space", "sweep.toml", "--tracking", "none"]
    words += ["--study", "own"]
    assert command("sweep", *words, "--trials", 1, "--workers", 0)[0] == 0
    code, _, err = command("sweep", "worker", "--study", "own")
    assert code == 2
    assert "'space:draw'" in err
    assert "--trust" in err
    Path("sweep.toml").write_text(SPACE)
    code, _, err = command("sweep", *words)
    assert code == 2
    assert "another search space" in err
