"""Contract of GraTa around its step: what it changes, what its state holds, what it refuses."""

import copy
import io
import math

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from grata.errors import GrataError
from grata.methods import METHODS, GraTa, create
from grata.session import Session

NORMS = ["batch", ("instance", {"affine": True}), ("group", {"num_groups": 2})]


def batch(seed=0, shape=(1, 1, 16, 16)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def snapshot(network):
    return {k: v.clone() for k, v in network.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("dims", [2, 3])
def test_only_affine_parameters_of_normalization_layers_change(make_network, norm, dims):
    network = make_network(dims, norm)
    before = snapshot(network)
    method = GraTa(network, activation="sigmoid", lr=1e-2)
    for seed in range(2):
        record = method.adapt(batch(seed, (1, 1) + (8,) * dims))
        assert record.flags == () and math.isfinite(record.cosine)
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and changed <= set(method.parameters)


def test_layer_normalization_is_adapted_too():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.head = nn.Conv2d(1, 4, 1), nn.LayerNorm(4), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.head(self.norm(self.embed(x).movedim(1, -1)).movedim(-1, 1))

    method = GraTa(Tokens(), activation="sigmoid", lr=1e-2)
    method.adapt(batch())
    assert method.parameter_change()["l2"] > 0


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_restore_brings_the_source_network_back_exactly(make_network, norm):
    network = make_network(2, norm, dropout=0.3)
    network.model[0].train(False)
    next(network.parameters()).requires_grad_(False)
    x = batch()
    flags = {n: p.requires_grad for n, p in network.named_parameters()}
    modes = {n: m.training for n, m in network.named_modules()}
    before = snapshot(network)
    source_prediction = copy.deepcopy(network).eval()(x)
    method = GraTa(network, activation="sigmoid", lr=1e-2)
    first = method.adapt(x)
    method.adapt(batch(1))
    method.restore()
    assert same(snapshot(network), before)
    assert {n: p.requires_grad for n, p in network.named_parameters()} == flags
    assert {n: m.training for n, m in network.named_modules()} == modes
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(network.eval()(x), source_prediction)
    assert method.adapt(x) == first  # optimizer and generator are restored too


def test_frozen_parameters_get_no_gradient_and_dropout_stays_off(make_network):
    network = make_network(dropout=0.5)
    network.train()
    method = GraTa(network, activation="sigmoid")
    method.adapt(batch())
    assert {n for n, p in network.named_parameters() if p.requires_grad} == set(method.parameters)
    assert all(p.grad is None for p in network.parameters())
    with torch.no_grad():
        assert torch.equal(method.network(batch()), method.network(batch()))


def test_the_input_is_not_changed_and_any_float_type_is_taken(make_network):
    for x in (batch().double(), batch().half(), MetaTensor(batch())):
        kept = x.clone()
        GraTa(make_network(), activation="sigmoid").adapt(x)
        assert torch.equal(x, kept)
    method = GraTa(make_network(), activation="sigmoid")
    with torch.inference_mode():
        assert method.adapt(batch()).flags == ()
    with pytest.raises(GrataError, match="floating point"):
        GraTa(make_network(), activation="sigmoid").adapt(batch().long())


def test_batch_sizes_may_differ_from_step_to_step(make_network):
    method = GraTa(make_network(), activation="sigmoid")
    for size in (1, 3, 2):
        assert method.adapt(batch(size, (size, 1, 16, 16))).flags == ()


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "SGD"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_resumed_in_another_process_is_the_same_to_the_last_bit(make_network, optimizer, steps):
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    settings = {"optimizer": optimizer, "lr": 1e-2, "optimizer_options": options, "steps": steps, "seed": 5}
    whole = GraTa(make_network(), **{"activation": "sigmoid", **settings})
    records = [whole.adapt(batch(i)) for i in range(4)]

    begun = GraTa(make_network(), **{"activation": "sigmoid", **settings})
    for i in range(2):
        begun.adapt(batch(i))
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    resumed = GraTa(make_network(), **{"activation": "sigmoid", **settings})
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [resumed.adapt(batch(i)) for i in (2, 3)] == records[2:]
    assert same(snapshot(resumed.network), snapshot(whole.network))
    with torch.no_grad():
        assert torch.equal(resumed.network(batch(9)), whole.network(batch(9)))


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_a_case_that_is_rolled_back_leaves_no_trace(make_network, optimizer):
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    plain, rolled = (
        GraTa(make_network(), activation="sigmoid", optimizer=optimizer, lr=1e-1, optimizer_options=options)
        for _ in range(2)
    )
    for method in (plain, rolled):
        method.adapt(batch(0))
    state = rolled.state_dict()
    for _ in range(2):
        rolled.load_state_dict(state)
        rolled.adapt(batch(1))
    rolled.load_state_dict(state)
    assert rolled.adapt(batch(2)) == plain.adapt(batch(2))
    assert same(snapshot(rolled.network), snapshot(plain.network))


def test_an_optimizer_resumes_bit_for_bit_in_float64_too(make_network):
    """Cover NAdam, of whose state torch converts a part to the parameters' dtype on loading."""
    whole, begun = (GraTa(make_network().double(), activation="sigmoid", optimizer="NAdam", lr=1e-2) for _ in range(2))
    records = [whole.adapt(batch(i)) for i in range(3)]
    begun.adapt(batch(0))
    resumed = GraTa(make_network().double(), activation="sigmoid", optimizer="NAdam", lr=1e-2)
    resumed.load_state_dict(begun.state_dict())
    assert [resumed.adapt(batch(i)) for i in (1, 2)] == records[1:]
    assert same(snapshot(resumed.network), snapshot(whole.network))


@pytest.mark.parametrize("other", [{"lr": 1e-3}, {"optimizer": "SGD"}, {"optimizer_options": {"betas": [0.8, 0.999]}}])
def test_a_state_of_other_optimizer_settings_is_refused(make_network, other):
    method = GraTa(make_network(), activation="sigmoid")
    method.adapt(batch())
    with pytest.raises(GrataError, match="another optimizer .*start anew"):
        GraTa(make_network(), **{"activation": "sigmoid", **other}).load_state_dict(method.state_dict())


def test_a_copy_of_a_method_is_independent(make_network):
    method = GraTa(make_network(), activation="sigmoid", lr=1e-2)
    method.adapt(batch())
    twin = copy.deepcopy(method)
    assert twin.adapt(batch(1)) == method.adapt(batch(1))
    adapted = snapshot(method.network)
    twin.restore()
    twin.adapt(batch(2))
    assert same(snapshot(method.network), adapted)


def test_a_state_is_loaded_inside_inference_mode_too(make_network):
    method = GraTa(make_network(), activation="sigmoid", lr=1e-2)
    method.adapt(batch())
    state = method.state_dict()
    with torch.inference_mode():
        method.load_state_dict(state)
    assert method.adapt(batch(1)).flags == ()


def test_a_state_that_is_refused_changes_nothing(make_network):
    method, other = GraTa(make_network(), activation="sigmoid", lr=1e-2), make_network()
    with torch.no_grad():
        next(p for p in GraTa(other, activation="sigmoid").parameters.values()).add_(1)
    method.adapt(batch())
    before = snapshot(method.network)
    with pytest.raises(GrataError, match="other source weights"):
        method.load_state_dict(GraTa(other, activation="sigmoid", lr=1e-2).state_dict())
    assert same(snapshot(method.network), before) and method.batches == 1


def test_a_state_of_other_weights_or_of_another_network_is_refused(make_network):
    state = GraTa(make_network(), activation="sigmoid").state_dict()
    other = make_network()
    with torch.no_grad():
        next(p for p in GraTa(other, activation="sigmoid").parameters.values()).add_(1)
    with pytest.raises(GrataError, match="other source weights"):
        GraTa(other, activation="sigmoid").load_state_dict(state)
    with pytest.raises(GrataError, match="another network"):
        GraTa(
            make_network(norm=("group", {"num_groups": 4}), spatial_dims=3, out_channels=5), activation="sigmoid"
        ).load_state_dict({**state, "parameters": {}})
    with pytest.raises(GrataError, match="ptbn"):
        create("ptbn", make_network()).load_state_dict(state)


def test_the_seed_decides_and_the_global_generator_is_left_alone(make_network):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    a, b, c = (GraTa(make_network(), activation="sigmoid", seed=seed).adapt(batch()) for seed in (0, 0, 1))
    assert a == b != c
    assert torch.equal(torch.rand(3), expected)


def test_episodic_results_do_not_depend_on_the_order_of_the_cases(make_network, adapt_case):
    def parameters_after(order, episodic):
        method = GraTa(make_network(), activation="sigmoid", lr=1e-2)
        session = Session(method, reset="per-case" if episodic else "never", guard=False)
        for i in order:
            adapt_case(session, batch(i))
        return snapshot(method.network)

    assert same(parameters_after([0, 1, 2], True), parameters_after([2], True))
    assert not same(parameters_after([0, 1, 2], False), parameters_after([2], False))


def test_several_steps_are_several_online_steps_on_the_same_batch(make_network):
    strong = batch(1)
    three = GraTa(make_network(), activation="sigmoid", lr=1e-2, steps=3)
    record = three.adapt(batch(), strong_view=strong)
    one = GraTa(make_network(), activation="sigmoid", lr=1e-2)
    singles = [one.adapt(batch(), strong_view=strong) for _ in range(3)]
    assert list(record.steps) == singles
    assert same(snapshot(three.network), snapshot(one.network))


def test_every_parameter_group_is_scaled_by_the_same_factor(make_network):
    def two_groups(named):
        weights = [p for n, p in named if n.endswith("weight")]
        biases = [p for n, p in named if n.endswith("bias")]
        return torch.optim.SGD([{"params": weights, "lr": 1e-2}, {"params": biases, "lr": 1e-3}])

    method = GraTa(make_network(), activation="sigmoid", optimizer=two_groups)
    record = method.adapt(batch())
    rates = [group["lr"] for group in method.optimizer.param_groups]
    factor = (1 + record.cosine) ** 2 / 4
    assert rates == pytest.approx([1e-2 * factor, 1e-3 * factor])
    assert record.learning_rate == rates[0] and isinstance(rates[0], float)


def test_a_mix_of_statistics_lies_between_source_and_batch(make_network):
    predictions = []
    for mix in (0.0, 0.5, 1.0):
        method = GraTa(make_network(), activation="sigmoid", lr=0.0, batch_statistics=mix)
        method.adapt(batch())
        with torch.no_grad():
            predictions.append(method.network(batch()))
    source = make_network().eval()(batch())
    torch.testing.assert_close(predictions[0], source.detach())
    assert not torch.allclose(predictions[1], predictions[0]) and not torch.allclose(predictions[1], predictions[2])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_autocast_steps_close_to_full_precision(make_network, precision):
    full, half = (
        GraTa(make_network(), activation="sigmoid"),
        GraTa(make_network(), activation="sigmoid", autocast=precision),
    )
    strong = batch(4)
    a, b = (m.adapt(batch(), strong_view=strong) for m in (full, half))
    assert b.flags == ()
    assert b.auxiliary_loss == pytest.approx(a.auxiliary_loss, rel=0.02)
    assert b.cosine == pytest.approx(a.cosine, abs=0.1)
    assert b.auxiliary_loss != a.auxiliary_loss
    with torch.autocast("cpu", dtype=getattr(torch, precision)):
        surrounded = GraTa(make_network(), activation="sigmoid").adapt(batch(), strong_view=strong)
    assert surrounded.auxiliary_loss == b.auxiliary_loss


@pytest.mark.parametrize("what", ["image", "strong", "overflow"])
def test_a_non_finite_step_is_skipped_and_leaves_everything_as_it_was(make_network, what):
    class Explosive(torch.optim.SGD):
        explode = False

        def step(self):
            super().step()
            if self.explode:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].fill_(math.inf)

    method = GraTa(
        make_network(),
        activation="sigmoid",
        optimizer=lambda named: Explosive([p for _, p in named], lr=1e-2, momentum=0.9),
    )
    method.adapt(batch())
    before, optimizer = snapshot(method.network), copy.deepcopy(method.optimizer.state_dict()["state"])
    x, strong = batch(1), batch(2)
    if what == "overflow":
        method.optimizer.explode = True
    else:
        (x if what == "image" else strong)[0, 0, 3, 3] = math.nan
    record = method.adapt(x, strong_view=strong)
    assert record.flags[-1] == "step_skipped" and record.flags[0].startswith("non_finite")
    assert record.learning_rate == 0
    assert same(snapshot(method.network), before)
    assert str(method.optimizer.state_dict()["state"]) == str(optimizer)
    method.optimizer.explode = False
    assert method.adapt(batch(3)).flags == ()


def test_an_error_inside_the_look_ahead_leaves_the_parameters_as_they_were(make_network):
    def broken(images, generator):
        raise RuntimeError("out of memory")

    method = GraTa(make_network(), activation="sigmoid", strong_view=broken)
    before = snapshot(method.network)
    with pytest.raises(RuntimeError, match="out of memory"):
        method.adapt(batch())
    assert same(snapshot(method.network), before)


def test_a_scripted_network_adapts_as_its_python_twin(make_network):
    network = make_network(3, out_channels=3).eval()
    scripted = torch.jit.script(copy.deepcopy(network))
    x = batch(0, (1, 1, 8, 8, 8))
    ours, theirs = (GraTa(n, activation="softmax", lr=1e-2) for n in (network, scripted))
    for _ in range(2):
        a, b = ours.adapt(x), theirs.adapt(x)
        assert b.cosine == pytest.approx(a.cosine, rel=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(theirs.network(x), ours.network(x), atol=1e-4, rtol=1e-4)
    assert list(ours.parameters) == list(theirs.parameters)
    with pytest.raises(GrataError, match="Load the file once more"):
        copy.deepcopy(theirs)
    theirs.restore()
    torch.testing.assert_close(theirs.network(x), make_network(3, out_channels=3).eval()(x))


def test_logits_are_found_in_a_dict_or_a_list_only_when_they_are_named(make_network):
    class Wrapped(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.inner, self.wrap = make_network(), wrap

        def forward(self, x):
            return self.wrap(self.inner(x))

    plain = GraTa(make_network(), activation="sigmoid").adapt(batch())
    for wrap, output in ((lambda y: {"seg": y, "aux": 0}, "seg"), (lambda y: [y, y[:, :1]], 0)):
        assert GraTa(Wrapped(wrap), activation="sigmoid", output=output).adapt(batch()) == plain
        with pytest.raises(GrataError, match="output"):
            GraTa(Wrapped(wrap), activation="sigmoid").adapt(batch())
        with pytest.raises(GrataError, match="output: .* is not in what the network returns"):
            GraTa(Wrapped(wrap), activation="sigmoid", output="segg").adapt(batch())
    # a network with deep supervision returns a list in training mode only
    assert GraTa(make_network(), activation="sigmoid", output=0).adapt(batch(shape=(2, 1, 16, 16))) == GraTa(
        make_network(), activation="sigmoid"
    ).adapt(batch(shape=(2, 1, 16, 16)))


WRONG = [
    ({"activation": "tanh"}, "activation"),
    ({"entropy": "renyi"}, "entropy"),
    ({"entropy": "binary", "activation": "softmax"}, "binary"),
    ({"rho": -1.0}, "rho"),
    ({"rho": "one"}, "rho"),
    ({"lr": math.nan}, "lr"),
    ({"learning_rate_law": "cubic"}, "learning_rate_law"),
    ({"views": ["flip"]}, "views"),
    ({"strong_view": {"blurr": [0, 1]}}, "blurr"),
    ({"strong_view": {"noise": [1, 0]}}, "noise"),
    ({"batch_statistics": 2.0}, "batch_statistics"),
    ({"batch_statistics": "1.0"}, "batch_statistics"),
    ({"steps": 0}, "steps"),
    ({"steps": True}, "steps"),
    ({"autocast": "int8"}, "autocast"),
    ({"optimizer": "Adamm"}, "Adamm"),
    ({"optimizer": "LBFGS"}, "LBFGS"),
    ({"optimizer_options": {"bettas": 1}}, "bettas"),
    ({"optimizer_options": {"betas": [0.9]}}, "optimizer_options"),
    ({"optimizer_options": "betas"}, "optimizer_options"),
    ({"optimizer": lambda named: None}, "NoneType"),
    ({"optimizer": lambda named: torch.optim.LBFGS([p for _, p in named])}, "LBFGS"),
]


@pytest.mark.parametrize(("settings", "named"), WRONG, ids=lambda value: str(value).partition(" at 0x")[0])
def test_a_wrong_setting_is_refused_at_once_by_its_name(make_network, settings, named):
    with pytest.raises(GrataError, match=named):
        GraTa(make_network(), **{"activation": "sigmoid", **settings})


def test_create_knows_the_methods_and_suggests_the_setting_that_was_meant(make_network):
    assert set(METHODS) >= {"source", "ptbn", "grata"}
    assert isinstance(create("grata", make_network(), {"activation": "sigmoid", "lr": 1e-3}), GraTa)
    with pytest.raises(GrataError, match="activation: say"):
        create("grata", make_network(), {"lr": 1e-3})
    with pytest.raises(GrataError, match="settings#lr: must be"):
        create("grata", make_network(), {"activation": "sigmoid", "lr": "fast"})
    with pytest.raises(GrataError, match="settings#rho"):
        create("grata", make_network(), {"rhoo": 1})
    with pytest.raises(GrataError, match="source, .*Did you mean grata"):
        create("gratta", make_network())


def test_softmax_needs_more_than_one_channel(make_network):
    with pytest.raises(GrataError, match="two or more"):
        GraTa(make_network(out_channels=1), activation="softmax").adapt(batch())


def test_the_source_network_can_predict_in_between(make_network):
    network = make_network()
    source = copy.deepcopy(network).eval()(batch(3)).detach()
    method = GraTa(network, activation="sigmoid", lr=1e-2)
    method.adapt(batch())
    with torch.no_grad():
        adapted = method.network(batch(3))
    with method.source_network() as plain:
        assert torch.equal(plain(batch(3)), source)
    with torch.no_grad():
        assert torch.equal(method.network(batch(3)), adapted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_too_coarse_for_small_steps_are_refused(make_network, dtype):
    with pytest.raises(GrataError, match="autocast"):
        GraTa(make_network().to(dtype), activation="sigmoid")


def test_the_strong_view_is_drawn_in_full_precision_under_autocast_too(make_network):
    seen = []

    def view(images, generator):
        seen.append(torch.is_autocast_enabled("cpu"))
        images.mul_(2)
        return images

    x = batch()
    kept = x.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        GraTa(make_network(), activation="sigmoid", strong_view=view).adapt(x)
    assert seen == [False]
    assert torch.equal(x, kept)


def test_a_gradient_that_spoils_the_optimizer_is_skipped_without_a_trace(make_network):
    clean, hit = (
        GraTa(make_network(), activation="sigmoid", lr=1e-2),
        GraTa(make_network(), activation="sigmoid", lr=1e-2),
    )
    head = [p for p in hit.network.parameters() if p.ndim == 4][-1]
    for method in (clean, hit):
        method.adapt(batch(), strong_view=batch(4))
    with torch.no_grad():
        head.mul_(1e24)
    record = hit.adapt(batch(1), strong_view=batch(5))
    with torch.no_grad():
        head.copy_([p for p in clean.network.parameters() if p.ndim == 4][-1])
    assert record.flags[-1] == "step_skipped"
    assert hit.adapt(batch(2), strong_view=batch(6)) == clean.adapt(batch(2), strong_view=batch(6))
    assert same(snapshot(hit.network), snapshot(clean.network))


def test_a_network_is_adapted_by_one_method_at_a_time(make_network):
    network = make_network()
    first = GraTa(network, activation="sigmoid")
    first.adapt(batch())
    with pytest.raises(GrataError, match="another method"):
        GraTa(network, activation="sigmoid").adapt(batch())
    first.restore()
    assert GraTa(network, activation="sigmoid").adapt(batch()).flags == ()


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.seg = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        self.other = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, x):
        return {"seg": self.seg(x), "other": self.other(x)}


def test_layers_that_the_prediction_does_not_depend_on_are_left_alone():
    network = TwoHeads()
    method = GraTa(
        network, activation="sigmoid", optimizer="AdamW", lr=1e-1, optimizer_options={"weight_decay": 0.1}, output="seg"
    )
    method.adapt(batch())
    assert torch.equal(network.other[1].weight, torch.ones(4))
    assert not torch.equal(network.seg[1].weight, torch.ones(4))


def test_a_network_whose_adapted_layers_are_not_used_is_refused():
    class Frozen(TwoHeads):
        def forward(self, x):
            with torch.no_grad():
                return self.seg(x)

    with pytest.raises(GrataError, match="does not depend on any adapted parameter"):
        GraTa(Frozen(), activation="sigmoid").adapt(batch())


def test_weights_loaded_before_the_first_batch_are_the_source(make_network):
    network, trained = make_network(), make_network()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5)
    method = GraTa(network, activation="sigmoid", lr=1e-2)
    network.load_state_dict(trained.state_dict())
    method.adapt(batch())
    method.restore()
    assert same(snapshot(network), snapshot(trained))


def test_one_dimensional_signals_are_adapted_to_as_images_are():
    network = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1))
    assert GraTa(network, activation="sigmoid").adapt(batch(shape=(2, 1, 32))).flags == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prepared": -1}, "prepared: must be a file"),
        ({"output": [1]}, "output: must be a key"),
        ({"output": True}, "output: must be a key"),
    ],
)
def test_values_of_no_known_kind_are_refused(make_network, settings, message):
    with pytest.raises(GrataError, match=f"^{message}"):
        GraTa(make_network(), activation="sigmoid", **settings)


def test_what_is_not_a_network_or_a_state_is_refused(make_network):
    with pytest.raises(GrataError, match="^network: must be a torch.nn.Module, got None"):
        GraTa(None, activation="sigmoid")
    for state in ({}, None):
        with pytest.raises(GrataError, match="not the state of a method"):
            GraTa(make_network(), activation="sigmoid").load_state_dict(state)
