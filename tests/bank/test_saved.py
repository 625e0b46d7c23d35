import hashlib
import json
import math

import pytest
import torch
from monai.networks.nets import UNet

from grata.bank import Adaptation, apply, load, save
from grata.bank.codec import decode, encode
from grata.bank.saved import source_digest
from grata.errors import GrataError
from grata.methods import Tent
from grata.networks import network_digest
from grata.normalization import attach_affine
from grata.session import Session

METHODS = ("source", "ptbn", "grata", "tent", "cotta", "dua", "sar", "vptta", "diga")


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_any_nested_state_comes_back_to_the_last_bit(same_state):
    state = {
        "numbers": [1, 1.0, True, None, "1", 0.1 + 0.2, -0.0, 5e-324, math.inf, -math.inf, math.nan, 2**70],
        "nested": {
            0: {"step": torch.tensor(3.0)},
            "0": {"step": torch.tensor(4.0)},
            "empty": {},
            "pair": ((), (1, 2.0)),
        },
        "types": [torch.arange(3, dtype=dtype) for dtype in (torch.uint8, torch.int64, torch.float64, torch.bfloat16)],
        "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "shared": [part := torch.rand(3), part, part[1:]],
        "nan": torch.tensor([math.nan, -0.0]),
        "none": torch.zeros(0, 3),
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }
    tensors, skeleton = encode(state)
    assert same_state(decode(json.loads(json.dumps(skeleton, allow_nan=False)), tensors), state)


def test_a_state_with_objects_in_it_is_refused():
    with pytest.raises(TypeError, match="a/0: a set"):
        encode({"a": [{1}]})


@pytest.mark.parametrize("name", METHODS)
def test_a_loaded_method_goes_on_as_the_saved_one_would_have(name, make_method, images, tmp_path, same_state):
    straight = make_method(name)
    for x in images[:2]:
        straight.adapt(x)
    save(straight, tmp_path / "adapted")
    resumed = make_method(name)
    load(resumed, tmp_path / "adapted.safetensors")
    assert same_state(resumed.state_dict(), straight.state_dict())
    for x in images[2:]:
        straight.adapt(x)
        resumed.adapt(x)
        with torch.no_grad():
            assert torch.equal(straight.network(x), resumed.network(x))
    assert same_state(resumed.state_dict(), straight.state_dict())


def test_the_card_describes_the_adaptation(make_method, images, tmp_path):
    method = make_method("tent")
    source = network_digest(method.given)
    for x in images[:3]:
        method.adapt(x)
    save(method, tmp_path / "site", cases=2)
    card = json.loads((tmp_path / "site.json").read_text())
    assert card["method"] == "tent" and card["network"] == "UNet" and card["source"] == source
    assert card["cases"] == 2 and card["batches"] == 3
    assert card["parameters"] == sum(p.numel() for p in method.parameters.values())
    assert card["parameter_change"] == method.parameter_change() and card["parameter_change"]["l2"] > 0
    assert card["settings"]["steps"] == "1" and "'lr': 0.01" in card["settings"]["optimizer"]
    assert card["sha256"] == hashlib.sha256((tmp_path / "site.safetensors").read_bytes()).hexdigest()


def test_the_source_is_known_while_the_network_is_adapted(make_method, images):
    method = make_method("cotta")
    before = network_digest(method.given)
    method.adapt(images[0])
    adapted = weights(method.given)
    assert network_digest(method.given) != before
    assert source_digest(method) == before
    assert equal(weights(method.given), adapted)


@pytest.mark.parametrize("change", ["weight that is not adapted", "method", "setting"])
def test_what_does_not_belong_together_is_refused_and_nothing_changed(
    change, make_method, make_network, images, tmp_path
):
    method = make_method("tent")
    method.adapt(images[0])
    save(method, tmp_path / "a")
    network = make_network(2)
    if change == "weight that is not adapted":
        with torch.no_grad():
            next(network.parameters()).add_(1)
    other, message = {
        "weight that is not adapted": (make_method("tent", network), "a was adapted from other source weights"),
        "method": (make_method("grata", network), "method 'tent', not by 'grata'"),
        "setting": (make_method("tent", network, steps=2), "another steps"),
    }[change]
    before = weights(network)
    with pytest.raises(GrataError, match=message):
        load(other, tmp_path / "a")
    assert equal(weights(network), before) and other.batches == 0


def test_what_was_adapted_under_another_reset_policy_is_refused_and_nothing_changed(
    make_method, make_network, images, adapt_case, tmp_path
):
    adapt_case(Session(make_method("tent"), save_to=tmp_path / "a", guard=False), images[0])
    network = make_network(2)
    other = make_method("tent", network)
    before = weights(network)
    adaptation = Adaptation.read(tmp_path / "a")
    with pytest.raises(GrataError, match="another reset policy"):
        adaptation.put(Session(other, reset="per-case", guard=False), source_digest(other), tmp_path / "a")
    assert equal(weights(network), before) and other.batches == 0
    with pytest.raises(GrataError, match="another reset policy"):
        adapt_case(Session(other, start_from=tmp_path / "a", reset="per-case", guard=False), images[1])
    assert equal(weights(network), before) and other.batches == 0
    adapt_case(Session(other, start_from=tmp_path / "a", guard=False), images[1])
    assert other.batches == 2


def test_what_a_method_alone_has_saved_holds_no_policy_and_fits_any(make_method, images, adapt_case, tmp_path):
    method = make_method("tent")
    method.adapt(images[0])
    save(method, tmp_path / "a")
    session = Session(
        make_method("tent"), start_from=tmp_path / "a", reset={"name": "every-n", "cases": 1}, guard=False
    )
    assert [adapt_case(session, x)[0].reset for x in images[:3]] == [False, True, True]


@pytest.mark.parametrize("damage", ["cut short", "a flipped bit in a tensor", "a flipped digit in the header", "empty"])
def test_damage_is_reported(damage, make_method, images, tmp_path):
    method = make_method("tent")
    method.adapt(images[0])
    path = tmp_path / "a.safetensors"
    save(method, path)
    data = bytearray(path.read_bytes())
    if damage == "a flipped bit in a tensor":
        data[-3] ^= 1
    elif damage == "a flipped digit in the header":
        data = data.replace(b'\\"batches\\": 1', b'\\"batches\\": 2')
    path.write_bytes({"cut short": data[: len(data) // 2], "empty": b""}.get(damage, data))
    with pytest.raises(GrataError, match=r"a\.safetensors is damaged"):
        load(make_method("tent"), path)


def test_files_of_other_kinds_and_missing_ones_are_refused(make_method, tmp_path, bundle):
    with pytest.raises(GrataError, match="does not exist"):
        Adaptation.read(tmp_path / "none")
    with pytest.raises(GrataError, match="is not a saved adaptation"):
        Adaptation.read(bundle / "models" / "prepared.safetensors")


def test_a_crash_between_the_file_and_its_card_loses_nothing(make_method, images, tmp_path, monkeypatch, same_state):
    method = make_method("tent")
    save(method, tmp_path / "a")
    method.adapt(images[0])

    def crash(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("grata.bank.saved.card_path", crash)
    with pytest.raises(KeyboardInterrupt):
        save(method, tmp_path / "a")
    monkeypatch.undo()
    resumed = make_method("tent")
    assert load(resumed, tmp_path / "a").batches == 1
    assert same_state(resumed.state_dict(), method.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


@pytest.mark.parametrize("name", ["tent", "cotta"])
def test_a_plain_network_takes_the_adapted_parameters(name, make_method, make_network, images, tmp_path):
    """With instance normalization there are no running statistics: the plain network predicts as the method does."""
    method = make_method(name, make_network(2, norm=("instance", {"affine": True})))
    method.adapt(images[0])
    saved = save(method, tmp_path / "a")
    network = make_network(2, norm=("instance", {"affine": True})).eval()
    assert apply(network, tmp_path / "a") == saved.parameters == sum(p.numel() for p in method.parameters.values())
    with torch.no_grad():
        assert torch.equal(network(images[1]), method.network(images[1]))
    with pytest.raises(GrataError, match="other source weights"):
        apply(network, tmp_path / "a")


def test_running_statistics_are_adapted_and_applied_too(make_method, make_network, images, tmp_path):
    method = make_method("dua")
    method.adapt(images[0])
    save(method, tmp_path / "a")
    network = make_network(2).eval()
    apply(network, tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(network(images[1]), method.network(images[1]))


def test_attached_parameters_are_attached_where_they_are_applied(make_network, images, tmp_path):
    norm = ("instance", {"affine": False})
    network = make_network(2, norm=norm)
    attach_affine(network)
    method = Tent(network, activation="sigmoid", lr=1e-2)
    method.adapt(images[0])
    save(method, tmp_path / "a")
    plain = make_network(2, norm=norm).eval()
    assert apply(plain, tmp_path / "a") > 0
    with torch.no_grad():
        assert torch.equal(plain(images[1]), method.network(images[1]))


def test_another_method_starts_from_the_adapted_parameters(make_method, make_network, images, tmp_path):
    method = make_method("tent")
    method.adapt(images[0])
    save(method, tmp_path / "a")
    network = make_network(2)
    apply(network, tmp_path / "a")
    other = make_method("ptbn", network)
    other.adapt(images[1])
    with torch.no_grad():
        assert torch.equal(other.network(images[1]), method.network(images[1]))


def test_a_scripted_network_is_saved_and_loaded_like_a_python_one(make_network, images, tmp_path, same_state):
    scripted = torch.jit.script(make_network(2).eval())
    method = Tent(scripted, activation="sigmoid", lr=1e-2)
    method.adapt(images[0])
    save(method, tmp_path / "a")
    python = Tent(make_network(2), activation="sigmoid", lr=1e-2)
    load(python, tmp_path / "a")
    assert all(torch.equal(python.parameters[name], value) for name, value in method.parameters.items())


def test_networks_of_another_shape_are_refused(make_method, images, tmp_path):
    method = make_method("tent")
    method.adapt(images[0])
    save(method, tmp_path / "a")
    with pytest.raises(GrataError, match=r"other source weights \(of a UNet\)"):
        apply(UNet(2, 1, 2, channels=(4, 6), strides=(2,), norm="batch"), tmp_path / "a")
