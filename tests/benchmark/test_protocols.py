import pytest

from grata.benchmark.protocols import PROTOCOLS, make_protocol
from grata.errors import GrataError

SITES = {"a": ["1", "2", "3"], "b": ["1", "2"]}


def streams(setting, seed=0, shuffle=False):
    protocol = make_protocol(setting, list(SITES))
    return {
        stream.name: [f"{item.site}{item.case}{'!' * item.reset}" for item in stream.items]
        for stream in protocol.streams(SITES, seed, shuffle)
    }


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("per-target", {"a": ["a1", "a2", "a3"], "b": ["b1", "b2"]}),
        ("episodic", {"a": ["a1!", "a2!", "a3!"], "b": ["b1!", "b2!"]}),
        ("continual", {"all": ["a1", "a2", "a3", "b1", "b2"]}),
        ({"name": "continual", "order": ["b", "a"]}, {"all": ["b1", "b2", "a1", "a2", "a3"]}),
        ({"name": "recurring", "repeats": 2, "order": ["b", "a"]}, {"all": ["b1", "b2", "a1", "a2", "a3"] * 2}),
    ],
)
def test_order_and_resets(setting, expected):
    assert streams(setting) == expected == streams(setting, seed=5)


def test_rounds_of_a_recurring_stream_are_counted():
    (stream,) = make_protocol({"name": "recurring", "repeats": 3}, list(SITES)).streams(SITES, 0)
    assert [item.round for item in stream.items] == [0] * 5 + [1] * 5 + [2] * 5


def test_mixed_holds_every_image_once_in_an_order_of_the_seed():
    first, again, other = (streams("mixed", seed)["all"] for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == sorted(other) == ["a1", "a2", "a3", "b1", "b2"]
    assert first != sorted(first)


def test_a_further_site_does_not_change_the_random_order_within_another():
    alone = make_protocol("per-target", ["a"]).streams({"a": SITES["a"] * 4}, 1, shuffle=True)[0]
    both = make_protocol("per-target", list(SITES)).streams({**SITES, "a": SITES["a"] * 4}, 1, shuffle=True)[0]
    assert alone == both and alone.drawn
    assert [item.case for item in alone.items] != SITES["a"] * 4


def test_a_site_of_the_order_that_is_not_tested_is_left_out():
    protocol = make_protocol({"name": "continual", "order": ["b", "a"]}, list(SITES))
    assert [item.site for item in protocol.streams({"a": ["1"]}, 0)[0].items] == ["a"]


def test_numbers_in_an_order_stand_for_the_sites_of_that_name():
    protocol = make_protocol({"name": "continual", "order": [2, 1]}, ["1", "2"])
    (stream,) = protocol.streams({"1": ["a"], "2": ["b"]}, 0)
    assert [(item.site, item.case) for item in stream.items] == [("2", "b"), ("1", "a")]


def test_weighting():
    weights = {name: protocol.weighting for name, protocol in PROTOCOLS.items()}
    assert weights == {
        "per-target": "sites",
        "episodic": "sites",
        "continual": "images",
        "mixed": "images",
        "recurring": "images",
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("per_target", "protocol: there is no protocol .per_target.; .*Did you mean per-target"),
        (
            {"name": "continual", "ordre": []},
            "protocol#ordre: continual has no such setting; did you mean protocol#order",
        ),
        ({"name": "continual", "order": ["a"]}, "each target once"),
        ({"name": "recurring", "repeats": 0}, "protocol#repeats: must be a whole number of at least 1"),
        ({"name": "continual", "order": "ab"}, "protocol#order: must be a list of names"),
        ({"name": "continual", "order": []}, "protocol#order: must name each target once"),
        ({"name": "continual", "order": ["a", "b", "b"]}, "protocol#order: must name each target once"),
    ],
)
def test_refused(setting, message):
    with pytest.raises(GrataError, match=message):
        make_protocol(setting, list(SITES))
