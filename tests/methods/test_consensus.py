"""Consensus against its formula, and its promise to be the source where its members are broken."""

import copy

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from grata import GrataError
from grata.methods import Prepared, create
from grata.methods.consensus import Consensus, self_dice
from grata.networks import network_digest
from grata.normalization import ImageSpread
from grata.predictions import activate


def image(seed=0, count=1, spatial_dims=2):
    return torch.rand((count, 1, *[16] * spatial_dims), generator=torch.Generator().manual_seed(seed))


def norms(network):
    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)]


def prepared(network, seeds=range(20, 26)):
    spread = ImageSpread(network.eval())
    with torch.no_grad(), spread.watching():
        for seed in seeds:
            network(image(seed))
    return Prepared(
        image_statistics=spread.collected(), images=len(seeds), network="UNet", digest=network_digest(network)
    )


def naive(network, x, activation, statistics, known=None, tolerance=(0.5, 3.0)):
    """A float64 forward of one image whose layers normalize channel by channel, written out."""
    network = copy.deepcopy(network).double().eval()

    def normalize(i, name, layer):
        first, last = tolerance
        t = first + (last - first) * i / (len(norms(network)) - 1)

        def forward(z):
            out = torch.empty_like(z)
            for c in range(z.shape[1]):
                m, v = z[:, c].mean(), z[:, c].var(unbiased=False)
                if statistics == "excess":
                    typical, sd, log, log_sd = (
                        known[f"{name}.{part}"][c].double()
                        for part in ("mean", "mean_sd", "log_variance", "log_variance_sd")
                    )
                    d = m - typical
                    mean = layer.running_mean[c] + torch.sign(d) * max(abs(d) - t * sd, torch.tensor(0.0))
                    d = torch.log(v + layer.eps) - log
                    factor = torch.exp(torch.sign(d) * max(abs(d) - t * log_sd, torch.tensor(0.0)))
                    scale = (layer.running_var[c] + layer.eps) * factor
                else:
                    mean = statistics * m + (1 - statistics) * layer.running_mean[c]
                    scale = statistics * v + (1 - statistics) * layer.running_var[c] + layer.eps
                out[:, c] = (z[:, c] - mean) / scale.sqrt() * layer.weight[c] + layer.bias[c]
            return out

        return forward

    for i, (name, layer) in enumerate(norms(network)):
        layer.forward = normalize(i, name, layer)
    with torch.no_grad():
        return activate(network(x.double()), activation)


def dice_by_hand(p, activation):
    values = []
    channels = range(1, p.shape[1]) if activation == "softmax" else range(p.shape[1])
    for c in channels:
        h = (p.argmax(1) == c if activation == "softmax" else p[:, c] > 0.5).double()
        total = p[:, c].sum() + h.sum()
        values.append(2 * (p[:, c] * h).sum() / total)
    return torch.stack(values).mean()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_follows_the_formula(make_network, activation):
    network, x = make_network().eval(), image(3)
    known = prepared(copy.deepcopy(network))
    members = [(0, "identity"), (0.3, "flip_h"), ("excess", "flip_w"), ("excess", "rot180")]
    method = Consensus(network, activation=activation, members=members, prepared=known, least_agreement=0)
    turn = {"identity": (), "flip_h": (-2,), "flip_w": (-1,), "rot180": (-2, -1)}
    parts = [
        naive(network, x.flip(turn[view]), activation, statistics, known.image_statistics).flip(turn[view])
        for statistics, view in members
    ]
    weights = (torch.stack([dice_by_hand(p, activation) for p in parts]) / 0.1).softmax(0)
    expected = sum(w * p for w, p in zip(weights, parts))
    method.adapt(x)
    with torch.no_grad():
        assert torch.allclose(activate(method.network(x), activation).double(), expected, atol=1e-5)


def test_equal_weights_without_a_temperature(make_network):
    network, x = make_network().eval(), image(3)
    method = Consensus(network, activation="sigmoid", members=[[0, "identity"], [1, "flip_w"]], temperature=None)
    parts = [naive(network, x, "sigmoid", 0), naive(network, x.flip(-1), "sigmoid", 1).flip(-1)]
    method.adapt(x)
    with torch.no_grad():
        assert torch.allclose(method.network(x).sigmoid().double(), sum(parts) / 2, atol=1e-5)


def test_excess_is_the_source_on_images_like_those_of_the_source(make_network):
    """Unlike the image's own statistics, which change what a good network says at home."""
    network = make_network().eval()
    known = prepared(copy.deepcopy(network), range(20, 60))
    source = copy.deepcopy(network)
    settings = {"members": [["excess", "identity"]], "least_agreement": 0, "tolerance": (4, 4)}
    method = Consensus(network, activation="sigmoid", prepared=known, **settings)
    for seed in range(3):
        method.adapt(image(seed))
        with torch.no_grad():
            assert torch.allclose(method.network(image(seed)), source(image(seed)), atol=1e-4)
    brighter = 5 * image(0) + 3
    method.adapt(brighter)
    with torch.no_grad():
        assert not torch.allclose(method.network(brighter), source(brighter), atol=1e-2)


def test_excess_undoes_a_shift_of_the_images(make_network):
    """What lies beyond the tolerance is corrected: brighter images are predicted nearly as the images themselves."""
    network = make_network().eval()
    known = prepared(copy.deepcopy(network), range(20, 60))
    source, x = copy.deepcopy(network), image(0)
    settings = {"members": [["excess", "identity"]], "least_agreement": 0, "tolerance": (1, 1)}
    method = Consensus(network, activation="sigmoid", prepared=known, **settings)
    shifted = 3 * x + 1
    method.adapt(shifted)
    with torch.no_grad():
        expected = source(x)
        assert (method.network(shifted) - expected).abs().mean() < 0.5 * (source(shifted) - expected).abs().mean()


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(make_network):
    both = torch.cat([image(1), 4 * image(2)])
    method = Consensus(make_network(), activation="sigmoid", least_agreement=0)
    method.adapt(both)
    with torch.no_grad():
        assert torch.allclose(method.network(both)[:1], method.network(both[:1]), atol=1e-5)


def test_costs_four_forwards_an_image_also_while_members_are_tried(make_network):
    network, calls = make_network(), []
    network.register_forward_hook(lambda *_: calls.append(1))
    method = Consensus(network, activation="sigmoid", probe=2)
    for seed in range(4):
        before = len(calls)
        method.adapt(image(seed))
        method.network(image(seed))
        assert len(calls) - before == 4


class Broken(nn.Module):
    """A network that batch statistics destroy: with them, its prediction depends on which way up the image is."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False)

    def forward(self, x):
        own = (self.norm(x) - x).abs().mean() > 1e-3
        ramp = torch.linspace(-8, 8, x.shape[-1]).expand_as(x)
        return ramp if own else torch.full_like(x, 2.0)


def test_members_whose_views_disagree_are_left_out_and_the_source_predicts():
    network = Broken().eval()
    members = [(0, "identity"), (0, "flip_h"), (1.0, "identity"), (1.0, "flip_w")]
    method = Consensus(network, activation="sigmoid", members=members)
    x = image()
    method.adapt(x)
    with torch.no_grad():
        # from the first image on
        assert torch.allclose(method.network(x), torch.full_like(x, 2.0), atol=1e-4)
    assert method._left() == [(0.0, "identity"), (0.0, "flip_h")]
    always = Consensus(Broken().eval(), activation="sigmoid", members=members, least_agreement=0)
    always.adapt(x)
    with torch.no_grad():
        assert not torch.allclose(always.network(x), torch.full_like(x, 2.0), atol=0.1)


class Sided(nn.Module):
    """A network that was not trained on mirrored images: it predicts the left half."""

    def forward(self, x):
        return 4 * torch.linspace(2, -2, x.shape[-1]).expand_as(x).sign()


def test_where_the_views_of_the_source_disagree_it_predicts_alone():
    network = Sided()
    x = image()
    method = Consensus(network, activation="sigmoid", members=[(0, "identity"), (0, "flip_w")])
    method.adapt(x)
    assert torch.allclose(method.network(x), network(x), atol=1e-4)


def test_networks_without_running_statistics_differ_by_views_alone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = ("instance", {"affine": True})
        network = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), norm=norm).eval()
    source, x = copy.deepcopy(network), image(spatial_dims=3)
    method = Consensus(network, activation="softmax", temperature=None, least_agreement=0)
    method.adapt(x)
    turns = ((), (-2,), (-1,), (-2, -1))
    with torch.no_grad():
        expected = sum(source(x.flip(turn)).softmax(1).flip(turn) for turn in turns) / 4
        assert torch.allclose(method.network(x).softmax(1), expected, atol=1e-6)


def test_a_scripted_network_has_the_sources_statistics_alone(make_network):
    network, x = make_network().eval(), image()
    method = Consensus(torch.jit.script(network), activation="sigmoid")
    assert {statistics for statistics, _ in method.members} == {0.0}
    method.adapt(x)
    assert method.network(x).isfinite().all()


def test_without_prepared_data_excess_mixes_a_part_of_the_images_statistics(make_network):
    network, x = make_network().eval(), image(3)
    method = Consensus(network, activation="sigmoid", members=[["excess", "identity"]], mix=0.2, least_agreement=0)
    method.adapt(x)
    with torch.no_grad():
        assert torch.allclose(method.network(x).sigmoid().double(), naive(network, x, "sigmoid", 0.2), atol=1e-5)


def test_prepared_data_of_other_weights_are_refused(make_network):
    network = make_network().eval()
    known = prepared(copy.deepcopy(network))
    with torch.no_grad():
        next(network.parameters()).add_(1)
    method = Consensus(network, activation="sigmoid", prepared=known)
    with pytest.raises(GrataError, match="prepared: was prepared for other weights"):
        method.adapt(image())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "must be a list of"),
        ("excess", "must be a list of"),
        ([["excess"]], "each member must be"),
        ([["exces", "identity"]], "statistics must be excess or a weight of the image's from 0 to 1, got 'exces'"),
        ([[1.5, "identity"]], "statistics must be excess or a weight"),
        ([[0, "flip"]], "there is no weak view 'flip'"),
    ],
)
def test_wrong_members_are_refused(make_network, members, message):
    with pytest.raises(GrataError, match=message) as error:
        create("consensus", make_network(), {"members": members}, activation="sigmoid")
    assert error.value.key == "settings#members"


def test_self_dice_of_a_sure_prediction_is_one_and_of_an_empty_one_zero():
    p = torch.zeros(2, 1, 8, 8)
    p[0, 0, 2:5] = 1
    assert self_dice(p, "sigmoid").tolist() == [1.0, 0.0]
    half = torch.full((1, 1, 4, 4), 0.6)
    # 2·0.6·16 / (0.6·16 + 16)
    assert self_dice(half, "sigmoid").item() == pytest.approx(1.2 / 1.6)
