"""``grata.adapt``: a network, a stream of images, no engine."""

import itertools
from functools import partial

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

import grata
from grata.engines import AdaptationHandler
from grata.errors import GrataError
from grata.methods import GraTa, create
from grata.session.resets import SiteChange


def volumes(n=3, size=(8, 8, 20)):
    generator = torch.Generator().manual_seed(0)
    return [{"image": torch.rand(1, *size, generator=generator), "site": "ab"[i // 2]} for i in range(n)]


def batches(n=3, size=(16, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 1, *size, generator=generator) for _ in range(n)]


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The networks are random, and a guard would rightly object; it has tests of its own.
adapt = partial(grata.adapt, guard=False)

MEASURED = ("seconds", "seconds_predict", "seconds_judge", "peak_memory_mib")


class Watch:
    """A handler that keeps the predictions and records of the batches that the handler after it finishes."""

    def __init__(self, handler):
        self.handler, self.predictions, self.records = handler, [], []

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.keep)

    def keep(self, engine):
        self.predictions.append(engine.state.output["pred"].clone())
        self.records.append(self.handler._case.record)


@pytest.mark.parametrize("windows", [False, True], ids=["whole", "windows"])
@pytest.mark.parametrize("reset", [None, SiteChange()])
@pytest.mark.parametrize("guard", [True, False], ids=["judged", "plain"])
def test_equal_to_the_handler_in_an_evaluator_to_the_last_bit(make_network, windows, reset, guard):
    inferer = SlidingWindowInferer((8, 8, 8), 2, 0.5) if windows else SimpleInferer()
    selection = {"uncertain": 1, "random": 1, "batch_size": 1}
    loader = DataLoader(Dataset(volumes()), batch_size=1, num_workers=0)
    settings = {"lr": 1e-2}

    network = make_network(3)
    method = create("grata", network, settings, activation="softmax")
    handler = AdaptationHandler(method, selection, reset=reset, guard=guard)
    watch = Watch(handler)
    handlers = [watch, handler]
    engine = SupervisedEvaluator("cpu", loader, network, inferer=inferer, val_handlers=handlers, decollate=False)
    engine.run()

    network = make_network(3)
    common = {"activation": "softmax", "settings": settings, "reset": reset, "guard": guard}
    found = list(grata.adapt(network, loader, inferer=inferer, windows=selection, **common))
    assert len(found) == len(watch.predictions) == 3
    for adapted, expected, record in zip(found, watch.predictions, watch.records, strict=True):
        assert torch.equal(adapted.logits, expected)
        assert torch.equal(adapted.probabilities, expected.softmax(1))
        assert adapted.record.keys() == record.keys() >= set(MEASURED) - (set() if guard else {"seconds_judge"})
        # as text, in which NaN is NaN; times differ from run to run
        assert repr(reproducible(adapted.record)) == repr(reproducible(record))
        assert set(adapted.item) == {"image", "site"}
    # a guard that learns nothing from a case of this random network leaves nothing to reset
    if not guard:
        assert [adapted.record["reset"] for adapted in found] == [False, False, reset is not None]


def reproducible(record):
    return {key: value for key, value in record.items() if key not in MEASURED}


def test_a_torchscript_file_adapts_as_the_python_network(make_network, tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.script(make_network().train()).save(path)
    scripted = adapt(path, batches(), activation="softmax", settings={"lr": 1e-2})
    python = adapt(make_network(), batches(), activation="softmax", settings={"lr": 1e-2})
    for a, b in zip(scripted, python):
        torch.testing.assert_close(a.logits, b.logits)
        assert a.record["cosine"] == pytest.approx(b.record["cosine"], abs=1e-3)
    assert list(scripted.method.parameters) == list(python.method.parameters)


def test_one_batch_is_taken_at_a_time(make_network):
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield batches(1, seed=i)[0]

    network = make_network()
    before = snapshot(network)
    stream = adapt(network, endless(), activation="sigmoid")
    assert taken == [] and same(snapshot(network), before)
    next(stream)
    assert taken == [0]
    next(stream), next(stream)
    assert taken == [0, 1, 2] and stream.method.batches == 3


def test_who_stops_early_leaves_an_adapted_network_and_can_restore_it(make_network):
    network = make_network(norm="instance")
    before, x = snapshot(network), batches(1)[0]
    expected = network.eval()(x)
    for adapted in (stream := adapt(network, batches(), activation="sigmoid", settings={"lr": 0.1})):  # noqa: B007
        break
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert torch.equal(network(x), adapted.logits) and not torch.allclose(network(x), expected)
    stream.session.restore()
    assert torch.equal(network(x), expected)
    stream.attached.detach()
    assert same(snapshot(network), before) and not any(m._forward_hooks for m in network.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_gradients_may_be_switched_off_around_it(make_network, mode, norm):
    plain = [a.logits for a in adapt(make_network(norm=norm), batches(), activation="sigmoid")]
    network = make_network(norm=norm)
    with mode():
        inside = [a.logits for a in adapt(network, (x.clone() for x in batches()), activation="sigmoid", seed=0)]
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


def test_one_tensor_is_one_batch_and_so_is_one_mapping(make_network):
    x = batches(1)[0]
    (by_tensor,) = adapt(make_network(), x, activation="sigmoid")
    (by_mapping,) = adapt(make_network(), {"image": x}, activation="sigmoid")
    assert torch.equal(by_tensor.logits, by_mapping.logits) and by_tensor.item is x
    assert torch.equal(by_tensor.probabilities, by_tensor.logits.sigmoid())


class Named(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        y = self.network(x)
        return {"seg": y, "other": -y}


@pytest.mark.parametrize("method", ["tent", "ptbn"])
def test_all_that_the_network_returns_is_given_and_the_logits_in_it(make_network, method):
    (adapted,) = adapt(Named(make_network()), batches(1), method, activation="sigmoid", output="seg")
    assert torch.equal(adapted.prediction["seg"], adapted.logits)
    assert torch.equal(adapted.prediction["other"], -adapted.logits)


def test_a_method_that_does_not_look_needs_no_activation(make_network):
    network, x = make_network(), batches(1)[0]
    (adapted,) = adapt(network, x, "source")
    assert torch.equal(adapted.logits, network.eval()(x))
    with pytest.raises(GrataError, match="activation: say sigmoid or softmax"):
        _ = adapted.probabilities


def test_a_network_that_has_affine_parameters_is_given_none(make_network):
    assert adapt(make_network(), batches(), activation="sigmoid").attached is None
    network = make_network(norm="instance")
    with pytest.raises(GrataError, match="attach_affine"):
        adapt(network, batches(), activation="sigmoid", affine="own")


def test_a_method_that_is_refused_leaves_the_network_alone(make_network):
    network = make_network(norm="instance")
    text = repr(network)
    with pytest.raises(GrataError, match="settings#lr"):
        adapt(network, batches(), activation="sigmoid", settings={"lr": -1})
    assert repr(network) == text


def test_a_bad_item_is_told_by_its_number_and_the_stream_goes_on(make_network):
    good = batches(2)
    stream = adapt(make_network(), [good[0], {"label": good[0]}, good[1]], activation="sigmoid")
    next(stream)
    with pytest.raises(GrataError, match="item 1 has no key 'image', only label"):
        next(stream)
    assert next(stream).item is good[1]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.rand(16, 16), r"item 0 .* got shape \(16, 16\)"),
        ("scan.nii.gz", "item 0 .* got str"),
        ({"image": "scan.nii.gz"}, "item 0 .* got str"),
        (torch.zeros(1, 1, 16, 16, dtype=torch.bool), "images: must be real numbers"),
        (torch.zeros(0, 1, 16, 16), "images: must not be empty, got shape"),
        (torch.zeros(1, 1, 0, 16), "images: must not be empty, got shape"),
        (torch.rand(1, 1, 16, 16).to_sparse(), "images: must be a dense tensor.*to_dense"),
        (torch.rand(1, 3, 16, 16), "takes 1 channel, and got 3. Give images"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(make_network, item, message):
    with pytest.raises(GrataError, match=message):
        next(adapt(make_network(), [item], activation="sigmoid"))


def test_sites_of_a_stream_go_on_each_from_its_own_in_a_bank(make_network, tmp_path):
    items = [{"image": x, "site": [site] * 2} for x, site in zip(batches(4), "abab")]
    common = {"activation": "sigmoid", "settings": {"lr": 1e-2}}
    together = list(adapt(make_network(), items, bank=tmp_path / "bank", **common))
    for first in (0, 1):
        alone = list(adapt(make_network(), items[first::2], **common))
        assert all(torch.equal(a.logits, b.logits) for a, b in zip(together[first::2], alone, strict=True))


def test_a_saved_stream_goes_on_in_another_process(make_network, tmp_path):
    saved, items = tmp_path / "learnt.safetensors", batches(4)
    common = {"activation": "sigmoid", "settings": {"lr": 1e-2}}
    through = list(adapt(make_network(), items, **common))
    list(adapt(make_network(), items[:2], save_to=saved, **common))
    rest = list(adapt(make_network(), items[2:], start_from=saved, **common))
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(through[2:], rest, strict=True))


def test_files_that_are_no_network_are_refused_with_what_to_do(make_network, tmp_path):
    weights, damaged = tmp_path / "weights.pt", tmp_path / "damaged.ts"
    torch.save(make_network().state_dict(), weights)
    damaged.write_bytes(b"PK no archive")
    for path, message in (
        (weights, "weights alone.*load_state_dict"),
        (damaged, "not a TorchScript network"),
        (tmp_path / "none.ts", "is not a file"),
    ):
        with pytest.raises(GrataError, match=message):
            adapt(path, batches(), activation="sigmoid")


def test_networks_that_cannot_be_adapted_are_refused_with_the_reason(make_network):
    traced = torch.jit.trace(make_network().eval(), batches(1)[0])
    with pytest.raises(GrataError, match="traced in evaluation mode"):
        adapt(traced, batches(), activation="sigmoid")
    scripted = torch.jit.script(make_network(norm="instance"))
    with pytest.raises(GrataError, match="nothing to adapt.*TorchScript network takes none"):
        adapt(scripted, batches(), activation="sigmoid")
    with pytest.raises(GrataError, match="weights alone"):
        adapt(make_network().state_dict(), batches(), activation="sigmoid")
    with torch.inference_mode():
        network = make_network()
    with pytest.raises(GrataError, match="inference_mode"):
        adapt(network, batches(), activation="sigmoid")
    with pytest.raises(GrataError, match="there is no 'graata'.*grata"):
        adapt(make_network(), batches(), "graata", activation="sigmoid")
    with pytest.raises(GrataError, match="activation"):
        adapt(make_network(), batches())
    with pytest.raises(GrataError, match="iterable"):
        adapt(make_network(), 3, activation="sigmoid")


def test_the_stream_adapts_as_the_method_by_hand(make_network):
    stream = adapt(make_network(), batches(), activation="sigmoid", settings={"lr": 1e-2}, seed=4)
    by_hand = GraTa(make_network(), activation="sigmoid", lr=1e-2, seed=4)
    for adapted, x in zip(stream, batches(), strict=True):
        record = by_hand.adapt(x)
        assert adapted.record["loss"] == record.loss
    assert same(stream.method.state_dict()["parameters"], by_hand.state_dict()["parameters"])


@pytest.mark.parametrize(
    ("given", "key"), [({"activation": "softmax"}, "activation"), ({"settings": {"lr": 1.0}}, "settings")]
)
def test_an_instance_has_its_settings_already(make_network, given, key):
    network = make_network()
    method = GraTa(network, activation="sigmoid")
    with pytest.raises(GrataError, match=f"^{key}: grata is an instance"):
        adapt(network, batches(), method=method, **given)
    assert adapt(network, batches(), method=method, activation="sigmoid").method is method
    with pytest.raises(GrataError, match="^method: the instance was made for another network"):
        adapt(make_network(), batches(), method=method)
    assert type(adapt(network, batches(), method=GraTa, activation="softmax").method) is GraTa


def test_a_reset_policy_is_the_streams_also_with_an_instance(make_network):
    network, images = make_network(), batches()
    method = GraTa(network, activation="sigmoid", lr=1e-2)
    stream = adapt(network, images, method=method, reset="per-case")
    assert [adapted.record["reset"] for adapted in stream] == [False, True, True]


def test_settings_that_are_not_a_mapping_are_refused(make_network):
    with pytest.raises(GrataError, match="^settings: must be a mapping"):
        adapt(make_network(), batches(), activation="sigmoid", settings=[1])
