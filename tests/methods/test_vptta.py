"""VPTTA against its formula."""

import copy
import math

import pytest
import torch

from grata.errors import GrataError
from grata.methods import create


def batch(size=1, spatial_dims=2, seed=0, side=16):
    return torch.rand((size, 1, *[side] * spatial_dims), generator=torch.Generator().manual_seed(seed))


def make(network, **settings):
    return create("vptta", network, {"activation": "softmax", **settings})


def prompted(x, prompt):
    """Return the prompted images, computed from amplitude and phase of the full spectrum."""
    axes = list(range(2, x.ndim))
    spectrum = torch.fft.fftn(x, dim=axes)
    full = torch.ones(x.shape[1:], dtype=x.dtype)
    low = torch.cartesian_prod(*[torch.arange(k) - k // 2 for k in prompt.shape[2:]]).reshape(-1, len(axes))
    for c in range(x.shape[1]):
        for frequency in low.tolist():
            centre = [f + k // 2 for f, k in zip(frequency, prompt.shape[2:])]
            full[(c, *frequency)] = prompt[(0, c, *centre)]
    real, imaginary = torch.cos(spectrum.angle()), torch.sin(spectrum.angle())
    amplitude = spectrum.abs() * full
    return torch.fft.ifftn(torch.complex(real * amplitude, imaginary * amplitude), dim=axes).real


def distance_and_logits(network, x, n, tau=5.0):
    """Return loss and output of a copy of the network whose layers normalize by warmed-up statistics."""
    losses, network = [], copy.deepcopy(network)
    m = 1 / (math.sqrt(n) / tau + 1)

    def forward(layer):
        def run(x):
            dims = [0, *range(2, x.ndim)]
            shape = [1, -1] + [1] * (x.ndim - 2)
            mean = m * x.detach().mean(dims) + (1 - m) * layer.running_mean
            variance = m * x.detach().var(dims, correction=0) + (1 - m) * layer.running_var
            own = [d for d in dims if d]
            losses.append((mean - x.mean(own)).abs().mean() + (variance.sqrt() - x.std(own, correction=0)).abs().mean())
            y = (x - mean.view(shape)) / (variance.view(shape) + layer.eps).sqrt()
            return y * layer.weight.view(shape) + layer.bias.view(shape)

        return run

    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.forward = forward(layer)
    logits = network(x)
    return sum(losses) / len(losses), logits


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_images_get_a_prompt_by_the_formula(make_network, spatial_dims, size):
    network = make_network(spatial_dims)
    reference = copy.deepcopy(network).double().eval()
    method = make(network, alpha=0.2, lr=0.05)
    moments = None
    for n in (1, 2):
        x = batch(size, spatial_dims, seed=n)
        record = method.adapt(x)
        prompt = torch.ones([1, 1, *[3] * spatial_dims], dtype=torch.float64, requires_grad=True)
        loss, _ = distance_and_logits(reference, prompted(x.double(), prompt), n)
        assert record.loss == pytest.approx(loss.item(), rel=1e-5)
        (g,) = torch.autograd.grad(loss, prompt)
        first, second = moments or (0 * g, 0 * g)
        moments = (0.9 * first + 0.1 * g, 0.99 * second + 0.01 * g**2)
        with torch.no_grad():
            prompt -= 0.05 * moments[0] / (1 - 0.9**n) / ((moments[1] / (1 - 0.99**n)).sqrt() + 1e-8)
        # Adam's first step is the sign of the gradient, which float32 gets wrong where the gradient is nearly zero
        clear = g.abs() > 1e-5
        state = method.state_dict()
        torch.testing.assert_close(state["prompt"].double()[clear], prompt.detach()[clear], rtol=0, atol=1e-4)
        with torch.no_grad():
            _, logits = distance_and_logits(reference, prompted(x.double(), state["prompt"].double()), n)
            torch.testing.assert_close(method.network(x).double(), logits, rtol=0, atol=1e-5)


def test_gradient_of_the_prompt_to_six_digits(make_network):
    network = make_network().double()
    method = make(network, alpha=0.2)
    reference, x = copy.deepcopy(network).eval(), batch().double()
    record = method.adapt(x)
    prompt = torch.ones([1, 1, 3, 3], dtype=torch.float64, requires_grad=True)
    loss, _ = distance_and_logits(reference, prompted(x, prompt), 1)
    (g,) = torch.autograd.grad(loss, prompt)
    assert record.gradient_norm == pytest.approx(g.norm().item(), rel=1e-6)
    clear = g.abs() > 1e-6
    torch.testing.assert_close(
        method.state_dict()["prompt"][clear], (prompt - 0.05 * g / (g.abs() + 1e-8)).detach()[clear], rtol=0, atol=1e-6
    )


def test_a_prompt_of_ones_leaves_the_image_as_it_is(make_network):
    method, x = make(make_network(), lr=0.0), batch()
    method.adapt(x)
    assert torch.equal(method._prompted(x), x)


def test_a_prompt_starts_from_its_nearest_neighbours_in_the_memory(make_network):
    method = make(make_network(), alpha=0.2, memory=4, neighbours=2, lr=0.2)
    for seed in range(5):
        method.adapt(batch(seed=seed))
    memory = method.state_dict()["memory"]
    keys, prompts = memory["keys"], memory["values"]
    assert len(keys) == len(prompts) == 4
    x = batch(seed=2)
    key = torch.fft.fftshift(torch.fft.fft2(x), (-2, -1))[0, :, 7:10, 7:10].abs()
    # the memory has dropped image 0
    torch.testing.assert_close(keys[1], key.flatten())
    similarity = torch.stack([torch.dot(key.flatten(), k) / (key.norm() * k.norm()) for k in keys])
    order = similarity.argsort(descending=True)[:2]
    weights = (similarity[order] / 0.2).exp()
    expected = sum(w * prompts[i] for w, i in zip(weights / weights.sum(), order.tolist()))
    assert order[0] == 1
    torch.testing.assert_close(method._start(key[None])[0], expected, rtol=0, atol=1e-6)


def test_images_of_another_size_start_from_ones(make_network):
    method = make(make_network(), alpha=0.2, memory=3, neighbours=1)
    method.adapt(batch())
    method.adapt(batch(side=32))
    state = method.state_dict()
    assert state["prompt"].shape == (1, 1, 6, 6) and len(state["memory"]["keys"]) == 1 and state["shape"] == [1, 32, 32]
    assert state["prompt_optimizer"]["state"][0]["step"] == 1
    # an image of the first size again gets no prompt
    x = batch()
    with torch.no_grad():
        torch.testing.assert_close(method.network(x), method._logits(x))


def test_the_network_is_not_touched(make_network):
    network, x = make_network(), batch(2)
    before = copy.deepcopy(network.state_dict())
    method = make(network)
    method.adapt(x)
    assert method.parameters == {} and torch.equal(x, batch(2))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert method.parameter_change() == {"l2": 0.0, "relative": 0.0}


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_statistics_come_closer_to_the_source_on_one_real_scan(make_network, real_scan, activation):
    # almost no warm-up keeps the target at the source's statistics; the batch's would move
    settings = {"activation": activation, "steps": 8, "lr": 0.01, "warm_up": 1e-3}
    method = create("vptta", make_network(3), settings)
    steps = method.adapt(real_scan).steps
    assert len(steps) == 8 and steps[-1].loss < steps[0].loss


def test_a_step_that_is_not_finite_is_skipped_and_not_remembered(make_network):
    method = make(make_network())
    record = method.adapt(batch() * float("nan"))
    assert record.flags == ("non_finite_loss", "step_skipped") and record.learning_rate == 0
    state = method.state_dict()
    assert state["memory"]["keys"] == [] and torch.equal(state["prompt"], torch.ones(1, 1, 1, 1))
    assert method.adapt(batch()).flags == ()


def test_a_constant_image_gives_a_finite_gradient(make_network):
    assert make(make_network()).adapt(torch.zeros(1, 1, 16, 16)).flags == ()


@pytest.mark.parametrize("norm", ["instance", ("group", {"num_groups": 2})])
def test_a_network_without_running_statistics_is_refused(make_network, norm):
    with pytest.raises(GrataError, match="running statistics.*tent and grata fit"):
        make(make_network(norm=norm))


def test_torchscript_is_refused(make_network):
    with pytest.raises(GrataError, match="TorchScript"):
        make(torch.jit.script(make_network()))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("alpha", 1.5),
        ("warm_up", 0),
        ("memory", 0),
        ("neighbours", 41),
        ("lr", -1),
        ("betas", [0.9]),
        ("betas", [0.9, 1.0]),
        ("steps", 0),
        ("batch_statistics", 1.0),
    ],
)
def test_wrong_settings_are_refused_by_name(make_network, setting, value):
    with pytest.raises(GrataError, match=setting):
        make(make_network(), **{setting: value})


def test_a_gradient_below_what_float16_resolves_still_teaches_the_prompt(make_network):
    x = 1e-4 * batch(2, side=256)
    half, exact = (make(make_network(), autocast=precision).adapt(x) for precision in ("float16", None))
    assert not half.flags and half.gradient_norm == pytest.approx(exact.gradient_norm, rel=0.01)
