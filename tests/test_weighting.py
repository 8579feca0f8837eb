"""People, or rows, of equal weight: by slow loops over unequal numbers of rows."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spectral_mlops import SpectralMonitor
from spectral_mlops.errors import InputError
from spectral_mlops.inference.relabel import draw_relabellings
from tests.reference import as_array, reference_js, reference_singular_values

ROWS = [3, 1, 2, 5, 1, 1, 4, 2, 2, 1, 6]  # samples of each person
WHO = [f"p{i:02d}" for i, n in enumerate(ROWS) for _ in range(n)]
LABELS = ["ab"[i % 2] for i in range(len(ROWS))]
POSITIONS = 2


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def inputs():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(len(WHO), POSITIONS, 6, generator=generator).double()


def loss_of(z, y):
    return cross_entropy(z.mean(1), y, reduction="sum")


def targets():
    return torch.arange(len(WHO)) % 4


def probed(adjoint="loss"):
    groups = {"dx": [LABELS[int(person[1:])] for person in WHO]}
    monitor = SpectralMonitor(network())
    batch = (inputs(), targets(), groups, WHO)
    return monitor.probe([batch], loss_of, adjoint=adjoint)


def reference(quantity, codes, weighting):
    """The first layer's divergence, from matrices formed anew."""
    model, x = network(), inputs()
    hidden = model[0](x)
    loss = loss_of(model[1:](hidden), targets())
    (delta,) = torch.autograd.grad(loss, hidden)
    spectra = []
    for group in (0, 1):
        a, d = [], []
        for i, person in enumerate(WHO):
            number = int(person[1:])
            if codes[number] == group:
                rows = ROWS[number] * POSITIONS
                weight = rows**-0.5 if weighting == "subjects" else 1.0
                a.append(as_array(x[i]) * weight)
                d.append(as_array(delta[i]) * weight)
        left, right = np.concatenate(a), np.concatenate(d)
        matrix = {"activation": left, "adjoint": right, "gradient": left.T @ right}
        spectra.append(reference_singular_values(matrix[quantity]))
    return reference_js(*spectra)


@pytest.mark.parametrize("weighting", ["subjects", "rows"])
def test_people_or_rows_weigh_the_same_in_value_and_null(weighting):
    table = probed().divergences(19, None, seed=3, weighting=weighting)
    table = table[table["layer"] == "0"].set_index("quantity")
    drawn = draw_relabellings(LABELS, [""] * len(LABELS), 19, 3)
    for quantity, row in table.iterrows():
        expected = [reference(quantity, codes, weighting) for codes in drawn]
        assert row["value"] == pytest.approx(expected[0], rel=1e-6)
        assert row["null_mean"] == pytest.approx(np.mean(expected[1:]), rel=1e-6)
        assert row["p"] == np.mean(np.array(expected) >= expected[0] * (1 - 1e-9))
        assert ("each row weighs the same" in row["valid_for"]) == (weighting == "rows")


def test_the_weighting_matters_here_and_keeps_the_columns():
    result = probed()
    people, rows = (result.divergences(19, weighting=x) for x in ("subjects", "rows"))
    assert list(people.columns) == list(rows.columns)
    assert (people["value"] - rows["value"]).abs().max() > 1e-3
    assert result.divergences(19).equals(people)
    plain = result.divergences(0)  # what is recorded is of the rows as they are
    np.testing.assert_allclose(rows["value"], plain["value"], rtol=1e-6)
    for of in ("detectable", "omnibus"):
        assert len(getattr(result, of)(19, weighting="rows").columns) > 5


def test_an_unknown_weighting_is_refused_by_name():
    with pytest.raises(
        InputError, match="weighting='row': choose 'subjects' or 'rows'"
    ):
        probed().divergences(19, weighting="row")
