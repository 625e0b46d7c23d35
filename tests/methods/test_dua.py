"""DUA against its formula."""

import copy

import pytest
import torch

from grata.errors import GrataError
from grata.methods.dua import DUA


def image(seed=0, spatial_dims=2, size=16, count=1):
    return torch.rand((count, 1, *[size] * spatial_dims), generator=torch.Generator().manual_seed(seed))


def statistics(network):
    return {name: b.clone() for name, b in network.named_buffers() if "running" in name}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_an_update_is_that_of_training_mode_with_the_decayed_momentum(make_network, spatial_dims):
    network = make_network(spatial_dims)
    reference = copy.deepcopy(network).double().train()
    method = DUA(network, activation="sigmoid", views=8, chunk=8)
    for k in (1, 2):
        x = image(k, spatial_dims)
        # the views that the method will draw
        state = method.generator.get_state()
        views = torch.cat(method._crops(method._plain(x)))
        method.generator.set_state(state)
        momentum = 0.1 * 0.94**k + 0.005
        assert method.adapt(x).momentum == pytest.approx(momentum)
        for layer in reference.modules():
            if "BatchNorm" in type(layer).__name__:
                layer.momentum = momentum
        with torch.no_grad():
            reference(views.double())
    expected = statistics(reference)
    for name, value in statistics(network).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=1e-6)


def test_the_statistics_of_parts_add_up_to_those_of_all_views_in_the_first_layer(make_network):
    whole, parts = make_network(), make_network()
    DUA(whole, activation="sigmoid", views=8, chunk=8).adapt(image())
    DUA(parts, activation="sigmoid", views=8, chunk=2).adapt(image())
    a, b = statistics(whole), statistics(parts)
    for name in list(a)[:2]:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_predicts_by_the_running_statistics_and_changes_nothing_else(make_network):
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    method = DUA(network, activation="sigmoid", views=4)
    method.adapt(image())
    plain = copy.deepcopy(network)
    for layer in plain.modules():
        vars(layer).pop("forward", None)
    with torch.no_grad():
        torch.testing.assert_close(method.network(image(3)), plain.eval()(image(3)))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == ("running" not in name)


def test_after_the_set_number_of_images_nothing_changes(make_network):
    method = DUA(make_network(), activation="sigmoid", views=2, samples=2)
    momenta = [method.adapt(image(k)).momentum for k in range(4)]
    assert momenta[0] > momenta[1] > 0 and momenta[2:] == [0.0, 0.0]


def test_views_are_crops_of_half_the_size_in_multiples_of_32(make_network):
    method = DUA(make_network(), activation="sigmoid", views=12)
    x = image(size=96)
    crops = method._crops(x)
    assert len(crops) == 12 and {tuple(c.shape) for c in crops} == {(1, 1, 64, 64)}
    assert len({c.sum().item() for c in crops}) > 6
    assert all(set(c.flatten().tolist()) <= set(x.flatten().tolist()) for c in crops)
    # each of two images gives half of the views
    two = torch.cat([torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32)])
    assert sum(c.mean().item() for c in method._crops(two)) == 6


class OfOneSize(torch.nn.Module):
    def __init__(self, network, size):
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x):
        if x.shape[-1] != self.size:
            raise ValueError(f"expected {self.size}")
        return self.network(x)


def test_a_network_of_one_size_is_refused_and_adapts_with_the_whole_image(make_network):
    x = image(size=64)
    with pytest.raises(GrataError, match="crop: OfOneSize does not take crops of 32x32 from images of 64x64"):
        DUA(OfOneSize(make_network(), 64), activation="sigmoid", views=2).adapt(x)
    method = DUA(OfOneSize(make_network(), 64), activation="sigmoid", views=8, crop=1.0)
    assert method.adapt(x).momentum > 0
    # flips and quarter turns move the values and keep them
    for view in method._crops(x):
        assert torch.equal(view.flatten().sort().values, x.flatten().sort().values)


def test_an_error_that_is_not_about_crops_is_left_alone(make_network):
    with pytest.raises(ValueError, match="expected 64"):
        DUA(OfOneSize(make_network(), 64), activation="sigmoid", views=2).adapt(image(size=16))


def test_parts_hardly_change_the_update(make_network, real_scan):
    start, whole = statistics(make_network(3)), make_network(3)
    DUA(whole, activation="sigmoid", chunk=64).adapt(real_scan)
    parts = make_network(3)
    DUA(parts, activation="sigmoid").adapt(real_scan)
    a, b = statistics(whole), statistics(parts)
    difference = sum((a[name] - b[name]).square().sum() for name in a)
    assert difference < 1e-4 * sum((a[name] - start[name]).square().sum() for name in a)


def test_the_running_statistics_come_closer_to_those_of_an_image_that_stays(make_network, real_scan):
    network = make_network(3)
    method = DUA(network, activation="sigmoid", views=4)

    def distance():
        first = next(layer for layer in network.modules() if "BatchNorm" in type(layer).__name__)
        seen = {}
        handle = first.register_forward_pre_hook(lambda module, inputs: seen.update(z=inputs[0]))
        with torch.no_grad():
            method.network(real_scan)
        handle.remove()
        return (first.running_mean - seen["z"].transpose(0, 1).flatten(1).mean(1)).norm()

    before = distance()
    for _ in range(5):
        method.adapt(real_scan)
    assert distance() < before


def test_an_image_that_is_not_finite_leaves_the_statistics_alone(make_network):
    network = make_network()
    method = DUA(network, activation="sigmoid", views=2)
    before = statistics(network)
    record = method.adapt(image() * float("nan"))
    assert record.flags == ("non_finite_statistics", "step_skipped")
    assert all(torch.equal(value, before[name]) for name, value in statistics(network).items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 0}, "views: must be"),
        ({"crop": 0}, "crop: must be"),
        ({"crop": 1.5}, "crop: must be"),
        ({"decay": 2}, "decay: must be"),
        ({"batch_statistics": 1.0}, "batch_statistics"),
    ],
)
def test_wrong_settings_are_refused_by_name(make_network, settings, message):
    with pytest.raises(GrataError, match=message):
        DUA(make_network(), **{"activation": "sigmoid", **settings})


def test_networks_without_running_statistics_are_refused(make_network):
    with pytest.raises(GrataError, match="InstanceNorm2d"):
        DUA(make_network(2, "instance"), activation="sigmoid")
    with pytest.raises(GrataError, match="TorchScript"):
        DUA(torch.jit.script(make_network().eval()), activation="sigmoid")
