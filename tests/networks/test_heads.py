import copy

import pytest
import torch
from monai.networks.nets import BasicUNet, UNet
from torch import nn
from torch.nn import functional as F

from grata.errors import GrataError
from grata.networks import AuxiliaryHeads
from grata.normalization import BatchStatistics, ScriptedNetwork, collect_affine_parameters, deepest_feature
from grata.objectives import denoising_loss, rotation_loss


class Net(nn.Module):
    """Network with two levels down and one up, a module that runs twice, and global pooling beside the features."""

    def __init__(self, dims=2):
        super().__init__()
        conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dims]
        pool = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims]
        self.first, self.norm1 = conv(1, 6, 3, 2, 1), norm(6)
        self.second, self.norm2 = conv(6, 10, 3, 2, 1), norm(10)
        self.pool, self.relu = pool(1), nn.ReLU()
        self.last = conv(10, 2, 1)
        self.ran_to_the_end = 0

    def deepest(self, x):
        return self.norm2(self.second(self.relu(self.norm1(self.first(x)))))

    def forward(self, x):
        y = self.relu(self.deepest(x))
        y = y * self.pool(y).sigmoid()
        self.ran_to_the_end += 1
        return F.interpolate(self.last(y), size=x.shape[2:])


@pytest.fixture
def make():
    def make_net(dims=2):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return Net(dims).eval()

    return make_net


def image(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def hooks(network):
    return [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)]


def test_the_deepest_feature_is_the_last_of_the_widest_of_the_smallest_maps(make):
    heads = AuxiliaryHeads.create(make(), image(1, 1, 16, 24))
    assert heads.saved().feature == "norm2"
    assert (heads.saved().channels, heads.saved().blocks, heads.saved().image_channels) == (10, 2, 1)


@pytest.mark.parametrize(
    "network, shape, feature",
    [
        (UNet(2, 1, 2, (4, 8, 16), (2, 2)), (1, 1, 16, 16), (1, 24, 4, 4)),
        (UNet(3, 1, 3, (4, 8, 16), (2, 2), num_res_units=1), (1, 1, 16, 8, 12), (1, 24, 4, 2, 3)),
        (BasicUNet(2, 3, 1, (4, 4, 8, 8, 16, 4), norm="batch"), (1, 3, 32, 48), (1, 16, 2, 3)),
    ],
)
def test_networks_of_monai_have_one(network, shape, feature):
    heads = AuxiliaryHeads.create(network.eval(), image(*shape))
    assert heads.features(image(*shape)).shape == feature
    assert heads.branch("denoising", image(*shape)).shape == shape


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["rotation", "denoising"])
def test_a_branch_and_its_gradient_are_those_of_a_whole_forward(make, dims, name):
    network, x = make(dims), image(2, 1, *(16, 12, 8)[:dims])
    statistics = BatchStatistics(network, 1.0)
    statistics.attach()
    created = AuxiliaryHeads.create(network, x, seed=3)
    created.modules["rotation"].standardize(torch.rand(5, 10) * torch.tensor([0.0] + 9 * [1.0]))
    heads = AuxiliaryHeads.load(network, created.saved())
    parameters = list(collect_affine_parameters(network).values())
    output = heads.branch(name, x)
    gradient = torch.autograd.grad(output.square().sum(), parameters)

    feature = network.deepest(x)
    if name == "rotation":
        layers = heads.modules["rotation"].perceptron
        head = heads.modules["rotation"]
        y = (feature.mean(tuple(range(2, feature.ndim))) - head.mean) / head.deviation
        for layer in (layers[0], layers[2]):
            y = y @ layer.weight.T + layer.bias
            y = torch.where(y > 0, y, 0.2 * y)
        expected = y @ layers[4].weight.T + layers[4].bias
        assert output.shape == (2, len(heads.views))
    else:
        head, y = heads.modules["denoising"], feature
        mode = {2: "bilinear", 3: "trilinear"}[dims]
        for conv, norm in zip(head.convolutions, head.norms):
            y = F.interpolate(y, scale_factor=2, mode=mode, align_corners=True)
            y = (y.transpose(1, -1) @ conv.weight.flatten(1).T + conv.bias).transpose(1, -1).relu()
            y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0, norm.eps)
        expected = (y.transpose(1, -1) @ head.last.weight.flatten(1).T + head.last.bias).transpose(1, -1)
        assert output.shape == x.shape
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), parameters), rtol=1e-4, atol=1e-5)


def test_the_network_stops_at_the_feature_and_stays_as_it_was(make):
    network = make()
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    heads = AuxiliaryHeads.create(network, image(1, 1, 16, 16))
    ran = network.ran_to_the_end
    heads.branch("rotation", image(2, 1, 16, 16))
    assert network.ran_to_the_end == ran == 1
    assert not hooks(network)
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert not any(module is heads.modules for module in network.modules())


def test_a_training_network_keeps_its_running_statistics_when_heads_are_made(make):
    network = make().train()
    before = network.norm1.running_mean.clone()
    AuxiliaryHeads.create(network, image(1, 1, 16, 16))
    assert network.training and torch.equal(network.norm1.running_mean, before)


def test_a_forward_that_fails_leaves_no_hook(make):
    network = make()
    heads = AuxiliaryHeads.create(network, image(1, 1, 16, 16))
    with pytest.raises(RuntimeError):
        heads.branch("rotation", image(1, 3, 16, 16))
    with pytest.raises(RuntimeError):
        AuxiliaryHeads.create(network, image(1, 3, 16, 16))
    assert not hooks(network)


def test_pooled_features_are_standardized_by_those_of_the_source_set(make):
    head = AuxiliaryHeads.create(make(), image(1, 1, 16, 16)).modules["rotation"]
    pooled = 7 + 0.01 * image(20, 10)
    pooled[:, 3] = 2
    seen = []
    head.perceptron = nn.Sequential(nn.Identity())
    head.perceptron.register_forward_hook(lambda _, __, output: seen.append(output))
    head.standardize(pooled)
    head(pooled[..., None, None], (16, 16))
    others = [c for c in range(10) if c != 3]
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(10), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen[0].square().mean(0)[others], torch.ones(9), atol=1e-2, rtol=0)
    assert seen[0][:, 3].abs().max() == 0


def test_saved_heads_are_the_same_heads_frozen(make):
    network, x = make(), image(2, 1, 16, 16)
    created = AuxiliaryHeads.create(network, x, ["rotation", "denoising"], ["identity", "flip_h"], seed=1)
    created.modules.train()
    for _ in range(2):
        created.branch("denoising", x)
    created.modules.eval()
    loaded = AuxiliaryHeads.load(network, created.saved())
    assert loaded.views == ("identity", "flip_h")
    for name in loaded.names:
        assert torch.equal(loaded.branch(name, x), created.branch(name, x))
    assert not loaded.modules.training and not any(p.requires_grad for p in loaded.modules.parameters())


def test_first_weights_come_from_the_seed_alone(make):
    network, x = make(), image(1, 1, 16, 16)
    state = torch.get_rng_state()
    a, b, c = (AuxiliaryHeads.create(network, x, seed=seed).branch("rotation", x) for seed in (4, 4, 5))
    AuxiliaryHeads.load(network, AuxiliaryHeads.create(network, x).saved())
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_views_follow_the_image(make):
    assert "rot90" in AuxiliaryHeads.create(make(), image(1, 1, 16, 16)).views
    assert AuxiliaryHeads.create(make(), image(1, 1, 16, 12)).views == ("identity", "flip_w", "flip_h", "rot180")
    assert "flip_d" in AuxiliaryHeads.create(make(3), image(1, 1, 8, 16, 12)).views


def test_objectives_run_on_a_volume(make):
    network, x = make(3), image(2, 1, 8, 16, 12)
    heads = AuxiliaryHeads.load(network, AuxiliaryHeads.create(network, x).saved())
    generator = torch.Generator().manual_seed(0)
    loss = rotation_loss(heads.branch, x, generator, heads.views) + denoising_loss(heads.branch, x, generator)
    loss.backward()
    assert network.norm1.weight.grad.abs().sum() > 0 and network.norm2.bias.grad.abs().sum() > 0


def test_scripted_networks_are_refused(make):
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4)).eval())
    saved = AuxiliaryHeads.create(make(), image(1, 1, 16, 16)).saved()
    for network in (scripted, ScriptedNetwork(scripted)):
        with pytest.raises(GrataError, match="TorchScript network cannot have auxiliary heads.*model.pt"):
            AuxiliaryHeads.create(network, image(1, 1, 16, 16))
        with pytest.raises(GrataError, match="TorchScript network cannot have auxiliary heads.*model.pt"):
            AuxiliaryHeads.load(network, saved)


def test_what_does_not_fit_is_refused(make):
    network, x = make(), image(1, 1, 16, 16)
    saved = AuxiliaryHeads.create(network, x, ["rotation"]).saved()
    with pytest.raises(GrataError, match="attached to norm2, which this Conv2d does not have"):
        AuxiliaryHeads.load(nn.Conv2d(1, 1, 1), saved)
    with pytest.raises(GrataError, match="weights of its heads do not fit"):
        AuxiliaryHeads.load(network, AuxiliaryHeads.create(network, x, ["denoising"])._saved)
    with pytest.raises(GrataError, match='no denoising head.*--heads "rotation,denoising"'):
        AuxiliaryHeads.load(network, saved).branch("denoising", x)
    with pytest.raises(GrataError, match="no head 'colour'"):
        AuxiliaryHeads.create(network, x, ["colour"])
    with pytest.raises(GrataError, match="Flatten|no feature map"):
        AuxiliaryHeads.create(nn.Sequential(nn.Flatten(), nn.Linear(256, 2)), x)
    network.norm2 = nn.Identity()
    idle = AuxiliaryHeads.load(network, saved)
    network.deepest = lambda x: network.second(network.first(x))
    with pytest.raises(GrataError, match="prediction without norm2"):
        idle.branch("rotation", x)


class Pooled(nn.Module):
    """Network whose deepest map has more channels than its logits, and more positions than its pooled output."""

    def __init__(self):
        super().__init__()
        self.deep = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.gate = nn.AdaptiveAvgPool2d(1)
        self.logits = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = self.deep(x)
        return nn.functional.interpolate(self.logits(y * self.gate(y)), scale_factor=2)


def test_heads_and_laws_take_the_same_feature_for_the_deepest():
    network, image = Pooled(), torch.rand(2, 1, 8, 8)
    heads = AuxiliaryHeads.create(network, image)
    with torch.no_grad(), deepest_feature(network, image.shape) as feature:
        network(image)
    assert torch.equal(feature(), network.deep(image)) and heads.saved().feature == "deep"
