"""The prepared chart page of an experiment: divergence beside accuracy.

MLflow's user interface can open its chart page in a state that somebody shared. It
keeps that state as JSON in a tag of the experiment, ``mlflow.sharedViewState.<key>``,
and opens it for ``?viewStateShareKey=<key>``. The form is that of MLflow 3.17's own
pages and is not documented, so another version may show its ordinary charts instead;
nothing else rests on it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from spectral_mlops.errors import InputError
from spectral_mlops.records import QUANTITIES
from spectral_mlops.tracking.measures import CLASSIFICATION, MEASURES
from spectral_mlops.tracking.metrics import SHORT
from spectral_mlops.tracking.quiet import quiet  # NOTE: stays before mlflow
from spectral_mlops.tracking.store import (
    Store,
    open_store,
    resolve_uri,
    sqlite_path,
    unusable,
)

# isort: split
from mlflow import __version__ as mlflow_version
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

KEY = "spectral"
TAG = f"mlflow.sharedViewState.{KEY}"
TRIED = ("3.17",)
"""Versions of MLflow whose pages were seen to open the view."""
RUNS_READ = 100
"""Latest runs of an experiment that are asked which metrics there are."""
LINES = 8
"""Most metrics in one chart; each has one line per run."""

Chart = dict[str, Any]
Section = tuple[str, list[Chart]]


@dataclass(frozen=True)
class View:
    """An installed view.

    Attributes:
        experiment: Name of its experiment.
        where: How to look at it.
        note: What the user should know before, or empty.
    """

    experiment: str
    where: str
    note: str


def view_experiment(
    experiment: str | None = None, tracking_uri: str | None = None
) -> View:
    """Install the chart view of an experiment, for the metrics that its runs have.

    Args:
        experiment: Its name; if not given, see `Store.experiment`.
        tracking_uri: See `open_store`.

    Raises:
        InputError: If there is no such experiment, or no database to look for it in.
        TrackingError: If the store cannot be used.
    """
    database = sqlite_path(resolve_uri(tracking_uri))
    if database and not database.exists():
        raise InputError(
            f"There is no MLflow store {database} to look at: train first, or give "
            "the store's address."
        )
    store = open_store(tracking_uri)
    return install_view(store, store.experiment(experiment, make=False))


def install_view(store: Store, experiment: Experiment) -> View:
    """Write the view into the experiment's tag; again is no harm.

    Raises:
        TrackingError: If the store does not take it.
    """
    number = experiment.experiment_id
    with quiet():
        try:
            runs = store.client.search_runs([number], max_results=RUNS_READ)
            keys = dict.fromkeys(key for run in runs for key in run.data.metrics)
            state = json.dumps(chart_view(keys), separators=(",", ":"))
            store.client.set_experiment_tag(number, TAG, state)
        except (MlflowException, OSError) as error:
            raise unusable(store.uri, error) from error
    query = f"compareRunsMode=CHART&viewStateShareKey={KEY}"
    address = store.page(f"experiments/{number}/runs?{query}")
    return View(experiment.name, store.look_at(address), _note(_version(store)))


def chart_view(keys: Iterable[str]) -> dict[str, Any]:
    """Return the state of the chart page: our sections first, open and wide.

    Sections that MLflow makes by itself, one per metric, follow closed.

    Args:
        keys: Metrics that the runs have; if there are none, those that every
            run will have. A chart without a metric is left out.
    """
    known = list(keys)
    sections = [
        ("Divergence and accuracy", _headlines(known)),
        ("Groups", _groups(known)),
        ("Layers", _layers(known)),
    ]
    ours = [(name, charts) for name, charts in sections if charts]
    own = sorted({key.rpartition("/")[0] for key in known if "/" in key})
    return {
        "compareRunCharts": [
            chart | {"uuid": f"{name}-{place}", "metricSectionId": name}
            for name, charts in ours
            for place, chart in enumerate(charts)
        ],
        "compareRunSections": [
            *(_section(name, display=True) for name, _ in ours),
            *(_section(name, display=False) for name in own),
        ],
        "isAccordionReordered": True,  # or they are sorted by name
        "runsHiddenMode": "FIRST_20_RUNS",
        "hideEmptyCharts": True,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }


def _headlines(known: list[str]) -> list[Chart]:
    """Chart divergence, accuracy and loss over epochs, then one against the other.

    Without a probe no run has the standardised divergence; the excess on training
    batches stands in its place.
    """
    probe = not known or any(key.startswith("divergence/") for key in known)
    over, final = (
        ("divergence/", "final/divergence_") if probe else ("excess/", "excess/")
    )
    tasks = [x for x in MEASURES.values() if f"val/{x.headline}" in known]
    tasks = tasks or [CLASSIFICATION]
    lines = [
        [f"{over}{quantity}" for quantity in QUANTITIES],
        *(
            [f"val/{name}" for name in one.overall if name not in one.lower]
            for one in tasks
        ),
        ["train/loss", "val/loss"],
    ]
    pairs = [
        (f"{final}{quantity}", f"final/{one.headline}")
        for one in tasks
        for quantity in QUANTITIES
    ]
    return [
        *(_line(some) for each in lines if (some := _present(each, known))),
        *(_scatter(x, y) for x, y in pairs if len(_present([x, y], known)) == 2),
    ]


def _groups(known: list[str]) -> list[Chart]:
    """Chart people's groups side by side: performance, ranks, norms."""
    prefixes = ["val_acc", "val_loss", "val_mae", "norm_grad"]
    prefixes += [f"erank_{SHORT[quantity]}" for quantity in QUANTITIES]
    found = [[k for k in known if k.startswith(f"{each}/")] for each in prefixes]
    return [_line(keys[:LINES]) for keys in found if keys]


def _layers(known: list[str]) -> list[Chart]:
    """Chart the first, the middle and the last layer that has a divergence."""
    charts = []
    for prefix in ("div", "probe"):
        for quantity in QUANTITIES:
            section = f"{prefix}_{SHORT[quantity]}/"
            keys = sorted(key for key in known if key.startswith(section))
            if keys:
                places = dict.fromkeys((0, len(keys) // 2, len(keys) - 1))
                charts.append(_line([keys[place] for place in places]))
    return charts


def _present(wanted: Iterable[str], known: list[str]) -> list[str]:
    return [key for key in wanted if not known or key in known]


def _section(name: str, *, display: bool) -> Mapping[str, Any]:
    return {
        "uuid": name,
        "name": name,
        "display": display,
        "isReordered": False,
        "deleted": False,
        "isGenerated": True,
    }


def _chart(kind: str, runs: int) -> Chart:
    return {
        "type": kind,
        "runsCountToCompare": runs,
        "deleted": False,
        "isGenerated": False,
    }


def _line(keys: list[str]) -> Chart:
    """Return a chart over epochs with a line per metric and run."""
    return _chart("LINE", 20) | {
        "metricKey": "",  # or the first one would have no chart of its own below
        "selectedMetricKeys": keys,
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _scatter(x: str, y: str) -> Chart:
    """Return a chart with a point per run."""
    axes = [{"key": key, "type": "METRIC"} for key in (x, y)]
    return _chart("SCATTER", 100) | {"xaxis": axes[0], "yaxis": axes[1]}


def _version(store: Store) -> str:
    """Return the version of the MLflow that will show the page, empty if unknown."""
    if not store.uri.startswith("http"):
        return mlflow_version
    parts = urlsplit(store.uri)
    host = parts.netloc.rpartition("@")[2]  # a password is for the interface alone
    try:
        with urlopen(f"{parts.scheme}://{host}{parts.path}/version", timeout=5) as it:
            return it.read(100).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _note(version: str) -> str:
    if version.startswith(tuple(f"{tried}." for tried in TRIED)):
        return ""
    return (
        f"MLflow {version or 'of an unknown version'}: the view was made for "
        f"{' and '.join(TRIED)}, and may not open there; MLflow's own charts of every "
        "metric do."
    )
