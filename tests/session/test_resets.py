"""When a method starts again: each policy on a stream, with any method."""

import pytest
import torch

import grata
from grata.errors import GrataError
from grata.methods import Source, Tent, create
from grata.session import Session
from grata.session.resets import RESETS, Drift, EntropyCollapse, EveryN, SiteChange, make_reset
from grata.settings import MISSING


def image(seed):
    return torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def resets(adapt_case):
    """Function that tells which cases of a stream started from the source network."""

    def resets(session, seeds, sites=None):
        found = enumerate(seeds)
        return [i for i, seed in found if adapt_case(session, image(seed), site=sites[i] if sites else None)[0].reset]

    return resets


def tent(network, reset=None, **settings):
    """A session of Tent, with its policy."""
    return Session(Tent(network, activation="sigmoid", **settings), reset=reset, guard=False)


def parameters(method):
    return {name: p.detach().clone() for name, p in method.parameters.items()}


def test_never_goes_on_and_per_case_always_starts_again(make_network, resets):
    assert resets(tent(make_network(), "never"), range(5)) == []
    assert resets(tent(make_network(), "per-case"), range(5)) == [1, 2, 3, 4]


def test_every_n_starts_again_after_so_many_cases(make_network, resets):
    assert resets(tent(make_network(), {"name": "every-n", "cases": 3}), range(8)) == [3, 6]


def test_after_a_reset_the_stream_is_as_from_its_beginning(make_network, adapt_case):
    online, fresh = tent(make_network(), EveryN(2), lr=1e-2), tent(make_network(), lr=1e-2)
    for seed in (0, 1, 2):
        adapt_case(online, image(seed))
    adapt_case(fresh, image(2))
    for name, p in parameters(fresh.method).items():
        assert torch.equal(p, online.method.parameters[name])


def test_windows_of_one_case_are_no_cases_of_their_own(make_network, adapt_case):
    session = tent(make_network(), EveryN(1))

    def windows(count):
        return lambda method, selection: [image(k) for k in range(count)]

    def steps(count):
        with session.case(image(0)) as case:
            case.adapt(windows(count))
            case.judge(image(0))
        return [step.reset for step in case.steps]

    assert steps(3) == [False, False, False]
    assert steps(2) == [True, False]


def test_site_change(make_network, resets):
    sites = ["a", "a", "b", "b", "a", "a"]
    assert resets(tent(make_network(), "site-change"), range(6), sites) == [2, 4]


def test_drift_is_measured_against_the_source(make_network, resets):
    session = tent(make_network(), Drift(0.02), lr=1e-2)
    for seed in range(12):
        before = session.method.parameter_change()["relative"]
        assert bool(resets(session, [seed])) == (before > 0.02)
    assert Drift(100.0).due(session.method, None) is False


def test_a_collapse_of_the_entropy_is_seen_against_its_start(make_network, resets):
    policy = EntropyCollapse(fraction=0.98, momentum=0.5, first=2)
    session = tent(make_network(), policy, lr=5e-2)
    averages, when = [], []
    for _ in range(12):
        when.append(bool(resets(session, [0])))
        averages.append(policy.state_dict()["average"])
    assert any(when), "a large learning rate drives the entropy down"
    first = when.index(True)
    # naive moving average of the adapted network's entropy, from a method that never resets
    plain, entropies = Tent(make_network(), activation="sigmoid", lr=5e-2), []
    for _ in range(first):
        plain.adapt(image(0))
        entropies.append(float(plain.uncertainty(image(0)).mean()))
    average = entropies[0]
    for entropy in entropies[1:]:
        average = 0.5 * average + 0.5 * entropy
    assert averages[first - 1] == pytest.approx(average, rel=1e-6)
    assert average < 0.98 * sum(entropies[:2]) / 2
    assert resets(tent(make_network(), EntropyCollapse(), lr=0.0), [0]) == []


@pytest.mark.parametrize(
    "setting",
    [
        "never",
        "per-case",
        {"name": "every-n", "cases": 2},
        {"name": "entropy-collapse", "fraction": 0.95, "first": 1},
        {"name": "drift", "bound": 0.01},
        "site-change",
    ],
    ids=lambda setting: setting if isinstance(setting, str) else setting["name"],
)
def test_another_process_decides_as_this_one_would(make_network, adapt_case, setting):
    sites = ["a", "a", "b", "a", "c", "c", "c"]

    def go_on(session, first, last):
        return [adapt_case(session, image(k), site=sites[k])[0].reset for k in range(first, last)]

    whole = tent(make_network(), setting, lr=1e-2)
    expected = go_on(whole, 0, 7)
    one = tent(make_network(), setting, lr=1e-2)
    begun = go_on(one, 0, 3)
    other = tent(make_network(), setting, lr=1e-2)
    other.load_state_dict(one.state_dict())
    assert begun + go_on(other, 3, 7) == expected
    for name, p in parameters(whole.method).items():
        assert torch.equal(p, other.method.parameters[name])
    with pytest.raises(GrataError, match="another reset policy"):
        tent(make_network(), EveryN(77), lr=1e-2).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sometimes", "never, per-case, every-n"),
        (None, "there is no policy"),
        ({"name": "drift", "bond": 1}, "reset#bond.*bound"),
        ({"name": "drift", "bound": 0}, "reset#bound"),
        ({"name": "every-n", "cases": 0}, "reset#cases"),
        ({"name": "entropy-collapse", "fraction": 2}, "reset#fraction"),
        ({"name": "entropy-collapse", "first": 0.5}, "reset#first"),
        ({"name": "never", "cases": 1}, "none"),
    ],
)
def test_refused(setting, message):
    with pytest.raises(GrataError, match=message):
        make_reset(setting)


def test_every_policy_has_a_name_a_summary_and_defaults():
    for name, policy in RESETS.items():
        assert make_reset(name) == policy() and policy.name == name and policy.summary
        assert all(item.default is not MISSING for item in policy.settings().values())


def test_a_method_that_learns_nothing_cannot_collapse(make_network):
    network = make_network()
    assert isinstance(Source(network), Source)
    policy = EntropyCollapse()
    with pytest.raises(GrataError, match="source learns nothing"):
        policy.observe(Source(network), image(0))
    policy = SiteChange()
    policy.begin("a")
    assert policy.due(Source(network), "b") and not policy.due(Source(network), "a")


@pytest.mark.parametrize("name", ["diga", "intent", "vptta"])
def test_what_has_no_parameters_cannot_drift(make_network, name):
    with pytest.raises(GrataError, match=f"reset: method {name} changes no parameters that could drift"):
        Session(create(name, make_network(), activation="softmax"), reset="drift")
    assert Session(create("dua", make_network(), activation="softmax"), reset="drift").learner.policy == Drift()


@pytest.mark.parametrize("setting", ["", {}])
def test_a_policy_of_no_known_kind_is_refused_by_its_key(make_network, setting):
    with pytest.raises(GrataError, match=f"^reset: there is no policy {setting!r}"):
        tent(make_network(), setting)


@pytest.mark.parametrize("name", ["cotta", "diga", "intent", "vptta"])
def test_a_collapse_is_that_of_what_the_method_predicts(make_network, name):
    method = create(name, make_network(), activation="softmax")
    method.adapt(image(0))
    with torch.no_grad():
        log_p = method.network(image(1)).log_softmax(1)
    expected = -(log_p.exp() * log_p).sum(1).flatten(1).mean(1)
    torch.testing.assert_close(method.uncertainty(image(1)), expected, rtol=1e-4, atol=1e-6)


OLD_FORMS = {
    "the class": lambda network, reset: Tent(network, activation="sigmoid", lr=1e-2, reset=reset),
    "create": lambda network, reset: create("tent", network, {"lr": 1e-2}, activation="sigmoid", reset=reset),
    "settings": lambda network, reset: create("tent", network, {"lr": 1e-2, "reset": reset}, activation="sigmoid"),
}


@pytest.mark.parametrize("form", OLD_FORMS)
def test_a_policy_that_was_given_to_the_method_still_acts_and_is_warned_of(make_network, adapt_case, form):
    reset = {"name": "every-n", "cases": 2}
    with pytest.warns(DeprecationWarning, match="^reset is no setting of a method any more") as warned:
        method = OLD_FORMS[form](make_network(), reset)
    assert [warning.filename for warning in warned] == [__file__]
    old, new = Session(method, guard=False), tent(make_network(), reset, lr=1e-2)
    assert old.learner.policy == EveryN(2)
    for seed in range(5):
        assert adapt_case(old, image(seed)) == adapt_case(new, image(seed))
    assert adapt_case(old, image(5))[0].reset is False and adapt_case(old, image(6))[0].reset is True


def test_the_sessions_own_policy_goes_before_one_that_was_given_to_the_method(make_network):
    with pytest.warns(DeprecationWarning, match="reset is no setting"):
        method = Tent(make_network(), activation="sigmoid", reset="per-case")
    assert Session(method).episodic and not Session(method, reset="never").episodic


def test_grata_adapt_takes_a_policy_among_the_settings_and_warns(make_network):
    images = [image(seed) for seed in range(3)]
    common = {"method": "tent", "activation": "sigmoid", "guard": False}
    with pytest.warns(DeprecationWarning, match="reset is no setting") as warned:
        old = grata.adapt(make_network(), images, settings={"lr": 1e-2, "reset": "per-case"}, **common)
    assert [warning.filename for warning in warned] == [__file__]
    new = grata.adapt(make_network(), images, settings={"lr": 1e-2}, reset="per-case", **common)
    for a, b in zip(old, new, strict=True):
        assert torch.equal(a.logits, b.logits) and a.record["reset"] == b.record["reset"]
    assert old.session.episodic


@pytest.mark.parametrize("setting", ["", "sometimes"])
def test_a_wrong_policy_that_was_given_to_the_method_is_refused(make_network, setting):
    with pytest.warns(DeprecationWarning, match="reset is no setting"):
        method = Tent(make_network(), activation="sigmoid", reset=setting)
    with pytest.raises(GrataError, match=f"^reset: there is no policy {setting!r}"):
        Session(method)
