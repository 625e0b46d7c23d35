import pickle

import pytest
import torch

from grata.errors import GrataError
from grata.networks import load_source


def equal(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("nested", [None, "model", "state_dict"])
def test_a_state_dict_is_loaded_whole(make_network, tmp_path, nested):
    trained, fresh = make_network(3), make_network(3)
    torch.nn.init.ones_(next(fresh.parameters()))
    state = trained.state_dict()
    torch.save(state if nested is None else {nested: state}, tmp_path / "model.pt")
    assert equal(load_source(fresh, tmp_path / "model.pt", "cpu"), trained)


def test_a_scripted_network_brings_its_own_definition_and_has_to_fit_one_that_is_given(make_network, tmp_path):
    trained = make_network(3).eval()
    torch.jit.script(trained).save(tmp_path / "model.ts")
    x = torch.rand(1, 1, 8, 8, 8)
    for network_def in (None, make_network(3)):
        torch.testing.assert_close(load_source(network_def, tmp_path / "model.ts", "cpu")(x), trained(x))
    with pytest.raises(GrataError, match="does not belong to this UNet"):
        load_source(make_network(2), tmp_path / "model.ts", "cpu")
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    with pytest.raises(GrataError, match="network_def"):
        load_source(None, tmp_path / "model.pt", "cpu")


def test_foreign_weights_are_refused_telling_what_does_not_fit(make_network, tmp_path):
    torch.save(make_network(3, out_channels=5).state_dict(), tmp_path / "foreign.pt")
    with pytest.raises(GrataError, match="of another shape"):
        load_source(make_network(3), tmp_path / "foreign.pt", "cpu")
    state = make_network(3).state_dict()
    state["extra"] = state.pop(next(iter(state)))
    torch.save(state, tmp_path / "foreign.pt")
    with pytest.raises(GrataError, match="1 missing.*1 unknown, e.g. extra"):
        load_source(make_network(3), tmp_path / "foreign.pt", "cpu")


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_runs_code_is_refused_and_not_run(make_network, tmp_path, capsys):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(GrataError, match="cannot be read as a state dict"):
        load_source(make_network(3), tmp_path / "model.pt", "cpu")
    torch.save({"model": Malicious()}, tmp_path / "model.pt")
    with pytest.raises(GrataError, match="cannot be read as a state dict"):
        load_source(make_network(3), tmp_path / "model.pt", "cpu")
    # torch's own advice, to allow pickles, must not be passed on
    torch.save(make_network(3), tmp_path / "model.pt")
    with pytest.raises(GrataError) as refused:
        load_source(make_network(3), tmp_path / "model.pt", "cpu")
    assert "weights_only" not in str(refused.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing.pt", "empty.pt", "text.ts", "list.pt", ""])
def test_files_that_are_no_weights_are_named(make_network, tmp_path, name):
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.ts").write_text("not a network")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(GrataError, match=name):
        load_source(make_network(3), tmp_path / name, "cpu")
