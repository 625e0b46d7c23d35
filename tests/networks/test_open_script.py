"""A TorchScript file is said to be code before it is opened, wherever it is opened."""

import pytest
import torch

import grata
from grata.bank import Adaptation, export_checkpoint
from grata.doctor.doctor import examine
from grata.errors import GrataError
from grata.methods import create
from grata.networks import load_source, scripts

NOTE = "note: {} is code: a TorchScript file can run anything when it is opened. Open only files that you trust."


def by_export(path, make_network):
    adaptation = Adaptation.of(create("tent", make_network(), activation="softmax"), 0)
    export_checkpoint(adaptation, path, path.with_name("out.ts"))


DOORS = {
    "grata.adapt": lambda path, _: grata.adapt(path, torch.rand(1, 1, 16, 16), "ptbn", activation="softmax"),
    "doctor": lambda path, _: examine(path, activation="softmax"),
    "load_source": lambda path, _: load_source(None, path, "cpu"),
    "export": by_export,
}


@pytest.mark.parametrize("door", DOORS)
def test_it_is_said_before(make_network, tmp_path, capsys, monkeypatch, door):
    path, opened = tmp_path / "model.ts", torch.jit.load
    torch.jit.script(make_network().train()).save(path)
    said = []

    def load(*args, **kwargs):
        said.append(capsys.readouterr().err)
        return opened(*args, **kwargs)

    monkeypatch.setattr(scripts.torch.jit, "load", load)
    DOORS[door](path, make_network)
    assert len(said) == 1 and NOTE.format("model.ts") in said[0]


@pytest.mark.parametrize("door", ["grata.adapt", "doctor", "load_source"])
def test_a_file_that_is_none_is_refused_as_before(make_network, tmp_path, door):
    path = tmp_path / "model.ts"
    path.write_bytes(b"no network")
    with pytest.raises(GrataError, match="is not a TorchScript"):
        DOORS[door](path, make_network)
