import numpy as np
import pytest
from scipy.io import savemat

from spectral_mlops.cohorts import load_cohort
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError, UnknownNameError

PEOPLE = {"sub-07": "control", "sub-1": "patient", "sub-30": "patient", "x": "control"}
TIMES = (9, 12, 9, 10)


@pytest.fixture
def series(rng):
    """Unequal lengths of three components, exact in float32."""
    return {
        who: rng.integers(-99, 99, size=(t, 3)).astype(float)
        for who, t in zip(PEOPLE, TIMES, strict=True)
    }


@pytest.fixture
def load(tmp_path, series):
    """Write one NPZ and a table in another order, and load them."""

    def load(arrays=series, **settings):
        np.savez(tmp_path / "ts.npz", **arrays)
        rows = [f"{who}\t{PEOPLE[who]}\tf{k}" for k, who in enumerate(sorted(PEOPLE))]
        text = "\n".join(["participant_id\tgroup\tfile", *rows[::-1]]) + "\n"
        (tmp_path / "people.tsv").write_text(text)
        files = {"series": "ts.npz", "labels": "people.tsv"} | settings
        return load_cohort(Component(name="timecourses", settings=files), tmp_path)

    return load


def test_unequal_lengths_need_a_policy(load):
    with pytest.raises(InputError, match=r"2 people of 9, 1 people of 10, 1 .* of 12"):
        load()


def test_padding_keeps_lengths(load, series):
    cohort = load(lengths="pad")
    assert cohort.modality == "timecourses"
    assert cohort.features.shape == (4, 12, 3)
    assert cohort.lengths.tolist() == list(TIMES)
    assert cohort.labels.tolist() == list(PEOPLE.values())
    for who, rows in zip(cohort.people.index, cohort.features, strict=True):
        np.testing.assert_array_equal(rows[: len(series[who])], series[who])
        assert not rows[len(series[who]) :].any()
    assert any("9 to 12 time points of 3 components" in note for note in cohort.notes)


def test_cropping_keeps_the_first_time_points(load, series):
    cohort = load(lengths="crop")
    expected = [one[:9] for one in series.values()]
    np.testing.assert_array_equal(cohort.features, expected)
    assert cohort.lengths is None
    assert "lengths='crop': the first 9 time points; 2 were cut" in cohort.notes


def test_windows_of_a_person_stay_one_person(load, series):
    cohort = load(lengths="window", window=4, stride=3)
    assert cohort.features.shape == (4, 2, 4, 3)
    for rows, one in zip(cohort.features, series.values(), strict=True):
        np.testing.assert_array_equal(rows, [one[0:4], one[3:7]])
    told = "2 windows of 4 time points, stride 3; 2 further windows"
    assert any(told in note for note in cohort.notes)
    assert load(lengths="window", window=4).features.shape == (4, 2, 4, 3)
    assert load(lengths="window", window=9).features.shape == (4, 1, 9, 3)


def test_windows_longer_than_somebody(load):
    with pytest.raises(InputError, match=r"sub-07 has 9 time points, fewer than .* 10"):
        load(lengths="window", window=10)
    with pytest.raises(InputError, match=r"lengths='window' needs window="):
        load(lengths="window")


def test_equal_lengths_need_nothing(load, series):
    cohort = load({who: one[:9] for who, one in series.items()}, components=3)
    assert cohort.features.shape == (4, 9, 3)
    assert cohort.lengths is None


def test_orientation_is_decided_file_by_file(load, series):
    mixed = {who: one.T if who in "x sub-1" else one for who, one in series.items()}
    with pytest.raises(InputError, match=r"do not tell which axis is time; set comp"):
        load(mixed, lengths="crop")
    cohort = load(mixed, lengths="pad", components=3)
    assert cohort.digest == load(lengths="pad").digest
    assert any("2 of 4 people's arrays were turned" in note for note in cohort.notes)


def test_the_axis_that_everyone_shares_is_that_of_components(load, series):
    turned = {who: one.T for who, one in series.items()}
    cohort = load(turned, lengths="pad")
    assert cohort.digest == load(lengths="pad").digest
    assert "components are the first axis: 3 for everyone" in " ".join(cohort.notes)


def test_orientation_that_cannot_be_told(load, series):
    same = {who: one[:9] for who, one in series.items()}
    with pytest.raises(InputError, match=r"shapes \(9, 3\) do not tell which axis"):
        load(same)
    assert load(same, orientation="time-first").features.shape == (4, 9, 3)
    assert load(same, orientation="components-first").features.shape == (4, 3, 9)
    assert load(same, timepoints=9).features.shape == (4, 9, 3)
    square = {who: one[:3] for who, one in series.items()}
    with pytest.raises(InputError, match=r"shape \(3, 3\): which axis is components"):
        load(square, components=3)
    with pytest.raises(InputError, match=r"neither axis is 5 long, as components=5"):
        load(same, components=5)


def test_components_must_be_the_same(load, series):
    fewer = series | {"sub-30": series["sub-30"][:, :2]}
    with pytest.raises(InputError, match=r"sub-30 has 2 components but .*sub-07 has 3"):
        load(fewer, lengths="crop", orientation="time-first")


@pytest.fixture
def damaged(series):
    """One dead component, one gap, one infinity."""
    arrays = {who: one.copy() for who, one in series.items()}
    arrays["sub-1"][:, 2] = 0.1
    arrays["x"][4, 0] = np.nan
    arrays["x"][5, 0] = np.inf
    return arrays


def test_dead_components_and_gaps_are_refused(load, damaged):
    told = "1 dead .* and 2 missing values of 2 people, the first that of sub-1, comp"
    with pytest.raises(InputError, match=told):
        load(damaged, lengths="pad")


def test_people_with_dead_components_left_out(load, damaged):
    cohort = load(damaged, lengths="pad", dead="drop_subject")
    assert list(cohort.people.index) == ["sub-07", "sub-30"]
    assert "dead='drop_subject' left out 2: sub-1, x" in cohort.notes
    assert "group of those left: 1 control, 1 patient" in cohort.notes
    everyone = {who: one * [1, 0, 1] for who, one in damaged.items()}
    with pytest.raises(InputError, match=r"which is everyone"):
        load(everyone, lengths="pad", dead="drop_subject")


def test_imputing_uses_that_person_alone(load, damaged, series):
    cohort = load(damaged, lengths="pad", dead="impute_mean")
    dead, gap = cohort.features[1][:12], cohort.features[3][:10]
    np.testing.assert_array_equal(dead[:, :2], series["sub-1"][:, :2])
    np.testing.assert_allclose(dead[:, 2], series["sub-1"][:, :2].mean(axis=1))
    known = np.delete(series["x"][:, 0], [4, 5])
    np.testing.assert_allclose(gap[[4, 5], 0], known.mean(), rtol=1e-6)
    np.testing.assert_array_equal(np.delete(gap[:, 0], [4, 5]), known)
    nobody = damaged | {"x": np.ones((10, 3))}
    with pytest.raises(InputError, match=r"x has no living component"):
        load(nobody, lengths="pad", dead="impute_mean")


def test_zero_fills_both(load, damaged):
    cohort = load(damaged, lengths="pad", dead="zero")
    assert not cohort.features[1, :, 2].any()
    assert not cohort.features[3, [4, 5], 0].any()


def test_pearson_connectivity_equals_numpy(load, series):
    cohort = load(lengths="pad", connectivity="correlation")
    rows = [np.corrcoef(one.T)[np.triu_indices(3, 1)] for one in series.values()]
    np.testing.assert_allclose(cohort.features, rows, rtol=0, atol=1e-6)
    assert (cohort.modality, cohort.space.order) == ("fnc", "upper")
    assert cohort.lengths is None
    told = "connectivity: Pearson r, empirical covariance, no Fisher z, row-major upper"
    assert any(told in note and "9 to 12" in note for note in cohort.notes)


def test_fisher_z_and_the_lower_triangle(load, series):
    cohort = load(
        lengths="crop", connectivity="correlation", fisher_z=True, order="lower"
    )
    rows = [
        np.arctanh(np.corrcoef(one[:9].T)[np.tril_indices(3, -1)])
        for one in series.values()
    ]
    np.testing.assert_allclose(cohort.features, rows, rtol=0, atol=1e-5)
    twins = {who: one[:, [0, 1, 1]] for who, one in series.items()}
    with pytest.raises(InputError, match=r"components 1 and 2 of sub-07 are the same"):
        load(twins, lengths="pad", connectivity="correlation", fisher_z=True)


def test_ledoit_wolf_is_not_pearson_and_says_so(load, series):
    from sklearn.covariance import ledoit_wolf

    cohort = load(lengths="pad", connectivity="correlation", estimator="ledoit-wolf")
    for row, one in zip(cohort.features, series.values(), strict=True):
        scaled = (one - one.mean(axis=0)) / one.std(axis=0, ddof=1)
        covariance = ledoit_wolf(scaled)[0]
        scale = np.sqrt(np.diag(covariance))
        expected = (covariance / np.outer(scale, scale))[np.triu_indices(3, 1)]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-6)
    assert any("ledoit-wolf covariance" in note for note in cohort.notes)


def test_partial_correlation_equals_regression(load, series):
    cohort = load(lengths="pad", connectivity="partial correlation")
    one = series["sub-1"] - series["sub-1"].mean(axis=0)
    rest = one[:, [2]]
    left = [
        one[:, k] - rest[:, 0] * (rest.T @ one[:, k]) / (rest**2).sum() for k in (0, 1)
    ]
    expected = np.corrcoef(left)[0, 1]
    np.testing.assert_allclose(cohort.features[1, 0], expected, rtol=0, atol=1e-5)
    short = {who: one[:3] for who, one in series.items()}
    with pytest.raises(InputError, match=r"partial correlation of 3 .* needs 4 or"):
        load(short, orientation="time-first", connectivity="partial correlation")


def test_connectivity_refuses_what_has_no_correlation(load):
    with pytest.raises(InputError, match=r"lengths='crop'.*not 'window'"):
        load(lengths="window", window=4, connectivity="correlation")
    with pytest.raises(InputError, match=r"cannot correlate components set to zero"):
        load(lengths="pad", dead="zero", connectivity="correlation")


def test_ids_and_one_array(load, series, tmp_path):
    expected = load(lengths="crop")
    stacked = np.stack([one[:9] for one in series.values()])
    arrays = {"ids": np.array(list(PEOPLE)), "timecourses": stacked}
    assert load(arrays, components=3).digest == expected.digest
    turned = arrays | {"timecourses": stacked.swapaxes(1, 2)}
    assert load(turned, components=3).digest == expected.digest
    with pytest.raises(InputError, match=r"expected \[people\] and three axes"):
        load(arrays | {"ids": arrays["ids"][:3]})
    twice = arrays | {"ids": np.array(["x", "sub-1", "sub-30", "x"])}
    with pytest.raises(InputError, match=r"id x stands more than once"):
        load(twice)
    with pytest.raises(InputError, match=r"'x' has shape \(3,\)"):
        load(series | {"x": np.ones(3)})


def test_a_file_a_person_found_through_a_column(load, series, tmp_path):
    expected = load(lengths="pad")
    for k, who in enumerate(sorted(PEOPLE)):
        savemat(tmp_path / f"f{k}_ica_c1-1.mat", {"tc": series[who].T})
    cohort = load(series="{file}_ica_*.mat", lengths="pad", components=3)
    rows = cohort.rows(PEOPLE)
    np.testing.assert_array_equal(cohort.features[rows], expected.features)
    with pytest.raises(UnknownNameError, match=r"no column 'fiel'.*mean 'file'"):
        load(series="{fiel}_ica_*.mat")
    savemat(tmp_path / "f0_ica_c2-1.mat", {"tc": series["x"]})
    with pytest.raises(InputError, match=r"is more than one file"):
        load(series="{file}_ica_*.mat")


def test_people_without_files_and_files_without_people(load, series, tmp_path):
    (tmp_path / "ts").mkdir()
    for k, who in enumerate(("sub-07", "sub-99", "sub-1")):
        rows = series["x"] + k
        lines = ["SC1\tDM1\tDM2", *("\t".join(map(str, row)) for row in rows)]
        (tmp_path / "ts" / f"{who}_ts.tsv").write_text("\n".join(lines))
    told = r"2 people .*, 1 only in files \*_ts.tsv \(sub-99_ts.tsv\) and 2 only in the"
    with pytest.raises(InputError, match=rf"{told}.*unmatched='drop'"):
        load(series="ts/{participant_id}_ts.tsv")
    cohort = load(series="ts/{participant_id}_ts.tsv", unmatched="drop")
    assert set(cohort.people.index) == {"sub-07", "sub-1"}
    assert cohort.space.networks == ("SC1", "DM1", "DM2")
    lines[0] = "SC1\tDM2\tDM1"
    (tmp_path / "ts" / "sub-1_ts.tsv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"names its components otherwise than"):
        load(series="ts/{participant_id}_ts.tsv", unmatched="drop")


def test_lost_zeros_are_recognised(load, series):
    lost = {who.replace("sub-0", "sub-"): one for who, one in series.items()}
    with pytest.raises(InputError, match=r"1 of them agree but for 'sub-', leading"):
        load(lost, lengths="pad")


def test_one_file_for_everyone_is_an_npz(load):
    with pytest.raises(InputError, match=r"must be an NPZ.*name a column"):
        load(series="ts.tsv")


def test_labels_to_keep(load):
    with pytest.raises(InputError, match=r"keep names 'patients'.*mean 'patient'"):
        load(keep=["patients", "control"])
    cohort = load(lengths="pad", keep=["patient", "control"])
    assert "keep: 0 people of other labels left out" in cohort.notes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 4}, "need lengths='window'"),
        ({"lengths": "crop", "stride": 2}, "need lengths='window'"),
        ({"fisher_z": True}, "need connectivity="),
        ({"estimator": "ledoit-wolf"}, "need connectivity="),
        ({"confounds": ["motion"]}, "regressed out of images read through atlas="),
    ],
)
def test_settings_that_would_do_nothing(load, settings, message):
    with pytest.raises(InputError, match=f"would do nothing: .*{message}"):
        load(**settings)


@pytest.fixture
def load_abide(abide):
    def load(**settings):
        files = {
            "series": "timecourses_float16.npz",
            "labels": "participants.tsv",
            "positive": "autism",
        } | settings
        return load_cohort(Component(name="timecourses", settings=files), abide)

    return load


def test_abide_as_published(load_abide):
    with pytest.raises(InputError, match=r"84 people of 146, 56 people of 196"):
        load_abide()
    with pytest.raises(InputError, match=r"260 dead .* of 19 people.*sub-0051456"):
        load_abide(lengths="pad")
    cohort = load_abide(lengths="pad", dead="impute_mean")
    assert cohort.features.shape == (140, 196, 200)
    assert cohort.lengths.tolist() == cohort.people["n_timepoints"].astype(int).tolist()
    assert cohort.groups == {"autism": 69, "control": 71}
    assert cohort.people["fd"].isna().sum() == 1


def test_abide_connectivity(load_abide):
    cohort = load_abide(lengths="crop", dead="drop_subject", connectivity="correlation")
    assert cohort.features.shape == (121, 19900)
    assert (cohort.people["n_zero_variance_rois"].astype(int) == 0).all()


def test_abide_raw_files_are_the_archive(load_abide):
    raw = load_abide(
        series="raw_1D/{file_id}_rois_cc200.1D",
        unmatched="drop",
        lengths="pad",
        dead="zero",
    )
    assert raw.features.shape == (6, 196, 200)
    packed = load_abide(lengths="pad", dead="zero")
    rows = packed.rows(raw.people.index)
    np.testing.assert_allclose(
        packed.features[rows], raw.features, rtol=1e-3, atol=1e-3 * 50
    )
