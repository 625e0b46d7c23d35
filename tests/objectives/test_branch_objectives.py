import pytest
import torch
from torch import nn

from grata.errors import GrataError
from grata.networks import BRANCHES, ResUNet
from grata.normalization import collect_affine_parameters
from grata.objectives import (
    ROTATION_VIEWS,
    check_branch,
    denoising_loss,
    reconstruction_loss,
    rotation_loss,
    super_resolution_loss,
)

LOSSES = {
    "reconstruction": lambda branch, x, generator: reconstruction_loss(branch, x),
    "denoising": denoising_loss,
    "super_resolution": lambda branch, x, generator: super_resolution_loss(branch, x),
    "rotation": rotation_loss,
}
TURNS = (
    lambda x: x,
    lambda x: x.flip(-1),
    lambda x: x.flip(-2),
    lambda x: x.transpose(-2, -1).flip(-2),
    lambda x: x.flip(-1).flip(-2),
    lambda x: x.transpose(-2, -1).flip(-1),
)
"""Identity, both flips and the three quarter turns counter-clockwise, without torch.rot90."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape):
    return torch.rand(shape, generator=seeded(1))


class Recorder:
    """Branch that records its inputs and returns ``answer(input)``."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def __call__(self, name, x):
        self.calls.append((name, x))
        return self.answer(x)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResUNet(depth=18, branches=list(BRANCHES)).eval()


def squared_error(logits, x):
    return ((1 / (1 + torch.exp(-logits)) - x) ** 2).sum() / x.numel()


def test_reconstruction_is_the_squared_error_of_the_sigmoid():
    x, branch = images(2, 3, 8, 6), Recorder(lambda x: 3 * x - 1)
    torch.testing.assert_close(reconstruction_loss(branch, x), squared_error(3 * x - 1, x))
    ((name, given),) = branch.calls
    assert name == "reconstruction" and torch.equal(given, x)


@pytest.mark.parametrize("std", [0.1, 0.3])
def test_denoising_compares_with_the_image_without_the_noise(std):
    x, branch = images(4, 3, 32, 32), Recorder(lambda x: 3 * x - 1)
    loss = denoising_loss(branch, x, seeded(), std=std)
    ((name, given),) = branch.calls
    assert name == "denoising"
    torch.testing.assert_close(loss, squared_error(3 * given - 1, x))
    noise = given - x
    assert noise.mean().item() == pytest.approx(0, abs=0.05 * std)
    assert noise.std().item() == pytest.approx(std, rel=0.05)


def test_super_resolution_sees_the_mean_of_every_2_by_2_pixels():
    x, branch = images(2, 3, 8, 6), Recorder(lambda x: x.repeat_interleave(2, -2).repeat_interleave(2, -1))
    loss = super_resolution_loss(branch, x)
    ((name, given),) = branch.calls
    half = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    assert name == "super_resolution"
    torch.testing.assert_close(given, half)
    torch.testing.assert_close(loss, squared_error(branch.answer(half), x))


def test_rotation_is_the_cross_entropy_of_the_turn_of_each_sample():
    x = images(40, 1, 4, 4)
    logits = torch.randn((40, 6), generator=seeded(2))
    branch = Recorder(lambda views: logits)
    loss = rotation_loss(branch, x, seeded())
    ((name, views),) = branch.calls
    classes = [next(k for k, turn in enumerate(TURNS) if torch.equal(turn(s), v)) for s, v in zip(x, views)]
    assert name == "rotation" and set(classes) == set(range(6)) and len(ROTATION_VIEWS) == 6
    probabilities = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    expected = -torch.stack([probabilities[i, k].log() for i, k in enumerate(classes)]).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("height, width", [(4, 6), (6, 4)])
def test_rotation_refuses_images_whose_shape_shows_the_turn(height, width):
    with pytest.raises(GrataError, match=f"square images, and these images have {height}×{width} pixels. Use square"):
        rotation_loss(Recorder(lambda x: x), images(1, 3, height, width), seeded())


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 6)])
def test_rotation_uses_the_named_classes(shape):
    x = images(30, 1, *shape)
    names = ["flip_h", "identity", "flip_w"] + ["flip_d"] * (len(shape) - 2)
    turns = {"flip_h": lambda x: x.flip(-2), "identity": lambda x: x, "flip_w": lambda x: x.flip(-1)}
    turns["flip_d"] = lambda x: x.flip(-3)
    logits = torch.randn((30, len(names)), generator=seeded(2))
    branch = Recorder(lambda views: logits)
    loss = rotation_loss(branch, x, seeded(), names)
    ((_, views),) = branch.calls
    classes = [next(k for k, n in enumerate(names) if torch.equal(turns[n](s), v)) for s, v in zip(x, views)]
    assert set(classes) == set(range(len(names)))
    log_probabilities = logits - logits.exp().sum(1, True).log()
    torch.testing.assert_close(loss, -log_probabilities[range(30), classes].mean())


def test_a_quarter_turn_needs_only_its_own_plane_square():
    branch = Recorder(lambda views: torch.zeros(2, 2))
    rotation_loss(branch, images(2, 1, 3, 4, 4), seeded(), ["identity", "rot90"])
    with pytest.raises(GrataError, match="a square plane for rot90_dh, and these images have 3×4×4 voxels"):
        rotation_loss(branch, images(2, 1, 3, 4, 4), seeded(), ["identity", "rot90_dh"])
    with pytest.raises(GrataError, match="views: there is no weak view 'rot45'"):
        rotation_loss(branch, images(2, 1, 4, 4), seeded(), ["rot45"])


def test_denoising_takes_volumes():
    x, branch = images(2, 1, 4, 6, 5), Recorder(lambda x: 3 * x - 1)
    loss = denoising_loss(branch, x, seeded())
    torch.testing.assert_close(loss, squared_error(3 * branch.calls[0][1] - 1, x))


@pytest.mark.parametrize("name", LOSSES)
def test_draws_come_only_from_the_generator(network, name):
    x = images(2, 3, 64, 64)
    state = torch.get_rng_state()
    with torch.no_grad():
        first, again, other = (LOSSES[name](network.branch, x, seeded(seed)).item() for seed in (0, 0, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert (first == other) == (name in ("reconstruction", "super_resolution"))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_reach_every_affine_parameter_of_the_encoder_and_no_input(network, name):
    x = images(2, 3, 64, 64)
    before = x.clone()
    loss = LOSSES[name](network.branch, x, seeded())
    assert loss.ndim == 0 and torch.isfinite(loss)
    affine = {k: v for k, v in collect_affine_parameters(network).items() if k.startswith("encoder.")}
    gradients = torch.autograd.grad(loss, list(affine.values()))
    assert len(affine) == 40
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_losses_keep_the_dtype_of_the_images(name, dtype):
    x = images(2, 3, 8, 8).to(dtype)
    shapes = {"rotation": lambda x: x.flatten(1)[:, :6], "super_resolution": lambda x: x.repeat(1, 1, 2, 2)}
    branch = Recorder(shapes.get(name, lambda x: x))
    assert torch.isfinite(LOSSES[name](branch, x, seeded()))
    assert branch.calls[0][1].dtype == dtype


@pytest.mark.parametrize("name", BRANCHES)
def test_a_network_without_the_branch_is_refused_with_the_reason(network, name):
    check_branch(network, name)
    other = next(branch for branch in BRANCHES if branch != name)
    with torch.device("meta"):
        refused = {
            f"needs a {name} branch, and this network has none. Name it in network_def#branches": ResUNet(depth=18),
            f"needs a {name} branch, and this network has {other}": ResUNet(depth=18, branches=[other]),
            f"objective {name} needs a network with a {name} branch, and Conv2d is not made for": nn.Conv2d(1, 1, 1),
        }
    for message, without in refused.items():
        with pytest.raises(GrataError, match=message):
            check_branch(without, name)
