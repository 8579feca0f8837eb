"""The README's code and settings do what they say."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spectral_mlops import capture, load_run
from spectral_mlops.cohorts import check_cohort
from spectral_mlops.config import RunConfig, read_toml, validate
from spectral_mlops.hooks.rules import ROW_RULES
from spectral_mlops.tracking import open_store

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def people(seed, n):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    diagnosis = ["patient" if i % 3 else "control" for i in range(n)]
    y = torch.tensor([label == "patient" for label in diagnosis]).long()
    who = [f"sub-{seed}-{i}" for i in range(n)]
    return x, y, SimpleNamespace(diagnosis=diagnosis, subject=who)


def test_the_loop_of_the_readme_runs(uri, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    probe_x, probe_y, held_out = people(2, 30)
    loop = blocks("python")[0]
    names = {
        "model": model,
        "epochs": 2,
        "loader": [people(0, 9), people(1, 8)],
        "loss_function": cross_entropy,
        "probe_x": probe_x,
        "probe_y": probe_y,
        "probe_groups": {"diagnosis": held_out.diagnosis},
        "probe_ids": held_out.subject,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    exec(loop, names)
    assert "p_max" in capsys.readouterr().out
    client = open_store(uri).client
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FINISHED"
    frame = load_run(run.info.run_id, uri)
    assert set(frame["epoch"]) == {0, 1}
    assert set(frame["step"]) == {0, 1}


def test_the_capture_of_the_readme_runs():
    model = nn.Sequential()
    model.add_module("hidden", nn.Linear(4, 2))
    names = {
        "model": model,
        "x": torch.randn(3, 4),
        "y": torch.tensor([0, 1, 1]),
        "loss_function": cross_entropy,
    }
    exec(blocks("python")[1], names)
    assert max(names["captured"].additivity_error().values()) < 1e-5


def test_the_directions_of_the_readme_run():
    model = nn.Sequential()
    model.add_module("hidden", nn.Linear(4, 2))
    with capture(model, groups=list("aab")) as captured:
        cross_entropy(model(torch.randn(3, 4)), torch.tensor([0, 1, 1])).backward()
    optimizer = torch.optim.Adam(model.parameters())
    names = {"captured": captured, "optimizer": optimizer}
    (code,) = (text for text in blocks("python") if "group_influence" in text)
    exec(code.replace("\nleading", "\nfound = leading"), names)
    assert {d.layer for d in names["found"]} == {"hidden"}


def test_the_rule_of_the_readme_runs():
    names = {}
    exec(blocks("python")[2], names)
    assert len(blocks("python")[2].strip().splitlines()) < 26
    scale = names["Scale"]
    try:
        model, x = scale(3), torch.randn(5, 3)
        with capture(model, list("aabba")) as captured:
            model(x).square().sum().backward()
        (row,) = captured.coverage()
        assert row.method == "rows"
        expected = (2 * x.square())[[0, 1, 4]].sum(0)
        torch.testing.assert_close(captured.group_gradients()["a"]["scale"], expected)
    finally:
        del ROW_RULES._entries[scale]


@pytest.mark.parametrize(
    "text",  # search spaces have a test of their own
    [text for text in blocks("toml") if not text.startswith("[sweep]")],
)
def test_the_settings_of_the_readme_are_accepted(text, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(text)
    config = validate(RunConfig, read_toml(path), str(path))
    check_cohort(config.cohort)


def test_the_first_settings_of_the_readme_are_those_of_its_flags(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(blocks("toml")[0])
    config = validate(RunConfig, read_toml(path), str(path))
    assert config.cohort.name == "fnc"
    assert config.comparison.groupings == ("group", "sex")


def test_the_two_commands_open_the_readme():
    first, second = re.findall(r"^    (pip install .*)$", README, flags=re.MULTILINE)
    assert first == "pip install -e . && spectral-mlops train"
    assert second == 'pip install -e ".[test]" && pytest -n 2'
