import math

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from torch.nn import functional as F

from grata.bundles.regions import make_regions
from grata.errors import GrataError
from grata.normalization import collect_affine_parameters
from grata.preparation.fisher import pseudo_label_loss, squared_gradient
from grata.preparation.moments import ShapeMoments, channel_masks
from grata.preparation.windows import check_inferer, foreground_windows

NESTED = make_regions([{"value": 1, "label": "disc", "includes": [2]}, {"value": 2, "label": "cup"}])


def labels(*shape, seed=0):
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def test_a_segment_includes_others_in_its_channel():
    whole = labels(2, 1, 5, 4)
    masks = channel_masks(whole, 2, "sigmoid", NESTED)
    assert torch.equal(masks[:, 0], (whole[:, 0] >= 1).double())
    assert torch.equal(masks[:, 1], (whole[:, 0] == 2).double())


def test_classes_are_one_channel_each():
    masks = channel_masks(labels(2, 1, 5, 4), 3, "softmax", NESTED)
    assert torch.equal(masks.sum(1), torch.ones(2, 5, 4).double())
    assert torch.equal(masks.argmax(1).float(), labels(2, 1, 5, 4)[:, 0])


@pytest.mark.parametrize("channels, activation", [(3, "sigmoid"), (2, "softmax")])
def test_channels_that_are_no_segments_are_refused(channels, activation):
    with pytest.raises(GrataError, match=f"segments: .* the network has {channels} channels"):
        channel_masks(labels(1, 1, 4, 4), channels, activation, NESTED)


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 6)])
def test_moments_are_those_of_loops_over_pixels(shape):
    batches = [labels(n, 1, *shape, seed=seed) for seed, n in enumerate((1, 2, 1))]
    moments = ShapeMoments()
    for batch in batches:
        moments.add(channel_masks(batch, 3, "softmax", NESTED))
    sizes, centroids, spreads = np.zeros(3), np.zeros((3, len(shape))), np.zeros((3, len(shape)))
    for batch in batches:
        for window in batch[:, 0].numpy():
            weight = 1 / (len(batch) * len(batches))
            for value in range(3):
                pixels = [index for index in np.ndindex(*shape) if window[index] == value]
                sizes[value] += weight * len(pixels) / math.prod(shape)
                for axis, size in enumerate(shape):
                    positions = [(index[axis] + 0.5) / size for index in pixels]
                    centre = sum(positions) / len(positions)
                    centroids[value, axis] += weight * centre
                    variance = sum((p - centre) ** 2 for p in positions) / len(positions)
                    spreads[value, axis] += weight * math.sqrt(variance)
    centroid, spread = moments.moments()
    torch.testing.assert_close(moments.class_sizes(), torch.tensor(sizes).float())
    torch.testing.assert_close(centroid, torch.tensor(centroids).float())
    torch.testing.assert_close(spread, torch.tensor(spreads).float())
    assert moments.class_sizes().sum().item() == pytest.approx(1)


def test_an_image_without_a_segment_has_a_size_of_it_but_no_place():
    here, empty = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    here[..., 1, 2] = 2
    moments = ShapeMoments()
    for label in (here, empty):
        moments.add(channel_masks(label, 2, "sigmoid", NESTED))
    centroid, spread = moments.moments()
    torch.testing.assert_close(moments.class_sizes(), torch.full((2,), 1 / 32))
    torch.testing.assert_close(centroid, torch.tensor([[0.375, 0.625]] * 2))
    torch.testing.assert_close(spread, torch.zeros(2, 2))


def test_a_segment_that_never_occurs_has_no_moments():
    moments = ShapeMoments()
    moments.add(channel_masks(torch.zeros(1, 1, 4, 4), 2, "sigmoid", NESTED))
    assert moments.moments() is None and torch.equal(moments.class_sizes(), torch.zeros(2))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_loss_is_the_log_of_the_chosen_label(activation):
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    if activation == "sigmoid":
        probabilities = 1 / (1 + torch.exp(-logits))
        chosen = torch.maximum(probabilities, 1 - probabilities)
    else:
        chosen = (logits.exp() / logits.exp().sum(1, True)).amax(1)
    torch.testing.assert_close(pseudo_label_loss(logits, activation), -chosen.log().mean())


def test_squared_gradients_are_those_of_finite_differences(make_network):
    network = make_network(out_channels=3).eval().double()
    parameters = collect_affine_parameters(network)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    squares = squared_gradient(network, x, parameters, "softmax")
    target = network(x).argmax(1)
    name, parameter = next(iter(parameters.items()))
    for index in range(len(parameter)):
        losses = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                parameter[index] += step
                losses.append(F.cross_entropy(network(x), target))
        with torch.no_grad():
            parameter[index] += 1e-6
        slope = (losses[0] - losses[1]) / 2e-6
        assert squares[name][index].item() == pytest.approx(slope.item() ** 2, rel=1e-4, abs=1e-12)
    assert squares.keys() == parameters.keys()


def test_a_parameter_without_influence_is_left_out_and_infinite_gradients_are_refused():
    used, idle = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    x = torch.rand(1, 2, 3, 3)
    assert squared_gradient(lambda x: x * used, x, {"used": used, "idle": idle}, "softmax").keys() == {"used"}
    with pytest.raises(GrataError, match="not finite"):
        squared_gradient(lambda x: x * used * float("nan"), x, {"used": used}, "softmax")


def test_a_simple_inferer_shows_the_whole_image():
    image, label = torch.rand(1, 2, 5, 6), labels(1, 1, 5, 6)
    windows, masks = foreground_windows(image, label, SimpleInferer())
    assert windows is image and masks is label


def test_windows_are_those_with_the_most_foreground():
    label = torch.zeros(1, 1, 8, 8, 8)
    label[..., 4:, 4:, 4:] = 1
    label[..., :2, :2, :4] = 2
    image = torch.rand(1, 1, 8, 8, 8)
    inferer = SlidingWindowInferer((4, 4, 4), sw_batch_size=3, overlap=0)
    windows, masks = foreground_windows(image, label, inferer)
    assert torch.equal(windows, torch.stack([image[0, :, :4, :4, :4], image[0, :, 4:, 4:, 4:]]))
    assert torch.equal(masks, torch.stack([label[0, :, :4, :4, :4], label[0, :, 4:, 4:, 4:]]))


def test_a_small_image_is_padded_as_the_inferer_does_it_and_its_label_by_background():
    image, label = torch.rand(1, 1, 4, 6), torch.ones(1, 1, 4, 6)
    seen = []
    inferer = SlidingWindowInferer((8, 6), padding_mode="replicate")
    inferer(image, lambda x: (seen.append(x.clone()), x)[1])
    windows, masks = foreground_windows(image, label, inferer)
    assert torch.equal(windows, seen[0])
    assert masks.sum() == 24 and torch.equal(masks[..., 2:6, :], label)
    assert str(getattr(inferer.padding_mode, "value", inferer.padding_mode)) == "replicate"


def test_slices_of_a_volume_are_planes():
    image, label = torch.rand(1, 1, 6, 8, 3), torch.zeros(1, 1, 6, 8, 3)
    label[..., 2] = 1
    label[..., :2, :, 0] = 1
    windows, masks = foreground_windows(image, label, SliceInferer(roi_size=(6, 8), spatial_dim=2))
    assert torch.equal(windows, torch.stack([image[0, ..., 0], image[0, ..., 2]]))
    assert masks.sum((1, 2, 3)).tolist() == [16, 48]


def test_an_unknown_inferer_is_refused():
    with pytest.raises(GrataError, match="inferer: object is not supported. Use SimpleInferer"):
        check_inferer(object())
