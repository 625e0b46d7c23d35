"""What predicts once a method has adapted: the network, the mean over weak views, or the forward before the step."""

import copy

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import UNet
from torch import nn

from grata import GrataError
from grata.methods import METHODS, PTBN, GraTa, Method, Source, Tent, create, settings_of
from grata.predictions import activate, view_agreement
from grata.session import Session
from grata.views import VIEWS, resolve_views

from .test_contract import images, make, make_network


def mean_by_hand(network, x, names, activation):
    """The mean of activated predictions over views, each mapped back by hand-written flips and turns."""
    undo = {
        "identity": lambda p: p,
        "flip_w": lambda p: p.flip(-1),
        "flip_h": lambda p: p.flip(-2),
        "flip_d": lambda p: p.flip(-3),
        "rot90": lambda p: torch.rot90(p, -1, (-2, -1)),
        "rot180": lambda p: p.flip((-2, -1)),
        "rot270": lambda p: torch.rot90(p, 1, (-2, -1)),
    }
    act = torch.sigmoid if activation == "sigmoid" else lambda y: y.softmax(1)
    with torch.no_grad():
        return torch.stack([undo[name](act(network(VIEWS[name](x)))) for name in names]).mean(0)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (16, 16)), (2, (16, 24)), (3, (16, 16, 16))])
def test_source_by_views_is_plain_test_time_augmentation(activation, spatial_dims, size):
    network = make_network(spatial_dims)
    x = torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(1))
    names = [view.name for view in resolve_views(None, size)]
    expected = mean_by_hand(copy.deepcopy(network).eval(), x, names, activation)
    method = Source(network, activation=activation, predict="views")
    method.adapt(x)
    predicted = activate(method.network(x), activation)
    assert torch.allclose(predicted, expected, atol=1e-6)


def test_the_views_can_be_named():
    network, x = make_network(), images()
    expected = mean_by_hand(copy.deepcopy(network).eval(), x, ["identity", "flip_w"], "sigmoid")
    method = Source(network, activation="sigmoid", predict="views", predict_views=["identity", "flip_w"])
    method.adapt(x)
    assert torch.allclose(method.network(x).sigmoid(), expected, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_every_method_can_predict_by_views(name, activation):
    names, x = ["identity", "flip_h", "rot90"], images(batch=2)
    by_views = make(name, activation=activation, predict="views", predict_views=names)
    alone = make(name, activation=activation)
    assert repr(by_views.adapt(x)) == repr(alone.adapt(x))
    expected = mean_by_hand(alone.network, x, names, activation)
    with torch.no_grad():
        predicted = activate(by_views.network(x), activation)
    # a method whose prediction changes with each forward has no mean to compare with
    assert torch.allclose(predicted, expected, atol=1e-5)
    assert by_views.prediction_agreement == pytest.approx(
        view_agreement(
            [mean_by_hand(alone.network, x, [view], activation) for view in names], background=activation == "softmax"
        ),
        abs=1e-5,
    )


@pytest.mark.parametrize("predict", ["views", "before"])
def test_what_predicts_has_no_influence_on_what_is_learned(predict):
    chosen, alone = make("grata", predict=predict), make("grata")
    for seed in range(3):
        x = images(seed=seed)
        assert repr(chosen.adapt(x)) == repr(alone.adapt(x))
        chosen.network(x)
    one, other = chosen.state_dict(), alone.state_dict()
    assert all(torch.equal(p, other["parameters"][name]) for name, p in one["parameters"].items())
    # so a saved adaptation may be predicted with in any way
    alone.load_state_dict(one)


class Counting(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
        self.count = 0

    def forward(self, x):
        self.count += 1
        return self.network(x)


def forwards(name, **settings):
    network = Counting(make_network())
    method = make(name, network, **settings)
    x = images()
    method.adapt(x)
    method.network(x)
    return network.count


def test_grata_by_views_uses_its_pseudo_label_and_costs_a_forward_less():
    assert forwards("grata") - forwards("grata", predict="views") == 1
    assert forwards("tent") - forwards("tent", predict="before") == 1
    # other views are predicted
    assert forwards("grata", predict="views", predict_views=["identity", "flip_w"]) == forwards("grata") + 1
    assert forwards("ptbn", predict="views", predict_views=["identity", "flip_w"]) == 2


def test_grata_by_views_predicts_its_pseudo_label():
    network, x = make_network(), images()
    reference = copy.deepcopy(network)
    method = GraTa(network, activation="sigmoid", predict="views", seed=0)
    method.adapt(x)
    predicted = method.network(x).detach().sigmoid()

    # the look-ahead step by hand: batch statistics, gradient of the mean entropy over weight and bias
    batch_norms = [m for m in reference.modules() if isinstance(m, nn.BatchNorm2d)]
    reference.train()
    for layer in batch_norms:
        layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    affine = [p for layer in batch_norms for p in (layer.weight, layer.bias)]
    p = reference(x).sigmoid()
    entropy = -(p * torch.log(p)).sum(1).mean()
    gradient = torch.autograd.grad(entropy, affine)
    with torch.no_grad():
        for parameter, g in zip(affine, gradient):
            parameter -= g
    expected = mean_by_hand(reference, x, ["identity", "flip_w", "flip_h", "rot90", "rot180", "rot270"], "sigmoid")
    assert torch.allclose(predicted, expected, atol=1e-5)


def test_tent_before_the_step_predicts_as_batch_statistics_do():
    """As in the code of TENT's authors: the first image is predicted by the source weights."""
    x = images(batch=2)
    tent = Tent(make_network(), activation="sigmoid", predict="before", lr=0.1)
    tent.adapt(x)
    ptbn = PTBN(make_network())
    ptbn.adapt(x)
    assert torch.allclose(tent.network(x), ptbn.network(x), atol=1e-6)
    # other images than those of the step are predicted by the adapted network
    other = images(batch=2, seed=5)
    assert not torch.allclose(tent.network(other), ptbn.network(other), atol=1e-4)


def test_a_computed_prediction_is_forgotten_with_its_batch():
    method = make("tent", predict="before", lr=0.1)
    x, y = images(seed=1), images(seed=2)
    method.adapt(x)
    first = method.network(x)
    method.adapt(y)
    assert not torch.equal(method.network(x), first)
    method.restore()
    assert method.computed is None


def test_the_source_network_predicts_without_views():
    network, x = make_network().eval(), images()
    expected = copy.deepcopy(network)(x)
    method = make("ptbn", network, predict="views")
    assert torch.equal(method.network(x), expected)
    method.adapt(x)
    with method.source_network() as source:
        assert torch.equal(source(x), expected)
        assert torch.equal(method.network(x), expected)
    method.restore()
    assert torch.equal(method.network(x), expected)


def test_windows_are_each_predicted_by_views():
    network, names = make_network(3), ["identity", "flip_d", "rot180"]
    reference = copy.deepcopy(network).eval()
    method = make("source", network, spatial_dims=3, predict="views", predict_views=names)
    wide = torch.rand((1, 1, 16, 16, 40), generator=torch.Generator().manual_seed(0))
    method.adapt(wide)
    inferer = SlidingWindowInferer((16, 16, 16), sw_batch_size=2)
    with torch.no_grad():
        predicted = inferer(wide, method.network)
        expected = inferer(wide, lambda x: torch.logit(mean_by_hand(reference, x, names, "sigmoid")))
    assert torch.allclose(predicted, expected, atol=1e-4)


def test_a_scripted_network_predicts_by_views():
    network, x = make_network().eval(), images(batch=2)
    expected = make("ptbn", copy.deepcopy(network), predict="views")
    expected.adapt(x)
    method = make("ptbn", torch.jit.script(network), predict="views")
    method.adapt(x)
    with torch.no_grad():
        assert torch.allclose(method.network(x), expected.network(x), atol=1e-5)


class InMapping(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return {"seg": self.network(x), "features": x.mean()}


def test_logits_in_a_mapping_are_replaced_and_the_rest_stays():
    network, x = make_network(), images()
    plain = Source(copy.deepcopy(network), activation="sigmoid", predict="views")
    plain.adapt(x)
    method = Source(InMapping(network), activation="sigmoid", output="seg", predict="views")
    method.adapt(x)
    returned = method.network(x)
    assert returned.keys() == {"seg", "features"} and returned["features"] == x.mean()
    assert torch.allclose(returned["seg"], plain.network(x))


def test_views_need_the_activation():
    method = PTBN(make_network(), predict="views")
    method.adapt(images())
    with pytest.raises(GrataError, match="activation: predict: views averages probabilities. Give ptbn the activation"):
        method.network(images())
    told = create("ptbn", make_network(), {"predict": "views"}, activation="softmax")
    told.adapt(images())
    assert told.network(images()).isfinite().all()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ptbn", {"predict": "before"}, "settings#predict: must be one of network, views, got 'before'"),
        ("cotta", {"predict": "before"}, "settings#predict: must be one of network, views, got 'before'"),
        ("tent", {"predict": "view"}, "settings#predict: must be one of network, views, before, got 'view'"),
        ("tent", {"predict_views": ["flip_x"]}, "settings#predict_views: there is no weak view 'flip_x'"),
        ("source", {"predict_views": []}, "settings#predict_views: is empty"),
    ],
)
def test_a_wrong_choice_is_refused(name, settings, message):
    with pytest.raises(GrataError, match=message):
        make(name, **settings)


def test_a_method_that_says_itself_what_predicts_has_no_choice():
    class Own(Source):
        @property
        def network(self):
            return self.given

    with pytest.raises(GrataError, match="predict: source says by itself what predicts"):
        Own(make_network(), activation="sigmoid", predict="views")
    assert isinstance(Own(make_network()), Method)


def test_all_methods_have_the_setting():
    assert all({"predict", "predict_views"} <= settings_of(name).keys() for name in METHODS)


def test_the_guard_goes_by_the_agreement_of_the_views_that_predicted():
    """With views in the prediction no further view is asked for."""
    network = Counting(make_network())
    settings = {"predict": "views", "predict_views": ["identity", "flip_w"]}
    method = create("ptbn", network, settings, activation="sigmoid")
    session = Session(method, guard={"activation": "sigmoid"})
    x = images()
    with session.case(x) as case:
        case.adapt(SimpleInferer())
        case.judge(SimpleInferer()(case.images, session.network))
    assert network.count == 3  # two views, and the source network for the guard
    assert 0 < case.record["agreement"] < 1
    assert case.judgements[0].quality["agreement_views"] == pytest.approx(case.record["agreement"], abs=1e-4)


def test_source_by_views_is_compared_with_the_source():
    method = create("source", make_network(), {"predict": "views"}, activation="sigmoid")
    session = Session(method)
    with session.case(images()) as case:
        case.adapt(SimpleInferer())
        case.judge(SimpleInferer()(case.images, session.network))
    assert case.source is not None
    assert case.judgements[0].quality["agreement_source"] < 1


def test_instance_norm_networks_predict_by_views():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = ("instance", {"affine": True})
        network = UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), norm=norm)
    x = images()
    expected = mean_by_hand(copy.deepcopy(network).eval(), x, ["identity", "flip_w"], "softmax")
    method = Source(network, activation="softmax", predict="views", predict_views=["identity", "flip_w"])
    method.adapt(x)
    assert torch.allclose(method.network(x).softmax(1), expected, atol=1e-6)
