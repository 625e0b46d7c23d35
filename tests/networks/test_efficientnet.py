"""EfficientUNet: its shapes, its scripted form, its branches, and published ImageNet weights of its encoder."""

import pytest
import torch
from monai.networks.nets import FlexibleUNet
from torch.nn import functional as F

from grata import GrataError
from grata.networks import BRANCHES, EfficientNetLite0, EfficientUNet, load_encoder
from grata.views import ROTATION_VIEWS


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = EfficientUNet(out_channels=2, branches=list(BRANCHES))
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.2, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return made.eval()


@pytest.mark.parametrize("size", [(64, 96), (32, 32)])
def test_logits_have_the_size_of_the_image(network, size):
    with torch.no_grad():
        assert network(torch.rand(2, 3, *size)).shape == (2, 2, *size)


def test_sides_that_cannot_be_halved_five_times_are_refused(network):
    with pytest.raises(GrataError, match="EfficientUNet takes images whose sides are multiples of 32, got 70×51"):
        network(torch.rand(1, 3, 70, 51))


def test_the_encoder_halves_the_resolution_five_times():
    maps = EfficientNetLite0()(torch.rand(1, 3, 64, 128))
    assert [tuple(found.shape[1:]) for found in maps] == [
        (16, 32, 64),
        (24, 16, 32),
        (40, 8, 16),
        (112, 4, 8),
        (320, 2, 4),
    ]


def test_every_normalization_is_batch_normalization_with_scale_and_shift(network):
    norms = [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._NormBase)]
    assert len(norms) == 48 + 10 + 4 * 3 and all(norm.affine and norm.track_running_stats for norm in norms)


def test_its_scripted_form_is_the_same_function():
    plain, x = EfficientUNet(out_channels=2).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(torch.jit.script(plain)(x), plain(x))


def test_branches(network):
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert network.branch("rotation", x).shape == (2, len(ROTATION_VIEWS))
        assert network.branch("denoising", x).shape == x.shape == network.branch("reconstruction", x).shape
        assert network.branch("super_resolution", F.avg_pool2d(x, 2)).shape == x.shape
    with pytest.raises(GrataError, match="has no rotation branch"):
        EfficientUNet(branches=["denoising"]).branch("rotation", x)
    with pytest.raises(GrataError, match="there is no branch 'sharpening'"):
        EfficientUNet(branches=["sharpening"])


def test_monai_knows_the_encoder_by_name():
    network = FlexibleUNet(3, 1, "efficientnet-lite0")
    assert isinstance(network.encoder, EfficientNetLite0)


def published(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random weights under the published names, made from the paper's table, not from the class."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def convolution(name, *shape):
        state[f"{name}.weight"] = torch.randn(*shape, generator=generator) / (shape[1] * shape[2] * shape[3]) ** 0.5

    def norm(name, channels):
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{key}"] = torch.rand(channels, generator=generator) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    rows = [(1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 3), (6, 5, 112, 3), (6, 5, 192, 4), (6, 3, 320, 1)]
    number, channels = 0, 32
    for expansion, kernel, out_channels, count in rows:
        for _ in range(count):
            wide = channels * expansion
            if expansion > 1:
                convolution(f"_blocks.{number}._expand_conv", wide, channels, 1, 1)
                norm(f"_blocks.{number}._bn0", wide)
            convolution(f"_blocks.{number}._depthwise_conv", wide, 1, kernel, kernel)
            norm(f"_blocks.{number}._bn1", wide)
            convolution(f"_blocks.{number}._project_conv", out_channels, wide, 1, 1)
            norm(f"_blocks.{number}._bn2", out_channels)
            number, channels = number + 1, out_channels
    convolution("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    state["_fc.weight"], state["_fc.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    return state


def published_features(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Compute the deepest feature from the published weights, as their authors' network does."""

    def norm(y, name):
        values = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, *values, eps=1e-3)

    strides = {1: 2, 3: 2, 5: 2, 11: 2}
    y = F.relu6(norm(F.conv2d(x, state["_conv_stem.weight"], stride=2, padding=1), "_bn0"))
    for number in range(16):
        block, before = f"_blocks.{number}", y
        if number:
            y = F.relu6(norm(F.conv2d(y, state[f"{block}._expand_conv.weight"]), f"{block}._bn0"))
        kernel = state[f"{block}._depthwise_conv.weight"]
        stride = strides.get(number, 1)
        y = F.conv2d(y, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=len(kernel))
        y = F.relu6(norm(y, f"{block}._bn1"))
        y = norm(F.conv2d(y, state[f"{block}._project_conv.weight"]), f"{block}._bn2")
        y = y + before if y.shape == before.shape else y
    return y


def test_published_weights_are_the_same_function_of_the_image(tmp_path):
    state = published()
    torch.save(state, tmp_path / "lite0.pth")
    network = EfficientUNet()
    unused = load_encoder(network, tmp_path / "lite0.pth")
    assert set(unused) == {key for key in state if key.startswith(("_conv_head", "_bn1", "_fc"))}
    # 127 of 255 is what the published network takes for black: with it around the image no border differs.
    image = torch.full((1, 3, 160, 160), 127 / 255)
    image[:, :, 40:120, 40:120] = torch.rand(1, 3, 80, 80)
    with torch.no_grad():
        found = network.encoder.eval()(image)[-1]
        wanted = published_features(state, (image * 255 - 127) / 128)
        stem = network.encoder.stem(image)
    first = F.relu6(
        F.batch_norm(
            F.conv2d((image * 255 - 127) / 128, state["_conv_stem.weight"], stride=2, padding=1),
            *(state[f"_bn0.{key}"] for key in ("running_mean", "running_var", "weight", "bias")),
            eps=1e-3,
        )
    )
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert torch.allclose(stem[inside], first[inside], atol=1e-4)
    assert found.shape == wanted.shape


def test_weights_of_another_network_are_refused(tmp_path):
    state = published()
    del state["_blocks.3._bn1.bias"]
    torch.save(state, tmp_path / "lite0.pth")
    with pytest.raises(GrataError):
        load_encoder(EfficientUNet(), tmp_path / "lite0.pth")
    torch.save(published(), tmp_path / "lite0.pth")
    with pytest.raises(GrataError, match="3 channels"):
        load_encoder(EfficientUNet(in_channels=1), tmp_path / "lite0.pth")
    with pytest.raises(GrataError, match="has two dimensions"):
        EfficientNetLite0(spatial_dims=3)
