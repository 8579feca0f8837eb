"""What is kept for a null gives the spectra that were measured, whatever the layer."""

import numpy as np
import pytest
import torch
from torch import nn

from spectral_mlops import SpectralMonitor, capture
from spectral_mlops.hooks import observed
from spectral_mlops.hooks.observed import NO_PEOPLE, NOT_FINITE, keep_layers
from spectral_mlops.records import QUANTITIES
from spectral_mlops.spectra.kept import KeptColumns, KeptCounts, KeptRows
from spectral_mlops.spectra.kept_gradients import FormedGradients, GradientRows
from tests.cases import CASES, N, build
from tests.hooks.conftest import LABELS, loss_of
from tests.reference import padded

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported"),
]


def watched(name: str, **settings: object) -> capture:
    case = build(name)
    labels = {"kind": LABELS, "each": [str(i) for i in range(N)]}
    torch.manual_seed(3)
    captured = capture(case.model, labels, batch_dim=case.batch_dim, **settings)
    with captured:
        loss_of(case.model(*case.inputs), None, case.batch_dim).backward()
    return captured


def kept_of(captured: capture):
    layers, lone, wanted, elsewhere = captured.measurable(pooled=False)
    batches = [who for x in (*layers, *lone) for who in x.labellings]
    people = {who: torch.arange(N) for who in batches}
    return keep_layers(layers, lone, wanted, elsewhere, people)


def compare_with_records(captured: capture, kept) -> int:
    """Everything that is kept against the engine; returns how many were compared."""
    compared = 0
    records = captured.spectra(pooled=False)
    rows = {
        (s.layer, s.quantity, int(s.group)): s.rows
        for s in records
        if s.grouping == "each"
    }
    for s in records:
        part = kept[s.layer].kept.get(s.quantity)
        if part is None:
            assert kept[s.layer].reasons[s.quantity]
            continue
        labels = LABELS if s.grouping == "kind" else [str(i) for i in range(N)]
        member = torch.tensor([[label == s.group for label in labels]])
        by_rows = kept[s.layer].weighted(s.quantity, "rows").spectra(member)[0].numpy()
        close(by_rows, s.values, s)  # of the rows as they are, however many
        own = [rows[s.layer, s.quantity, i] for i in member[0].nonzero()[:, 0].tolist()]
        if len(set(own)) > 1 or not own[0]:
            continue  # of one weight only
        found = part.spectra(member)[0].numpy()
        weight = own[0] if s.quantity == "gradient" else own[0] ** 0.5
        close(found, s.values / weight, s)
        compared += 1
    return compared


def close(found, values, record):
    length = max(len(found), len(values))
    expected = padded(values, length)
    np.testing.assert_allclose(
        padded(found, length), expected, rtol=0, atol=2e-6 * expected.max(initial=0.0),
        err_msg=f"{record.layer} {record.quantity} {record.grouping} {record.group}",
    )  # fmt: skip


@pytest.mark.parametrize("rows", ["rows", "sums"])
@pytest.mark.parametrize("name", CASES)
def test_kept_parts_give_the_measured_spectra(monkeypatch, name, rows):
    if rows == "sums":
        monkeypatch.setattr(observed, "MAX_ROWS", 0)
    captured = watched(name)
    kept = kept_of(captured)
    compared = compare_with_records(captured, kept)
    something = any(layer.kept for layer in kept.values())
    assert bool(compared) == something
    lone = {x.parameter for x in captured.measurable()[1]}
    assert {name for name, x in kept.items() if not x.kept} <= lone


@pytest.mark.parametrize("name", ["lstm", "gru-packed", "attention", "encoder"])
@pytest.mark.parametrize("gates", ["apart", "both"])
def test_gates_and_heads_are_kept_by_name(name, gates):
    captured = watched(name, gates=gates)
    kept = kept_of(captured)
    assert set(kept) == {s.layer for s in captured.spectra()}
    assert any("." in layer and layer[-1].isalnum() for layer in kept)
    assert compare_with_records(captured, kept) > N


@pytest.mark.parametrize("name", ["conv2d", "conv2d-depthwise", "transposed2d"])
def test_patches_are_kept_where_they_are_measured(name):
    captured = watched(name, conv_rows="patches")
    assert compare_with_records(captured, kept_of(captured)) > N


@pytest.mark.parametrize(
    ("name", "limit", "kinds"),
    [
        ("linear-2d", None, [GradientRows, KeptRows, KeptRows]),
        ("linear-5d", 0, [FormedGradients, KeptColumns, KeptColumns]),
        ("conv3d", 0, [FormedGradients, KeptColumns, KeptColumns]),
        ("conv2d-depthwise", None, [FormedGradients, KeptColumns, KeptColumns]),
        ("embedding", 0, [FormedGradients, KeptCounts, KeptColumns]),
    ],
)
def test_what_is_kept(monkeypatch, name, limit, kinds):
    if limit is not None:
        monkeypatch.setattr(observed, "MAX_ROWS", limit)
    layers = kept_of(watched(name)).values()
    for quantity, kind in zip(QUANTITIES, kinds, strict=True):
        assert kind in {type(layer.kept[quantity]) for layer in layers}


@pytest.mark.parametrize("name", ["linear-4d", "conv2d", "embedding", "lstm"])
def test_beyond_the_cap_there_is_a_reason(monkeypatch, name):
    monkeypatch.setattr(observed, "MAX_ROWS", 0)
    monkeypatch.setattr(observed, "KEPT_BYTES", 8)
    for layer in kept_of(watched(name)).values():
        assert not layer.kept
        assert all("too many for a null" in x for x in layer.reasons.values())


def test_replayed_and_tied_matrices_say_why():
    for name in ("bare", "tied"):
        captured = watched(name)
        lone = [x.parameter for x in captured.measurable()[1]]
        kept = kept_of(captured)
        assert lone
        assert {kept[x].reasons["gradient"] for x in lone} == {NO_PEOPLE}


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv1d(4, 3, 2)])
def test_rows_that_are_not_finite_are_not_kept(layer):
    x = torch.randn(N, 4) if isinstance(layer, nn.Linear) else torch.randn(N, 4, 5)
    x[2, 1] = torch.inf
    with capture(layer, LABELS) as captured:
        layer(x).square().sum().backward()
    (kept,) = kept_of(captured).values()
    assert not kept.kept
    assert kept.reasons == dict.fromkeys(
        ["gradient", "activation", "adjoint"], NOT_FINITE
    )


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 3, padding_idx=0)
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.conv = nn.Conv1d(4, 5, 2)
        self.output = nn.Linear(5, 3)

    def forward(self, x):
        steps = self.gru(self.embedding(x))[0]
        return self.output(torch.tanh(self.conv(steps.mT)).mean(-1))


@pytest.mark.parametrize("gates", ["stacked", "apart"])
@pytest.mark.parametrize("limit", [2048, 0])
def test_people_with_several_samples_weigh_the_same(monkeypatch, gates, limit):
    monkeypatch.setattr(observed, "MAX_ROWS", limit)
    torch.manual_seed(1)
    model = Embedded().double()
    x = torch.randint(0, 8, (14, 6))
    labels = [i % 2 for i in range(14)]
    monitor = SpectralMonitor(model, gates=gates)
    once = [*range(14)]
    tables = []
    for rows in (once, [*once, 3, 3, 0, 9, 4]):
        groups = [labels[i] for i in rows]
        batch = (x[rows], torch.zeros(len(rows)), {"kind": groups}, rows)
        tables.append(monitor.probe([batch]).divergences(29))
    plain, double = tables
    assert plain["p"].notna().sum() > 12
    numbers = ["value", "null_mean", "null_sd", "z", "p"]
    np.testing.assert_allclose(plain[numbers], double[numbers], rtol=1e-5, atol=1e-9)


def test_batches_of_a_probe_are_one_set_of_people():
    torch.manual_seed(1)
    model = Embedded().double()
    x, labels = torch.randint(1, 8, (14, 6)), {"kind": [i % 2 for i in range(14)]}
    monitor = SpectralMonitor(model)
    whole = monitor.probe([(x, torch.zeros(14), labels, list(range(14)))])
    parts = monitor.probe(
        (x[at], torch.zeros(len(at)), {"kind": [i % 2 for i in at]}, at)
        for at in ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
    )
    numbers = ["value", "null_mean", "null_sd", "z", "p"]
    a, b = (r.divergences(29)[numbers] for r in (whole, parts))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)
