import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_mlops.errors import InputError
from spectral_mlops.spectra import plan
from spectral_mlops.spectra.groups import Groups
from spectral_mlops.spectra.reduce import QUANTITIES, LayerFactors, reduce_layers
from spectral_mlops.spectra.reduced import Key
from spectral_mlops.spectra.solve import solve
from tests.reference import reference_singular_values
from tests.spectra.engine import check_all, close, expected_values, normal, spectra

# Samples, positions, widths: fewer rows than columns, more, and either in one layer.
SHAPES = [(12, 1, 30, 20), (12, 1, 4, 3), (12, 3, 20, 5), (11, 7, 9, 8), (12, 1, 7, 30),
          (12, 1, 1, 9), (12, 2, 5, 1), (1, 1, 6, 4), (3, 9, 2, 40)]  # fmt: skip


def layer(
    n: int, s: int, d_in: int, d_out: int, name: str = "x", blocks: int = 0, **more
) -> LayerFactors:
    lead = (blocks,) if blocks else ()
    a = normal(*lead, n, s, d_in, seed=1, **more)
    return LayerFactors(name, a, normal(*lead, n, s, d_out, seed=2, **more))


def some(size: int, *counts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    order = torch.randperm(size, generator=generator)
    return [*order.split(list(counts))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocks", [0, 3])
@pytest.mark.parametrize("pooled", [False, True])
def test_every_number_against_the_reference(shape, blocks, pooled):
    n = shape[0]
    first = n // 3
    members = [*some(n, first, n - first), torch.arange(0)]
    groups = Groups(n, [*members, *([None] if pooled else [])])
    found = check_all([layer(*shape, blocks=blocks)], groups)
    assert {one.route for one in found.values()} == {"gram"}


@pytest.mark.parametrize("shape", SHAPES)
def test_channel_first_volumes(shape):
    plain = layer(*shape)
    assert plain.activation is not None
    assert plain.adjoint is not None
    turned = [x.mT.contiguous().mT for x in (plain.activation, plain.adjoint)]
    check_all([LayerFactors("v", *turned)], Groups(shape[0], [None]))


def test_layers_of_equal_shape_and_two_labellings():
    layers = [layer(13, 2, 8, 30, "a"), layer(13, 2, 30, 8, "b"),
              layer(13, 2, 30, 8, "c"), layer(13, 2, 3, 8, "d")]  # fmt: skip
    groups = Groups(13, [*some(13, 6, 7), *some(13, 2, 10, 1), None])
    check_all(layers, groups)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_shapes_and_groupings(data):
    draw = data.draw
    n, s = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    sizes = st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2))
    layers = [
        layer(n, s, d_in, d_out, str(i), blocks=blocks)
        for i, (d_in, d_out, blocks) in enumerate(draw(st.lists(sizes, min_size=1)))
    ]
    members = st.lists(st.sets(st.integers(0, n - 1)), min_size=1, max_size=4)
    groups = [torch.tensor(sorted(m), dtype=torch.int64) for m in draw(members)]
    check_all(layers, Groups(n, [*groups, *draw(st.sampled_from([[], [None]]))]))


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_quantity_alone(shape, quantity):
    given_ = layer(*shape)
    groups = Groups(shape[0], [None])
    found = spectra([given_], groups, [quantity])
    assert list(found) == [Key("x", 0, quantity)]
    close(found["x", 0, quantity], expected_values(given_, groups.members[0], quantity))


def test_a_layer_may_ask_for_less_and_give_only_what_is_needed():
    full, gate = layer(6, 5, 4, 7), normal(6, 5, 3, seed=3)
    found = spectra(
        [
            LayerFactors("x", full.activation, full.adjoint, quantities=("gradient",)),
            LayerFactors("gate", adjoint=gate, quantities=("adjoint",)),
        ],
        Groups(6, [None]),
    )
    assert set(found) == {("gate", 0, "adjoint"), ("x", 0, "gradient")}
    expected = reference_singular_values(gate.flatten(0, 1))
    close(found["gate", 0, "adjoint"], expected)


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize(("d_in", "d_out"), [(4, 9), (9, 4)])
def test_gradients_that_are_formed_already(blocks, d_in, d_out):
    lead = (3, blocks) if blocks else (3,)
    matrices = normal(*lead, d_in, d_out)
    given_ = LayerFactors("f", gradient=matrices, quantities=("gradient",))
    found = spectra([given_], Groups(5, [None, torch.arange(2), torch.arange(0)]))
    for g in range(3):
        values = [
            reference_singular_values(m) for m in matrices[g].view(-1, d_in, d_out)
        ]
        close(found["f", g, "gradient"], np.sort(np.concatenate(values))[::-1])


def test_rows_that_do_not_pair_beside_a_formed_gradient():
    a, d = normal(6, 9, 3, seed=1), normal(6, 4, 5, seed=2)
    given_ = LayerFactors("conv", a, d, normal(1, 7, 5, seed=3))
    found = spectra([given_], Groups(6, [None]))
    close(found["conv", 0, "activation"], reference_singular_values(a.flatten(0, 1)))
    close(found["conv", 0, "adjoint"], reference_singular_values(d.flatten(0, 1)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(12, 1, 30, 20), (12, 1, 4, 3), (12, 3, 20, 5)])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("side", ["activation", "adjoint"])
def test_bad_rows_mark_their_own_group_only(bad, shape, pooled, side):
    members = some(shape[0], 5, 7)
    groups = Groups(shape[0], [*members, *([None] if pooled else [])])
    clean = layer(*shape)
    a, d = clean.activation.clone(), clean.adjoint.clone()
    (a if side == "activation" else d)[members[0][0], 0, 0] = bad
    found = spectra([LayerFactors("x", a, d)], groups)
    for key, one in found.items():
        touched = key.group != 1 and key.quantity in (side, "gradient")
        assert (one.status == "non-finite") == touched
        if touched:
            assert np.isnan(one.values).all()
            assert not one.exact
        else:
            expected = expected_values(clean, groups.members[key.group], key.quantity)
            close(one, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(12, 1, 30, 20), (12, 1, 4, 3)])
def test_other_floating_types(dtype, shape):
    check_all([layer(*shape, dtype=dtype)], Groups(shape[0], some(shape[0], 5, 7)))


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1e-30, torch.float32), (1e30, torch.float32), (1e-38, torch.float32),
     (1e-250, torch.float64), (1e250, torch.float64), (1e300, torch.float64)],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(12, 1, 30, 20), (12, 1, 4, 3)])
def test_tiny_and_huge_rows(size, dtype, shape):
    plain = layer(*shape, dtype=torch.float64)
    a = (plain.activation * size).to(dtype)
    d = plain.adjoint.to(dtype)
    groups = Groups(12, some(12, 5, 7))
    same = LayerFactors("x", a.double() / size, d)
    found = spectra([LayerFactors("x", a, d)], groups)
    for key, one in found.items():
        expected = expected_values(same, groups.members[key.group], key.quantity)
        close(one, expected, 1.0 if key.quantity == "adjoint" else size)


@pytest.mark.parametrize("shape", [(6, 1, 9, 8), (6, 4, 3, 2)])
def test_all_zero(shape):
    zero = LayerFactors("x", torch.zeros(*shape[:3]), normal(*shape[:2], shape[3]))
    found = spectra([zero], Groups(6, [None]))
    for quantity in ("gradient", "activation"):
        one = found["x", 0, quantity]
        assert one.status == "ok"
        assert not one.values.any()
        assert one.below_floor == 0


def test_layers_without_columns_or_positions():
    found = check_all([layer(4, 1, 0, 3), layer(4, 0, 2, 3, "y")], Groups(4, [None]))
    assert found["x", 0, "gradient"].values.shape == (0,)


def test_large_layers_go_alone(monkeypatch):
    monkeypatch.setattr(plan, "STACKED", 10)
    layers = [layer(6, 2, 5, 4, name) for name in "ab"]
    assert len(reduce_layers(layers, Groups(6, [None]))) == 6
    check_all(layers, Groups(6, some(6, 2, 4)))


def test_what_is_left_is_small_and_shared():
    problems = reduce_layers([layer(8, 1, 500, 400)], Groups(8, some(8, 4, 4)))
    grams = {p.gram.untyped_storage().data_ptr() for p in problems}
    others = {
        p.other.untyped_storage().data_ptr() for p in problems if p.other is not None
    }
    assert others <= grams
    assert len(grams) == 2
    assert {p.gram.shape[-1] for p in problems} == {4}


@pytest.mark.parametrize(
    ("target", "hit"),
    [("row_problems", "wide"), ("column_problems", "tall"),
     ("sketched_rows", "large"), ("sketched_product", "large")],
)  # fmt: skip
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("not enough memory")])
def test_out_of_memory_marks_what_it_hit(monkeypatch, target, hit, error):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(plan, target, fails)
    shapes = {"wide": (6, 1, 9, 8), "tall": (6, 4, 3, 2), "large": (40, 1, 40, 40)}
    for name, shape in shapes.items():
        own = layer(*shape, name)
        everyone = torch.arange(shape[0])
        found = spectra([own], Groups(shape[0], [None]), largest=30)
        marked = {key.quantity for key, one in found.items() if one.status != "ok"}
        if name != hit:
            assert not marked
            continue
        assert marked == {
            "sketched_rows": {"activation", "adjoint"},
            "sketched_product": {"gradient"},
        }.get(target, set(QUANTITIES))
        for quantity in marked:
            one = found[name, 0, quantity]
            assert one.status == "out of memory"
            assert one.values.shape == expected_values(own, everyone, quantity).shape
            assert np.isnan(one.values).all()


def test_other_errors_are_not_hidden(monkeypatch):
    def fails(*arguments):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(plan, "row_problems", fails)
    with pytest.raises(RuntimeError, match="a mistake"):
        reduce_layers([layer(6, 1, 9, 8)], Groups(6, [None]))


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (LayerFactors("fc", normal(5, 1, 3)), "layer fc: the adjoint rows are missing"),
        (LayerFactors("fc", normal(5, 3), normal(5, 1, 2)), r"expected \[N, S, d\]"),
        (LayerFactors("fc", normal(4, 1, 3), normal(4, 1, 2)), "N = 5"),
        (LayerFactors("fc", normal(5, 2, 3), normal(5, 1, 2)), "do not pair"),
        (
            LayerFactors("fc", normal(5, 1, 3), normal(5, 1, 2), normal(2, 3, 2)),
            "G = 1",
        ),
    ],
)
def test_bad_input_is_named(given_, message):
    with pytest.raises(InputError, match=message):
        reduce_layers([given_], Groups(5, [None]))


def test_rows_in_a_graph_are_left_alone():
    a = normal(5, 1, 6).requires_grad_()
    problems = reduce_layers([LayerFactors("x", a, normal(5, 1, 7))], Groups(5, [None]))
    assert not any(p.gram.requires_grad for p in problems)
    assert len(solve(problems)) == 3
