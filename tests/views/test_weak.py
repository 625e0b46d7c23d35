import pytest
import torch

from grata.errors import GrataError
from grata.views import VIEWS, default_views, resolve_views

SHAPES = [(1, 2, 9), (2, 3, 6, 6), (1, 2, 4, 7), (2, 1, 4, 6, 6), (1, 2, 3, 5, 7)]


@pytest.mark.parametrize(
    ("name", "shape"), [(n, s) for n, view in VIEWS.items() for s in SHAPES if view.spatial_dims <= len(s) - 2]
)
def test_the_inverse_is_exact(name, shape):
    view = VIEWS[name]
    x = torch.randn(shape)
    assert torch.equal(view.inverse(view(x)), x)


def test_views_move_voxels_as_their_names_say():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert torch.equal(VIEWS["flip_w"](x)[0, 0], torch.tensor([[2.0, 1, 0], [5, 4, 3]]))
    assert torch.equal(VIEWS["flip_h"](x)[0, 0], torch.tensor([[3.0, 4, 5], [0, 1, 2]]))
    assert torch.equal(VIEWS["rot90"](x)[0, 0], torch.tensor([[2.0, 5], [1, 4], [0, 3]]))
    assert torch.equal(VIEWS["rot180"](x)[0, 0], torch.tensor([[5.0, 4, 3], [2, 1, 0]]))


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((8, 8), {"identity", "flip_w", "flip_h", "rot90", "rot180", "rot270"}),
        ((8, 6), {"identity", "flip_w", "flip_h", "rot180"}),
        ((4, 8, 8), {"identity", "flip_w", "flip_h", "flip_d", "rot90", "rot180", "rot270"}),
        ((8, 8, 6), {"identity", "flip_w", "flip_h", "flip_d", "rot180"}),
    ],
)
def test_defaults_keep_the_shape_that_the_network_sees(shape, names):
    views = default_views(shape)
    assert {view.name for view in views} == names
    x = torch.zeros(1, 1, *shape)
    assert all(view(x).shape == x.shape for view in views)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(GrataError, match="flipp.*identity"):
        resolve_views(["flipp"], (4, 4))
    with pytest.raises(GrataError, match="^views: flip_d needs a 3D image, and this one is 2D"):
        resolve_views(["flip_d"], (4, 4))
    with pytest.raises(GrataError, match="^views: is empty"):
        resolve_views([], (4, 4))
