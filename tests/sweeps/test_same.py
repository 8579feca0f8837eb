"""A study that is visited again: what may change, and what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from spectral_mlops.config import RunConfig, merge
from spectral_mlops.errors import InputError
from spectral_mlops.sweeps import Sweep
from spectral_mlops.sweeps.recipe import Recipe
from spectral_mlops.sweeps.same import check_same, check_settings, people_of
from spectral_mlops.tracking import open_store
from spectral_mlops.training import make_plan
from tests.sweeps.test_sweep_command import SPACE, config  # noqa: F401

STORAGE = "sqlite:///optuna.db"
DECIDES = [
    ("cohort.settings.preset", "easy", "null"),
    ("cohort.settings.people", 56, 60),
    ("cohort.settings.modality", "fnc", "timecourses"),
    ("model.settings.hidden", [9, 5], [9]),
    ("model.settings.dropout", 0.1, 0.2),
    ("training.epochs", 3, 4),
    ("training.folds", 2, 3),
    ("training.seed", 0, 1),
    ("training.seeds", 1, 2),
    ("training.split", "stratified", "site"),
    ("training.schedule", "constant", "cosine"),
    ("training.patience", "none", 3),
    ("spectra.batches_per_epoch", 8, 2),
    ("spectra.quantities", [], ["adjoint"]),
    ("spectra.influence", "true", False),
    ("comparison.groupings", [], ["group", "sex"]),
    ("comparison.permutations", 19, 99),
    ("comparison.primary_quantity", "none", "gradient"),
    ("comparison.null_epochs", 2, 3),
    ("confounds.regress", [], ["age"]),
    ("baselines.run", "true", False),
]


def nested(name, value):
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def recipe_of(settings):
    return Recipe(settings.model_dump(mode="json"))


def written(value):
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value).lower()


@pytest.mark.parametrize(("name", "was", "given"), DECIDES)
def test_what_decides_numbers_is_refused_either_way(small, name, was, given):
    base = {"model": {"settings": {"dropout": 0.1}}}
    first, other = small(**base), small(**merge(base, nested(name, given)))
    check_settings("s", recipe_of(other), other)
    if name == "model.settings.hidden":
        was, given = ["9", "5"], ["9"]
    both = (first, other, was, given), (other, first, given, was)
    for kept, here, old, new in both:
        with pytest.raises(InputError) as error:
            check_settings("s", recipe_of(kept), here)
        said = f"made with {name}={written(old)}, and here it is {written(new)}: "
        assert said in str(error.value)
        assert "choose another --study" in str(error.value)


def test_several_are_counted_and_another_model_or_cohort_is_named(small):
    kept = recipe_of(small())
    with pytest.raises(InputError, match=r"epochs=3, .* is 9 \(and 1 more differ\)"):
        check_settings("s", kept, small(training={"epochs": 9, "folds": 4}))
    others = {
        "model": r"model\.name=mlp, and here it is logistic",
        "cohort": r"cohort\.name=simulated, and here it is fnc",
    }
    for section, said in others.items():
        named = RunConfig(**{section: {"name": said.split()[-1], "settings": {}}})
        changed = small().model_copy(update={section: getattr(named, section)})
        with pytest.raises(InputError, match=said):
            check_settings("s", kept, changed)


def test_places_and_stores_may_change(small, tmp_path):
    kept = recipe_of(small(training={"unseen_by": ["a"]}))
    moved = {"settings": {"folder": str(tmp_path)}}
    store = {"uri": "none", "experiment": "other", "profile": "full"}
    check_settings("s", kept, small(cohort=moved, tracking=store))


def test_defaults_written_out_are_no_change(small):
    settings = {"optimizer": "adam", "seed": 0}
    written_out = small(training=settings, cohort={"settings": {"voxel_mm": 4.5}})
    check_settings("s", recipe_of(small()), written_out)


def test_other_folds_of_the_same_settings_are_refused(small):
    """Those of ``training.splits`` are read: a folder may hold others by now."""
    plan, study = make_plan(small(), Path.cwd()), optuna.create_study()
    check_same(study, "people", people_of(plan))
    check_same(study, "people", people_of(make_plan(small(), Path.cwd())))
    with pytest.raises(InputError, match="another set of folds"):
        check_same(study, "people", people_of(replace(plan, folds=plan.folds[::-1])))


def test_a_study_in_python_goes_on_with_its_own_settings_alone(small, small_folder):
    def begin(**changes):
        return Sweep(
            small(tracking={"uri": "none"}, **changes),
            study="s",
            storage=STORAGE,
            runs=Path("runs"),
        )

    begin().want(1)
    for name, value in (("training", {"epochs": 2}), ("baselines", {"run": False})):
        with pytest.raises(InputError, match=rf"made with {name}\.\w+=.* here it is"):
            begin(**{name: value})
    joined = Sweep.of_study("s", STORAGE, runs=Path("elsewhere"))
    assert joined.config == begin().config
    given = {"training": {"epochs": 3}, "tracking": {"experiment": "other"}}
    again = Sweep.of_study("s", STORAGE, runs=Path("runs"), given=given)
    assert again.config.tracking.experiment == "other"
    with pytest.raises(InputError, match=r"training\.seed=0, and here it is 7"):
        Sweep.of_study("s", STORAGE, runs=Path("runs"), given={"training": {"seed": 7}})
    shutil.copytree(small_folder, "moved")
    begin(cohort={"settings": {"folder": "moved"}})
    people = Path("moved/participants.tsv")
    assert people.exists()
    lines = people.read_text().splitlines(keepends=True)
    people.write_text("".join([*lines[:-1], lines[-1].replace("\n", "1\n")]))
    with pytest.raises(InputError, match="another cohort"):
        begin(cohort={"settings": {"folder": "moved"}})


def test_a_study_on_the_command_line(command, config, uri):  # noqa: F811
    Path("sweep.toml").write_text(SPACE)
    words = ["--config", config, "--space", "sweep.toml", "--tracking", uri]
    visit = ["sweep", "--study", "two"]
    assert command(*visit, *words, "--workers", 0, "--trials", 1)[0] == 0
    refused = [
        (["--epochs", 5], "training.epochs=2, and here it is 5"),
        (["--folds", 3], "training.folds=2, and here it is 3"),
        (["--seed", 3], "training.seed=0, and here it is 3"),
        (["--preset", "null"], "cohort.settings.preset=easy, and here it is null"),
        (["--modality", "volume"], "cohort.settings.modality=fnc"),
        (["--cohort", "fnc"], "cohort.name=simulated, and here it is fnc"),
        (["--task", "regression"], "training.task=classification"),
        (["--objective", "auc"], "another objective (auc,divergence there, auc here)"),
    ]
    for flags, said in refused:
        for before in ([], words):
            code, _, err = command(*visit, *before, *flags)
            assert (code, len(err.strip().splitlines())) == (2, 1)
            assert said in err
            assert "choose another --study" in err
    fewer = Path("fewer.toml")
    fewer.write_text("[comparison]\npermutations = 29\n")
    code, _, err = command(*visit, "--config", fewer)
    assert code == 2
    assert "comparison.permutations=19, and here it is 29" in err
    study = optuna.load_study(study_name="two", storage=STORAGE)
    assert study.get_trials() == []
    # Same values, some of them, or none at all; what changes no number may change.
    free = ["--runs", "other", "--threads", 2, "--pruner", "none", "--trials", 1]
    for flags in (["--epochs", 2, "--workers", 0], [*words, *free, "--workers", 0]):
        code, _, err = command(*visit, *flags)
        assert (code, err) == (0, "")
    code, _, err = command(*visit, "--experiment", "elsewhere")
    assert (code, err) == (0, "")
    trials = study.get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    assert Recipe.of(study).options["pruner"] == "none"
    client = open_store(uri).client
    found = client.get_run(trials[0].user_attrs["mlflow.run_id"])
    assert client.get_experiment(found.info.experiment_id).name == "elsewhere"
    assert found.data.params["training.epochs"] == "2"


def test_code_that_the_user_names_again_needs_no_trust(command, config):  # noqa: F811
    Path("space.py").write_text(
        "def draw(trial):\n"
        "    return {'training.learning_rate': trial.suggest_float('x', 1e-4, 1e-2)}\n"
    )
    Path("sweep.toml").write_text('space = "space:draw"\n')
    words = ["sweep", "--study", "own", "--workers", 0, "--trials", 1]
    named = ["--space", "sweep.toml"]
    first = ["--config", config, "--tracking", "none"]
    assert command(*words, *first, *named)[0] == 0
    assert command(*words, *named)[0] == 0
    code, _, err = command(*words, *first)
    assert code == 2
    assert "'space:draw'" in err
    assert "--trust" in err
    assert command(*words, "--trust")[0] == 0
