import numpy as np
import pytest
from PIL import Image

from spectral_mlops.report.step_maps import HEIGHT, WIDTH, draw_map, limits_of


def colours(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def draw(path, values, rows, columns, **more):
    panels = {"gradient": np.array(values, dtype=float)}
    scale = more.pop("limits", limits_of([panels]))
    return draw_map(panels, rows, columns, scale, "title", path, **more)


def test_the_same_values_give_the_same_bytes_and_size(tmp_path):
    paths = [
        draw(tmp_path / f"{n}.png", [[1.0, 2.0], [3.0, np.nan]], "ab", "xy")
        for n in range(2)
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert colours(paths[0]).shape == (HEIGHT, WIDTH, 3)


def test_one_scale_over_all_pictures():
    first = {"a": np.array([[1.0, np.nan]]), "b": np.array([[np.nan]])}
    second = {"a": np.array([[-3.0, 2.0]]), "b": np.array([[np.inf]])}
    assert limits_of([first, second])["a"] == (-3.0, 2.0)
    assert limits_of([first, second])["b"] == (0.0, 1.0)
    assert limits_of([first, second], diverging=True)["a"] == (-3.0, 3.0)
    assert limits_of([{"a": np.array([[5.0]])}])["a"] == (5.0, 6.0)


def test_what_is_not_known_is_grey(tmp_path):
    path = draw(tmp_path / "a.png", np.full((3, 4), np.nan), "abc", "wxyz")
    middle = colours(path)[HEIGHT // 2, WIDTH // 2]
    assert (abs(middle - 0.9 * 255) <= 1).all()


@pytest.mark.parametrize(("layers", "groups"), [(1, 1), (200, 20)])
def test_hostile_and_many_names(tmp_path, layers, groups):
    rows = [f"$x_{n}$ \\frac\n" for n in range(layers)]
    columns = [f"_{{ {n} </text>" + "y" * 50 for n in range(groups)]
    values = np.arange(layers * groups).reshape(layers, groups)
    path = draw(tmp_path / "a.png", values, rows, columns, diverging=True)
    assert colours(path).shape == (HEIGHT, WIDTH, 3)
