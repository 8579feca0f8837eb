"""Three finished runs in a real MLflow, and a browser that looks at them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from spectral_mlops.cohorts import simulate
from spectral_mlops.config import RunConfig, validate
from spectral_mlops.tracking import open_tracker, view_experiment
from spectral_mlops.training import make_plan, run
from tests.tracking.servers import LOOPBACK, Server, running, sqlite_server

COLOURS = ("#0072B2", "#D55E00", "#009E73")
"""One per run, as a person may choose them; MLflow's own come from the run's id."""
QUIET_PAGE = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.telemetry.info.alert.dismissed_v1": "true",
}
"""What a person has clicked away; without it panels lie over the charts."""
WIDTH = 1400


@dataclass(frozen=True)
class Runs:
    """Three finished runs of one experiment, on a server."""

    address: str
    experiment_id: str
    run_ids: list[str]
    view: str


@dataclass
class Visit:
    """A page and what it asked for and complained of while it was open."""

    page: Any  # playwright is imported by the fixture alone
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def charts(self) -> list[list[str]]:
        """Return, for each chart that is drawn, the names of its lines."""
        return self.page.evaluate(
            "[...document.querySelectorAll('.js-plotly-plot')]"
            ".map(plot => plot.data.map(line => line.name))"
        )


@pytest.fixture(scope="session")
def server(
    migrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with running(sqlite_server(tmp_path_factory.mktemp("pages"), migrated)) as made:
        yield made


@pytest.fixture(scope="session")
def runs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Networks of three widths, trained on 72 people of whom 28 are the probe."""
    folder = tmp_path_factory.mktemp("runs")
    cohort = {"preset": "easy", "people": 72, "components": 12, "volumes": False}
    simulate(folder / "people", "easy", 72, 0, components=12, volumes=False)
    numbers = []
    for seed, colour in enumerate(COLOURS):
        settings = {
            "cohort": {"settings": cohort | {"folder": str(folder / "people")}},
            "model": {"settings": {"hidden": [8 * 2**seed, 8]}},
            "training": {
                "epochs": 12,
                "folds": 2,
                "batch_size": 8,
                "learning_rate": 0.004,
                "seed": seed,
            },
            "comparison": {
                "permutations": 99,
                "null_epochs": 12,
                "probe_fraction": 0.4,
            },
            "tracking": {"uri": server.address},
        }
        config = validate(RunConfig, settings, "test")
        name = f"width-{8 * 2**seed}"
        with open_tracker(server.address, "widths", folder / name) as tracker:
            run(
                make_plan(config, folder),
                tracker,
                folder / name,
                name=name,
                tags={"mlflow.runColor": colour},
            )
        assert tracker.undelivered == 0
        numbers.append(tracker.run_id)
    view = view_experiment("widths", server.address)
    number = view.where.partition("/experiments/")[2].partition("/")[0]
    return Runs(server.address, number, numbers, view.where)


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """A page of a browser that nobody has used before."""
    context = browser.new_context(viewport={"width": WIDTH, "height": 1180})
    clicked = "".join(f"localStorage.setItem({k!r}, {v!r});" for k, v in
                      QUIET_PAGE.items())  # fmt: skip
    # A page in a frame without storage of its own would complain.
    context.add_init_script(f"if (window === window.top) {{ {clicked} }}")
    made = Visit(context.new_page())

    def asked(request: Any) -> None:
        url = urlsplit(request.url)
        if url.scheme not in ("data", "blob") and url.hostname != LOOPBACK:
            made.outside.append(request.url)

    made.page.on("request", asked)
    made.page.on("pageerror", lambda error: made.errors.append(str(error)))
    made.page.on(
        "console",
        lambda said: (
            made.errors.append(f"{said.location['url']}: {said.text}")
            if said.type == "error"
            else None
        ),
    )
    yield made
    context.close()


@pytest.fixture
def keep(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, bytes], Path]:
    """Keep a picture, in few colours: a page needs no more."""
    asked = request.config.getoption("--screenshots")
    folder = asked or tmp_path_factory.getbasetemp() / "screenshots"
    folder = Path(request.config.invocation_params.dir, folder)

    def write(name: str, png: bytes) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.png"
        picture = Image.open(BytesIO(png)).convert("RGB")
        picture.quantize(128).save(path, optimize=True)
        return path

    return write
