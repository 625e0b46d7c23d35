"""Windows that a method adapts on: batches of their own size, and those of inferers whose output is smaller."""

import pytest
import torch
from monai.apps.pathology.inferers import SlidingWindowHoVerNetInferer
from monai.inferers import SlidingWindowInferer
from torch import nn

from grata.errors import GrataError
from grata.methods import METHODS, create
from grata.session import Session, WindowSelection
from grata.session.windows import window_selection

ROI = (8, 8, 8)


def shapes_of(method, seen):
    """Record the batches that a method is given; it goes on as before."""
    adapt = method.adapt
    method.adapt = lambda images, **options: (seen.append(images.clone()), adapt(images, **options))[1]
    return seen


@pytest.mark.parametrize(
    ("sw_batch_size", "batch_size", "expected"),
    [(4, None, [4]), (4, 1, [1, 1, 1, 1]), (4, 3, [3, 1]), (1, None, [1, 1, 1, 1]), (1, 4, [4])],
)
def test_windows_come_in_batches_of_their_own_size(make_network, adapt_case, sw_batch_size, batch_size, expected):
    method = create("tent", make_network(3), activation="softmax")
    x = torch.rand(1, 1, 24, 16, 16, generator=torch.Generator().manual_seed(0))
    inferer = SlidingWindowInferer(ROI, sw_batch_size, 0.5)
    measured, uncertainty = [], method.uncertainty
    method.uncertainty = lambda images: (measured.append(len(images)), uncertainty(images))[1]
    selection = {"uncertain": 2, "random": 2, "batch_size": batch_size}
    seen = shapes_of(method, [])
    adapt_case(Session(method, selection, guard=False), x, inferer)
    assert [len(images) for images in seen] == expected
    assert max(measured) == sw_batch_size


def test_the_batch_size_changes_which_windows_share_a_step_and_not_which_are_chosen(make_network):
    chosen = []
    for batch_size in (None, 1, 2):
        method = create("tent", make_network(3), activation="softmax", seed=3)
        x = torch.rand(1, 1, 24, 16, 16, generator=torch.Generator().manual_seed(0))
        batches = WindowSelection(2, 2, batch_size).select(x, SlidingWindowInferer(ROI, 4, 0.5), method)
        chosen.append(torch.cat(batches))
    assert torch.equal(chosen[0], chosen[1]) and torch.equal(chosen[0], chosen[2])


@pytest.mark.parametrize(("value", "message"), [(0, "at least 1"), (-1, "at least 1"), (1.5, "whole number")])
def test_a_batch_size_that_is_none_is_refused(value, message):
    with pytest.raises(GrataError, match=f"windows#batch_size: .*{message}"):
        window_selection({"batch_size": value})


class SmallHoVerNet(nn.Module):
    """As MONAI's ``HoVerNet`` seen from outside: a dict of maps that are smaller than the image by a margin.

    The real one has 64 features at 256×256, too slow for a test.
    """

    margin = 4

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
            self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.up = nn.Upsample(scale_factor=2, mode="bilinear")
            self.nuclei, self.offsets = nn.Conv2d(12, 2, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = self.trunk(x)
        x = torch.cat([x, self.up(self.deep(x))], 1)[..., self.margin : -self.margin, self.margin : -self.margin]
        return {"nucleus_prediction": self.nuclei(x), "horizontal_vertical": self.offsets(x)}


def hovernet_inferer(padding_mode="constant"):
    # 16 wide windows, the middle 8 of which are predicted: they tile the image
    pad = (SmallHoVerNet.margin,) * 4
    return SlidingWindowHoVerNetInferer((16, 16), 2, 0.5, padding_mode=padding_mode, extra_input_padding=pad)


@pytest.mark.parametrize("size", [(24, 32), (8, 40), (5, 6)])
@pytest.mark.parametrize("padding_mode", ["constant", "reflect"])
def test_windows_are_those_that_the_inferer_for_hovernet_shows_the_network(size, padding_mode):
    network = SmallHoVerNet()
    method = create("tent", network, activation="softmax", output="nucleus_prediction")
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    inferer = hovernet_inferer(padding_mode)
    shown = []
    inferer(x, lambda images: (shown.extend(images.clone()), network(images))[1])
    selection = WindowSelection(uncertain=1, random=1)
    seen = [window for batch in selection.select(x, inferer, method) for window in batch]
    assert len(seen) == min(2, max(1, len(shown) - 1))
    assert all(any(torch.equal(window, other) for other in shown) for window in seen)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.learns and not m.card.needs])
def test_methods_adapt_a_network_of_several_smaller_maps_by_the_one_that_is_named(name, adapt_case):
    network = SmallHoVerNet()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    settings = {"cotta": {"augmentations": 2}, "dua": {"crop": 1}}.get(name)
    method = create(name, network, settings, activation="softmax", output="nucleus_prediction")
    x = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))
    records = adapt_case(Session(method, WindowSelection(uncertain=1, random=1), guard=False), x, hovernet_inferer())
    assert len(records) == 1 and not any(flag.startswith("non_finite") for flag in records[0].flags)
    with torch.no_grad():
        prediction = hovernet_inferer()(x, method.network)
    assert {key: tuple(value.shape) for key, value in prediction.items()} == {
        "nucleus_prediction": (1, 2, 24, 32),
        "horizontal_vertical": (1, 2, 24, 32),
    }
    assert method.uncertainty(x[..., :16, :16]).shape == (1,)
    method.restore()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_quarter_turns_are_among_the_views_of_smaller_maps():
    """The four turns are a group: of a turned image the mean over them is the turned mean."""
    settings = {"views": ["identity", "rot90", "rot180", "rot270"]}
    method = create("grata", SmallHoVerNet(), settings, activation="softmax", output="nucleus_prediction")
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    method._activate()
    label = method._pseudo_label(x)
    turned = method._pseudo_label(torch.rot90(x, 1, (-2, -1)))
    assert label.shape == (2, 2, 8, 8)
    torch.testing.assert_close(torch.rot90(label, 1, (-2, -1)), turned)
