"""People who trained in a run are no second cohort: `train --unseen-by`."""

import json
from pathlib import Path

import pandas as pd
import pytest

from spectral_mlops.cohorts import read_splits, simulate

QUICK = ("--epochs", 1, "--folds", 2, "--hidden", 5, "--permutations", 19)


@pytest.fixture
def train(command, tmp_path):
    """Train on some of 64 people, by id, without any store."""
    folder = simulate(tmp_path / "all", "easy", 64, 1, components=8, volumes=False)
    people = pd.read_csv(folder / "participants.tsv", sep="\t", dtype=str)

    def call(ids, *words):
        kept = people[people["participant_id"].isin(ids)]
        kept[["participant_id", "group"]].to_csv("labels.csv", index=False)
        config = {
            "cohort.name": '"fnc"',
            "cohort.settings.features": json.dumps(str(folder / "fnc.csv")),
            "cohort.settings.labels": '"labels.csv"',
            "cohort.settings.order": '"upper"',
            "cohort.settings.unmatched": '"drop"',
            "tracking.uri": '"none"',
        }
        text = "\n".join(f"{name} = {value}" for name, value in config.items())
        (tmp_path / "run.toml").write_text(text)
        return command("train", "--config", tmp_path / "run.toml", *QUICK, *words)

    return [*people["participant_id"]], call


def test_a_second_cohort_of_the_same_people_is_refused(train, tmp_path):
    ids, call = train
    assert call(ids[:40], "--runs", "first")[0] == 0
    (first,) = Path("first").iterdir()
    _, folds = read_splits(first / "splits")
    used = {who for fold in folds for who in (*fold.train_ids, *fold.validation_ids)}
    again = sorted(used)[:3]
    fresh = ids[40:]
    asked = ("--runs", "second", "--unseen-by", first)

    code, _, err = call([*fresh, *again], *asked)
    assert code == 2
    assert f"3 of {len(fresh) + 3} people ({', '.join(again)}) trained or chose" in err
    assert not Path("second").exists()

    code, _, err = call(fresh, *asked)
    assert code == 0, err
    (second,) = Path("second").iterdir()
    settings = json.loads((second / "config.json").read_text())["training"]
    assert settings["unseen_by"] == [str(first)]

    code, _, err = call(fresh, "--runs", "third", "--unseen-by", second)
    assert code == 2  # people of several runs are refused by each of them
    code, _, err = call(fresh, *asked, "--unseen-by", second)
    assert code == 2
    assert str(second) in err


def test_a_folder_without_splits_is_one_sentence(train, tmp_path):
    ids, call = train
    code, _, err = call(ids, "--unseen-by", tmp_path / "nothing")
    assert code == 2
    assert "Cannot read" in err
    assert "splits.json" in err


def test_a_run_that_goes_on_keeps_what_it_was_refused_by(train):
    ids, call = train
    code, _, err = call(ids, "--resume", "runs/x", "--unseen-by", "runs/y")
    assert code == 2
    assert "leave out those of" in err
