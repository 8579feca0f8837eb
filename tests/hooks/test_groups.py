import numpy as np
import pandas as pd
import pytest
import torch

from spectral_mlops.errors import InputError
from spectral_mlops.hooks.groups import label_texts, read_fixed, read_labelling


def test_groups_partition_the_samples_in_order_of_their_names():
    labelling = read_labelling(["b", "a", "b"], subjects=[3, 3, 4])
    groups = labelling.groupings["group"]
    assert list(groups) == ["a", "b"]
    assert groups["a"].tolist() == [1]
    assert groups["b"].tolist() == [0, 2]
    assert labelling.subjects == ("3", "3", "4")
    assert labelling.size == 3
    assert not labelling.named


def test_everybody_is_a_person_of_their_own_unless_told():
    assert len(set(read_labelling(list("aab")).subjects)) == 3


@pytest.mark.parametrize("absent", [None, float("nan"), "n/a", np.nan, pd.NA, pd.NaT])
def test_missing_labels_are_refused_or_made_a_group(absent):
    with pytest.raises(InputError, match=r"sample 1 has no label \(1 of 3"):
        read_labelling({"dx": ["a", absent, "b"]})
    labelling = read_labelling({"dx": ["a", absent, "b"]}, missing="group")
    assert labelling.groupings["dx"]["missing"].tolist() == [1]


def test_a_group_called_missing_does_not_swallow_missing_labels():
    with pytest.raises(InputError, match="rename the group"):
        read_labelling(["missing", None], missing="group")


@pytest.mark.parametrize(
    ("groups", "extra", "words"),
    [
        (["all", "b"], {}, "pooled group"),
        ({"all": ["a", "b"]}, {}, "pooled group"),
        ({}, {}, "groups is empty"),
        ("patients", {}, "not a sequence"),
        (b"patients", {}, "not a sequence"),
        (3, {}, "not a sequence"),
        (
            {"dx": ["a", "b"], "sex": [1, 2, 3]},
            {},
            "'sex' has 3 entries and 'dx' has 2",
        ),
        (["a", "b"], {"subjects": [1]}, "'subjects' has 1 entries"),
        (["a", "b"], {"targets": [1, 2, 3]}, "'targets' has 3 entries"),
    ],
)
def test_unusable_labels_are_refused(groups, extra, words):
    with pytest.raises(InputError, match=words):
        read_labelling(groups, **extra)


def test_a_list_of_groups_is_read_as_labels_are():
    assert read_fixed([1, "b"]) == {"group": {"1", "b"}}
    fixed = read_fixed({"dx": ["a"], "site": torch.tensor([3, 4])}, missing="group")
    assert fixed == {"dx": {"a"}, "site": {"3", "4"}}
    for groups, words in (
        ({}, "at least one group"),
        ({"dx": []}, "at least one group"),
        ("ab", "not a sequence"),
        (["a", "all"], "pooled group"),
        (["a", None], "no label"),
    ):
        with pytest.raises(InputError, match=words):
            read_fixed(groups)


def test_labels_are_the_text_of_python_scalars():
    assert label_texts(torch.tensor([1, 0])) == ["1", "0"]
    assert label_texts(np.array([1.5, 2.0])) == ["1.5", "2.0"]
    assert label_texts(pd.Series(["x", "y"])) == ["x", "y"]
    assert label_texts([np.int64(4), np.str_("z"), True]) == ["4", "z", "True"]
