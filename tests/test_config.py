from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from spectral_mlops.config import (
    RunConfig,
    TrainingConfig,
    flatten,
    merge,
    read_toml,
    validate,
)
from spectral_mlops.errors import InputError


class Inner(BaseModel, extra="forbid"):
    size: int


class Outer(BaseModel, extra="forbid"):
    inner: Inner
    count: int = 1


def refusal(values, model=RunConfig) -> str:
    with pytest.raises(InputError) as caught:
        validate(model, values, "run.toml")
    return str(caught.value)


def test_no_settings_are_the_defaults():
    assert validate(RunConfig, {}, "run.toml") == RunConfig()


def test_settings_are_taken_at_every_level():
    values = {
        "cohort": {"name": "simulated", "settings": {"preset": "easy", "n": [3, 4]}},
        "training": {"epochs": 3, "learning_rate": 1},
        "spectra": {"quantities": ["adjoint"], "layers": ["fc1", "fc2"]},
    }
    config = validate(RunConfig, values, "run.toml")
    assert config.cohort.settings == {"preset": "easy", "n": [3, 4]}
    assert config.training.epochs == 3
    assert config.training.batch_size == TrainingConfig().batch_size
    assert config.spectra.quantities == ("adjoint",)
    assert config.spectra.layers == ("fc1", "fc2")


def test_settings_are_frozen():
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.training = TrainingConfig(epochs=1)
    with pytest.raises(ValidationError, match="frozen"):
        config.training.epochs = 1


def test_an_unknown_key_at_the_top():
    message = refusal({"trainin": {}})
    assert message == (
        "run.toml: unknown key 'trainin'; known here are cohort, model, training, "
        "spectra, comparison, controls, confounds, baselines, tracking. Did you mean "
        "'training'?"
    )


def test_an_unknown_key_inside_is_told_its_neighbours_there():
    message = refusal({"training": {"epoch": 3}})
    assert message.startswith("run.toml: unknown key 'training.epoch'; known here are")
    assert message.endswith("Did you mean 'epochs'?")
    assert ", ".join(TrainingConfig.model_fields) in message
    assert "cohort" not in message
    assert "Did you" not in refusal({"training": {"zzz": 3}})


def test_an_unknown_key_beside_a_component():
    message = refusal({"cohort": {"preset": "easy"}})
    assert "unknown key 'cohort.preset'; known here are name, settings." in message


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "epochs", 0),
        ("training", "epochs", 1.5),
        ("training", "epochs", "many"),
        ("training", "optimizer", "lion"),
        ("training", "learning_rate", 0),
        ("training", "learning_rate", float("nan")),
        ("training", "learning_rate", float("inf")),
        ("training", "weight_decay", -1e-9),
        ("training", "batch_size", 1),
        ("training", "folds", 1),
        ("training", "seed", -1),
        ("spectra", "batches_per_epoch", 0),
        ("comparison", "probe_fraction", 1.0),
        ("comparison", "probe_fraction", 0.0),
        ("comparison", "permutations", 18),
        ("comparison", "groupings", "sex"),
        ("comparison", "primary_quantity", "weights"),
        ("controls", "draws", 0),
        ("controls", "level", 1.0),
        ("controls", "init", "yes"),
        ("tracking", "experiment", ""),
        ("tracking", "uri", 3),
        ("cohort", "settings", [1]),
    ],
)
def test_an_impossible_value_is_named(section, key, value):
    message = refusal({section: {key: value}})
    assert message.startswith(f"run.toml: {section}.{key}={value!r} is not usable: ")
    assert message.endswith(".")


def test_a_section_that_is_no_table_and_an_entry_of_a_list():
    assert "run.toml: training=3 is not usable" in refusal({"training": 3})
    message = refusal({"spectra": {"quantities": ["gradient", "weight"]}})
    assert "spectra.quantities.1='weight' is not usable" in message
    assert "'gradient', 'activation' or 'adjoint'" in message


def test_a_missing_key_is_named():
    assert refusal({"inner": {}}, Outer) == (
        "run.toml: 'inner.size' is needed and missing."
    )
    assert "unknown key 'inner.sise'" in refusal(
        {"inner": {"size": 1, "sise": 2}}, Outer
    )


def test_flat_settings_are_plain_values_under_dotted_names():
    values = {
        "model": {"name": "mlp", "settings": {"widths": [256, 128], "norm": True}},
        "comparison": {"groupings": ["sex"]},
    }
    flat = validate(RunConfig, values, "run.toml").flat()
    assert flat["model.settings.widths"] == "256-128"
    assert flat["model.settings.norm"] is True
    assert flat["comparison.groupings"] == "sex"
    assert flat["training.learning_rate"] == TrainingConfig().learning_rate
    assert flat["training.epochs"] == TrainingConfig().epochs
    assert "tracking.uri" not in flat  # unset is left out
    assert {type(x) for x in flat.values()} <= {str, int, float, bool}


def test_flatten_by_hand():
    nested = {"a": {"b": {"c": 1}, "d": (2, 3)}, "e": None, "f": [], "g": {}}
    assert flatten(nested) == {"a.b.c": 1, "a.d": "2-3", "f": ""}


def test_merge_lays_one_over_the_other_level_by_level():
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2], "f": 3}
    changes = {"a": {"c": {"d": 5, "x": 6}}, "e": [9], "f": {"g": 1}, "h": 0}
    before = repr((base, changes))
    assert merge(base, changes) == {
        "a": {"b": 1, "c": {"d": 5, "x": 6}}, "e": [9], "f": {"g": 1}, "h": 0,
    }  # fmt: skip
    assert repr((base, changes)) == before
    assert merge({"a": {"b": 1}}, {"a": 2}) == {"a": 2}
    assert merge({}, {}) == {}


def test_toml_is_read(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text('[training]\nepochs = 3\n[cohort]\nname = "größe"\n', "utf-8")
    assert read_toml(path) == {"training": {"epochs": 3}, "cohort": {"name": "größe"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"a = 1\nb = \n", "line 2"), (b"a = 1\na = 2\n", "line 2"), (b"\xff", "decode")],
)
def test_what_is_not_toml_is_refused_with_its_line(tmp_path: Path, text, said):
    path = tmp_path / "bad.toml"
    path.write_bytes(text)
    with pytest.raises(InputError, match=rf"bad\.toml is not valid TOML: .*{said}"):
        read_toml(path)


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(InputError, match=r"Cannot read .*none\.toml: No such file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"Cannot read .*: Is a directory"):
        read_toml(tmp_path)
