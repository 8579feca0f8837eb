from pathlib import Path

import pytest

from tests.sweeps.jobs import made
from tests.sweeps.slurm import cluster

__all__ = ["cluster", "made"]


@pytest.fixture
def cheap(small_folder):
    """A file of settings whose trials take as little time as can be."""
    path = Path("run.toml")
    path.write_text(
        f'cohort.settings = {{ folder = "{small_folder}", preset = "easy", people = 56,'
        " seed = 3, components = 12, volumes = false }\n"
        "comparison = { probe_fraction = 0.45, permutations = 19 }\n"
        "spectra = { batches_per_epoch = 1, directions = 0, influence = false }\n"
        "training = { epochs = 1, folds = 2, batch_size = 32 }\n"
    )
    return path.absolute()
