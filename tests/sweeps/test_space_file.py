"""Spaces as data and as functions: what is drawn, and what is refused."""

from pathlib import Path

import optuna
import pytest

from spectral_mlops.errors import InputError
from spectral_mlops.sweeps import read_sweep
from spectral_mlops.sweeps.space_file import data_space

BRANCHES = """
[sweep]
objective = "constrained"
tau = 1.5

[space."training.learning_rate"]
low = 1e-4
high = 1e-2
log = true

[space."model.name"]
choices = ["mlp", "lstm"]

[space."model.name".when.mlp."model.settings.hidden"]
depth = [1, 3]
width = [40, 100]
taper = 0.5
narrowest = 12

[space."model.name".when.lstm."model.settings.width"]
choices = [8, 16]

[space."model.name".when.lstm."model.settings.layers"]
low = 1
high = 5
step = 2
"""


def written(text, name="sweep.toml"):
    path = Path(name)
    path.write_text(text)
    return path


def draws(space, count=60):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    trials = [study.ask() for _ in range(count)]
    return [(space.suggest(trial), trial.params) for trial in trials]


def test_branches_apply_for_their_choice_alone():
    space, judged = read_sweep(written(BRANCHES), {})
    assert (judged.objective, judged.tau) == ("constrained", 1.5)
    seen = set()
    for drawn, params in draws(space):
        model = drawn["model"]
        assert 1e-4 <= drawn["training"]["learning_rate"] <= 1e-2
        seen.add((model["name"], *model["settings"]))
        if model["name"] == "mlp":
            depth, width = (
                params[f"mlp/model.settings.hidden.{part}"]
                for part in ("depth", "width")
            )
            halved = {40: [40, 20, 12], 100: [100, 50, 25]}[width]
            assert model["settings"]["hidden"] == halved[:depth]
        else:
            assert model["settings"]["width"] in (8, 16)
            assert model["settings"]["layers"] in (1, 3, 5)
    assert seen == {("mlp", "hidden"), ("lstm", "width", "layers")}


def test_corners_hold_every_end_and_every_choice_of_every_branch():
    space, _ = read_sweep(written(BRANCHES), {})
    models = [corner["model"] for corner in space.corners]
    hidden = [m["settings"]["hidden"] for m in models if m["name"] == "mlp"]
    assert {len(widths) for widths in hidden} == {1, 3}
    assert {widths[0] for widths in hidden} == {40, 100}
    lstm = [m["settings"] for m in models if m["name"] == "lstm"]
    assert {one["width"] for one in lstm} == {8, 16}
    assert {one["layers"] for one in lstm} == {1, 5}
    rates = {corner["training"]["learning_rate"] for corner in space.corners}
    assert rates == {1e-4, 1e-2}


def test_one_setting_may_have_another_range_in_each_branch():
    choices = {"choices": ["lstm", "gru", True, 3]}
    when = {
        "lstm": {"model.settings.width": {"choices": [8, 16]}},
        "gru": {"model.settings.width": {"choices": [4]}},
        "true": {"model.settings.width": {"low": 1, "high": 2}},
        "3": {"model.settings.width": {"low": 5.0, "high": 6}},
    }
    space = data_space({"model.settings.kind": choices | {"when": when}}, "here")
    allowed = {"lstm": {8, 16}, "gru": {4}, True: {1, 2}}
    for drawn, _ in draws(space):
        settings = drawn["model"]["settings"]
        if settings["kind"] == 3 and settings["kind"] is not True:
            assert 5 <= settings["width"] <= 6
            assert isinstance(settings["width"], float)
        else:
            assert settings["width"] in allowed[settings["kind"]]


def test_lists_are_choices_and_come_out_as_lists():
    space = data_space({"model.settings.hidden": {"choices": [[9, 5], [4], []]}}, "x")
    drawn = [one["model"]["settings"]["hidden"] for one, _ in draws(space, 20)]
    assert {tuple(widths) for widths in drawn} == {(9, 5), (4,), ()}


def test_the_digest_tells_spaces_apart_but_not_their_order():
    one = {
        "training.batch_size": {"low": 4, "high": 8},
        "model.name": {"choices": ["a"]},
    }
    turned = dict(reversed(one.items()))
    other = one | {"training.batch_size": {"low": 4, "high": 9}}
    digests = [data_space(tables, "x").digest for tables in (one, turned, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ("[space.x]\nlow=1", ["'x' may not vary", "model and training"]),
        ('[space."training.folds"]\nlow=2\nhigh=3', ["training.folds", "folds"]),
        ("[space.training.epochs]\nlow=2\nhigh=3", ["epochs", "in quotes"]),
        ('[space."training.epochs"]\nlow=3\nhigh=2', ["low=3 is above high=2"]),
        ('[space."training.epochs"]\nlow=3', ["'high' is needed"]),
        ('[space."training.epochs"]\nlow=0\nhigh=2\nlog=true', ["low above 0"]),
        (
            '[space."training.epochs"]\nlow=1\nhigh=2\nlog=true\nstep=1',
            ["log=true and"],
        ),
        ('[space."training.epochs"]\nlow=1\nhigh=3\nstep=0.5', ["whole numbers"]),
        ('[space."training.epochs"]\nlow=1\nhigh=3\nstpe=1', ["'stpe'", "'step'"]),
        ('[space."training.epochs"]\nchoices=[]', ["choices"]),
        ('[space."training.epochs"]\nchoices=[1,1]', ["twice"]),
        ('[space."training.epochs"]\nmin=1', ["low and high", "min"]),
        (
            '[space."model.name"]\nchoices=["mlp"]\n'
            '[space."model.name".when.gru."model.settings.width"]\nchoices=[1]',
            ["when.gru", "mlp"],
        ),
        (
            '[space."model.name"]\nchoices=["mlp"]\n'
            '[space."model.name".when.mlp."model.name"]\nchoices=["gru"]',
            ["model.name", "drawn already"],
        ),
        ('[space."model.settings.hidden"]\ndepth=[3,1]\nwidth=[8]', ["smaller end"]),
        ("[space]", ["no [space]"]),
        ('space = "nowhere:f"', ["importing nowhere failed"]),
        ('[sweep]\nobjective="loss"\n[space."training.epochs"]\nchoices=[1]', ["loss"]),
        ("[spaces]", ["'spaces'", "'space'"]),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(tables, words):
    with pytest.raises(InputError) as error:
        read_sweep(written(tables), {})
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_one_name_in_two_branches_is_refused():
    again = {"when": {"a": {"training.epochs": {"choices": [1]}}}}
    tables = {
        "model.name": {"choices": ["a"]} | again,
        "model.settings.b": {"choices": ["a"]} | again,
    }
    with pytest.raises(InputError, match="two branches"):
        data_space(tables, "x")


def test_a_function_of_the_trial_draws_too(capsys):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    Path("my_space.py").write_text(
        "def draw(trial):\n"
        "    width = trial.suggest_int('width', 4, 6)\n"
        "    return {'model.settings.hidden': [width, 2], 'training': {'epochs': 2}}\n"
        "def wrong(trial):\n    return {'tracking.uri': 'x'}\n"
        "def broken(trial):\n    return 1 / 0\n"
        "def nothing(trial):\n    pass\n"
        "x = 3\n"
    )
    space, _ = read_sweep(written('space = "my_space:draw"'), {"tau": 3.0})
    assert capsys.readouterr().err == ""
    for drawn, params in draws(space, 9):
        assert drawn["model"]["settings"]["hidden"] == [params["width"], 2]
        assert drawn["training"] == {"epochs": 2}
    assert len(space.corners) == 3
    for name, word in [
        ("wrong", "'tracking.uri' may not vary"),
        ("broken", "ZeroDivisionError"),
        ("nothing", "returned NoneType"),
        ("x", "no function 'x'"),
    ]:
        with pytest.raises(InputError, match=word):
            read_sweep(written(f'space = "my_space:{name}"'), {})


def test_without_a_file_flags_alone_count():
    assert read_sweep(None, {})[0] is None
    assert read_sweep(None, {"objective": "auc,divergence"})[1].objective == (
        "auc,divergence"
    )


def test_the_space_of_the_readme_is_one():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = (
        part.partition("```")[0]
        for part in text.split("```toml\n")[1:]
        if part.startswith("[sweep]")
    )
    space, judged = read_sweep(written(block), {})
    assert judged.objective == "constrained"
    for corner in space.corners:
        training = corner["training"]
        assert ("momentum" in training) == (training["optimizer"] == "sgd")
