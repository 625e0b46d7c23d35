"""Every method in a ``SupervisedEvaluator`` adapts and predicts as by hand, on whole volumes and windows."""

import copy
from functools import partial

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import UNet
from torch import nn

from grata import engines, session
from grata.errors import GrataError
from grata.methods import METHODS, PredictionNetwork, Prepared, create, settings_of
from grata.networks import AuxiliaryHeads, network_digest
from grata.session import Journal, WindowSelection
from grata.session.resets import EveryN, SiteChange

# The network is random, and a guard would rightly object; it has tests of its own.
AdaptationHandler = partial(engines.AdaptationHandler, guard=False)
Session = partial(session.Session, guard=False)


def make_network():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), norm="batch")
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return network


def make(name, network, **settings):
    given = None
    if "prepared" in settings_of(name):
        image = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(9))
        heads = AuxiliaryHeads.create(network, image, seed=1)
        heads.modules.eval()
        given = Prepared(
            class_sizes=torch.tensor([0.7, 0.3]),
            centroid=torch.full((2, 3), 0.5),
            spread=torch.full((2, 3), 0.2),
            fisher={key: torch.ones_like(p) for key, p in network.named_parameters()},
            heads=heads.saved(),
            digest=network_digest(network),
        )
    if name == "ttas":
        settings["steps"] = 2
    return create(name, network, settings, activation="softmax", seed=1, prepared=given)


def scans(sites="aab", size=(8, 8, 12)):
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.rand(1, *size, generator=generator), "case": f"case{i}", "site": site}
        for i, site in enumerate(sites)
    ]


def run(network, items, handler, inferer):
    """Return predictions and source predictions, each ``(C, ...)``, in the order of the cases."""
    engine = SupervisedEvaluator(
        "cpu",
        DataLoader(Dataset(items), batch_size=1, num_workers=0),
        network,
        inferer=inferer,
        val_handlers=[handler],
        decollate=False,
    )
    seen = []
    engine.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda e: seen.append((e.state.output["pred"][0].clone(), e.state.batch["source_pred"][0].clone())),
    )
    engine.run()
    return seen


@pytest.mark.parametrize("windows", [False, True], ids=["whole", "windows"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_predicts_in_an_evaluator_as_by_hand(name, windows, adapt_case):
    inferer = SlidingWindowInferer((8, 8, 8), sw_batch_size=1, overlap=0.5) if windows else SimpleInferer()
    selection = WindowSelection(uncertain=1, random=1)
    network, items = make_network(), scans()
    source = copy.deepcopy(network).eval()
    seen = run(network, items, AdaptationHandler(make(name, network), selection, source_key="source_pred"), inferer)
    stream = Session(make(name, make_network()), selection)
    for item, (predicted, by_source) in zip(items, seen):
        x = item["image"][None]
        adapt_case(stream, x, inferer, item["site"])
        with torch.no_grad():
            assert torch.equal(predicted, inferer(x, stream.network)[0])
            assert torch.equal(by_source, inferer(x, source)[0])


def test_a_policy_hears_of_the_sites_of_an_evaluators_cases(tmp_path):
    network = make_network()
    journal = Journal(tmp_path / "journal.jsonl")
    handler = AdaptationHandler(make("tent", network), reset=SiteChange(), source_key="source_pred", journal=journal)
    run(network, scans("aabb"), handler, SimpleInferer())
    assert [line["reset"] for line in journal.lines()] == [False, False, True, False]


def test_windows_of_a_volume_count_as_one_case(adapt_case):
    selection = WindowSelection(uncertain=1, random=1)
    stream = Session(make("tent", make_network()), selection, reset=EveryN(2))
    inferer = SlidingWindowInferer((8, 8, 8), sw_batch_size=1, overlap=0.5)
    resets = []
    for item in scans("aaaaa", size=(8, 8, 20)):
        records = adapt_case(stream, item["image"][None], inferer)
        assert len(records) > 1
        resets.append([record.reset for record in records])
    assert [r[0] for r in resets] == [False, False, True, False, True]
    assert not any(any(r[1:]) for r in resets)


class Around(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


@pytest.mark.parametrize("name", ["cotta", "diga", "intent", "vptta"])
def test_a_module_around_the_network_cannot_hide_what_a_method_predicts_with(name):
    network = make_network()
    method = make(name, network)
    assert isinstance(method.network, PredictionNetwork)
    with pytest.raises(GrataError, match=f"that {name} predicts with cannot be put inside a Around"):
        run(Around(network), scans(), AdaptationHandler(method, source_key="source_pred"), SimpleInferer())


@pytest.mark.parametrize("name", ["cotta", "diga", "intent", "vptta"])
def test_a_module_around_what_a_method_predicts_with_still_knows_the_source(name):
    network, items = make_network(), scans()
    source = copy.deepcopy(network).eval()
    method, alone = make(name, network), make(name, make_network())
    seen = run(Around(method.network), items, AdaptationHandler(method, source_key="source_pred"), SimpleInferer())
    for item, (predicted, by_source) in zip(items, seen):
        x = item["image"][None]
        alone.adapt(x)
        with torch.no_grad():
            assert torch.equal(predicted, alone.network(x)[0])
            assert torch.equal(by_source, source(x)[0])


@pytest.mark.parametrize("name", ["cotta", "diga", "intent", "vptta"])
def test_what_is_given_beside_the_image_is_not_dropped(name):
    method = make(name, make_network())
    x = torch.rand(1, 1, 8, 8, 8)
    method.adapt(x)
    with pytest.raises(GrataError, match=f"more than the image, which {name} cannot pass on"):
        method.network(x, torch.zeros(1))


class Named(nn.Module):
    """A network that returns more than its logits."""

    def __init__(self, network, form):
        super().__init__()
        self.network, self.form = network, form

    def forward(self, x):
        y = self.network(x)
        return {"seg": y, "other": y.mean()} if self.form is dict else self.form([y.mean(), y])


@pytest.mark.parametrize("name", ["cotta", "diga", "dua", "intent", "vptta", "memo", "sar"])
@pytest.mark.parametrize("form", [dict, list, tuple])
def test_logits_stay_where_the_network_has_them(name, form):
    which = "seg" if form is dict else 1
    x = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3))
    plain = make(name, make_network())
    wrapped = make(name, Named(make_network(), form), output=which)
    plain.adapt(x), wrapped.adapt(x)
    with torch.no_grad():
        returned = wrapped.network(x)
        assert isinstance(returned, form)
        torch.testing.assert_close(returned[which], plain.network(x))
