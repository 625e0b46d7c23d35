"""GraTa's ablation: every objective as the auxiliary and as the pseudo gradient."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from grata.errors import GrataError
from grata.methods import GraTa
from grata.methods.gradient import OBJECTIVES
from grata.networks import BRANCHES, HEADS, ResUNet
from grata.objectives import BRANCH_LOSSES

PAIRS = list(itertools.product(OBJECTIVES, OBJECTIVES))


def images(seed=0):
    return torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ResUNet(out_channels=2, depth=18, branches=list(BRANCHES))


def test_there_are_thirty_six_pairs():
    assert len(PAIRS) == 36


@pytest.mark.parametrize(("auxiliary", "pseudo"), PAIRS)
def test_a_pair_takes_a_step_that_can_be_repeated(network, auxiliary, pseudo):
    records = []
    for _ in range(2):
        method = GraTa(network, activation="sigmoid", auxiliary=auxiliary, pseudo=pseudo, lr=1e-3, seed=3)
        records.append(method.adapt(images()))
        change = method.parameter_change()["l2"]
        method.restore()
    first, second = records
    assert first.flags == () and change > 0
    assert first.auxiliary_gradient_norm > 0 and first.gradient_norm > 0
    assert -1 <= first.cosine <= 1
    assert first.learning_rate == pytest.approx(1e-3 * (1 + first.cosine) ** 2 / 4)
    for name in ("auxiliary_loss", "loss", "cosine"):
        assert getattr(first, name) == getattr(second, name)
    assert (0 <= first.agreement <= 1) == ("consistency" in (auxiliary, pseudo))


def test_gradients_are_those_of_the_objectives_before_and_after_the_look_ahead(network):
    method = GraTa(network, activation="sigmoid", auxiliary="reconstruction", pseudo="super_resolution", rho=2.0)
    record = method.adapt(images())
    method.restore()
    x = images()
    # training mode normalizes by the batch; the running statistics are put back afterwards
    kept = {k: v.clone() for k, v in network.state_dict().items()}
    network.train()
    parameters = [p for name, p in network.named_parameters() if name in method.parameters]
    loss = F.mse_loss(torch.sigmoid(network.branch("reconstruction", x)), x)
    gradient = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for p, g in zip(parameters, gradient):
            if g is not None:
                p -= 2.0 * g
    half = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    ahead = F.mse_loss(torch.sigmoid(network.branch("super_resolution", half)), x)
    network.load_state_dict(kept)
    network.eval()
    assert record.auxiliary_loss == pytest.approx(loss.item(), rel=1e-5)
    assert record.loss == pytest.approx(ahead.item(), rel=1e-5)
    norm = sum(g.square().sum() for g in gradient if g is not None).sqrt().item()
    assert record.auxiliary_gradient_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("role", ["auxiliary", "pseudo"])
@pytest.mark.parametrize("objective", list(BRANCH_LOSSES))
def test_an_objective_without_its_branch_is_refused_with_the_reason(make_network, role, objective):
    # two of the objectives can use a prepared head with any network
    prepared = "python -m grata prepare" if objective in HEADS else None
    with pytest.raises(GrataError, match=prepared or f"{objective} needs a {objective} branch"):
        GraTa(ResUNet(depth=18, branches=[]), **{"activation": "sigmoid", role: objective})
    with pytest.raises(GrataError, match=prepared or "UNet is not made for"):
        GraTa(make_network(in_channels=3), **{"activation": "sigmoid", role: objective})


def test_an_unknown_objective_is_refused_with_the_names_of_all(make_network):
    with pytest.raises(GrataError, match="auxiliary: .*entropy, consistency, reconstruction"):
        GraTa(make_network(), activation="sigmoid", auxiliary="entropie")


def test_views_in_half_precision_change_nothing_but_the_pseudo_label(network):
    full, half = (GraTa(network, activation="sigmoid", views_autocast=dtype, seed=1) for dtype in (None, "bfloat16"))
    records = []
    for method in (full, half):
        records.append(method.adapt(images()))
        method.restore()
    assert records[0].auxiliary_loss == records[1].auxiliary_loss
    assert records[0].loss != records[1].loss
    assert records[0].loss == pytest.approx(records[1].loss, rel=0.05)


def test_super_resolution_reports_the_sizes_that_it_takes(network):
    method = GraTa(network, activation="sigmoid", auxiliary="super_resolution")
    with pytest.raises(GrataError, match="multiples of 32, got 48×48"):
        method.adapt(torch.rand(1, 3, 96, 96))
    method.restore()


def test_the_agreement_is_that_of_the_views_whichever_gradient_they_give(network):
    records = []
    for pair in ({"auxiliary": "consistency", "pseudo": "entropy"}, {"auxiliary": "consistency"}, {}):
        method = GraTa(network, **{"activation": "sigmoid", **pair})
        records.append(method.adapt(images()))
        method.restore()
    assert all(0 < record.agreement <= 1 for record in records)
    # both views are predicted at look-ahead parameters, which depend on the auxiliary gradient
    assert records[1].agreement != records[2].agreement
