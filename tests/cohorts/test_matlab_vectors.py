import numpy as np
import pytest
from scipy.io import savemat

from spectral_mlops.cohorts import load_cohort
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError

PEOPLE = ["s01", "s02", "s03", "s04", "s05"]
N = 7


@pytest.fixture
def matrices(rng):
    """Correlations of five people, `[5, 7, 7]`."""
    return np.stack([np.corrcoef(rng.normal(size=(N, 40))) for _ in PEOPLE])


@pytest.fixture
def z(matrices):
    """As GIFT writes them: Fisher z, zero diagonal."""
    values = matrices.copy()
    values[:, range(N), range(N)] = 0
    values *= 1.05  # so that some exceed 1 after artanh
    return np.arctanh(np.clip(values, -0.9, 0.9))


@pytest.fixture
def load(tmp_path):
    def load(arrays, **settings):
        savemat(tmp_path / "f.mat", arrays)
        rows = [f"{who}\t{'ab'[k % 2]}" for k, who in enumerate(PEOPLE)]
        (tmp_path / "l.tsv").write_text("\n".join(["id\tgroup", *rows[::-1]]))
        (tmp_path / "rows.csv").write_text("\n".join(["id", *PEOPLE]))
        files = {"features": "f.mat", "labels": "l.tsv", "positive": "b"}
        given = files | {"order": "upper", "check_order": False} | settings
        return load_cohort(Component(name="fnc", settings=given), tmp_path)

    return load


@pytest.mark.parametrize("order", ["upper", "lower"])
def test_matrices_of_gift(load, z, order):
    cohort = load(
        {"fnc_corrs_all": z, "comp": np.eye(3)}, row_ids="rows.csv", order=order
    )
    pick = np.triu_indices(N, 1) if order == "upper" else np.tril_indices(N, -1)
    expected = z[:, pick[0], pick[1]].astype(np.float32)
    np.testing.assert_array_equal(cohort.features[cohort.rows(PEOPLE)], expected)
    assert (
        f"fnc_corrs_all: the {order} triangle of matrices, row by row" in cohort.notes
    )


def test_r_and_z_are_told_apart(load, matrices, z):
    r = load({"FNC": matrices}, row_ids="rows.csv", check_order=True)
    assert any("correlations (no value exceeds 1)" in note for note in r.notes)
    assert any("5 of 5 matrices are positive" in note for note in r.notes)
    z = np.where(np.eye(N) > 0, 0, 3 * z)
    fisher = load({"FNC": z}, row_ids="rows.csv")
    assert any("Fisher z" in note for note in fisher.notes)


def test_people_may_be_the_last_axis(load, z):
    first = load({"fnc": z}, row_ids="rows.csv")
    last = load({"fnc": np.moveaxis(z, 0, -1)}, row_ids="rows.csv")
    assert first.digest == last.digest
    one_session = load({"fnc": z[:, None]}, row_ids="rows.csv")
    assert first.digest == one_session.digest


def test_vectors_with_ids_inside(load, z):
    vectors = z[:, *np.triu_indices(N, 1)]
    cells = np.array(PEOPLE, dtype=object)
    inside = load({"features": vectors, "subjects": cells})
    turned = load({"features": vectors.T, "subjects": cells})
    assert inside.digest == turned.digest == load({"fnc": z, "ids": cells}).digest
    assert any("people were columns" in note for note in turned.notes)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (lambda z: {"fnc": z}, {}, r"names no people .*set row_ids="),
        (lambda z: {"fnc": z[:4]}, {"row_ids": "rows.csv"}, "no axis could be people"),
        (
            lambda z: {"fnc": z + np.arange(N)},
            {"row_ids": "rows.csv"},
            r"shape \(5, 7, 7\) for 5 ids: no axis",
        ),
        (
            lambda z: {"fnc": np.zeros((5, 5, 5))},
            {"row_ids": "rows.csv"},
            "several axes could be people",
        ),
        (
            lambda z: {"fnc": z[:, :5, 0]},
            {"row_ids": "rows.csv"},
            "which axis is people cannot be told",
        ),
        (
            lambda z: {"fnc": np.stack([z, z], axis=1)},
            {"row_ids": "rows.csv"},
            r"\(5, 2, 7, 7\) for 5 ids; .*one session",
        ),
        (
            lambda z: {"fnc": z, "ids": np.array(["s01"] * 5, dtype=object)},
            {},
            "id s01 stands more than once",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(load, z, make, settings, message):
    with pytest.raises(InputError, match=message):
        load(make(z), **settings)
