"""Confounds that fMRIPrep leaves beside an image, loaded by nilearn."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from spectral_mlops.cohorts.atlas import Confounds
from spectral_mlops.config import Settings
from spectral_mlops.errors import InputError

Strategy = Literal[
    "motion",
    "high_pass",
    "wm_csf",
    "global_signal",
    "compcor",
    "scrub",
    "ica_aroma",
    "non_steady_state",
]


class ConfoundSettings(Settings):
    """What is regressed out of an image, and which frames are left out."""

    confounds: tuple[Strategy, ...] = Field(
        (), description="of fMRIPrep, regressed out of bold images"
    )
    motion: Literal["basic", "power2", "derivatives", "full"] = Field(
        "full", description="which motion parameters"
    )
    fd_threshold: float = Field(0.5, gt=0, description="mm; scrub frames above")
    std_dvars_threshold: float = Field(1.5, gt=0, description="scrub frames above")
    scrub: int = Field(5, ge=0, description="drop shorter stretches between them")


def confounds_of(settings: ConfoundSettings) -> Confounds | None:
    """Return what loads an image's confounds, every threshold passed by name.

    Args:
        settings: Strategy and thresholds.

    Returns:
        None where nothing is regressed.
    """
    if not settings.confounds:
        return None
    from nilearn.interfaces.fmriprep import load_confounds

    options: dict[str, Any] = {"motion": settings.motion}
    if "scrub" in settings.confounds:
        # NOTE nilearn's own thresholds changed from release to release.
        options |= {
            "fd_threshold": settings.fd_threshold,
            "std_dvars_threshold": settings.std_dvars_threshold,
            "scrub": settings.scrub,
        }

    def load(path: Path) -> tuple[Any, Any]:
        try:
            confounds, kept = load_confounds(
                str(path), strategy=settings.confounds, **options
            )
        except (ValueError, OSError, KeyError) as error:
            raise InputError(
                f"{path}: its fMRIPrep confounds cannot be loaded: "
                f"{' '.join(str(error).split()).rstrip('.')}."
            ) from error
        return confounds, kept

    return load


def confounds_note(settings: ConfoundSettings) -> str:
    """Say what was regressed out of images."""
    if not settings.confounds:
        return "no confounds regressed (confounds=[])"
    said = f"fMRIPrep confounds regressed: {', '.join(settings.confounds)}"
    if "motion" in settings.confounds:
        said += f" (motion={settings.motion})"
    if "scrub" in settings.confounds:
        said += (
            f"; frames left out above FD {settings.fd_threshold} mm or standardised "
            f"DVARS {settings.std_dvars_threshold}, stretches up to {settings.scrub}"
        )
    return said
