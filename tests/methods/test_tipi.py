"""TIPI against its formula."""

import copy

import nibabel
import pytest
import torch

from grata.errors import GrataError
from grata.methods import METHODS

TIPI = METHODS["tipi"]


def batch(seed=0, samples=2, dims=2):
    return torch.rand(samples, 1, *[16] * dims, generator=torch.Generator().manual_seed(seed))


def probabilities(logits, activation):
    """Return probabilities ``(B, G, K, ...)`` by their definition."""
    if activation == "softmax":
        return logits.softmax(1)[:, None]
    return torch.stack([logits.sigmoid(), 1 - logits.sigmoid()], 2)


def divergence(p, q):
    return (p * (p / q).log()).sum((1, 2)).mean()


def watched(method):
    """Return a list that fills with the inputs of the network, one for each forward."""
    seen = []
    method._network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    return seen


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("reverse", [True, False])
def test_one_step_is_that_of_the_formula(make_network, activation, reverse):
    network = make_network()
    reference = copy.deepcopy(network).double().train()
    method = TIPI(network, activation=activation, epsilon=0.1, lr=0.5, reverse=reverse)
    seen = watched(method)
    x = batch() * 3 - 1
    record = method.adapt(x)
    clean, started, adversarial = seen
    assert torch.equal(clean, x)

    bound = 0.1 * (x.amax((2, 3), keepdim=True) - x.amin((2, 3), keepdim=True)).double()
    start = (started.double() - x.double()).requires_grad_()
    p = probabilities(reference(x.double()), activation).detach()

    def loss_at(delta):
        q = probabilities(reference(x.double() + delta), activation)
        return divergence(q, p) if reverse else divergence(p, q)

    (gradient,) = torch.autograd.grad(loss_at(start), start)
    expected = (start.detach() + bound * gradient.sign()).clamp(-bound, bound)
    sure = gradient.abs() > 1e-3 * gradient.abs().max()
    torch.testing.assert_close((adversarial.double() - x.double())[sure], expected[sure], rtol=0, atol=1e-6)

    loss = loss_at(adversarial.double() - x.double())
    assert record.loss == pytest.approx(loss.item(), rel=1e-4)
    parameters = dict(reference.named_parameters())
    for name, adapted in method.parameters.items():
        (gradient,) = torch.autograd.grad(loss, parameters[name], retain_graph=True)
        # the rate is for each image, so that a batch of two takes twice as much
        torch.testing.assert_close(adapted.detach().double(), parameters[name].detach() - gradient, rtol=0, atol=2e-6)


def test_the_perturbation_is_bounded_and_hits_harder_than_a_random_one(make_network):
    method = TIPI(make_network(), activation="softmax", epsilon=0.05, lr=0.0)
    seen = watched(method)
    x = batch(0, 1) * 100
    method.adapt(x)
    with torch.no_grad():
        p, first, second = (method._logits(v).softmax(1) for v in seen[:3])
    spread = x.max() - x.min()
    assert (seen[2] - x).abs().max() <= 0.05 * spread * (1 + 1e-4)
    assert divergence(second[:, None], p[:, None]) > divergence(first[:, None], p[:, None])


def test_the_learning_rate_is_for_each_image_of_the_batch(make_network):
    for samples in (1, 4):
        assert TIPI(make_network(), activation="sigmoid").adapt(batch(0, samples)).learning_rate == pytest.approx(
            samples * 2.5e-4 / 64
        )


def test_each_forward_has_its_own_batch_statistics_and_the_running_ones_stay(make_network):
    network = make_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    method = TIPI(network, activation="sigmoid", lr=0.1)
    method.adapt(batch())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in method.parameters), name


def test_the_start_is_drawn_from_the_methods_own_generator(make_network):
    a, b, c = (TIPI(make_network(), activation="sigmoid", seed=seed, lr=0.1) for seed in (1, 1, 2))
    losses = [method.adapt(batch()).loss for method in (a, b, c)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_takes_any_images_and_does_not_change_them(make_network, dims, samples, activation):
    method = TIPI(make_network(dims), activation=activation)
    x = batch(0, samples, dims)
    kept = x.clone()
    record = method.adapt(x)
    assert not record.flags and record.loss > 0 and torch.equal(x, kept)


def test_its_divergence_falls_over_several_steps_on_one_scan(make_network, bundle):
    file = bundle / "sample_scans" / "nifti" / "icbm152_left.nii.gz"
    scan = torch.from_numpy(nibabel.load(file).get_fdata(dtype="float32"))[4:28, 4:28, 4:28]
    scan = scan[tuple(slice(0, s // 2 * 2) for s in scan.shape)]
    image = ((scan - scan.min()) / (scan.max() - scan.min()))[None, None]
    method = TIPI(make_network(3), activation="softmax", lr=1.0, epsilon=0.05)
    losses = [method.adapt(image).loss for _ in range(20)]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_constant_image_takes_a_step_of_zero(make_network):
    method = TIPI(make_network(), activation="sigmoid", lr=0.1)
    record = method.adapt(torch.full((1, 1, 16, 16), 0.5))
    assert record.loss == pytest.approx(0, abs=1e-6) and record.flags == ()


def test_a_non_finite_image_is_flagged(make_network):
    assert "step_skipped" in TIPI(make_network(), activation="sigmoid").adapt(batch() * float("inf")).flags


def test_half_precision_works(make_network):
    record = TIPI(make_network(), activation="sigmoid", autocast="bfloat16").adapt(batch())
    assert not record.flags and record.loss > 0


@pytest.mark.parametrize(
    ("settings", "name"), [({"epsilon": 0}, "epsilon"), ({"epsilon": -1.0}, "epsilon"), ({"reverse": 1}, "reverse")]
)
def test_wrong_settings_are_refused_by_name(make_network, settings, name):
    with pytest.raises(GrataError, match=f"^{name}: must be"):
        TIPI(make_network(), **{"activation": "sigmoid", **settings})
