import numpy as np
import pytest

from spectral_mlops.cohorts.triangles import (
    check_order,
    count_right,
    kept_diagonal,
    rebuild,
    size_of,
)
from spectral_mlops.errors import InputError


def correlations(rng, people, n, samples=40):
    mixing = rng.normal(size=(n, 4))
    return np.stack(
        [
            np.corrcoef(
                mixing @ rng.normal(size=(4, samples))
                + 0.5 * rng.normal(size=(n, samples))
            )
            for _ in range(people)
        ]
    )


@pytest.mark.parametrize("n", [2, 3, 4, 28, 53, 105])
def test_number_of_networks(n):
    assert size_of(len(np.triu_indices(n, 1)[0]), "f.csv") == n


@pytest.mark.parametrize(("connections", "fits"), [(379, "378 .* 406"), (0, "0 .* 1")])
def test_other_numbers_of_columns(connections, fits):
    with pytest.raises(InputError, match=rf"f.csv: {connections} columns .*{fits}"):
        size_of(connections, "f.csv")


def test_rebuilding_undoes_both_orders(rng):
    matrices = correlations(rng, 3, 7)
    upper = np.stack([[m[i, j] for i in range(7) for j in range(i + 1, 7)]
                      for m in matrices])  # fmt: skip
    lower = np.stack([[m[i, j] for i in range(7) for j in range(i)] for m in matrices])
    np.testing.assert_allclose(rebuild(upper, "upper"), matrices, rtol=0, atol=1e-12)
    np.testing.assert_allclose(rebuild(lower, "lower"), matrices, rtol=0, atol=1e-12)
    assert not np.allclose(rebuild(lower, "upper"), matrices)


@pytest.mark.parametrize("order", ["upper", "lower"])
def test_the_wrong_order_is_refused_and_the_right_one_named(rng, order):
    matrices = correlations(rng, 9, 12)
    rows, columns = (
        np.triu_indices(12, 1) if order == "upper" else np.tril_indices(12, -1)
    )
    vectors = matrices[:, rows, columns]
    other = {"upper": "lower", "lower": "upper"}[order]
    assert count_right(vectors, order) == 9
    assert "9 of 9 matrices" in check_order(vectors, order, "f.csv")
    message = f"order='{other}' only . of 9 .*set order='{order}'"
    with pytest.raises(InputError, match=message):
        check_order(vectors, other, "f.csv")


def test_rank_deficient_matrices_count_as_right(rng):
    matrices = correlations(rng, 4, 30, samples=20)  # rank 19 at most
    vectors = matrices[:, *np.triu_indices(30, 1)].round(6)
    assert count_right(vectors, "upper") == 4


def test_one_odd_person_in_many_does_not_matter(rng):
    vectors = correlations(rng, 40, 12)[:, *np.triu_indices(12, 1)]
    vectors[7] = rng.permutation(vectors[7])
    assert "39 of 40" in check_order(vectors, "upper", "f.csv")


def test_where_neither_order_fits_the_way_out_is_named(rng):
    vectors = np.sign(rng.normal(size=(5, 45))) * 0.9
    with pytest.raises(InputError, match=r"neither order .* set check_order=false"):
        check_order(vectors, "upper", "f.csv")


def test_where_it_cannot_be_told_the_note_says_so(rng):
    small = 0.01 * rng.normal(size=(6, 10))
    assert "cannot be told" in check_order(small, "upper", "f.csv")
    assert "both orders are the same" in check_order(small[:, :3], "lower", "f.csv")
    assert "too few to tell" in check_order(small[:2], "lower", "f.csv")


@pytest.mark.parametrize("diagonal", [0.0, 1.0, 0.5**0.5])  # the last is nilearn's
@pytest.mark.parametrize("triangle", [np.triu_indices, np.tril_indices])
def test_a_kept_diagonal_is_found(rng, triangle, diagonal):
    matrices = correlations(rng, 4, 9)
    matrices[:, range(9), range(9)] = diagonal
    assert kept_diagonal(matrices[:, *triangle(9)]) == 9


def test_no_diagonal_no_finding(rng):
    assert kept_diagonal(correlations(rng, 4, 9)[:, *np.triu_indices(9, 1)]) is None
