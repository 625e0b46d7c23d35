"""When a method starts again: each policy on a stream, with any method."""

import pytest
import torch

from grata.errors import GrataError
from grata.methods import Source, Tent, create
from grata.session.resets import RESETS, Drift, EntropyCollapse, EveryN, SiteChange, make_reset
from grata.settings import MISSING


def image(seed):
    return torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def resets(method, seeds, sites=None):
    """Which cases of a stream started from the source network."""
    return [
        index
        for index, seed in enumerate(seeds)
        if method.adapt(image(seed), site=sites[index] if sites else None).reset
    ]


def parameters(method):
    return {name: p.detach().clone() for name, p in method.parameters.items()}


def test_never_goes_on_and_per_case_always_starts_again(make_network):
    assert resets(Tent(make_network(), activation="sigmoid", reset="never"), range(5)) == []
    assert resets(Tent(make_network(), activation="sigmoid", reset="per-case"), range(5)) == [1, 2, 3, 4]


def test_every_n_starts_again_after_so_many_cases(make_network):
    assert resets(Tent(make_network(), activation="sigmoid", reset={"name": "every-n", "cases": 3}), range(8)) == [3, 6]


def test_after_a_reset_the_stream_is_as_from_its_beginning(make_network):
    online, fresh = (
        Tent(make_network(), activation="sigmoid", lr=1e-2, reset=EveryN(2)),
        Tent(make_network(), activation="sigmoid", lr=1e-2),
    )
    for seed in (0, 1, 2):
        online.adapt(image(seed))
    fresh.adapt(image(2))
    for name, p in parameters(fresh).items():
        assert torch.equal(p, online.parameters[name])


def test_windows_of_one_case_are_no_cases_of_their_own(make_network):
    method = Tent(make_network(), activation="sigmoid", reset=EveryN(1))
    method.begin_case()
    assert [method.adapt(image(k), same_case=True).reset for k in range(3)] == [False, False, False]
    method.begin_case()
    assert [method.adapt(image(k), same_case=True).reset for k in range(2)] == [True, False]


def test_site_change(make_network):
    sites = ["a", "a", "b", "b", "a", "a"]
    assert resets(Tent(make_network(), activation="sigmoid", reset="site-change"), range(6), sites) == [2, 4]


def test_drift_is_measured_against_the_source(make_network):
    method = Tent(make_network(), activation="sigmoid", lr=1e-2, reset=Drift(0.02))
    for seed in range(12):
        before = method.parameter_change()["relative"]
        assert method.adapt(image(seed)).reset == (before > 0.02)
    assert Tent(make_network(), activation="sigmoid", lr=1e-2, reset=Drift(100.0)).reset.due(method, None) is False


def test_a_collapse_of_the_entropy_is_seen_against_its_start(make_network):
    policy = EntropyCollapse(fraction=0.98, momentum=0.5, first=2)
    method = Tent(make_network(), activation="sigmoid", lr=5e-2, reset=policy)
    averages, when = [], []
    for _ in range(12):
        record = method.adapt(image(0))
        when.append(record.reset)
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
    assert Tent(make_network(), activation="sigmoid", lr=0.0, reset=EntropyCollapse()).adapt(image(0)).reset is False


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
def test_another_process_decides_as_this_one_would(make_network, setting):
    sites = ["a", "a", "b", "a", "c", "c", "c"]

    def go_on(method, first, last):
        return [method.adapt(image(k), site=sites[k]).reset for k in range(first, last)]

    whole = Tent(make_network(), activation="sigmoid", lr=1e-2, reset=setting)
    expected = go_on(whole, 0, 7)
    one = Tent(make_network(), activation="sigmoid", lr=1e-2, reset=setting)
    begun = go_on(one, 0, 3)
    other = Tent(make_network(), activation="sigmoid", lr=1e-2, reset=setting)
    other.load_state_dict(one.state_dict())
    assert begun + go_on(other, 3, 7) == expected
    for name, p in parameters(whole).items():
        assert torch.equal(p, other.parameters[name])
    with pytest.raises(GrataError, match="another reset policy"):
        Tent(make_network(), activation="sigmoid", lr=1e-2, reset=EveryN(77)).load_state_dict(one.state_dict())


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
        create(name, make_network(), activation="softmax", reset="drift")
    assert create("dua", make_network(), activation="softmax", reset="drift").reset == Drift()


@pytest.mark.parametrize("name", ["cotta", "diga", "intent", "vptta"])
def test_a_collapse_is_that_of_what_the_method_predicts(make_network, name):
    method = create(name, make_network(), activation="softmax")
    method.adapt(image(0))
    with torch.no_grad():
        log_p = method.network(image(1)).log_softmax(1)
    expected = -(log_p.exp() * log_p).sum(1).flatten(1).mean(1)
    torch.testing.assert_close(method.uncertainty(image(1)), expected, rtol=1e-4, atol=1e-6)
