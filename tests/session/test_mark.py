"""A network that is being adapted is marked, whatever its norms; whoever has no handle left can restore it."""

import copy
import gc
import io

import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn

import grata
from grata.engines import AdaptationHandler
from grata.errors import GrataError, RunError
from grata.methods import Tent
from grata.session import Session

NORMS = {
    "batch": "batch",
    "instance": ("instance", {"affine": True}),
    "attached": ("instance", {"affine": False}),
    "group": ("group", {"num_groups": 2}),
}
each_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def batches(n=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 1, 16, 16, generator=generator) for _ in range(n)]


def adapt(network, images=None, **options):
    options = {"method": "tent", "settings": {"lr": 1e-2}} | options
    return grata.adapt(network, batches() if images is None else images, activation="softmax", **options)


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(network, before):
    return all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@each_norm
def test_a_cell_that_is_run_again_begins_from_the_source(make_network, norm):
    network = make_network(norm=norm)
    before = weights(network)
    first = [adapted.logits for adapted in adapt(network)]
    assert not same(network, before) or norm == NORMS["attached"]
    # the stream of the first run is gone, as after a loop in a notebook
    assert all(torch.equal(a.logits, b) for a, b in zip(adapt(network), first, strict=True))
    # assigned to the same name: the second stream is made while the first one is still there
    stream = adapt(network)
    list(stream)
    stream = adapt(network)
    assert all(torch.equal(a.logits, b) for a, b in zip(stream, first, strict=True))


@each_norm
def test_a_network_whose_stream_is_still_there_is_refused_with_the_remedy(make_network, norm):
    network = make_network(norm=norm)
    before = weights(network)
    stream = adapt(network)
    next(stream)
    adapted = weights(network)
    with pytest.raises(RunError, match=r"network: method tent adapts it already.*grata\.restore\(network\)"):
        next(adapt(network, method="memo", settings={}))
    assert same(network, adapted)
    assert grata.restore(network) is True
    assert same(network, before) and not any(m._forward_hooks for m in network.modules())
    assert grata.restore(network) is False
    next(adapt(network, method="memo", settings={}))


@each_norm
def test_a_stream_that_failed_gives_the_network_free(make_network, norm):
    network = make_network(norm=norm)
    expected = [adapted.logits for adapted in adapt(make_network(norm=norm))]
    stream = adapt(network, [batches()[0], torch.full((1, 1, 16, 16), float("nan")), batches()[1]])
    next(stream)
    with pytest.raises(GrataError, match="NaN"):
        next(stream)
    # nobody else took it: the stream goes on
    assert torch.equal(next(stream).logits, expected[1])
    other = adapt(network, [torch.full((1, 1, 16, 16), float("nan"))])
    with pytest.raises(RunError, match="adapts it already"):
        next(other)
    grata.restore(network)
    again = adapt(network, [torch.full((1, 1, 16, 16), float("nan")), batches()[0]])
    with pytest.raises(GrataError, match="NaN"):
        next(again)
    # it failed, and another one takes the network, from the source
    assert torch.equal(next(adapt(network)).logits, expected[0])


def test_the_network_stays_adapted_after_its_stream_until_somebody_else_takes_it(make_network):
    network, x = make_network(), batches(1)[0]
    (adapted,) = adapt(network, [x])
    gc.collect()
    assert torch.equal(network(x), adapted.logits)


def test_a_module_around_the_network_and_one_inside_it_are_taken_with_it(make_network):
    inner = make_network(norm="instance")
    outer = nn.Sequential(inner, nn.Identity())
    stream = adapt(inner)
    next(stream)
    with pytest.raises(RunError, match="adapts it already"):
        next(adapt(outer))
    assert grata.restore(outer)
    stream = adapt(outer)
    next(stream)
    with pytest.raises(RunError, match="adapts it already"):
        next(adapt(inner))


def test_a_copy_is_not_taken_and_can_be_saved(make_network):
    network = make_network(norm="instance")
    stream = adapt(network)
    next(stream)
    twin = copy.deepcopy(network)
    next(adapt(twin))
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)  # written by this test
    next(adapt(loaded))
    assert grata.restore(network)


def test_a_torchscript_network_is_marked_too(make_network):
    network = torch.jit.script(make_network().eval())
    before = weights(network)
    stream = adapt(network)
    next(stream)
    with pytest.raises(RunError, match="adapts it already"):
        next(adapt(network))
    assert grata.restore(network) and same(network, before)


def test_an_evaluator_whose_run_failed_gives_the_network_free(make_network):
    network, (x, y) = make_network(), batches()
    bad = torch.full((1, 1, 16, 16), float("nan"))
    handler = AdaptationHandler(Tent(network, activation="softmax", lr=1e-2))
    loader = [{"image": x}, {"image": bad}]
    engine = SupervisedEvaluator("cpu", loader, network, epoch_length=2, val_handlers=[handler], decollate=False)
    with pytest.raises(GrataError, match="NaN"):
        engine.run()
    # it has learnt from the first image alone, and another one may take the network
    assert handler.method.batches == 1
    (expected,), (found,) = adapt(make_network(), [y]), adapt(network, [y])
    assert torch.equal(found.logits, expected.logits)


def test_an_instance_may_serve_one_stream_after_the_other(make_network):
    network = make_network()
    method = Tent(network, activation="softmax", lr=1e-2)
    one, two = Session(method), Session(method)
    for session in (one, two, one):
        with session.case(batches(1)[0]) as case:
            case.adapt()
            case.judge(torch.zeros(1))
    # its owner goes on with it
    assert method.batches == 3


def test_a_method_that_was_restored_by_hand_leaves_the_network_free(make_network):
    network = make_network(norm="instance")
    stream = adapt(network)
    first = next(stream).logits
    stream.method.restore()
    assert torch.equal(next(adapt(network)).logits, first)


def test_a_stream_goes_on_from_the_source_after_a_restore(make_network):
    network, (x, y) = make_network(), batches()
    stream = adapt(network, [x, y, x], reset={"name": "every-n", "cases": 2})
    first = next(stream).logits
    next(stream)
    grata.restore(network)
    third = next(stream)
    assert torch.equal(third.logits, first) and third.record["reset"] is False


def test_a_stream_whose_attached_parameters_are_gone_says_so(make_network):
    network = make_network(norm=NORMS["attached"])
    stream, other = adapt(network), adapt(network)
    next(stream)
    grata.restore(network)
    for each in (stream, other):
        with pytest.raises(RunError, match="network: the parameters that were attached.*are gone.*Begin anew"):
            next(each)
    assert not any(m._forward_hooks for m in network.modules())
    next(adapt(network))


def test_what_was_attached_is_removed_also_where_the_method_was_restored_before(make_network):
    network = make_network(norm=NORMS["attached"])
    stream = adapt(network)
    next(stream)
    stream.session.restore()
    assert any(m._forward_hooks for m in network.modules())
    assert grata.restore(network) is False
    assert not any(m._forward_hooks for m in network.modules())
