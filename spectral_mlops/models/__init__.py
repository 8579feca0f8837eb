"""Plain modules that know nothing of hooks; importing this registers them."""

from spectral_mlops.models import mlp as mlp
from spectral_mlops.models.registry import (
    MODELS,
    build_model,
    check_model,
    register_model,
)

__all__ = ["MODELS", "build_model", "check_model", "register_model"]
