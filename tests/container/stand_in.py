"""Podman, its stand-in base image, and what this machine says of itself.

Addresses and paths of the machine (Debian mirror, wheels, certificates) are asked
for here, at run time; none is written down in the project.
"""

import os
import shutil
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BASE = "docker.io/library/python:3.11-slim"
IMAGE = "localhost/spectral-mlops:test"
UID = 10001  # of the Dockerfile

# Debian 12's Python is 3.11, that of the base image.
SUITE = "bookworm"
PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"

# What podman needs on a machine without systemd.
CONTAINERS_CONF = """\
[containers]
netns = "host"
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""

# As tightly as a cluster would run it.
LOCKED = (
    "--network=none",
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)


class Refused(Exception):
    """A command of the stand-in did not succeed."""


@dataclass(frozen=True)
class Podman:
    """Podman with its own storage and settings below one folder."""

    folder: Path

    def __call__(
        self, *arguments: str | Path, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        command = ["podman", f"--root={self.folder / 'storage'}"]
        command += [f"--runroot={self.folder / 'run'}", *map(str, arguments)]
        settings = {"CONTAINERS_CONF": str(self.folder / "containers.conf")}
        return execute(command, settings, check=check, timeout=timeout)

    def start(self) -> None:
        """Write the settings and see whether podman runs at all."""
        (self.folder / "containers.conf").write_text(CONTAINERS_CONF)
        self("info")

    def remove(self) -> None:
        """Leave nothing: an image with PyTorch is 2 GB."""
        self("rm", "--all", "--force", check=False)
        self("rmi", "--all", "--force", check=False)
        # Podman leaves its storage mounted on itself.
        execute(["umount", str(self.folder / "storage" / "overlay")], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def make_base(self) -> None:
        """Make the base image from Debian's packages, under its public name."""
        root, packed = self.folder / "rootfs", self.folder / "rootfs.tar"
        options = ["--variant=minbase", f"--include={PACKAGES}"]
        execute(["debootstrap", *options, SUITE, str(root), _mirror()], timeout=900)
        # The official image has a `python` of its own that pip may install into.
        for marker in root.glob("usr/lib/python3.*/EXTERNALLY-MANAGED"):
            marker.unlink()
        (root / "usr/bin/python").symlink_to("python3")
        execute(["tar", "-C", str(root), "-cf", str(packed), "."])
        self("import", packed, BASE, timeout=300)
        packed.unlink()
        shutil.rmtree(root)

    def build(self, project: Path) -> None:
        """Build the project's Dockerfile with the packages this machine's pip takes.

        What the build needs of the machine is mounted and leaves no trace.
        """
        settings = _pip_settings()
        settings.setdefault("cert", ssl.get_default_verify_paths().cafile or "")
        kept = {key: settings.get(key) for key in ("cert", "find-links", "index-url")}
        lines = ["[global]", *(f"{key} = {kept[key]}" for key in kept if kept[key])]
        conf = self.folder / "pip.conf"
        conf.write_text("\n".join(lines) + "\n")
        mounts = [f"--volume={conf}:/etc/pip.conf:ro"]
        places = [kept[key] or "" for key in ("cert", "find-links")]
        # Wheels may also lie at an address; only what is here can be mounted.
        local = [place for place in places if Path(place).is_absolute()]
        mounts += [f"--volume={place}:{place}:ro" for place in local]
        # Docker's own format, since the other drops instructions of a Dockerfile.
        options = ["--format=docker", "--pull=never", f"--tag={IMAGE}"]
        self("build", *options, *mounts, project, timeout=1800)


def execute(
    command: list[str],
    settings: dict[str, str] | None = None,
    *,
    check: bool = True,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it says.

    Raises:
        Refused: If it fails and ``check`` is set, with the end of what it said.
    """
    answer = subprocess.run(
        command,
        env=os.environ | (settings or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and answer.returncode:
        said = (answer.stdout + answer.stderr)[-4000:]
        raise Refused(f"{' '.join(command)}\ngave {answer.returncode}:\n{said}")
    return answer


def _pip_settings() -> dict[str, str]:
    """What pip is told on this machine, by files or by environment."""
    listed = execute([sys.executable, "-m", "pip", "config", "list"]).stdout
    pairs = (line.partition("=") for line in listed.splitlines())
    return {key.rpartition(".")[2]: value.strip("'\"") for key, _, value in pairs}


def _mirror() -> str:
    """The address that this machine takes its own Debian packages from.

    Raises:
        Refused: If apt knows none of this suite.
    """
    command = ["apt-get", "indextargets", "--format=$(CODENAME) $(REPO_URI)"]
    for target in execute(command).stdout.splitlines():
        codename, _, address = target.partition(" ")
        if codename == SUITE:
            return address
    raise Refused(f"apt knows no mirror of Debian {SUITE}")
