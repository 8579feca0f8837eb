from itertools import combinations

import nibabel
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from spectral_mlops.errors import InputError
from spectral_mlops.report.brain import (
    connectome_figure,
    direction_to_nifti,
    domains_of,
    save_figure,
    volume_figure,
)

NETWORKS = ("SC1", "SC2", "AU1", "VI1", "VI2")


def matrices(k=2, n=5, seed=0):
    x = np.random.default_rng(seed).normal(size=(k, n, n))
    x = x + x.swapaxes(1, 2)
    x[:, range(n), range(n)] = np.nan
    return x


def overlaps(figure):
    """Pairs of texts that lie on each other."""
    FigureCanvasAgg(figure).draw()
    texts = [*figure.texts, figure._suptitle, figure._supxlabel]
    for axes in (axes for axes in figure.axes if axes.axison):
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis, (low, high) in (
            (axes.xaxis, sorted(axes.get_xlim())),
            (axes.yaxis, sorted(axes.get_ylim())),
        ):  # labels of ticks outside of the view are not drawn
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            texts += [label for at, label in ticks if low <= at <= high]
    boxes = {
        (i, text.get_text()): text.get_window_extent()
        for i, text in enumerate(dict.fromkeys(texts))
        if text is not None and text.get_text()
    }
    whole = figure.bbox
    for box in boxes.values():  # nothing is cut off
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1
    return [(a, b) for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]


def test_domains():
    assert domains_of(NETWORKS) == [("SC", 0, 2), ("AU", 2, 3), ("VI", 3, 5)]
    assert domains_of(["SC1", "AU1", "SC2"]) == []  # not in one piece
    assert domains_of(["a", "b", "c"]) == []
    assert domains_of(["IC 1", "IC 2"]) == []  # one domain has no borders
    assert domains_of([]) == []


def test_a_connectome_shows_what_it_got():
    given = {"control": matrices(), "patient": matrices(1, seed=1)}
    shares = {"control": [0.5, 0.2], "patient": [0.9]}
    figure = connectome_figure(given, NETWORKS, shares, "A title", "A note")
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 3  # the patients have one direction
    shown = [np.ma.filled(axes.images[0].get_array(), np.nan) for axes in panels]
    for image, expected in zip(
        shown,
        [given["control"][0], given["patient"][0], given["control"][1]],
        strict=True,
    ):
        assert np.array_equal(image, expected, equal_nan=True)
    limits = {axes.images[0].get_clim() for axes in panels}
    ((low, high),) = limits  # one scale, white at zero
    assert low == -high < 0
    titles = " ".join(axes.get_title() for axes in panels)
    assert "control\n1st direction, 50% of energy" in titles
    assert "patient\n1st direction, 90% of energy" in titles
    assert not overlaps(figure)


@pytest.mark.parametrize("rows", [1, 3])
def test_nothing_overlaps_at_full_size(rows):
    sizes = {"SC": 5, "AU": 2, "SM": 9, "VI": 9, "CC": 17, "DM": 7, "CB": 4}
    names = [f"{domain}{i}" for domain, n in sizes.items() for i in range(n)]
    given = {g: matrices(rows, 53) for g in ("control", "patient", "everyone")}
    shares = {g: np.full(rows, 0.123) for g in given}
    title, note = "Leading gradient directions\nepoch 30", "Signs are arbitrary.\nGrey"
    assert not overlaps(connectome_figure(given, names, shares, title, note))


def test_without_names_there_are_numbers():
    figure = connectome_figure({"a": matrices()})
    assert not overlaps(figure)
    assert figure.axes[0].get_xlim() == (-0.5, 4.5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="one size"):
        connectome_figure({"a": matrices(n=5), "b": matrices(n=4)})
    with pytest.raises(InputError, match="3 names"):
        connectome_figure({"a": matrices()}, ["a", "b", "c"])
    with pytest.raises(InputError, match="no map"):
        volume_figure({}, np.eye(4))


def test_nothing_to_see_is_still_drawn():
    for value in (0.0, np.nan):
        figure = connectome_figure({"a": np.full((1, 3, 3), value)})
        assert not overlaps(figure)


def test_saved_twice_the_same(tmp_path):
    (tmp_path / "b").mkdir()
    for stem in (tmp_path / "x", tmp_path / "b" / "x"):
        save_figure(connectome_figure({"a": matrices()}, NETWORKS), stem)
    for ending in ("png", "svg"):
        first, second = (p / f"x.{ending}" for p in (tmp_path, tmp_path / "b"))
        assert first.read_bytes() == second.read_bytes()


def test_slices_go_through_the_largest_loading():
    maps = {g: np.full((2, 6, 5, 4), np.nan) for g in ("a", "everyone")}
    for x in maps.values():
        x[:, 1:5, 1:4, 1:3] = 0.1
    maps["everyone"][0, 4, 2, 1] = -0.9
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -10
    figure = volume_figure(maps, affine, {"a": [0.4, 0.2], "everyone": [0.3, 0.1]}, "T")
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 6
    for panel in panels[:3]:
        assert panel.images[0].get_array().min() >= 0
    for panel in panels[3:]:
        assert panel.images[0].get_array().min() == np.float32(-0.9)
    frames = [axes for axes in figure.axes if axes.get_title("left")]
    assert [frame.get_title("left") for frame in frames] == [
        "a: 1st direction, 40% of energy\nx = 6 mm, y = −2 mm, z = −6 mm",
        "everyone: 1st direction, 30% of energy",
    ]
    assert not overlaps(figure)
    for row, frame in enumerate(frames):  # slices are where their frame came to lie
        outside = frame.get_position().padded(1e-6)
        for panel in panels[3 * row : 3 * row + 3]:
            box = panel.get_window_extent().transformed(figure.transFigure.inverted())
            assert outside.x0 <= box.x0 < box.x1 <= outside.x1
            assert outside.y0 <= box.y0 < box.y1 <= outside.y1


def test_slices_know_left_from_right():
    """Nilearn shows the brain's left on the left, whichever way the voxels run."""
    whole = np.full((1, 6, 5, 4), 0.1)
    whole[0, 0] = -0.9
    for affine, left in ((np.diag([4.0, 4, 4, 1]), 0), (np.diag([-4.0, 4, 4, 1]), -1)):
        figure = volume_figure({"a": whole}, affine)
        front = [axes for axes in figure.axes if axes.images][1]
        drawn = front.images[0].get_array()
        assert (drawn[:, left] == np.float32(-0.9)).all()
        assert {text.get_text() for text in front.texts} == {"L", "R"}


def test_an_image_has_every_loading_at_its_voxel(tmp_path):
    rng = np.random.default_rng(0)
    mask = rng.random((4, 3, 5)) > 0.4
    vector = rng.normal(size=mask.sum()).astype(np.float32)
    affine = np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = [-20, -30, 5]
    for name in ("a.nii.gz", "b.nii.gz"):
        path = direction_to_nifti(vector, mask, affine, tmp_path / name, "ä" * 99)
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj)
    assert np.array_equal(voxels[mask], vector)
    assert np.isnan(voxels[~mask]).all()
    assert np.array_equal(image.affine, affine)
    assert (tmp_path / "a.nii.gz").read_bytes() == path.read_bytes()
    with pytest.raises(InputError, match="for a mask of"):
        direction_to_nifti(vector[1:], mask, affine, path)
