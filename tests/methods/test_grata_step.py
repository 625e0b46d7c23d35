"""One GraTa step against an independent float64 computation of the paper's formulas."""

import copy
import math

import pytest
import torch
from monai.networks.nets import UNet
from torch.func import functional_call
from torch.nn import functional as F

from grata.methods import GraTa

LAWS = {
    "quadratic": lambda c: (1 + c) ** 2 / 4,
    "linear": lambda c: (1 + c) / 2,
    "softplus": lambda c: math.log(1 + math.exp(c)),
    "constant": lambda c: 1.0,
}


def reference_step(network, x, strong, activation, rho, lr, law, names):
    """Return the losses, cosine, learning rate and the parameters after Adam's first step (β 0.9, 0.999, ε 1e-8)."""
    network = copy.deepcopy(network).double()
    for module in network.modules():
        module.training = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    frozen = {k: v for k, v in network.state_dict().items() if k not in names}
    theta = {k: v.clone() for k, v in network.state_dict().items() if k in names}
    probability = torch.sigmoid if activation == "sigmoid" else (lambda z: torch.softmax(z, 1))

    def forward(parameters, image):
        return functional_call(network, {**{k: v.clone() for k, v in frozen.items()}, **parameters}, (image,))

    def gradient(loss_of, parameters):
        leaves = {k: v.clone().requires_grad_() for k, v in parameters.items()}
        loss = loss_of(leaves)
        return loss.detach().item(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))

    def entropy(parameters):
        p = probability(forward(parameters, x))
        log = torch.log(p + 1e-6) if activation == "sigmoid" else torch.log(p)
        return -(p * log).sum(1).mean()

    aux_loss, g_aux = gradient(entropy, theta)
    ahead = {k: theta[k] - rho * g_aux[k] for k in theta}
    axes = list(range(2, x.ndim))
    moves = [(lambda z: z, lambda z: z)] + [(lambda z, a=a: z.flip(a), lambda z, a=a: z.flip(a)) for a in axes]
    turns = (1, 2, 3) if x.shape[-1] == x.shape[-2] else (2,)
    moves += [(lambda z, k=k: z.rot90(k, (-2, -1)), lambda z, k=k: z.rot90(4 - k, (-2, -1))) for k in turns]
    pseudo = torch.stack([back(probability(forward(ahead, move(x)))) for move, back in moves]).mean(0).detach()

    def consistency(parameters):
        z = forward(parameters, strong)
        if activation == "sigmoid":
            return (-(pseudo * F.logsigmoid(z) + (1 - pseudo) * F.logsigmoid(-z))).mean()
        return -(pseudo * torch.log_softmax(z, 1)).sum(1).mean()

    pse_loss, g_pse = gradient(consistency, ahead)
    a, b = (torch.cat([g[k].flatten() for k in theta]) for g in (g_aux, g_pse))
    cosine = float(a @ b / (a.norm() * b.norm()))
    eta = lr * LAWS[law](cosine)
    after = {k: theta[k] - eta * g_pse[k] / (g_pse[k].abs() + 1e-8) for k in theta}
    return aux_loss, pse_loss, cosine, eta, a.norm().item(), b.norm().item(), after


CASES = [
    # dims, norm, size, activation, law, rho
    (2, "batch", (2, 1, 16, 16), "sigmoid", "quadratic", 1.0),
    (2, "batch", (1, 1, 16, 12), "softmax", "linear", 0.5),
    (3, "batch", (1, 1, 8, 12, 12), "softmax", "quadratic", 1.0),
    (3, "batch", (2, 1, 8, 8, 12), "sigmoid", "softplus", 2.0),
    (3, ("instance", {"affine": True}), (1, 1, 8, 8, 8), "softmax", "constant", 1.0),
    (2, ("group", {"num_groups": 2}), (2, 1, 12, 12), "sigmoid", "quadratic", 0.0),
]


@pytest.mark.parametrize(("dims", "norm", "size", "activation", "law", "rho"), CASES)
def test_a_step_equals_the_formulas(make_network, dims, norm, size, activation, law, rho):
    network = make_network(dims, norm)
    torch.manual_seed(3)
    x, strong = torch.rand(size), torch.rand(size)
    method = GraTa(network, activation=activation, lr=0.1, rho=rho, learning_rate_law=law)
    expected = reference_step(network, x.double(), strong.double(), activation, rho, 0.1, law, set(method.parameters))
    record = method.adapt(x, strong_view=strong)
    aux_loss, pse_loss, cosine, eta, aux_norm, pse_norm, after = expected
    assert record.flags == ()
    assert record.auxiliary_loss == pytest.approx(aux_loss, rel=1e-5)
    assert record.loss == pytest.approx(pse_loss, rel=1e-5)
    assert record.cosine == pytest.approx(cosine, abs=1e-4)
    assert record.learning_rate == pytest.approx(eta, rel=1e-3)
    assert record.auxiliary_gradient_norm == pytest.approx(aux_norm, rel=1e-3)
    assert record.gradient_norm == pytest.approx(pse_norm, rel=1e-3)
    moved = torch.cat([(p.detach() - method._source[n]).flatten() for n, p in method.parameters.items()])
    should = torch.cat([(after[n] - method._source[n].double()).flatten() for n in method.parameters])
    assert float((moved - should).norm() / should.norm()) < 0.02


def test_both_signs_of_the_cosine_occur_and_conflict_takes_the_smaller_step():
    """Cover positive cosines too; the reference traces have negative ones only."""
    steps = []
    for seed in range(12):
        torch.manual_seed(seed)
        network = UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(4, 8), strides=(2,), norm="batch")
        for parameter in network.parameters():
            if parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, -2.0, 2.0)
        x = torch.rand(1, 1, 16, 16)
        record = GraTa(network, activation="softmax", lr=1.0).adapt(x, strong_view=x.flip(-1))
        steps.append((record.cosine, record.learning_rate))
    steps.sort()
    assert steps[0][0] < -0.2 and steps[-1][0] > 0.2
    assert [lr for _, lr in steps] == sorted(lr for _, lr in steps)
    for cosine, lr in steps:
        assert lr == pytest.approx((1 + cosine) ** 2 / 4, rel=1e-6)


def test_without_look_ahead_and_with_a_constant_law_it_is_plain_self_training(make_network):
    network = make_network()
    x, strong = torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)
    method = GraTa(
        network,
        activation="sigmoid",
        optimizer="SGD",
        lr=0.1,
        rho=0.0,
        learning_rate_law="constant",
        views=["identity"],
    )
    twin = copy.deepcopy(network).eval()
    for module in twin.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
    target = twin(x).sigmoid().detach()
    loss = F.binary_cross_entropy_with_logits(twin(strong), target)
    loss.backward()
    method.adapt(x, strong_view=strong)
    named = dict(twin.named_parameters())
    for name, parameter in method.parameters.items():
        torch.testing.assert_close(parameter.detach(), named[name].detach() - 0.1 * named[name].grad)
