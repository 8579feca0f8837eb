from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.servers import Server, running, sqlite_server


@pytest.fixture
def server(migrated: Path, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, not started: it may be killed."""
    made = sqlite_server(tmp_path, migrated)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def address(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server on sqlite that all tests share."""
    made = sqlite_server(tmp_path_factory.mktemp("server"), migrated)
    with running(made):
        yield made.address
