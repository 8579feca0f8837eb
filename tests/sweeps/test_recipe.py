import json

import optuna
import pytest

from spectral_mlops.config import merge
from spectral_mlops.errors import InputError
from spectral_mlops.sweeps.recipe import PIECE, Recipe

SPACE = {
    f"model.settings.{name}": {"choices": ["x" * 40, "y" * 40]} for name in "zyxabcdefg"
}


@pytest.fixture
def study():
    return optuna.create_study()


def test_a_recipe_comes_back_as_it_was_in_small_pieces(study, small):
    settings = small(tracking={"uri": "none"}).model_dump(mode="json")
    kept = Recipe(settings, SPACE, {"objective": "auc", "tau": 1.5}, {"prune": False})
    assert Recipe.of(study) is None
    kept.keep(study)
    before = dict(study.user_attrs)
    kept.keep(study)
    assert study.user_attrs == before
    assert len(before) > 2
    assert all(len(json.dumps(value)) < 2500 for value in before.values())
    assert max(len(str(value)) for value in before.values()) == PIECE
    read = Recipe.of(study)
    assert read == kept
    assert list(read.space) == list(SPACE)  # settings are drawn in this order
    assert read.config() == small(tracking={"uri": "none"})
    assert read.sweep_settings().tau == 1.5
    Recipe(settings, None).keep(study)
    assert Recipe.of(study).space is None


def test_a_password_is_never_written_down(study, small, monkeypatch):
    settings = small().model_dump(mode="json")
    uri = "postgresql://me:secret@host/db"
    Recipe(merge(settings, {"tracking": {"uri": uri}})).keep(study)
    assert "secret" not in str(study.user_attrs)
    read = Recipe.of(study)
    with pytest.raises(InputError, match="with its password"):
        read.config()
    assert read.config(uri).tracking.uri == uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert read.config().tracking.uri == uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    with pytest.raises(InputError, match=r"me:\*\*\*@host"):
        read.config()


@pytest.mark.parametrize(
    ("space", "changes"),
    [
        ("own:space", {}),
        ({"model.name": {"choices": ["mlp", "own:net"]}}, {}),
        (
            {
                "training.optimizer": {
                    "choices": ["adam"],
                    "when": {"adam": {"model.name": {"choices": ["own:net"]}}},
                }
            },
            {},
        ),
        (None, {"model": {"name": "own:net", "settings": {}}}),
    ],
)
def test_code_that_a_study_names_needs_trust(small, space, changes):
    settings = merge(small().model_dump(mode="json"), changes)
    recipe = Recipe(settings, space)
    with pytest.raises(InputError, match=r"'own:\w+'.*--trust"):
        recipe.check_trust("s", trust=False)
    recipe.check_trust("s", trust=True)
    Recipe(small().model_dump(mode="json"), SPACE).check_trust("s", trust=False)
