"""The compose and Kubernetes files: every command in them is one of ours."""

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import typer

from spectral_mlops.cli import app
from tests.conftest import ROOT
from tests.tracking.servers import LOOPBACK, free_port, mlflow_server, running

yaml = pytest.importorskip("yaml")
FOLDER = ROOT / "experiments" / "cluster"


def read(name):
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def services():
    return read("compose.yaml")["services"]


def ours():
    """Yield the words behind spectral-mlops, and the environment they meet."""
    for name, service in services().items():
        # PostgreSQL has an image, and the server an entrypoint, of its own.
        if "command" in service and "entrypoint" not in service:
            yield f"compose {name}", service["command"], service["environment"]
    for name in ("study.yaml", "workers.yaml"):
        pod = read(name)["spec"]["template"]["spec"]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            known = {e["name"]: e.get("value", "a secret") for e in container["env"]}
            yield f"{name} {container['name']}", container["args"], known


def parsed(words):
    """Return the innermost command that words parse to, and what it was given."""
    context = typer.main.get_command(app).make_context("spectral-mlops", list(words))
    while hasattr(context.command, "resolve_command"):
        left = [*context._protected_args, *context.args]
        if not left:
            break
        name, command, rest = context.command.resolve_command(context, left)
        context = command.make_context(name, rest, parent=context)
    return context.command_path, context.params


@pytest.mark.parametrize(
    ("words", "known"), [pytest.param(w, e, id=name) for name, w, e in ours()]
)
def test_every_command_parses_and_finds_its_stores(words, known, monkeypatch):
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    path, given = parsed(words)
    assert path == " ".join(["spectral-mlops", *(w for w in words if w[0] != "-")])
    assert given["storage"] == known["OPTUNA_STORAGE"]
    assert given.get("study", "search") == "search"
    assert known["MLFLOW_TRACKING_URI"].startswith("http://")


def test_a_wrong_option_would_be_seen():
    with pytest.raises(Exception, match="No such option"):
        parsed(["init", "--stroage=x"])


def test_no_command_line_has_a_password():
    for _, words, _ in ours():
        assert not any("://" in word for word in words)


@pytest.mark.slow
def test_the_server_answers_to_the_names_that_files_call_it(migrated, tmp_path):
    server = services()["mlflow"]
    (allowed,) = (w for w in server["command"] if w.startswith("--allowed-hosts="))
    called = {
        known["MLFLOW_TRACKING_URI"].removeprefix("http://") for _, _, known in ours()
    }
    assert called == {"mlflow:5000"}
    port = free_port()
    names = allowed.partition("=")[2] + f",{LOOPBACK}:{port}"
    started = mlflow_server(
        tmp_path / "server",
        f"sqlite:///{migrated}",
        str(tmp_path / "files"),
        port,
        {"MLFLOW_SERVER_ALLOWED_HOSTS": names},
    )
    with running(started):
        answers = {}
        for host in [*called, "elsewhere:5000"]:
            address = f"{started.address}/api/2.0/mlflow/experiments/search"
            asked = urllib.request.Request(
                f"{address}?max_results=1", headers={"Host": host}
            )
            try:
                answers[host] = urllib.request.urlopen(asked, timeout=30).status
            except urllib.error.HTTPError as refused:
                answers[host] = refused.code
    assert answers == {"mlflow:5000": 200, "elsewhere:5000": 403}


def test_what_is_mounted_or_waited_for_exists():
    whole = read("compose.yaml")
    for service in whole["services"].values():
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in whole["volumes"]
        for other, when in service.get("depends_on", {}).items():
            healthy = when["condition"] == "service_healthy"
            assert healthy == ("healthcheck" in whole["services"][other])
        for config in service.get("configs", []):
            assert config["source"] in whole["configs"]
    databases = set(
        re.findall(r"@postgres/(\w+)", Path(FOLDER, "compose.yaml").read_text())
    )
    made = whole["services"]["postgres"]["environment"]["POSTGRES_DB"]
    assert databases == {made, *re.findall(r"DATABASE (\w+)", str(whole["configs"]))}


def test_pods_run_without_root_and_mount_what_they_have():
    for name in ("study.yaml", "workers.yaml"):
        pod = read(name)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        has = {volume["name"] for volume in pod["volumes"]}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= has
    assert "completions" not in read("workers.yaml")["spec"]
