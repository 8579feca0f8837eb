import numpy as np
import pandas as pd
import pytest

from spectral_mlops.cohorts import (
    Probe,
    check_apart,
    crossfit_probes,
    fold_splits,
    set_probe_aside,
    site_splits,
)
from spectral_mlops.errors import InputError, UnknownNameError


def test_the_probe_takes_its_share_of_every_stratum(big_people):
    probe, reason = set_probe_aside(big_people, "group", seed=3)
    assert "36 people (18 control, 18 patient), by group × site" in reason
    table = big_people.loc[list(probe.ids)]
    assert table["group"].value_counts().to_dict() == {"control": 18, "patient": 18}
    expected = big_people.groupby(["group", "site"]).size() * 0.25
    drawn = table.groupby(["group", "site"]).size()
    assert (abs(drawn - expected) <= 1).all()
    assert probe.strata == ("group", "site")


def test_the_probe_depends_on_ids_and_seed_only(big_people):
    probe, _ = set_probe_aside(big_people, "group", seed=3)
    shuffled = big_people.sample(frac=1, random_state=8)[["sex", "site", "group"]]
    again, _ = set_probe_aside(shuffled, "group", seed=3)
    assert again == probe
    assert again.digest == probe.digest
    other, _ = set_probe_aside(big_people, "group", seed=4)
    assert other.ids != probe.ids
    assert other.digest != probe.digest


def test_everyone_is_as_likely_to_be_drawn(big_people):
    counts = pd.Series(0, index=big_people.index)
    for seed in range(300):
        probe, _ = set_probe_aside(big_people, "group", seed=seed, strata=())
        counts[list(probe.ids)] += 1
    share = 18 / big_people["group"].map(big_people["group"].value_counts())
    z = (counts / 300 - share) / np.sqrt(share * (1 - share) / 300)
    assert abs(z).max() < 4.5
    assert 0.8 < z.std() < 1.2


def test_mlsp_is_too_small_for_a_probe():
    people = pd.DataFrame(
        {"group": ["0"] * 46 + ["1"] * 40}, index=[f"{k}" for k in range(86)]
    )
    probe, reason = set_probe_aside(people, "group")
    assert probe is None
    assert reason == (
        "No probe: 25% of 86 people would be 12 0, 10 1, and '1' needs at least 12; "
        "use a larger cohort or fraction."
    )
    probe, _ = set_probe_aside(people, "group", minimum=10)
    assert len(probe.ids) == 22


def test_a_grouping_that_is_not_the_target_is_crossed_with_it(big_people):
    probe, _ = set_probe_aside(big_people, "sex", seed=1)
    assert probe.strata == ("sex", "group", "site")
    table = big_people.loc[list(probe.ids)]
    expected = big_people.groupby(["sex", "group", "site"]).size() * 0.25
    assert (abs(table.groupby(["sex", "group", "site"]).size() - expected) <= 1).all()


def test_people_of_no_known_site_are_a_stratum(big_people):
    people = big_people.copy()
    people.loc[people.index[::5], "site"] = None
    probe, _ = set_probe_aside(people, "group")
    assert 5 <= people.loc[list(probe.ids), "site"].isna().sum() <= 9


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 1.5])
def test_impossible_fractions(big_people, fraction):
    with pytest.raises(InputError, match=rf"fraction={fraction}: choose"):
        set_probe_aside(big_people, "group", fraction=fraction)


def test_columns_that_are_absent_or_incomplete(big_people):
    with pytest.raises(UnknownNameError, match=r"'gruop'.*Did you mean 'group'"):
        set_probe_aside(big_people, "gruop")
    people = big_people.assign(
        group=big_people["group"].where(lambda g: g != "patient")
    )
    with pytest.raises(InputError, match=r"'group' is missing for 72 people"):
        set_probe_aside(people, "group")


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_are_disjoint_exhaustive_and_balanced(big_people, folds):
    probe, _ = set_probe_aside(big_people, "group")
    splits = fold_splits(big_people, folds, seed=2, probe=probe)
    assert len(splits) == folds
    everyone = set(big_people.index) - set(probe.ids)
    held = [who for fold in splits for who in fold.validation_ids]
    assert len(held) == len(set(held)) == len(everyone)
    for fold in splits:
        train, validation = set(fold.train_ids), set(fold.validation_ids)
        assert train | validation == everyone
        assert not train & validation
        groups = big_people.loc[list(fold.validation_ids), "group"].value_counts()
        assert abs(groups["control"] - 56 / folds) < 3
        assert fold.train_ids == tuple(sorted(train))


def test_folds_depend_on_ids_and_seed_only(big_people):
    splits = fold_splits(big_people, 5, seed=2)
    shuffled = big_people.sample(frac=1, random_state=1)
    assert fold_splits(shuffled, 5, seed=2) == splits
    assert fold_splits(big_people, 5, seed=3) != splits


def test_sites_are_balanced_over_folds(big_people):
    for fold in fold_splits(big_people, 5):
        assert fold.strata == ("group", "site")
        sites = big_people.loc[list(fold.validation_ids), "site"].value_counts() * 5
        assert (abs(sites - big_people["site"].value_counts()) <= 15).all()


def test_small_strata_fall_back_to_the_target_alone(big_people):
    people = big_people.copy()
    people.loc[people.index[:2], "site"] = "rare"
    for fold in fold_splits(people, 5):
        assert fold.strata == ("group",)
        assert "over 'group' alone: some combinations of group × site" in fold.note


def test_without_a_site_the_target_alone_is_balanced(big_people):
    fold, *_ = fold_splits(big_people[["group"]], 5)
    assert (fold.strata, fold.note) == (("group",), "")


def test_more_folds_than_people_of_a_group():
    people = pd.DataFrame({"group": list("aaaaabbb")}, index=list("stuvwxyz"))
    assert len(fold_splits(people, 3)) == 3
    with pytest.raises(InputError, match=r"folds=4: .*'b' has 3 people .*fewer folds"):
        fold_splits(people, 4)
    with pytest.raises(InputError, match=r"folds=1: .*at least 2"):
        fold_splits(people, 1)


def test_a_probe_of_other_people_is_refused(big_people):
    with pytest.raises(UnknownNameError, match=r"1 people who are not .*sub-999"):
        fold_splits(big_people, 5, probe=Probe(("sub-001", "sub-999"), ("group",)))


@pytest.fixture
def related(big_people):
    """Every third person has a sibling, often of the other group; one is a triplet."""
    family = pd.Series(
        [f"f{i // 2 if i % 6 < 2 else 1000 + i}" for i in range(len(big_people))],
        index=big_people.sample(frac=1, random_state=2).index,
    )
    family.iloc[5] = family.iloc[0]
    family.iloc[[8, 9]] = None
    return big_people.assign(Family_ID=family)


def parts_of(people, parts):
    """In how many parts each family has members."""
    place = {who: i for i, part in enumerate(parts) for who in part}
    table = people.assign(part=people.index.map(place)).dropna(subset="Family_ID")
    return table.groupby("Family_ID")["part"].nunique(dropna=False)


@pytest.mark.parametrize("seed", range(5))
def test_families_are_never_apart(related, seed):
    probe, note = set_probe_aside(related, "group", seed=seed)
    assert "families together" in note
    assert (parts_of(related, [probe.ids]) == 1).all()
    counts = related.loc[list(probe.ids), "group"].value_counts()
    assert counts.between(18, 20).all()
    assert all(f"{n} {group}" in note for group, n in counts.items())
    sites = related.loc[list(probe.ids), "site"].value_counts()
    assert (abs(sites - related["site"].value_counts() * 0.25) <= 4).all()
    folds = fold_splits(related, 5, seed=seed, probe=probe)
    check_apart(probe, folds)
    held = [fold.validation_ids for fold in folds]
    assert (parts_of(related, [*held, probe.ids]) == 1).all()
    assert sorted([*probe.ids, *(who for part in held for who in part)]) == sorted(
        related.index
    )


def test_a_family_column_without_relatives_changes_nothing(big_people):
    alone = big_people.assign(family=[f"f{i}" for i in range(len(big_people))])
    assert set_probe_aside(alone, "group") == set_probe_aside(big_people, "group")
    assert fold_splits(alone, 4) == fold_splits(big_people, 4)


def test_everyone_in_large_families_still_makes_a_probe(big_people):
    families = big_people.assign(family=[f"f{i // 8}" for i in range(len(big_people))])
    probe, _ = set_probe_aside(families, "group")
    counts = families.loc[list(probe.ids), "group"].value_counts()
    assert counts.min() >= 18
    assert len(probe.ids) % 8 in (0, len(big_people) % 8)
    few = families.assign(family=["one"] * 100 + ["two"] * (len(families) - 100))
    with pytest.raises(InputError, match=r"folds=3: .* 2 families .* fewer folds"):
        fold_splits(few, 3)


def test_a_probe_that_holds_half_a_family_is_refused(related):
    who = related.index[related["Family_ID"] == related["Family_ID"].mode()[0]][0]
    with pytest.raises(InputError, match=r"Family .* in the probe and outside; draw"):
        fold_splits(related, 3, probe=Probe((who,), ("group",)))


def test_a_probe_of_people_who_train_is_refused(big_people):
    folds = fold_splits(big_people, 3)
    check_apart(None, folds)
    with pytest.raises(InputError, match=r"2 people who train .* sub-001; draw"):
        check_apart(Probe(("sub-001", "sub-002"), ("group",)), folds)


@pytest.mark.parametrize("k", [2, 3])
def test_crossfitted_probes_are_disjoint_and_cover_everyone(related, k):
    probes = crossfit_probes(related, k, seed=1)
    assert len(probes) == k
    everyone = [who for probe in probes for who in probe.ids]
    assert sorted(everyone) == sorted(related.index)
    assert (parts_of(related, [probe.ids for probe in probes]) == 1).all()
    for probe in probes:
        counts = related.loc[list(probe.ids), "group"].value_counts()
        assert (abs(counts - related["group"].value_counts() / k) <= 3).all()
    assert crossfit_probes(related, k, seed=1) == probes
    with pytest.raises(InputError, match="folds=1"):
        crossfit_probes(related, 1)


def test_repeats_split_the_same_people_otherwise(big_people):
    probe, _ = set_probe_aside(big_people, "group")
    folds = fold_splits(big_people, 3, seed=4, probe=probe, repeats=3)
    assert folds[:3] == fold_splits(big_people, 3, seed=4, probe=probe)
    rest = set(big_people.index) - set(probe.ids)
    for k in range(3):
        parts = [set(fold.validation_ids) for fold in folds[3 * k : 3 * k + 3]]
        assert set.union(*parts) == rest
        assert sum(map(len, parts)) == len(rest)
    assert len({fold.validation_ids for fold in folds}) == 9
    with pytest.raises(InputError, match=r"repeats=0"):
        fold_splits(big_people, 3, repeats=0)


def test_one_site_is_left_out_at_a_time(big_people):
    probe, _ = set_probe_aside(big_people, "group")
    folds = site_splits(big_people, "group", probe=probe)
    rest = big_people.drop(index=list(probe.ids))
    assert len(folds) == big_people["site"].nunique()
    for fold, site in zip(folds, sorted(set(rest["site"])), strict=True):
        assert set(fold.validation_ids) == set(rest.index[rest["site"] == site])
        assert set(fold.train_ids) == set(rest.index[rest["site"] != site])
        assert fold.strata == ("site",)
        assert f"site {site} held out" in fold.note
    check_apart(probe, folds)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"site": "one"}, "everyone outside the probe is of site=one"),
        ({"site": None}, "'site' is missing for"),
    ],
)
def test_sites_that_cannot_be_left_out(big_people, change, words):
    with pytest.raises(InputError, match=words):
        site_splits(big_people.assign(**change), "group")


def test_a_site_of_one_group_is_refused(big_people):
    lone = big_people.assign(site=big_people["site"].astype(object))
    first = lone["group"].iloc[0]
    lone.loc[lone["group"] == first, "site"] = "alone"
    with pytest.raises(
        InputError, match=r"nobody of site=A has group=control.*join it"
    ):
        site_splits(lone, "group")


def test_a_family_of_two_sites_is_refused(big_people):
    sites = big_people["site"]
    first = sites.index[sites == sites.iloc[0]][0]
    second = sites.index[sites != sites.iloc[0]][0]
    family = pd.Series(None, index=big_people.index, dtype=object)
    family[[first, second]] = "f1"
    with pytest.raises(InputError, match=r"family 'f1' is of site="):
        site_splits(big_people.assign(family=family), "group")
