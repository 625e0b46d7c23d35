"""Affine parameters attached to networks that have none; predictions change only when they are adapted."""

import copy

import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet, SwinUNETR, UNet
from torch import nn

from grata.errors import GrataError
from grata.methods import METHODS, Prepared, create, settings_of
from grata.networks import AuxiliaryHeads, network_digest
from grata.normalization import attach_affine, collect_affine_parameters, ensure_affine


def unet(spatial_dims, norm):
    return UNet(spatial_dims, 1, 2, (4, 8, 16), (2, 2), num_res_units=1, norm=norm)


NETWORKS = {
    "UNet": lambda d: unet(d, "instance"),
    "UNet batch": lambda d: unet(d, ("batch", {"affine": False})),
    "UNet group": lambda d: unet(d, ("group", {"num_groups": 2, "affine": False})),
    "DynUNet": lambda d: DynUNet(d, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16], norm_name="instance"),
    "BasicUNet": lambda d: BasicUNet(d, 1, 2, (4, 4, 8, 8, 16, 4), norm="instance"),
}


def make(name, spatial_dims=2):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = NETWORKS[name](spatial_dims)
        for key, buffer in network.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return network.eval()


def images(spatial_dims=2, seed=0, size=16):
    return torch.rand(2, 1, *[size] * spatial_dims, generator=torch.Generator().manual_seed(seed))


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def learn(network):
    """Change the attached parameters, as adaptation does."""
    with torch.no_grad():
        for parameter in collect_affine_parameters(network).values():
            parameter.add_(0.5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_network_predicts_as_before_to_the_last_bit(name, spatial_dims, bfloat16, training):
    x = images(spatial_dims, size=32)
    source = make(name, spatial_dims).train(training)
    network = copy.deepcopy(source)
    attach_affine(network)
    assert [module.training for module in network.modules()] == [training] * len(list(network.modules()))
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        expected, seen = source(x), network(x)
    assert seen.dtype == expected.dtype and torch.equal(seen, expected)


@pytest.mark.parametrize("shape", [(6, 5), (5,)])
def test_a_layer_norm_gets_one_scale_and_shift_for_each_element(shape):
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.LayerNorm(shape, elementwise_affine=False))
    x = torch.rand(3, 1, 6, 5)
    expected = network(x)
    attached = attach_affine(network)
    assert attached.count == 2 * len(torch.empty(shape).flatten())
    assert torch.equal(network(x), expected)
    network[1].attached_affine.weight.data.fill_(2.0)
    network[1].attached_affine.bias.data.fill_(1.0)
    torch.testing.assert_close(network(x), 2 * expected + 1)


def test_each_channel_is_scaled_and_shifted_after_the_norm():
    layer, own = nn.InstanceNorm3d(4), nn.InstanceNorm3d(4, affine=True)
    attach_affine(layer)
    for part in ("weight", "bias"):
        value = torch.rand(4, generator=torch.Generator().manual_seed(1))
        getattr(own, part).data.copy_(value)
        getattr(layer.attached_affine, part).data.copy_(value)
    x = torch.rand(2, 4, 5, 6, 7)
    torch.testing.assert_close(layer(x), own(x))


def test_they_are_found_like_a_networks_own_and_reported_by_name_and_number():
    network = make("DynUNet", 3)
    channels = sum(m.num_features for m in network.modules() if isinstance(m, nn.InstanceNorm3d))
    with pytest.raises(GrataError, match="attach_affine"):
        collect_affine_parameters(network)
    attached = attach_affine(network)
    assert tuple(collect_affine_parameters(network)) == attached.names
    assert set(attached.names) <= set(dict(network.named_parameters()))
    assert attached.count == 2 * channels


def test_they_do_not_belong_to_the_weights():
    """Load weights after attaching, as bundles do in a handler on STARTED."""
    network = make("UNet")
    keys, digest, text = list(network.state_dict()), network_digest(network), repr(network)
    other = {name: value + 1 for name, value in snapshot(network).items()}
    attached = attach_affine(network)
    assert list(network.state_dict()) == keys and network_digest(network) == digest
    learn(network)
    learned = {name: p.clone() for name, p in collect_affine_parameters(network).items()}
    assert list(network.state_dict()) == keys and network_digest(network) == digest
    network.load_state_dict(other)
    assert same(snapshot(network), other)
    assert same(dict(collect_affine_parameters(network)), learned)
    attached.detach()
    assert repr(network) == text
    assert not any(module._forward_hooks for module in network.modules())


def test_detaching_restores_the_source_network_after_adaptation():
    network, x = make("BasicUNet"), images(size=32)
    expected, parameters = network(x), dict(network.named_parameters())
    attached = attach_affine(network)
    learn(network)
    assert not torch.allclose(network(x), expected)
    attached.detach()
    attached.detach()
    assert torch.equal(network(x), expected)
    assert dict(network.named_parameters()).keys() == parameters.keys()


def test_a_second_call_attaches_nothing_and_keeps_the_learned_parameters():
    network = make("UNet")
    first = attach_affine(network)
    learn(network)
    learned = {name: p.clone() for name, p in collect_affine_parameters(network).items()}
    second = attach_affine(network)
    assert second.names == first.names and second.count == first.count
    assert same(dict(collect_affine_parameters(network)), learned)
    assert {len(m._forward_hooks) for m in network.modules() if isinstance(m, nn.InstanceNorm2d)} == {1}


def test_a_deep_copy_has_its_own():
    network, x = make("UNet"), images()
    expected = network(x)
    attach_affine(network)
    twin = copy.deepcopy(network)
    learn(twin)
    assert torch.equal(network(x), expected) and not torch.allclose(twin(x), expected)
    attach_affine(twin).detach()
    assert torch.equal(twin(x), expected)
    learn(network)
    assert not torch.allclose(network(x), expected)


def test_they_follow_the_network_to_another_dtype():
    network = make("UNet")
    attach_affine(network)
    network.double()
    assert {p.dtype for p in collect_affine_parameters(network).values()} == {torch.float64}
    assert network(images().double()).dtype == torch.float64
    fresh = make("UNet").double()
    attach_affine(fresh)
    assert {p.dtype for p in collect_affine_parameters(fresh).values()} == {torch.float64}


def mixed():
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.InstanceNorm2d(4)).eval()


def test_auto_attaches_only_where_the_network_has_nothing_of_its_own():
    assert len(ensure_affine(make("UNet"), "auto").names) > 0
    network = mixed()
    assert ensure_affine(network, "auto") is None
    assert list(collect_affine_parameters(network)) == ["1.weight", "1.bias"]
    assert ensure_affine(make("UNet"), "own") is None
    attached = ensure_affine(network, "attach")
    assert attached.names == ("2.attached_affine.weight", "2.attached_affine.bias")
    assert list(collect_affine_parameters(network)) == ["1.weight", "1.bias", *attached.names]


def test_a_second_auto_returns_the_attached_parameters():
    network = make("UNet")
    first = ensure_affine(network)
    assert ensure_affine(network).names == first.names


def test_swin_unetr_has_both_kinds():
    network = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2).eval()
    x = torch.rand(1, 1, 64, 64)
    own = list(collect_affine_parameters(network))
    assert ensure_affine(network, "auto") is None
    with torch.no_grad():
        expected = network(x)
        attached = ensure_affine(network, "attach")
        assert torch.equal(network(x), expected)
    assert set(collect_affine_parameters(network)) == {*own, *attached.names}
    assert all(name.endswith(("attached_affine.weight", "attached_affine.bias")) for name in attached.names)


class ActivatedNorm(nn.InstanceNorm2d):
    """Layer that does more than normalize."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("network", "affine", "message"),
    [
        (torch.jit.script(nn.Sequential(nn.InstanceNorm2d(2))), "attach", "TorchScript"),
        (nn.Sequential(torch.jit.script(nn.InstanceNorm2d(2))), "attach", "TorchScript"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), "attach", "no normalization layer without"),
        (nn.Sequential(nn.BatchNorm2d(1)), "attach", "no normalization layer without"),
        (nn.Sequential(ActivatedNorm(1)), "attach", "no normalization layer without"),
        (nn.Sequential(nn.InstanceNorm2d(1)), "yes", "affine: must be one of auto, own, attach"),
    ],
)
def test_refusals_give_the_reason_and_change_nothing(network, affine, message):
    names = [name for name, _ in network.named_modules()]
    with pytest.raises(GrataError, match=message):
        ensure_affine(network, affine)
    assert [name for name, _ in network.named_modules()] == names


def method_for(name, network):
    given = None
    if "prepared" in settings_of(name):
        heads = AuxiliaryHeads.create(network, images(), seed=1)
        heads.modules.eval()
        given = Prepared(
            class_sizes=torch.tensor([0.7, 0.3]),
            centroid=torch.full((2, 2), 0.5),
            spread=torch.full((2, 2), 0.2),
            fisher={key: torch.ones_like(p) for key, p in collect_affine_parameters(network).items()},
            heads=heads.saved(),
            digest=network_digest(network),
        )
    settings = {"ttas": {"steps": 2}, "cotta": {"augmentations": 2}, "test": {"confidence": 0.5}}
    return create(name, network, settings.get(name), activation="softmax", seed=1, prepared=given)


OTHERS = ("dua", "diga", "vptta", "domainadaptor", "dyno", "sictta", "consensus")
AFFINE_METHODS = [name for name, method in METHODS.items() if method.learns and name not in OTHERS]


@pytest.mark.parametrize("name", AFFINE_METHODS)
def test_every_method_of_affine_parameters_adapts_them_and_restores_exactly(name):
    network, x = make("UNet"), images()
    source, expected = snapshot(network), network(x)
    attach_affine(network)
    method = method_for(name, network)
    for seed in range(2):
        method.adapt(images(seed=seed))
    changed = {n for n, p in network.named_parameters() if n in source and not torch.equal(p, source[n])}
    assert not changed or "all parameters" in METHODS[name].card.changes
    learned = {n: p.detach().clone() for n, p in collect_affine_parameters(network).items()}
    assert any(not torch.equal(p, torch.full_like(p, n.endswith("weight"))) for n, p in learned.items())
    with torch.no_grad():
        adapted = method.network(x)

    twin = make("UNet")
    attach_affine(twin)
    other = method_for(name, twin)
    other.load_state_dict(method.state_dict())
    with torch.no_grad():
        assert torch.equal(other.network(x), adapted)

    method.restore()
    assert same(snapshot(network), source) and torch.equal(network.eval()(x), expected)


def test_weights_loaded_after_the_method_was_made_are_the_source():
    network = make("UNet")
    loaded = {name: value * 1.5 for name, value in snapshot(network).items()}
    attach_affine(network)
    method = create("tent", network, {"lr": 0.1}, activation="softmax")
    network.load_state_dict(loaded)
    method.adapt(images())
    adapted = {n: p.detach().clone() for n, p in method.parameters.items()}
    network.load_state_dict(loaded)
    assert same({n: p.detach() for n, p in method.parameters.items()}, adapted)
    method.restore()
    assert same(snapshot(network), loaded)
