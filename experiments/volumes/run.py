"""Do 300 grey-matter maps of 121 x 145 x 121 train without being in memory together?

Run from the project's root:

    python -m experiments.volumes.run --people 300
"""

import argparse
import gzip
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import nn

from spectral_mlops.config import RunConfig, validate
from spectral_mlops.training import make_plan
from spectral_mlops.training.controls import Controls
from spectral_mlops.training.fold import FoldRun
from spectral_mlops.training.outcome import no_outcome

SHAPE = (121, 145, 121)
VOXEL_MM = 1.5
EVERY_S = 0.02
PROBE = 0.4
MB = 2**20


def write_people(folder: Path, people: int, shape: tuple[int, ...], seed: int) -> None:
    """Write ``uint8`` maps of an ellipsoid, each with a block of noise of its own.

    Args:
        folder: Of the table and the images.
        people: How many, half of each group.
        shape: Voxels along each axis.
        seed: Of the noise.
    """
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 1
    grey = np.where(inside, 140, 0).astype(np.uint8)
    affine = np.diag([VOXEL_MM] * 3 + [1.0])
    block = tuple(slice(n // 3, n // 3 + n // 4) for n in shape)
    lines = ["participant_id\tgroup"]
    for number in range(people):
        who = f"sub-{number:04d}"
        own = grey.copy()
        own[block] = rng.integers(90, 190, size=own[block].shape)
        image: Any = nibabel.Nifti1Image(own, affine)  # type: ignore[no-untyped-call]
        image.header.set_slope_inter(1 / 255, 0)
        packed = gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
        (folder / f"{who}.nii.gz").write_bytes(packed)
        lines.append(f"{who}\t{'patient' if number % 2 else 'control'}")
    (folder / "people.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def tiny(inputs: tuple[int, ...], outputs: int) -> nn.Module:
    """A convolution of large steps: what takes time here is reading, not arithmetic."""
    return nn.Sequential(
        nn.Conv3d(1, 4, kernel_size=4, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(2),
        nn.Flatten(),
        nn.Linear(32, outputs),
    )


tiny.takes = "volume"  # type: ignore[attr-defined]


def resident() -> dict[str, float]:
    """What of this process is in memory, MB: its own, and pages of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    known = dict(line.split(":", 1) for line in lines)
    names = {"own": "RssAnon", "mapped": "RssFile"}
    return {name: int(known[key].split()[0]) / 1024 for name, key in names.items()}


@contextmanager
def measured(into: dict[str, Any], name: str) -> Iterator[None]:
    """Write seconds and the largest resident memory of a stage into a dictionary."""
    over = threading.Event()
    most = resident()

    def watch() -> None:
        while not over.wait(EVERY_S):
            for kind, value in resident().items():
                most[kind] = max(most[kind], value)

    thread, began = threading.Thread(target=watch), time.perf_counter()
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    seconds = round(time.perf_counter() - began, 1)
    into[name] = {"s": seconds, **{k: round(v) for k, v in most.items()}}
    print(name, into[name], flush=True)


def settings(folder: Path, batch: int) -> RunConfig:
    """Return the settings of a run on these people."""
    cohort = {
        "images": f"{folder}/{{participant_id}}.nii.gz",
        "labels": f"{folder}/people.tsv",
        "positive": "patient",
        "cache": str(folder / "cache"),
    }
    values = {
        "cohort": {"name": "volumes", "settings": cohort},
        "model": {"name": "experiments.volumes.run:tiny"},
        "training": {"epochs": 1, "folds": 5, "batch_size": batch},
        "spectra": {"batches_per_epoch": 1, "directions": 0, "influence": False},
        "comparison": {"probe_fraction": PROBE, "permutations": 19},
        "controls": {"draws": 1},
    }
    return validate(RunConfig, values, "experiments/volumes")


def measure(
    folder: Path, people: int, shape: tuple[int, ...], batch: int = 4
) -> dict[str, Any]:
    """Write maps, cache them, and train one epoch on those of the first fold.

    Args:
        folder: Empty; needs as much room as all maps take as float32.
        people: At least 60, so that enough of them are a probe.
        shape: Voxels along each axis.
        batch: People a step.

    Returns:
        Seconds and memory of each stage, and how many MB all maps are.
    """
    found: dict[str, Any] = {
        "people": people,
        "shape": list(shape),
        "batch": batch,
        "all_maps": round(people * int(np.prod(shape)) * 4 / MB),
    }
    with measured(found, "write"):
        write_people(folder, people, shape, seed=0)
    with measured(found, "cache"):
        plan = make_plan(settings(folder, batch), folder)
    with measured(found, "scale"):
        fold = FoldRun(plan, 0, torch.device("cpu"))
    found["lazy"] = fold.lazy
    with measured(found, "train"):
        found["loss"] = round(fold.train_epoch(0)[1], 4)
    with measured(found, "validate"):
        fold.validate(0)
    if plan.probe is not None:
        with measured(found, "probe"):
            fold.probe(0)
        nothing = no_outcome("measured for what it takes")
        controls = Controls(plan, [fold], nothing, nothing)
        with measured(found, "input-surrogate, input-pooled"):
            list(controls._surrogate_rows())
        with measured(found, "input, input-centred"):
            list(controls._input_rows())
    return found


def main() -> None:
    """Measure and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), chosen.people, tuple(chosen.shape), chosen.batch)
    text = json.dumps(found, indent=2) + "\n"
    (chosen.out / "results.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
