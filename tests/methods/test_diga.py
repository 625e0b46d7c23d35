"""DIGA against its formula."""

import copy
import weakref

import pytest
import torch

from grata.errors import GrataError
from grata.methods.diga import DIGA, _input_of


def image(seed=0, count=1, spatial_dims=2):
    return torch.rand((count, 1, *[16] * spatial_dims), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make_centred(make_network):
    """Return a maker of networks that predict each outcome of every channel at about half of the voxels."""

    def make(spatial_dims=2):
        network = make_network(spatial_dims)
        with torch.no_grad():
            list(network.parameters())[-2].mul_(5)
            logits = network.eval()(image(1, spatial_dims=spatial_dims))
            list(network.parameters())[-1].sub_(logits.flatten(2).median(2).values[0])
        return network

    return make


def naive_network(network):
    """Return a float64 copy whose batch normalization mixes 0.8 source and 0.2 sample statistics, written out."""
    network = copy.deepcopy(network).double().eval()

    def normalize(layer):
        def forward(z):
            out = torch.empty_like(z)
            for b in range(len(z)):
                for c in range(z.shape[1]):
                    mean = 0.8 * layer.running_mean[c] + 0.2 * z[b, c].mean()
                    variance = 0.8 * layer.running_var[c] + 0.2 * z[b, c].var(unbiased=False)
                    out[b, c] = (z[b, c] - mean) / (variance + layer.eps).sqrt() * layer.weight[c] + layer.bias[c]
            return out

        return forward

    for layer in network.modules():
        if "BatchNorm" in type(layer).__name__:
            layer.forward = normalize(layer)
    return network


def outcomes(z, activation):
    if activation == "softmax":
        return z.softmax(1)[:, None]
    return torch.stack([z.sigmoid(), 1 - z.sigmoid()], 2)


def at_resolution(logits, activation, shape):
    """The outcomes of a batch's first image, pooled to the feature's resolution where that is another."""
    if logits.shape[2:] == shape:
        return outcomes(logits, activation)[0]
    probabilities = logits.softmax(1) if activation == "softmax" else logits.sigmoid()
    pooled = torch.nn.functional.adaptive_avg_pool2d(probabilities, shape)
    return (pooled[:, None] if activation == "softmax" else torch.stack([pooled, 1 - pooled], 2))[0]


def prototypes(p, z):
    """The mean feature of each outcome that is predicted confidently."""
    found = torch.full((*p.shape[:2], z.shape[0]), torch.nan, dtype=torch.float64)
    for g in range(p.shape[0]):
        for k in range(p.shape[1]):
            sure = (p[g, k] >= 0.51) & (p[g].argmax(0) == k)
            if sure.any():
                found[g, k] = z[:, sure].mean(1)
    return found


def follow(old, new):
    if old is None:
        return new
    mixed = 0.9 * old + 0.1 * new
    return torch.where(new.isnan(), old, torch.where(old.isnan(), new, mixed))


def scored(p, z, by):
    """The similarity of each voxel to the prototypes, at the resolution of ``p``."""
    scores = torch.empty(*p.shape[:2], *z.shape[1:], dtype=torch.float64)
    for g in range(p.shape[0]):
        distances = [(z - by[g, k][:, None, None]).square().sum(0).sqrt() for k in range(p.shape[1])]
        scores[g] = torch.stack([-d / 0.7 for d in distances]).softmax(0)
    if scores.shape[2:] != p.shape[2:]:
        scores = torch.nn.functional.interpolate(
            scores.flatten(0, 1)[None], p.shape[2:], mode="bilinear", align_corners=False
        )[0].reshape(p.shape)
    return scores


def logits_and_feature(network, layer, x):
    """What a network predicts, and the input of one of its layers."""
    seen = []
    handle = dict(network.named_modules())[layer].register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    with torch.no_grad():
        logits = network(x)
    handle.remove()
    return logits, seen[-1]


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_prediction_is_fused_with_the_similarity_to_prototypes(make_centred, activation):
    network = make_centred()
    reference = naive_network(network)
    # the input of this layer is the feature; it has the resolution of the prediction
    layer = "model.2.1.conv" if "model.2.1.conv" in dict(network.named_modules()) else None
    name = layer or [n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)][-1]
    method = DIGA(network, activation=activation, confidence=0.51, feature_layer=name, fusion=0.4, temperature=0.7)
    running = None
    for seed in (1, 2):
        x = image(seed)
        logits, feature = logits_and_feature(reference, name, x.double())
        p, z = outcomes(logits, activation)[0], feature[0]
        own = prototypes(at_resolution(logits, activation, z.shape[1:]), z)
        running = follow(running, own)
        method.adapt(x)
        with torch.no_grad():
            found = outcomes(method.network(x), activation)[0]
        assert not own.isnan().any(), "the example is to have all prototypes"
        expected = 0.6 * p + 0.4 * (0.8 * scored(p, z, running) + 0.2 * scored(p, z, own))
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


def test_without_confident_voxels_the_prediction_is_that_of_the_mixed_statistics(make_network):
    network = make_network()
    reference = naive_network(network)
    method = DIGA(network, activation="sigmoid", confidence=1.0)
    method.adapt(image())
    with torch.no_grad():
        torch.testing.assert_close(
            method.network(image()).sigmoid().double(), reference(image().double()).sigmoid(), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_an_outcome_without_a_prototype_keeps_its_probability(make_centred, activation):
    method = DIGA(make_centred(), activation=activation, confidence=0.5, fusion=1.0)
    method.adapt(image(1))
    x = image(1)
    with torch.no_grad():
        logits, feature = method._logits_and_feature(x)
        p = logits.softmax(1) if activation == "softmax" else logits.sigmoid()
        (known,) = method._of_images(p, feature)
        assert known.isfinite().all()
        forgotten = known.clone()
        forgotten[:, 1] = torch.nan
        kept = method._scored(p[0], feature[0], forgotten)
        scored = method._scored(p[0], feature[0], known)
    # with two outcomes, the other one gets the rest, whatever its score
    torch.testing.assert_close(kept, p[0], rtol=0, atol=1e-6)
    assert not torch.allclose(scored, p[0], atol=1e-3)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_scores_of_a_batch_are_probabilities(make_centred, spatial_dims, activation):
    method = DIGA(make_centred(spatial_dims), activation=activation, confidence=0.5)
    x = image(1, 4, spatial_dims)
    method.adapt(x)
    with torch.no_grad():
        logits, feature = method._logits_and_feature(x)
        p = logits.softmax(1) if activation == "softmax" else logits.sigmoid()
        scores = torch.stack([method._scored(p[i], feature[i], q) for i, q in enumerate(method._of_images(p, feature))])
        assert method.network(x).isfinite().all()
    assert scores.min() >= 0 and scores.max() <= 1 + 1e-6
    if activation == "softmax":
        torch.testing.assert_close(scores.sum(1), torch.ones_like(scores[:, 0]))


def test_the_prediction_for_an_image_does_not_depend_on_its_batch(make_centred):
    method = DIGA(make_centred(), activation="sigmoid", confidence=0.5)
    method.adapt(image(3))
    with torch.no_grad():
        both = method.network(torch.cat([image(1), image(2)]))
        torch.testing.assert_close(both[:1], method.network(image(1)))


def test_the_network_stays_as_it_is_and_prototypes_learn_from_images(make_centred):
    network = make_centred()
    before = copy.deepcopy(network.state_dict())
    method = DIGA(network, activation="sigmoid", confidence=0.5)
    with torch.no_grad():
        method.adapt(image(1))
        first = method.network(image(9))
        method.adapt(image(2))
        assert not torch.equal(method.network(image(9)), first)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_entropy_of_a_real_scan_falls_by_the_fusion(make_network, real_scan):
    plain, fused = (DIGA(make_network(3), activation="sigmoid", confidence=0.5, fusion=fusion) for fusion in (0.0, 1.0))
    plain.adapt(real_scan), fused.adapt(real_scan)
    with torch.no_grad():
        a, b = (method.network(real_scan).sigmoid() for method in (plain, fused))

    def entropy(p):
        p = p.clamp(1e-6, 1 - 1e-6)
        return -(p * p.log() + (1 - p) * (1 - p).log()).mean()

    assert entropy(b) < entropy(a)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instance_weight": 2}, "instance_weight: must be"),
        ({"momentum": -0.1}, "momentum: must be"),
        ({"fusion": 1.1}, "fusion: must be"),
        ({"temperature": 0}, "temperature: must be"),
        ({"feature_layer": "nowhere"}, "feature_layer: .*nowhere"),
        ({"feature_layer": {"a": []}}, "feature_layer: .*no module"),
        ({"batch_statistics": 1.0}, "batch_statistics"),
    ],
)
def test_wrong_settings_are_refused_by_name(make_network, settings, message):
    with pytest.raises(GrataError, match=message):
        DIGA(make_network(), **{"activation": "sigmoid", **settings})


def test_networks_without_running_statistics_are_refused(make_network):
    with pytest.raises(GrataError, match="InstanceNorm2d"):
        DIGA(make_network(2, "instance"), activation="sigmoid")


@pytest.mark.parametrize("layer", [None, "0"])
def test_only_a_feature_that_may_be_the_deepest_is_held(layer):
    widths = [1, 2, 8, 4, 4, 2]
    network = torch.nn.Sequential(*[torch.nn.Conv2d(a, b, 1) for a, b in zip(widths, widths[1:])])
    inputs = []

    def watch(module, given):
        inputs.append(weakref.ref(given[0]))

    for module in network:
        module.register_forward_pre_hook(watch)
    with torch.no_grad(), _input_of(network, layer, 4) as feature:
        network(torch.rand(1, 1, 4, 4))
        alive = [x().shape[1] for x in inputs if x() is not None]
        assert alive == ([8, 4] if layer is None else [1])
        if layer is None:
            assert feature(2).shape[1] == 4 and feature(4).shape[1] == 8
