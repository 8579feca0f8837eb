import torch

from spectral_mlops.spectra.groups import Groups


def index(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_counts_and_the_pooled_group():
    groups = Groups(7, [index(6, 0), None, index(), index(3)])
    assert groups.counts == (2, 7, 0, 1)
    assert groups.members[1].tolist() == list(range(7))


def test_groups_of_similar_size_share_a_stack():
    groups = Groups(30, [torch.arange(n) for n in (8, 20, 7, 19, 1)])
    stacks = groups.stacks((0, 1, 2, 3, 4))
    assert [stack.groups for stack in stacks] == [(1, 3), (0, 2), (4,)]
    assert [stack.even for stack in stacks] == [False, False, True]
    assert stacks[1].samples.shape == (2, 8)
    assert stacks[1].padding.nonzero().tolist() == [[1, 7]]
    assert groups.stacks((0, 1, 2, 3, 4)) is stacks


def test_a_piece_of_a_stack_knows_its_padding():
    cpu = torch.device("cpu")
    (stack,) = Groups(9, [index(5, 3, 1, 8), index(0, 2, 7)]).stacks((0, 1))
    first, last = stack.piece(0, 2, cpu), stack.piece(2, 4, cpu)
    assert first.samples.tolist() == [5, 3, 0, 2]
    assert first.padding is None
    assert last.samples.tolist() == [1, 8, 7, 0]
    assert last.padding is not None
    assert last.padding.tolist() == [3]


def test_rows_of_samples_with_positions():
    (stack,) = Groups(4, [index(2, 0)]).stacks((0,))
    assert stack.rows(3, torch.device("cpu")).tolist() == [[6, 7, 8, 0, 1, 2]]


def test_disjoint_or_not():
    groups = Groups(5, [index(4, 0), index(2), index(1, 2), None])
    assert groups.disjoint((0, 1))
    assert groups.disjoint((3,))
    assert not groups.disjoint((1, 2))
    assert not groups.disjoint((0, 3))


def test_overlapping_groups_are_sums_of_cells():
    groups = Groups(6, [index(0, 1, 2), index(3, 4), index(0, 3), None])
    cells = groups.cells((0, 1, 2, 3))
    assert sorted(i for m in cells.groups.members for i in m.tolist()) == list(range(6))
    for g, part in enumerate(cells.parts):
        together = torch.cat([cells.groups.members[c] for c in part.tolist()])
        assert sorted(together.tolist()) == sorted(groups.members[g].tolist())


def test_equal_groups_are_one_cell():
    cells = Groups(3, [index(0, 2), index(2, 0)]).cells((0, 1))
    assert len(cells.groups.members) == 1
    assert [part.tolist() for part in cells.parts] == [[0], [0]]
