"""One space over every architecture of a modality, and over training."""

from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from spectral_mlops.sweeps import Sweep, read_sweep
from tests.training.toys import toy

SPACE = """
[space."training.optimizer"]
choices = ["adam", "adamw", "sgd"]
[space."training.optimizer".when.sgd."training.momentum"]
low = 0.0
high = 0.9
[space."training.learning_rate"]
low = 1e-4
high = 1e-2
log = true
[space."training.weight_decay"]
low = 1e-5
high = 1e-1
log = true
[space."training.batch_size"]
choices = [8, 16]
[space."training.schedule"]
choices = ["constant", "cosine", "step", "one-cycle"]

[space."model.name"]
choices = ["lstm", "gru", "transformer", "cnn1d"]

[space."model.name".when.lstm]
"model.settings.layers" = { low = 1, high = 2 }
"model.settings.width" = { choices = [4, 8] }
"model.settings.dropout" = { low = 0.0, high = 0.5 }
"model.settings.norm" = { choices = ["none", "layer"] }

[space."model.name".when.gru]
"model.settings.bidirectional" = { choices = [true, false] }
"model.settings.width" = { low = 3, high = 6 }

[space."model.name".when.transformer]
"model.settings.heads" = { choices = [1, 2, 4] }
"model.settings.width" = { choices = [4, 8] }
"model.settings.layers" = { low = 1, high = 2 }
"model.settings.activation" = { choices = ["relu", "gelu"] }
"model.settings.norm" = { choices = ["layer", "none"] }

[space."model.name".when.cnn1d]
"model.settings.channels" = { depth = [1, 2], width = [3, 5] }
"model.settings.kernel" = { choices = [3, 5] }
"model.settings.norm" = { choices = ["none", "layer", "batch", "group"] }
"model.settings.activation" = { choices = ["relu", "tanh"] }
"model.settings.dropout" = { low = 0.0, high = 0.5 }
"""
KINDS = ("lstm", "gru", "transformer", "cnn1d")


@pytest.fixture
def sweep():
    Path("sweep.toml").write_text(SPACE)
    space, _ = read_sweep(Path("sweep.toml"), {})
    settings = toy(
        model={"name": "gru"},
        training={"epochs": 1},
        spectra={"directions": 0, "influence": False},
        baselines={"draws": 100},
        tracking={"uri": "none"},
    )
    return Sweep(
        settings,
        study="all",
        storage="sqlite:///optuna.db",
        runs=Path("runs"),
        space=space,
    )


def test_every_end_and_choice_of_every_branch_makes_a_network(sweep):
    """A study is refused before its first trial if one does not."""
    corners = Counter(corner["model"]["name"] for corner in sweep.space.corners)
    assert corners.keys() == set(KINDS)
    assert min(corners.values()) >= 3


@pytest.mark.slow
def test_one_study_has_trials_of_every_architecture(sweep):
    for kind in KINDS:
        sweep.study.enqueue_trial({"model.name": kind})
        assert sweep.run_trial() == TrialState.COMPLETE
    trials = sweep.study.get_trials()
    assert tuple(trial.params["model.name"] for trial in trials) == KINDS
    for trial in trials:
        branch = f"{trial.params['model.name']}/model.settings."
        inner = [name for name in trial.params if "/model." in name]
        assert inner
        assert all(name.startswith(branch) for name in inner)
        assert trial.user_attrs["divergence.adjoint"] is not None
