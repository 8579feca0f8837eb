"""What a trial may change: the built-in search space for the perceptron."""

from typing import Any

import optuna

MAX_DEPTH = 3


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Draw depth, width, learning rate and dropout.

    The width halves from layer to layer, so that depth and width are two numbers
    whatever the depth.

    Returns:
        Nested settings to lay over a `config.RunConfig`.
    """
    depth = trial.suggest_int("depth", 1, MAX_DEPTH)
    width = trial.suggest_categorical("width", [16, 32, 64, 128])
    rate = trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True)
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    hidden = [max(8, width >> layer) for layer in range(depth)]
    return {
        "model": {"settings": {"hidden": hidden, "dropout": dropout}},
        "training": {"learning_rate": rate},
    }
