"""What every method promises, whatever it does: checked for all that are found, also those to come."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from monai.networks.nets import UNet

from grata.doctor import catalogue
from grata.methods import METHODS, NEEDS, Prepared, create, settings_of
from grata.networks import AuxiliaryHeads, network_digest
from grata.session import Session

ROOT = Path(__file__).parents[2]
LEARNING = [name for name, method in METHODS.items() if method.learns]


def make_network(spatial_dims=2, out_channels=2):
    """A UNet of three levels whose running statistics are not at their start values."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        network = UNet(
            spatial_dims=spatial_dims,
            in_channels=1,
            out_channels=out_channels,
            channels=(4, 8, 8),
            strides=(2, 2),
            norm="batch",
        )
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.3, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return network


def images(spatial_dims=2, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((batch, 1, *[16] * spatial_dims), generator=generator)


def prepared(network, spatial_dims=2):
    """All that a method can need of a source set."""
    channels = 2
    heads = AuxiliaryHeads.create(network, images(spatial_dims), seed=1)
    heads.modules.eval()
    return Prepared(
        class_sizes=torch.tensor([0.7, 0.3]),
        centroid=torch.full((channels, spatial_dims), 0.5),
        spread=torch.full((channels, spatial_dims), 0.2),
        fisher={name: torch.ones_like(p) for name, p in network.named_parameters()},
        heads=heads.saved(),
        images=3,
        network="UNet",
        digest=network_digest(network),
    )


def make(name, network=None, spatial_dims=2, activation="sigmoid", **settings):
    network = make_network(spatial_dims) if network is None else network
    given = prepared(network, spatial_dims) if "prepared" in settings_of(name) else None
    return create(name, network, settings, activation=activation, seed=3, prepared=given)


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def predict(method, x):
    return method.network(x)


def stream(method, count, first=0, spatial_dims=2):
    """Records and predictions of some images, one after the other."""
    seen = []
    for seed in range(first, first + count):
        x = images(spatial_dims, seed=seed)
        seen.append((method.adapt(x), predict(method, x)))
    return seen


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("spatial_dims", "batch"), [(2, 1), (2, 4), (3, 1), (3, 4)])
def test_takes_2d_and_3d_images_one_and_several_at_a_time(name, activation, spatial_dims, batch):
    assert spatial_dims in METHODS[name].card.spatial_dims
    method = make(name, spatial_dims=spatial_dims, activation=activation)
    x = images(spatial_dims, batch)
    kept = x.clone()
    record = method.adapt(x)
    prediction = predict(method, x)
    assert torch.equal(x, kept)
    assert prediction.shape == (batch, 2, *x.shape[2:]) and prediction.isfinite().all()
    assert prediction.dtype == torch.float32
    assert not any(flag.startswith("non_finite") for flag in record.flags)


@pytest.mark.parametrize("name", METHODS)
def test_constructing_changes_nothing_and_restore_is_exact(name):
    network = make_network()
    expected = copy.deepcopy(network).eval()(images(seed=9)).detach()
    before, flags = snapshot(network), [p.requires_grad for p in network.parameters()]
    modes = [module.training for module in network.modules()]
    method = make(name, network)
    assert same(snapshot(network), before)
    assert [module.training for module in network.modules()] == modes
    first = stream(method, 3)
    method.restore()
    assert same(snapshot(network), before)
    assert [p.requires_grad for p in network.parameters()] == flags
    assert [module.training for module in network.modules()] == modes
    network.eval()
    assert torch.equal(predict(method, images(seed=9)), expected)
    # as if just constructed
    again = stream(method, 3)
    for (a, x), (b, y) in zip(first, again):
        assert repr(a) == repr(b) and torch.equal(x, y)


@pytest.mark.parametrize("name", METHODS)
def test_another_process_goes_on_bit_for_bit(name):
    method = make(name)
    stream(method, 3)
    buffer = io.BytesIO()
    torch.save(method.state_dict(), buffer)
    expected = stream(method, 2, first=3)
    buffer.seek(0)
    other = make(name)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for (a, x), (b, y) in zip(expected, stream(other, 2, first=3)):
        assert repr(a) == repr(b) and torch.equal(x, y)
    assert same(snapshot(method._network), snapshot(other._network))


@pytest.mark.parametrize("name", METHODS)
def test_a_state_loaded_in_inference_mode_goes_on_as_well(name):
    method = make(name)
    stream(method, 2)
    state = copy.deepcopy(method.state_dict())
    expected = stream(method, 2, first=2)
    other = make(name)
    with torch.inference_mode():
        other.load_state_dict(state)
    for (a, x), (b, y) in zip(expected, stream(other, 2, first=2)):
        assert repr(a) == repr(b) and torch.equal(x, y)


# Other values of settings whose default does not suggest one; the second where the first is the default.
OTHERS = {
    "weighting": ("uniform",),
    "pseudo": ("entropy",),
    "auxiliary": ("consistency",),
    "entropy": ("plogp", "binary"),
    "optimizer": ("RMSprop",),
    "optimizer_options": ({"weight_decay": 0.1},),
    "learning_rate_law": ("linear",),
    "adapted": ("all",),
    "output": (0,),
    "views": (["identity"],),
    "members": ([[0, "identity"]],),
    "strong_view": ({"output_range": "input"},),
    "feature_layer": ("model.1",),
    "autocast": ("bfloat16",),
    "views_autocast": ("bfloat16",),
    "batch_statistics": (0.25,),
    "betas": ((0.5, 0.9),),
    "tolerance": ((0.5, 2.0),),
}
# An activation has no default, and another seed, file or way to predict is no other way to adapt.
WITHOUT = ("activation", "seed", "prepared", "predict", "predict_views")


def other_values():
    """Every setting of each method that a state holds for, with a value that is not its default."""
    for name, method in METHODS.items():
        for key, item in method.settings().items():
            value = item.default
            if key in WITHOUT or (key == "output" and not item.in_state):
                continue
            if isinstance(value, bool):
                other = not value
            elif isinstance(value, int):
                other = value + 1 if key != "neighbours" else value - 1
            elif key in OTHERS:
                other = next(other for other in OTHERS[key] if other != value)
            elif isinstance(value, tuple):
                other = value[:1]
            else:
                other = value / 2 or 0.5
            # both of these need two gradients
            two = key in ("rho", "learning_rate_law")
            both = {"auxiliary": "consistency"} if two and "auxiliary" in method.settings() else {}
            yield pytest.param(name, both, {key: other}, id=f"{name}-{key}")


@pytest.mark.parametrize(("name", "both", "settings"), list(other_values()))
def test_a_state_of_other_settings_is_refused_before_anything_is_written(name, both, settings):
    method = make(name, **both)
    stream(method, 1)
    network = make_network()
    other = make(name, network, **both, **settings)
    before, generator = snapshot(network), other.generator.get_state()
    with pytest.raises(Exception, match="This state .*(start anew|other names or shapes)") as error:
        other.load_state_dict(method.state_dict())
    assert type(error.value).__name__ == "GrataError"
    assert same(snapshot(network), before) and torch.equal(other.generator.get_state(), generator)
    assert other.batches == 0 and not other._active


@pytest.mark.parametrize("name", METHODS)
def test_a_state_is_taken_at_its_moment(name):
    method = make(name)
    stream(method, 1)
    state = method.state_dict()
    kept = copy.deepcopy(state)
    stream(method, 2, first=1)
    assert repr(state) == repr(kept)


@pytest.mark.parametrize("name", METHODS)
def test_touches_nothing_but_what_it_says_and_no_global_generator(name):
    network = make_network()
    before = snapshot(network)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    method = make(name, network)
    stream(method, 2)
    assert torch.equal(torch.rand(3), expected)
    changed = {key for key, value in snapshot(network).items() if not torch.equal(value, before[key])}
    assert changed <= set(method.parameters)
    assert set(method.parameters) <= set(before)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_result_and_the_source_can_be_asked_in_between(name):
    network = make_network()
    x = images(seed=7)
    expected = copy.deepcopy(network).eval()(x).detach()
    a, b = make(name, network), make(name)
    for seed in range(3):
        a.adapt(images(seed=seed))
        b.adapt(images(seed=seed))
        with a.source_network() as source:
            assert torch.equal(source(x), expected)
    assert torch.equal(predict(a, x), predict(b, x))


@pytest.mark.parametrize("name", LEARNING)
def test_per_case_resets_make_the_order_of_cases_irrelevant(name, adapt_case):
    one, two = (Session(make(name), reset="per-case", guard=False) for _ in range(2))
    for seed in range(3):
        adapt_case(one, images(seed=seed))
    x = images(seed=5)
    (a,), (b,) = adapt_case(one, x), adapt_case(two, x)
    assert torch.equal(predict(one.method, x), predict(two.method, x)) and a.flags == b.flags
    assert a.reset and not b.reset


@pytest.mark.parametrize("name", METHODS)
def test_without_a_policy_it_is_the_one_of_the_methods_paper(name, adapt_case):
    session, other = Session(make(name), guard=False), Session(make(name), guard=False)
    assert session.episodic == METHODS[name].card.episodic
    resets = [adapt_case(session, images(seed=seed))[0].reset for seed in range(3)]
    assert resets == [False, session.episodic, session.episodic]
    if session.episodic:
        adapt_case(other, images(seed=2))
        assert torch.equal(predict(session.method, images()), predict(other.method, images()))


@pytest.mark.parametrize("name", METHODS)
def test_the_card_counts_passes_through_the_network(name):
    network = make_network()
    # confidence filters let nothing through of what an untrained network predicts
    wide = {"margin": 1.0, "redundancy": 10.0, "confidence": 0.0}
    wide = {key: value for key, value in wide.items() if key in settings_of(name)}
    method = make(name, network, **wide)
    x = images()
    stream(method, 1, first=1)
    counts = {"forwards": 0, "backwards": 0}

    # an early layer, since auxiliary heads stop the network before its end, and one whose parameters all methods adapt
    layer = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))

    def count(module, inputs, output):
        counts["forwards"] += 1
        if output.requires_grad:
            output.register_hook(lambda _: counts.update(backwards=counts["backwards"] + 1))

    handle = layer.register_forward_hook(count)
    if METHODS[name].card.episodic:
        method.restore()
    method.adapt(x)
    with torch.no_grad():
        method.network(x)
    handle.remove()
    card = METHODS[name].card
    assert (counts["forwards"], counts["backwards"]) == (card.forwards, card.backwards)


@pytest.mark.parametrize("name", METHODS)
def test_the_overlay_selects_the_method_and_holds_its_defaults(name):
    overlay = yaml.safe_load((ROOT / "configs" / "methods" / f"{name}.yaml").read_text())
    assert overlay.keys() == {"method", "settings"} and overlay["method"] == name
    defaults = settings_of(name)
    for key, value in overlay["settings"].items():
        default = list(defaults[key]) if isinstance(defaults[key], tuple) else defaults[key]
        assert value == default or (value == {} and default is None), key
    own = set(catalogue.build()[name].own) - {"prepared"}
    assert own <= overlay["settings"].keys()


@pytest.mark.parametrize("name", METHODS)
def test_the_card_tells_who_wrote_it_and_what_it_needs(name):
    card = METHODS[name].card
    assert METHODS[name].name == name
    assert card.title and card.reference and card.rule and card.changes
    assert set(card.needs) <= NEEDS.keys()
    if card.prepared:
        assert "prepared" in settings_of(name)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.card.prepared])
def test_weights_may_be_loaded_after_a_method_was_made_and_must_then_be_those_prepared_for(name):
    trained, network = make_network(), make_network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    untrained = snapshot(network)
    method = create(name, network, activation="sigmoid", seed=3, prepared=prepared(trained))
    with pytest.raises(Exception, match="prepared for other weights") as error:
        method.adapt(images())
    assert type(error.value).__name__ == "GrataError" and same(snapshot(network), untrained)
    network.load_state_dict(trained.state_dict())
    expected = make(name, trained)
    assert repr(method.adapt(images())) == repr(expected.adapt(images()))
    assert torch.equal(predict(method, images()), predict(expected, images()))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.card.prepared])
def test_what_was_not_prepared_is_asked_for_with_the_command_that_does(name):
    with pytest.raises(Exception, match="python -m grata prepare") as error:
        create(name, make_network(), activation="sigmoid")
    assert type(error.value).__name__ == "GrataError"
    with pytest.raises(Exception, match="python -m grata prepare"):
        create(name, make_network(), activation="sigmoid", prepared="nowhere/prepared.safetensors")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("active", [False, True], ids=["new", "adapted"])
def test_a_copy_goes_on_as_the_method_and_has_a_network_of_its_own(name, active):
    method = make(name)
    if active:
        stream(method, 1)
    written = pickle.dumps(method)
    twins = [pickle.loads(written), copy.deepcopy(method)]
    expected = stream(method, 1, first=1)
    for twin in twins:
        ((record, prediction),) = stream(twin, 1, first=1)
        assert repr(record) == repr(expected[0][0]) and torch.equal(prediction, expected[0][1])
    method.restore()
    for twin in twins:
        twin.restore()
        assert same(snapshot(twin.given), snapshot(method.given))
