import numpy as np
import pytest
from scipy import stats

from spectral_mlops.cohorts.demographics import draw_people, group_sizes
from spectral_mlops.errors import InputError


@pytest.mark.parametrize(
    ("people", "controls", "patients"), [(146, 74, 72), (4, 2, 2), (16, 8, 8)]
)
def test_groups_keep_their_proportion(people, controls, patients):
    assert group_sizes(people) == {"control": controls, "patient": patients}
    counts = draw_people(people, 1.0, (0,))["group"].value_counts()
    assert counts.to_dict() == {"control": controls, "patient": patients}


@pytest.mark.parametrize("people", [-1, 0, 3])
def test_too_few_people(people):
    with pytest.raises(InputError, match=rf"people={people}: .*4 people or more"):
        draw_people(people, 1.0, (0,))


def test_people_look_like_a_cohort():
    people = draw_people(20_000, 1.0, (1,))
    cut = stats.truncnorm((18 - 38) / 12.5, (65 - 38) / 12.5, 38, 12.5)
    assert stats.kstest(people["age"], cut.cdf).pvalue > 1e-3
    men = people["sex"].eq("M").groupby(people["group"]).mean()
    np.testing.assert_allclose(men, [0.69, 0.81], atol=0.02)
    motion = np.log(people["fd"]).groupby(people["group"]).mean()
    np.testing.assert_allclose(motion.diff().iloc[1], 0.15, atol=0.03)
    sites = people.groupby(["group", "site"]).size()
    assert abs(sites["control"].diff().iloc[1]) <= 1
    assert people.index.is_unique


def test_null_groups_are_exchangeable():
    people = draw_people(20_000, 0.0, (1,))
    men = people["sex"].eq("M").groupby(people["group"]).mean()
    motion = np.log(people["fd"]).groupby(people["group"]).mean()
    assert abs(men.diff().iloc[1]) < 0.02
    assert abs(motion.diff().iloc[1]) < 0.02


def test_presets_share_their_people():
    null, easy = draw_people(30, 0.0, (4,)), draw_people(30, 2.0, (4,))
    for column in ("group", "age", "site"):
        assert null[column].equals(easy[column])


@pytest.mark.parametrize("together", [0.5, 0.8, 1.0])
def test_sites_go_with_groups_as_closely_as_asked(together):
    people = draw_people(400, 0.0, (2,), together)
    patient, second = people["group"] == "patient", people["site"] == "B"
    assert np.corrcoef(patient, second)[0, 1] == pytest.approx(together, abs=0.01)
    balanced = draw_people(400, 0.0, (2,))
    for column in ("group", "age", "sex", "fd"):
        assert people[column].equals(balanced[column])
