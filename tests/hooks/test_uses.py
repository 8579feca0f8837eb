"""Ways in which people use layers; each against masked passes, and a twin's bits."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, rnn

from spectral_mlops import capture
from tests.hooks.conftest import trained
from tests.hooks.test_hard_cases import LABELS, Model, N, check, loss_of, x2, x3
from tests.networks import Gain

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated"),
    pytest.mark.filterwarnings("ignore:.*spectral_norm.*deprecated"),
]
words = torch.randint(0, 9, (N, 6), generator=torch.Generator().manual_seed(3))


def lstm(layers=2, **settings):
    return nn.LSTM(4, 4, layers, batch_first=True, **settings)


def in_chunks(detach):
    """The states of one call are the first of the next."""

    def forward(s, x):
        state, found = None, []
        for chunk in x.split(2, 1):
            y, state = s.layer(chunk, state)
            state = tuple(z.detach() for z in state) if detach else state
            found.append(y)
        return torch.cat(found, 1)

    return forward


def last_in_place(s, x):
    out, (h, c) = s.layer(x)
    return out[:, -1] + h.mul_(2)[0] + c.relu_()[1]


def shares_in_place(s, x):
    out, shares = s.layer(x, x, x)
    return out + shares.mul_(2).square().sum((1, 2))[:, None, None]


def packed_in_place(s, x):
    packed = rnn.pack_padded_sequence(x, torch.tensor([6, 2, 3, 4, 1]), True, False)
    out = s.layer(packed)[0]
    return rnn.pad_packed_sequence(out._replace(data=out.data.relu_()), True)[0]


def skip_in_place(s, x):
    hidden = s.layer(x).relu_()
    return torch.cat([hidden, s.up(hidden).add_(x).relu_()], 1)


class OwnLSTM(nn.LSTM):
    pass


ROWS = {
    "chained states": lambda: (Model(in_chunks(False), layer=lstm()), x3),
    "truncated in time": lambda: (Model(in_chunks(True), layer=lstm()), x3),
    "last states alone": lambda: (
        Model(lambda s, x: s.layer(x)[1][0][-1], layer=lstm(bidirectional=True)), x3,
    ),
    "cell states alone": lambda: (
        Model(lambda s, x: s.layer(x)[1][1][0], layer=lstm(bidirectional=True)), x3,
    ),
    "last states in place": lambda: (Model(last_in_place, layer=lstm()), x3),
    "packed output in place": lambda: (Model(packed_in_place, layer=lstm()), x3),
    "shares in place": lambda: (
        Model(shares_in_place, layer=nn.MultiheadAttention(4, 2, batch_first=True)),
        x3,
    ),
    "skipped and in place": lambda: (
        Model(
            skip_in_place,
            layer=nn.Conv1d(6, 6, 3, padding=1), up=nn.ConvTranspose1d(6, 6, 1),
        ),
        x3,
    ),
    "dropout in place": lambda: (
        Model(
            lambda s, x: F.dropout(s.layer(x), 0.5, True, True), layer=nn.Linear(4, 3)
        ),
        x3,
    ),
    "in parts": lambda: (
        Model(
            lambda s, x: torch.sin(s.layer(x).chunk(2, -1)[0]) * s.layer(x)[..., 3:],
            layer=nn.Linear(4, 6),
        ),
        x3,
    ),
    "its own teacher": lambda: (
        Model(lambda s, x: s.layer(x)[0] * s.layer(x)[0].detach(), layer=lstm()), x3,
    ),
    "under two names": lambda: (shared(), x2),
    "tied embeddings and biases": lambda: (tied_embeddings(), words),
}  # fmt: skip


def shared():
    layer = nn.Linear(4, 4)
    return Model(lambda s, x: s.b(s.a(x).tanh()), a=layer, b=layer)


def tied_embeddings():
    model = Model(
        lambda s, i: (s.c(s.a(i)) * s.d(s.b(i))).sum(1),
        a=nn.Embedding(9, 4), b=nn.Embedding(9, 4), c=nn.Linear(4, 4),
        d=nn.Linear(4, 4),
    )  # fmt: skip
    model.b.weight, model.d.bias = model.a.weight, model.c.bias
    return model


@pytest.mark.parametrize("name", ROWS)
def test_seen_by_rows(name):
    torch.manual_seed(5)
    model, x = ROWS[name]()
    state = torch.get_rng_state()
    if name == "dropout in place":
        check_split(model, x, state)
    else:
        captured = check(model, x)
        assert {row.method for row in captured.coverage()} == {"rows"}


class Plus(nn.Module):
    def forward(self, x):
        return x * 2


class Product(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x @ self.weight


def bias_alone():
    model = Model(lambda s, x: s.layer(x).tanh(), layer=nn.Linear(4, 4))
    parametrize.register_parametrization(model.layer, "bias", Plus())
    return model


def in_a_recurrent_layer():
    model = Model(lambda s, x: s.layer(x)[0], layer=nn.LSTM(4, 3, batch_first=True))
    parametrize.register_parametrization(model.layer, "weight_hh_l0", Plus())
    return model


def with_a_matrix():
    layer = nn.Linear(4, 4)
    model = Model(lambda s, x: s.b(s.a(x).tanh()), a=layer, b=Product(layer.weight))
    model.b.weight = model.a.weight
    return model


def with_one_call_without_batch():
    model = Model(
        lambda s, x: s.a(x).tanh() * s.b(x.new_ones(4)),
        a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 4, bias=False),
    )  # fmt: skip
    model.b.weight = model.a.weight
    return model


def around(layer, train=True):
    def forward(s, x):
        found = s.layer(x)
        return found[0] if isinstance(found, tuple) else found

    return Model(forward, layer=layer).train(train)


REPLAYED = {
    "a bias that is made": lambda: (bias_alone(), x2),
    "a recurrent weight that is made": lambda: (in_a_recurrent_layer(), x3),
    "orthogonal": lambda: (around(parametrizations.orthogonal(nn.Linear(4, 4))), x2),
    "pruned": lambda: (
        around(prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.3)), x2,
    ),
    "old weight norm": lambda: (
        around(
            nn.utils.weight_norm(nn.LSTM(4, 3, batch_first=True), "weight_hh_l0")
        ),
        x3,
    ),
    "old spectral norm": lambda: (
        around(nn.utils.spectral_norm(nn.Conv1d(6, 2, 2)), train=False), x3,
    ),
    "a subclass": lambda: (around(OwnLSTM(4, 3, batch_first=True)), x3),
    "tied to a matrix": lambda: (with_a_matrix(), x2),
    "tied to a call without batch": lambda: (with_one_call_without_batch(), x2),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLAYED)
def test_replayed(name):
    torch.manual_seed(5)
    model, x = REPLAYED[name]()
    captured = check_split(model, x, torch.get_rng_state())
    methods = {row.method for row in captured.coverage()}
    assert methods == ({"rows", "replay"} if "matrix" in name else {"replay"})


def check_split(model, x, state):
    """Compare with masked passes alone: such models cannot be copied, or draw."""
    with capture(model, LABELS, strict=True) as captured:
        loss_of(model(x)).backward()
    for group, gradients in captured.group_gradients().items():
        mask = torch.tensor([float(label == group) for label in LABELS]).double()
        torch.set_rng_state(state)
        own = trained(model)
        loss = loss_of(model(x), mask)
        expected = torch.autograd.grad(loss, list(own.values()))
        for name, gradient in zip(own, expected, strict=True):
            torch.testing.assert_close(gradients[name], gradient)
    return captured


@pytest.mark.parametrize("old", [False, True])
def test_spectral_norms_in_training_move_once(old):
    """Each call moves their vectors: once a step, watched or not."""
    norm = nn.utils.spectral_norm if old else parametrizations.spectral_norm
    torch.manual_seed(5)
    model = around(norm(nn.Linear(4, 4)))
    twin = copy.deepcopy(model)
    with capture(model, LABELS, strict=True) as captured:
        loss_of(model(x2)).backward()
    loss_of(twin(x2)).backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)
    assert {row.method for row in captured.coverage()} == {"replay"}


RETURNED = {
    "linear": lambda: around(nn.Linear(4, 3)),
    "recurrent": lambda: around(lstm()),
    "convolution": lambda: around(nn.Conv1d(6, 3, 2)),
    "own": lambda: nn.Sequential(nn.Linear(4, 3), Gain(3)).double(),
    "own on a view": lambda: Model(
        lambda s, x: s.layer(s.gain(x)), gain=Gain(4), layer=nn.Linear(4, 3)
    ),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_the_model_returned_is_changed_in_place(name):
    torch.manual_seed(5)
    model = RETURNED[name]()

    def loss(mask=None):
        returned = model(x3)
        returned[:, 1:].mul_(3)
        returned.add_(0.1).relu_()
        return loss_of(returned, mask)

    with capture(model, LABELS, strict=True) as captured:
        loss().backward()
    replayed = {row.parameter for row in captured.coverage() if row.method == "replay"}
    assert all("gain" in parameter for parameter in replayed)
    for group, gradients in captured.group_gradients().items():
        mask = torch.tensor([float(label == group) for label in LABELS]).double()
        own = trained(model)
        expected = torch.autograd.grad(loss(mask), list(own.values()))
        for parameter, gradient in zip(own, expected, strict=True):
            torch.testing.assert_close(gradients[parameter], gradient)
