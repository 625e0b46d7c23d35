"""An adaptation has the plain network's names, however the network was wrapped when it learned."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import grata
from grata.bank import Adaptation, apply, export_checkpoint
from grata.errors import GrataError
from grata.methods import Prepared, create
from grata.networks import network_digest
from grata.networks.parameters import digest
from grata.networks.wrappers import plain_naming, unwrapped


def compiled(network):
    return torch.compile(network, backend="eager")


def inside(network):
    """The network with a part of it compiled and another one parallel."""
    children = list(network.model.named_children())
    for (name, child), wrap in zip(children, (compiled, nn.DataParallel)):
        setattr(network.model, name, wrap(child))
    return network


WRAPPERS = {
    "plain": lambda network: network,
    "parallel": nn.DataParallel,
    "compiled": compiled,
    "parallel compiled": lambda network: nn.DataParallel(compiled(network)),
    "compiled parallel": lambda network: compiled(nn.DataParallel(network)),
    "inside": inside,
}
each = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def images(seed=0):
    return torch.rand((1, 1, 16, 16), generator=torch.Generator().manual_seed(seed))


def learned(network, path, **options):
    stream = grata.adapt(
        network, [images(1)], "tent", activation="softmax", settings={"lr": 1e-2}, guard=False, **options
    )
    logits = next(stream).logits
    if path is not None:
        Adaptation.of(stream.method, 1).save(path)
    stream.session.restore()
    return logits


@each
def test_names_and_digest_are_those_of_the_plain_network(make_network, wrap):
    network = make_network()
    names, digest = list(network.state_dict()), network_digest(network)
    wrapped = wrap(network)
    assert list(map(plain_naming(wrapped), wrapped.state_dict())) == names
    assert network_digest(wrapped) == digest


def test_a_part_that_is_called_module_keeps_its_name():
    network = nn.Sequential()
    network.module = nn.Conv2d(1, 1, 1)
    assert plain_naming(network)("module.weight") == "module.weight" and unwrapped(network) is network


@each
def test_what_was_learned_through_a_wrapper_goes_on_in_any_other(make_network, tmp_path, wrap):
    path = tmp_path / "learned.safetensors"
    learned(wrap(make_network()), path)
    assert Adaptation.read(path).state["parameters"].keys() <= make_network().state_dict().keys()
    expected = learned(make_network(), None, start_from=path)
    for other in ("parallel", "compiled parallel", "inside"):
        assert torch.equal(learned(WRAPPERS[other](make_network()), None, start_from=path), expected)
    network = wrap(make_network())
    assert apply(network, path) > 0
    with pytest.raises(GrataError, match="other source weights"):
        learned(make_network(norm="instance"), None, start_from=path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_files_with_the_names_of_a_wrapper_are_still_read(make_network, tmp_path, prefix):
    """As version 0.1 wrote them: names, state and digests with the prefix."""
    network = make_network()
    method = create("tent", network, {"lr": 1e-2}, activation="softmax")
    method.adapt(images())
    new = Adaptation.of(method, 1)
    method.restore()
    named = {f"{prefix}{name}": value for name, value in new.state["parameters"].items()}
    source = digest({f"{prefix}{name}": value for name, value in method.parameters.items()})
    old = dataclasses.replace(
        new,
        source=network_digest(network, prefix),
        names={prefix + key: [prefix + name for name in names] for key, names in new.names.items()},
        state={**new.state, "parameters": named, "source": source},
    )
    new.save(tmp_path / "new.safetensors")
    old.save(tmp_path / "old.safetensors")
    expected = learned(make_network(), None, start_from=tmp_path / "new.safetensors")
    for wrap in (WRAPPERS["plain"], WRAPPERS["parallel"]):
        assert torch.equal(learned(wrap(make_network()), None, start_from=tmp_path / "old.safetensors"), expected)
    kept = copy.deepcopy(make_network())
    assert apply(kept, tmp_path / "old.safetensors") == apply(make_network(), tmp_path / "new.safetensors")
    torch.save(make_network().state_dict(), tmp_path / "source.pt")
    for name in ("old", "new"):
        export_checkpoint(Adaptation.read(tmp_path / f"{name}.safetensors"), tmp_path / "source.pt", tmp_path / name)
    one, other = (torch.load(tmp_path / name, weights_only=True) for name in ("old", "new"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@each
def test_what_was_prepared_for_a_network_serves_its_wrappers(make_network, wrap):
    network = make_network()
    for prefix in ("", "module.", "_orig_mod."):
        fisher = {prefix + name: torch.ones_like(p) for name, p in network.named_parameters()}
        prepared = Prepared(fisher=fisher, digest=network_digest(network, prefix))
        method = create("eata", wrap(make_network()), activation="softmax", prepared=prepared)
        method.adapt(images())
        assert method._fisher.keys() == method.parameters.keys()
        method.restore()
    with pytest.raises(GrataError, match="other weights"):
        Prepared(digest="0").check_network(wrap(network))
