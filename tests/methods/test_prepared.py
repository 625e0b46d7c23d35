import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from grata.errors import GrataError
from grata.methods.prepared import Prepared, require
from grata.networks import AuxiliaryHeads, network_digest
from grata.normalization import collect_affine_parameters


@pytest.fixture
def network(make_network):
    return make_network().eval()


@pytest.fixture
def prepared(network):
    heads = AuxiliaryHeads.create(network, torch.rand(1, 1, 16, 16))
    return Prepared(
        class_sizes=torch.tensor([0.25, 0.125]),
        centroid=torch.tensor([[0.5, 0.25], [0.1, 0.9]]),
        spread=torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
        fisher={name: torch.rand(p.shape) for name, p in collect_affine_parameters(network).items()},
        heads=heads.saved(),
        images=7,
        network="UNet",
        digest=network_digest(network),
        results={"rotation": {"first_loss": 1.5, "last_loss": 0.5, "accuracy": 0.75}},
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    return a == b


def test_a_file_gives_back_what_was_written(prepared, tmp_path):
    path = tmp_path / "prepared.safetensors"
    prepared.save(path)
    assert same(Prepared.load(path), prepared)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_was_not_prepared_is_none_or_empty(tmp_path):
    Prepared(class_sizes=torch.tensor([0.5]), images=1).save(tmp_path / "p.safetensors")
    loaded = Prepared.load(tmp_path / "p.safetensors")
    assert loaded.centroid is loaded.spread is loaded.heads is None and not loaded.fisher


def test_views_of_other_tensors_and_shared_memory_can_be_written(tmp_path):
    both = torch.rand(2, 2)
    Prepared(centroid=both.T, spread=both.T).save(tmp_path / "p.safetensors")
    assert torch.equal(Prepared.load(tmp_path / "p.safetensors").centroid, both.T)


def test_other_weights_are_refused(prepared, network):
    prepared.check_network(network)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(
        GrataError,
        match="prepared: was prepared for other weights .of a UNet. than this network has. Run python -m grata",
    ):
        prepared.check_network(network)


@pytest.mark.parametrize(
    "what, words",
    [
        ("class_sizes", "the class sizes of the source set"),
        ("fisher", "the Fisher information of the source set"),
        ("denoising", "a denoising head"),
    ],
)
@pytest.mark.parametrize("present", [None, Prepared()])
def test_what_a_method_lacks_is_named_with_the_remedy(what, words, present):
    with pytest.raises(GrataError, match=f"method ttas needs {words}.*python -m grata prepare.*as `prepared`"):
        require(present, what, "ttas")


def test_what_was_prepared_is_returned(prepared):
    assert require(prepared, "class_sizes", "m") is prepared.class_sizes
    assert require(prepared, "fisher", "m") is prepared.fisher
    assert require(prepared, "rotation", "m") is prepared.heads
    alone = dataclasses.replace(prepared, heads=dataclasses.replace(prepared.heads, names=("rotation",)))
    with pytest.raises(GrataError, match="a denoising head"):
        require(alone, "denoising", "m")


def test_a_missing_damaged_or_foreign_file_is_named_with_the_remedy(prepared, tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(GrataError, match="p.safetensors does not exist. Write it with python -m grata prepare"):
        Prepared.load(path)
    prepared.save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(GrataError, match="p.safetensors cannot be read"):
        Prepared.load(path)
    save_file({"class_sizes": torch.ones(2)}, path)
    with pytest.raises(GrataError, match="was not written by this version's python -m grata prepare"):
        Prepared.load(path)
    save_file({"class_sizes": torch.ones(2)}, path, {"grata_prepared": '{"format": 1}'})
    with pytest.raises(GrataError, match="p.safetensors is incomplete"):
        Prepared.load(path)
