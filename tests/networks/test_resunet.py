import pytest
import torch
from torch.nn import functional as F

from grata.errors import GrataError
from grata.networks import BRANCHES, ResUNet, to_reference_names
from grata.normalization import collect_affine_parameters, normalization_layers

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class Plain:
    """The paper's network in plain functions, on tensors with the reference's names, independent of ours."""

    def __init__(self, state, depth, training):
        self.state, self.blocks, self.training = state, BLOCKS[depth], training

    def conv(self, x, name, stride=1):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def norm(self, x, name):
        mean, var = (self.state[f"{name}.running_{part}"].clone() for part in ("mean", "var"))
        return F.batch_norm(
            x, mean, var, self.state[f"{name}.weight"], self.state[f"{name}.bias"], self.training, 0.1, 1e-5
        )

    def up(self, x, name):
        return F.conv_transpose2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride=2)

    def residual(self, x, name, stride):
        bottleneck = f"{name}.conv3.weight" in self.state
        y = F.relu(self.norm(self.conv(x, f"{name}.conv1", 1 if bottleneck else stride), f"{name}.bn1"))
        y = self.norm(self.conv(y, f"{name}.conv2", stride if bottleneck else 1), f"{name}.bn2")
        if bottleneck:
            y = self.norm(self.conv(F.relu(y), f"{name}.conv3"), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in self.state:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return F.relu(x + y)

    def features(self, x):
        maps = [F.relu(self.norm(self.conv(x, "res.conv1", 2), "res.bn1"))]
        y = F.max_pool2d(maps[0], 3, 2, 1)
        for layer, count in enumerate(self.blocks, 1):
            for block in range(count):
                y = self.residual(y, f"res.layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1)
            maps.append(y)
        return maps

    def __call__(self, x):
        *maps, y = self.features(x)
        for number in range(1, 5):
            joined = torch.cat([self.up(y, f"up{number}.tr_conv"), self.conv(maps.pop(), f"up{number}.x_conv")], 1)
            y = self.norm(F.relu(joined), f"up{number}.bn")
        return self.conv(F.relu(self.norm(self.up(y, "up5"), "bnout")), "seg_head")

    def image(self, x, prefix):
        y = self.features(x)[-1]
        for number in range(1, 5):
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
            y = self.norm(F.relu(self.conv(y, f"{prefix}{number}.conv")), f"{prefix}{number}.bn")
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
        if prefix != "supres":
            return self.conv(y, f"{prefix}_head")
        y = self.conv(torch.tanh(self.conv(y, "supres_head.0")), "supres_head.2")
        return F.pixel_shuffle(self.conv(torch.tanh(y), "supres_head.4"), 2)

    def rotation(self, x):
        y = self.features(x)[-1].mean((-2, -1))
        for layer in (0, 2, 4):
            y = F.linear(y, self.state[f"rotate_head.{layer}.weight"], self.state[f"rotate_head.{layer}.bias"])
            y = F.leaky_relu(y, 0.2) if layer < 4 else y
        return y


@pytest.mark.parametrize("depth, in_channels, out_channels", [(18, 3, 2), (34, 1, 1), (50, 4, 3)])
def test_logits_have_the_image_s_size(depth, in_channels, out_channels):
    network = ResUNet(out_channels, in_channels, depth).eval()
    with torch.no_grad():
        assert network(torch.rand(1, in_channels, 64, 96)).shape == (1, out_channels, 64, 96)
        sizes = [tuple(feature.shape[2:]) for feature in network.features(torch.rand(1, in_channels, 64, 96))]
    assert sizes == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_network_equals_plain_functions_after_the_paper(make_resunet, depth, training):
    network = make_resunet(depth, branches=())
    plain = Plain(to_reference_names(network.state_dict()), depth, training)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain(x)
        torch.testing.assert_close(network.train(training)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_branches_equal_plain_functions_that_convolve_after_the_interpolation(make_resunet, training):
    network = make_resunet()
    state = {name: tensor.clone() for name, tensor in to_reference_names(network.state_dict()).items()}
    plain, network = Plain(state, 18, training), network.train(training)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, expected in {
            "reconstruction": plain.image(x, "recon"),
            "denoising": plain.image(x, "denoise"),
            "super_resolution": plain.image(x, "supres"),
            "rotation": plain.rotation(x),
        }.items():
            torch.testing.assert_close(network.branch(name, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth, size", [(18, 64), (50, 64)])
def test_branches_give_images_and_classes(depth, size):
    network = ResUNet(depth=depth, in_channels=2, branches=list(BRANCHES)).eval()
    x = torch.rand(1, 2, size, size)
    with torch.no_grad():
        shapes = {name: tuple(network.branch(name, x).shape) for name in BRANCHES}
    assert shapes == {
        "reconstruction": (1, 2, size, size),
        "denoising": (1, 2, size, size),
        "super_resolution": (1, 2, 2 * size, 2 * size),
        "rotation": (1, 6),
    }


@pytest.mark.parametrize("depth, branches, layers", [(18, (), 25), (34, (), 41), (50, (), 58), (18, BRANCHES, 37)])
def test_every_normalization_layer_can_be_adapted(depth, branches, layers):
    with torch.device("meta"):
        network = ResUNet(depth=depth, branches=branches)
    assert len(list(normalization_layers(network))) == layers
    assert len(collect_affine_parameters(network)) == 2 * layers


@pytest.mark.parametrize("branches", [(), tuple(BRANCHES)])
def test_network_is_scripted_as_monai_exports_it(make_resunet, tmp_path, branches):
    network = make_resunet(branches=branches)
    torch.jit.script(network).save(tmp_path / "model.ts")
    exported = torch.jit.load(tmp_path / "model.ts")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(exported(x), network(x), rtol=0, atol=1e-6)
    assert exported.state_dict().keys() == network.state_dict().keys()


def test_forward_does_not_run_the_branches(make_resunet):
    whole, plain = make_resunet(), ResUNet(depth=18).eval()
    plain.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("branches.")})
    for branch in whole.branches.values():
        branch.forward = None
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(whole(x), plain(x))


def test_unknown_depths_and_branches_are_refused():
    with pytest.raises(GrataError, match="network_def#depth.*18, 34, 50, 101, 152, got 20"):
        ResUNet(depth=20)
    with pytest.raises(GrataError, match="network_def#branches.*'jigsaw'.*reconstruction"):
        ResUNet(depth=18, branches=["jigsaw"])
    with pytest.raises(GrataError, match="no denoising branch.*its branches: rotation"):
        ResUNet(depth=18, branches=["rotation"]).branch("denoising", torch.rand(1, 3, 64, 64))
