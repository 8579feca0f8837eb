"""The command: a space from a file, a page, a summary run, and the page anew."""

import json
import re
from pathlib import Path

import pytest

from spectral_mlops.sweeps.recipe import kept_recipe
from spectral_mlops.tracking import open_store

SPACE = """
[sweep]
objective = "auc,divergence"

[space."training.learning_rate"]
low = 1e-3
high = 1e-2
log = true
"""


@pytest.fixture
def config(small_folder):
    path = Path("run.toml")
    path.write_text(
        f'cohort.settings = {{ folder = "{small_folder}", preset = "easy", people = 56,'
        " seed = 3, components = 12, volumes = false }\n"
        "comparison = { probe_fraction = 0.45, permutations = 19 }\n"
        "training = { epochs = 2, folds = 2 }\n"
    )
    return path


def test_a_sweep_ends_in_a_page_and_a_run_of_its_own(command, config, uri):
    space = Path("sweep.toml")
    space.write_text(SPACE)
    words = ["--config", config, "--space", space, "--tracking", uri, "--study", "two"]
    code, out, err = command("sweep", *words, "--trials", 2)
    assert (code, err) == (0, "")
    (page,) = re.findall(r"Its page: (\S+)", out)
    assert "auc,divergence" in Path(page).read_text()
    client = open_store(uri).client
    experiment = client.get_experiment_by_name("spectral_mlops")
    runs = client.search_runs([experiment.experiment_id])
    kinds = sorted(run.data.tags["spectral.kind"] for run in runs)
    assert kinds == ["study", "trial", "trial"]
    (study,) = (run for run in runs if run.data.tags["spectral.kind"] == "study")
    assert study.info.status == "FINISHED"
    assert study.data.metrics["trials/complete"] == 2
    files = {file.path for file in client.list_artifacts(study.info.run_id)}
    assert files == {"sweep.html", "plots"}
    plots = {file.path for file in client.list_artifacts(study.info.run_id, "plots")}
    assert plots == {"plots/tradeoff.png", "plots/slices.png"}
    code, out, _ = command("sweep", "report", "two", "-o", "again.html")
    assert code == 0
    assert "again.html" in out
    assert "Study two" in Path("again.html").read_text()
    code, _, err = command("sweep", *words, "--objective", "auc")
    assert code == 2
    assert "another objective" in err
    code, _, err = command("sweep", "report", "three")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "there is two" in err


@pytest.mark.parametrize("given", [{}, {"influence": True, "directions": 2}])
def test_trials_keep_directions_and_influence_where_asked_to(
    command, config, uri, given
):
    with config.open("a") as stream:
        stream.writelines(
            f"spectra.{name} = {json.dumps(value)}\n" for name, value in given.items()
        )
    words = ["--config", config, "--tracking", uri, "--study", "two"]
    assert command("sweep", *words, "--trials", 1, "--workers", 0)[0] == 0
    kept = kept_recipe("two", "sqlite:///optuna.db").settings["spectra"]
    wanted = {"influence": False, "directions": 0} | given
    assert {name: kept[name] for name in wanted} == wanted
    assert command("sweep", *words, "--workers", 0)[0] == 0  # they are its own
    assert command("train", "--config", config, "--tracking", "none")[0] == 0
    (folder,) = (path for path in Path("runs").glob("train*"))
    kept = json.loads((folder / "config.json").read_text())["spectra"]
    assert (kept["influence"], kept["directions"]) == (True, (given and 2) or 3)


@pytest.mark.parametrize(
    ("text", "flags", "word"),
    [
        ("[space]\n", [], "no [space]"),
        (SPACE, ["--objective", "loss"], "sweep.objective='loss'"),
        (SPACE, ["--tau", "nan"], "sweep.tau"),
        (SPACE.replace("rate", "rat"), [], "'learning_rate'"),
    ],
)
def test_a_bad_space_is_one_sentence_and_leaves_nothing(
    command, config, text, flags, word
):
    Path("sweep.toml").write_text(text)
    words = ["--config", config, "--space", "sweep.toml", "--tracking", "none"]
    code, _, err = command("sweep", *words, *flags)
    assert code == 2
    assert word in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("runs").exists()
    assert not Path("optuna.db").exists()


def test_sub_commands_are_no_file_arguments(command):
    code, _, err = command("sweep", "reprot")
    assert code == 2
    assert "No such command 'reprot'" in err


def test_options_before_a_sub_command_are_refused(command):
    code, _, err = command("sweep", "--trials", 4, "report", "two")
    assert code == 2
    assert "--trials stands before 'report'" in err
