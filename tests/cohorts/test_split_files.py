import pandas as pd
import pytest

from spectral_mlops.cohorts import (
    check_unseen,
    fold_splits,
    read_splits,
    reuse_splits,
    set_probe_aside,
    write_splits,
)
from spectral_mlops.errors import InputError


@pytest.fixture
def splits(big_people):
    probe, _ = set_probe_aside(big_people, "group")
    return probe, fold_splits(big_people, 3, probe=probe)


def test_what_is_written_is_read(tmp_path, splits):
    write_splits(tmp_path / "splits", *splits)
    assert read_splits(tmp_path / "splits") == splits
    table = pd.read_csv(tmp_path / "splits" / "fold-1" / "validation.tsv", sep="\t")
    assert tuple(table["participant_id"]) == splits[1][1].validation_ids
    assert len(pd.read_csv(tmp_path / "splits" / "probe.tsv", sep="\t")) == 36


def test_no_probe_is_no_file(tmp_path, splits):
    write_splits(tmp_path, None, splits[1])
    assert not (tmp_path / "probe.tsv").exists()
    assert read_splits(tmp_path) == (None, splits[1])


def test_the_same_again_is_fine_and_others_are_refused(tmp_path, splits, big_people):
    write_splits(tmp_path, *splits)
    write_splits(tmp_path, *splits)
    with pytest.raises(InputError, match=r"holds other splits; name another folder"):
        write_splits(tmp_path, splits[0], fold_splits(big_people, 3, seed=9))
    assert read_splits(tmp_path) == splits


def test_a_changed_probe_is_noticed(tmp_path, splits):
    write_splits(tmp_path, *splits)
    path = tmp_path / "probe.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"probe.tsv is not the probe .*restore it"):
        read_splits(tmp_path)


@pytest.mark.parametrize("part", ["train", "probe"])
def test_a_person_in_two_parts_is_refused(tmp_path, splits, part):
    write_splits(tmp_path, *splits)
    probe, folds = splits
    who = folds[2].train_ids[0] if part == "train" else probe.ids[0]
    with (tmp_path / "fold-2" / "validation.tsv").open("a") as stream:
        stream.write(f"{who}\n")
    with pytest.raises(InputError, match=rf"fold 2: {who} stands in two of"):
        read_splits(tmp_path)


def test_missing_and_damaged_files(tmp_path, splits):
    with pytest.raises(InputError, match=r"Cannot read .*splits.json"):
        read_splits(tmp_path)
    write_splits(tmp_path, *splits)
    (tmp_path / "fold-0" / "train.tsv").unlink()
    with pytest.raises(InputError, match=r"Cannot read .*train.tsv"):
        read_splits(tmp_path)
    (tmp_path / "splits.json").write_text("[]")
    with pytest.raises(InputError, match=r"is damaged"):
        read_splits(tmp_path)


def test_splits_are_reused_for_the_same_people(tmp_path, splits, big_people):
    write_splits(tmp_path, *splits)
    shuffled = big_people.sample(frac=1, random_state=1)
    assert reuse_splits(tmp_path, shuffled, "group") == splits


def test_splits_of_other_people_are_refused(tmp_path, splits, big_people):
    write_splits(tmp_path, *splits)
    more = pd.concat([big_people, big_people.iloc[:2].rename(index=lambda x: x + "b")])
    with pytest.raises(InputError, match=r"2 people of the cohort are in no part"):
        reuse_splits(tmp_path, more, "group")
    who = splits[1][0].train_ids[0]
    with pytest.raises(InputError, match=rf"1 people are not in the cohort \({who}\)"):
        reuse_splits(tmp_path, big_people.drop(index=who), "group")


def test_splits_must_let_every_label_be_learned(tmp_path, splits, big_people):
    write_splits(tmp_path, *splits)
    table = big_people.assign(rare="no")
    table.loc[list(splits[1][2].validation_ids[:3]), "rare"] = "yes"
    with pytest.raises(InputError, match=r"fold 2: nobody in training has rare=yes"):
        reuse_splits(tmp_path, table, "rare")


@pytest.mark.parametrize("other", ["validation", "probe"])
def test_splits_that_part_relatives_are_refused(tmp_path, splits, big_people, other):
    write_splits(tmp_path, *splits)
    probe, folds = splits
    held = probe.ids if other == "probe" else folds[1].validation_ids
    family = pd.Series(None, index=big_people.index, dtype=object)
    family[[folds[1].train_ids[0], held[0]]] = "f7"
    with pytest.raises(InputError, match=r"family 'f7' stands in two"):
        reuse_splits(tmp_path, big_people.assign(family=family), "group")


def test_people_of_a_run_are_not_new_to_it(tmp_path, splits):
    write_splits(tmp_path / "splits", *splits)
    probe, folds = splits
    check_unseen([*probe.ids, "sub-new"], tmp_path)
    asked = ["sub-new", folds[0].validation_ids[0], folds[0].train_ids[0]]
    with pytest.raises(InputError, match=r"2 of 3 people .* are not new to its netw"):
        check_unseen(asked, tmp_path)
    with pytest.raises(InputError, match=r"Cannot read .*splits.json"):
        check_unseen(asked, tmp_path / "no-run")
