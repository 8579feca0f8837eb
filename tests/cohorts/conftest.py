"""Small cohorts and real files for the tests of cohorts."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spectral_mlops.cohorts import Cohort

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a text file below the test's folder."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_cohort() -> Callable[..., Cohort]:
    """Build a cohort of five people; keywords replace its parts."""

    def make(**changes: object) -> Cohort:
        people = pd.DataFrame(
            {"group": ["hc", "sz", "hc", "sz", "hc"], "age": [20.0, 31, 42, 53, 64]},
            index=["sub-03", "sub-01", "sub-02", "sub-05", "sub-04"],
        )
        parts: dict[str, object] = {
            "people": people,
            "features": np.arange(15, dtype=np.float32).reshape(5, 3),
            "modality": "fnc",
            "target": "group",
            "positive": "sz",
            "source": "made up",
        }
        return Cohort(**(parts | changes))  # type: ignore[arg-type]

    return make


def real(name: str) -> Path:
    """Return a folder of real data, or skip the test where this machine has none."""
    data = os.environ.get("SPECTRAL_MLOPS_DATA", REPOSITORY.parent / "shared" / "data")
    folder = Path(data) / name
    if not folder.is_dir():
        pytest.skip(f"real data are not here: {folder}")
    return folder


@pytest.fixture(scope="session")
def mlsp() -> Path:
    """The folder of the MLSP 2014 connectivity."""
    return real("mlsp2014_fnc")


@pytest.fixture(scope="session")
def abide() -> Path:
    """The folder of the ABIDE CC200 time courses."""
    return real("abide_cc200_timecourses")


@pytest.fixture(scope="session")
def ucla() -> Path:
    """The folder of the UCLA CNP tables."""
    return real("ucla_cnp_ds000030_bids")


@pytest.fixture(scope="session")
def big_people() -> pd.DataFrame:
    """146 people of two groups at three sites of unequal size."""
    random = np.random.default_rng(5)
    return pd.DataFrame(
        {
            "group": ["control"] * 74 + ["patient"] * 72,
            "site": random.choice(["A", "B", "C"], size=146, p=[0.5, 0.3, 0.2]),
            "sex": random.choice(["F", "M"], size=146),
        },
        index=pd.Index([f"sub-{k:03d}" for k in range(146)], name="participant_id"),
    )
