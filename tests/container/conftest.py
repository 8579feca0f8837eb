"""Build the Dockerfile where no image registry can be reached.

The base image is made from Debian's own packages and given the name the Dockerfile
asks for. Everything lives in a storage of its own, removed afterwards, so that this
stand-in never shadows the real image in the user's storage.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.stand_in import IMAGE, UID, Podman, Refused

PROJECT = Path(__file__).parents[2]
TOOLS = ("podman", "runc", "debootstrap", "apt-get")


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("making a base image with debootstrap needs root")
    podman = Podman(Path(tempfile.mkdtemp(prefix="podman-")))  # it wants a short path
    try:
        podman.start()
        podman.make_base()
    except Refused as refusal:
        podman.remove()
        pytest.skip(f"no base image: {refusal}")
    yield podman
    podman.remove()


@pytest.fixture(scope="session")
def image(podman: Podman) -> str:
    podman.build(PROJECT)
    return IMAGE


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder on the host that the image's own user may write to."""
    folder = tmp_path / "out"
    folder.mkdir()
    os.chown(folder, UID, UID)
    return folder
