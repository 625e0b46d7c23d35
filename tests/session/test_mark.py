"""A network that is being adapted is marked, whatever its norms; whoever has no handle left can restore it."""

import copy
import gc
import io

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.handlers import StatsHandler
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
    # a guard lets random networks learn nothing, so that there is nothing to mark
    options = {"method": "tent", "settings": {"lr": 1e-2}, "guard": False} | options
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
    handler = AdaptationHandler(Tent(network, activation="softmax", lr=1e-2), guard=False)
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
    one, two = Session(method, guard=False), Session(method, guard=False)
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


@pytest.mark.parametrize("other", [None, "network", {}, 3, nn.Linear, iter([])], ids=lambda other: type(other).__name__)
def test_what_is_no_network_cannot_be_restored(other):
    with pytest.raises(GrataError, match=rf"network: must be the network.*got {type(other).__name__}"):
        grata.restore(other)


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


@each_norm
@pytest.mark.parametrize("how", ["deepcopy", "file"])
def test_a_copy_of_an_adapted_network_can_be_adapted_and_restored_to_what_it_was(make_network, norm, how):
    network = make_network(norm=norm)
    stream = adapt(network)
    next(stream)
    if how == "deepcopy":
        twin = copy.deepcopy(network)
    else:
        buffer = io.BytesIO()
        torch.save(network, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)  # written by this test
    before = weights(twin)
    list(adapt(twin))
    assert grata.restore(twin) and same(twin, before)
    # the original is still being adapted
    next(stream)


@each_norm
def test_other_weights_that_were_loaded_since_are_the_source_of_the_next_stream(make_network, norm):
    network, other = make_network(norm=norm), make_network(norm=norm)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    expected = [adapted.logits for adapted in adapt(copy.deepcopy(other))]
    list(adapt(network))
    network.load_state_dict(other.state_dict())
    assert all(torch.equal(a.logits, b) for a, b in zip(adapt(network), expected, strict=True))
    network.load_state_dict(other.state_dict())
    grata.restore(network)
    assert same(network, weights(other))


class Raises:
    """A handler of an evaluator that raises at an event, or one that only looks at errors."""

    def __init__(self, event=None, at=2):
        self.event, self.at, self.seen = event, at, []

    def attach(self, engine):
        if self.event is not None:
            engine.add_event_handler(self.event, self.fail)
        else:
            engine.add_event_handler(Events.EXCEPTION_RAISED, self.look)

    def fail(self, engine):
        if engine.state.iteration == self.at:
            raise ValueError("a handler failed")

    def look(self, engine, error):
        self.seen.append(str(error))


def evaluator(network, handlers):
    loader = [{"image": x} for x in (*batches(), batches()[0])]
    return SupervisedEvaluator("cpu", loader, network, epoch_length=3, val_handlers=handlers, decollate=False)


@pytest.mark.parametrize("first", ["stats", "look", "grata"])
def test_a_failed_batch_leaves_no_trace_whatever_other_handlers_do_with_the_error(make_network, first):
    network = make_network()
    handler = AdaptationHandler(Tent(network, activation="softmax", lr=1e-2), guard=False)
    look, fails = Raises(), Raises(Events.ITERATION_COMPLETED)
    others = {"stats": [StatsHandler(output_transform=lambda output: None), look], "look": [look], "grata": []}[first]
    engine = evaluator(network, [*others, fails, handler, *([look] if first == "grata" else [])])
    if first == "stats":
        with pytest.raises(ValueError, match="a handler failed"):
            engine.run()
    else:
        # as without the handler: somebody has looked at the error, and nobody raised it again
        engine.run()
        assert set(look.seen) == {"a handler failed"}
    plain = make_network()
    stream = adapt(plain)
    next(stream)
    assert same(network, weights(plain)) and handler.method.batches == 1
    # and the handler goes on in another run
    evaluator(network, [handler]).run()
    assert handler.method.batches == 4


def test_a_batch_that_was_begun_when_the_engine_was_terminated_leaves_no_trace(make_network):
    network = make_network()
    handler = AdaptationHandler(Tent(network, activation="softmax", lr=1e-2), guard=False)
    engine = evaluator(network, [handler])
    engine.add_event_handler(Events.ITERATION_STARTED(once=2), lambda engine: engine.terminate())
    engine.run()
    assert handler.method.batches == 1
    evaluator(network, [handler]).run()
    assert handler.method.batches == 4
