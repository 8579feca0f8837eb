"""Plain modules that know nothing of hooks; importing this registers them."""

from spectral_mlops.models import cnn as cnn
from spectral_mlops.models import cnn3d as cnn3d
from spectral_mlops.models import ica_lstm as ica_lstm
from spectral_mlops.models import logistic as logistic
from spectral_mlops.models import mlp as mlp
from spectral_mlops.models import recurrent as recurrent
from spectral_mlops.models import transformer as transformer
from spectral_mlops.models.imported import is_imported
from spectral_mlops.models.registry import (
    MODELS,
    build_model,
    check_built,
    check_model,
    model_entry,
    register_model,
)

__all__ = [
    "MODELS",
    "build_model",
    "check_built",
    "check_model",
    "is_imported",
    "model_entry",
    "register_model",
]
