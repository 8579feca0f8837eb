import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectral_mlops import capture
from spectral_mlops.config import Component
from spectral_mlops.errors import InputError
from spectral_mlops.models import build_model


def build(inputs=(5, 8, 3), **settings):
    torch.manual_seed(0)
    return build_model(Component(name="cnn3d", settings=settings), inputs, 2)


@pytest.mark.parametrize("norm", ["none", "group", "layer", "batch"])
@pytest.mark.parametrize("shape", [(5, 8, 3), (1, 1, 1)])
def test_any_volume_goes_through_and_is_split_exactly(norm, shape):
    model = build(shape, norm=norm, channels=(4, 6))
    x, y = torch.randn(6, 1, *shape), torch.tensor([0, 1, 1, 0, 1, 0])
    with capture(model, ["a", "b", "b", "a", "b", "b"], strict=True) as seen:
        logits = model(x)
        F.cross_entropy(logits, y).backward()
    assert logits.shape == (6, 2)
    assert max(seen.additivity_error().values()) < 1e-5


def test_the_formula():
    model = build(channels=(3,), norm="none", kernel=3).eval()
    x = torch.randn(2, 1, 5, 8, 3)
    hidden = F.conv3d(x, model.conv_1.weight, model.conv_1.bias, padding=1).relu()
    filled = F.pad(hidden, (0, 1, 0, 0, 0, 1), value=-torch.inf)
    pooled = filled.reshape(2, 3, 3, 2, 4, 2, 2, 2).amax((3, 5, 7))
    torch.testing.assert_close(model(x), model.output(pooled.flatten(1)))


def test_vbm_layout_on_full_maps():
    with torch.device("meta"):
        model = build((121, 145, 121))
    assert model.output.weight.shape == (2, 32 * 4 * 5 * 4)
    assert model.conv_5.weight.shape == (32, 24, 3, 3, 3)
    assert isinstance(model.norm_5, nn.GroupNorm)


def test_no_blocks_are_refused():
    with pytest.raises(InputError, match="channels"):
        build(channels=[])
