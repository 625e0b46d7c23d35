import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from grata.bank import AdapterBank, load, run_bank, save
from grata.cli import main
from grata.errors import GrataError


@pytest.fixture
def folder(make_method, images, run, tmp_path):
    """A bank of two sites, A with two cases, B with one."""
    stream = [{"image": images[i][0], "case": f"case{i}", "site": site} for i, site in enumerate("ABA")]
    run(make_method("tent"), stream, bank=tmp_path / "bank")
    return tmp_path / "bank"


def test_list_shows_each_entry(folder, capsys):
    assert run_bank("list", folder) == 0
    header, _, a, b = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "entry" and "parameter change" in header
    bank = AdapterBank(folder)
    for line, name, cases in zip((a, b), bank.entries(), "21", strict=True):
        change = f"{bank.read(name).parameter_change['l2']:.4g}"
        cells = line.split()
        assert cells[0] == name and cells[1:3] == ["site", name[0].upper()] and cells[3:6] == ["tent", cases, change]


def test_damaged_entries_are_listed_as_such_and_hide_no_other(folder, capsys):
    bank = AdapterBank(folder)
    damaged, whole = bank.entries()
    bank.file(damaged).write_bytes(b"garbage")
    assert run_bank("list", folder) == 1
    out = capsys.readouterr().out
    assert f"{damaged}: " in out and f"bank reset {folder} {damaged}" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert rows[damaged] == ["damaged"] and rows[whole][:3] == ["site", "B", "tent"]
    assert run_bank("reset", folder, damaged) == 0
    assert bank.entries() == [whole]


def test_inspect_prints_the_card(folder, capsys):
    name = AdapterBank(folder).entries()[0]
    assert run_bank("inspect", folder, "a") == 0
    printed = json.loads(capsys.readouterr().out)
    card = json.loads((folder / f"{name}.json").read_text())
    assert printed.pop("entry_name") == name and card.pop("sha256") and printed == card


def test_what_is_removed_is_named_in_full(folder):
    with pytest.raises(GrataError, match="no entry 'a'"):
        run_bank("reset", folder, "a")
    assert len(AdapterBank(folder).entries()) == 2


def test_the_commands_true_removes_all(folder):
    assert main(["bank", "reset", str(folder), "--all", "true"]) == 0 and AdapterBank(folder).entries() == []


def test_export_merges_or_copies(folder, make_method, make_network, tmp_path, capsys):
    name = AdapterBank(folder).entries()[0]
    torch.save(make_network(2).state_dict(), tmp_path / "model.pt")
    assert run_bank("export", folder, "a", tmp_path / "model.pt", tmp_path / "out" / "merged.pt") == 0
    assert run_bank("export", folder, name, output=str(tmp_path / "site_a")) == 0
    assert "start_from" in capsys.readouterr().out
    method = make_method("tent")
    load(method, tmp_path / "site_a")
    merged = torch.load(tmp_path / "out" / "merged.pt", weights_only=True)
    assert all(torch.equal(merged[key], value) for key, value in method.parameters.items())
    with pytest.raises(GrataError, match="exists already and is not overwritten"):
        run_bank("export", folder, name, output=str(tmp_path / "site_a"))


def test_reset_removes_one_or_all_and_nothing_else(folder, capsys):
    (folder / "notes.txt").write_text("mine")
    one, other = AdapterBank(folder).entries()
    assert run_bank("reset", folder, one) == 0
    assert AdapterBank(folder).entries() == [other] and one in capsys.readouterr().out
    assert run_bank("reset", folder, all=True) == 0
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == ["notes.txt"]
    assert run_bank("reset", folder, all=True) == 0 and "has no entry" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action": "lists"}, "there is no 'lists'"),
        ({"action": "inspect"}, "inspect: name an entry"),
        ({"action": "reset"}, "or give --all true"),
        ({"action": "reset", "name": "a", "all": True}, "not both"),
        ({"action": "inspect", "name": "x"}, "there is no entry 'x'"),
        ({"action": "inspect", "name": ""}, "may mean a-.*, b-"),
        ({"action": "export", "name": "a"}, "--output"),
        ({"action": "export", "name": "a", "output": "x", "checkpoint": "none.pt"}, "none.pt does not exist"),
        ({"action": "list", "folder": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_mistakes_are_reported_and_change_nothing(arguments, message, folder):
    before = sorted(folder.iterdir())
    with pytest.raises(GrataError, match=message):
        run_bank(**{"folder": folder, **arguments})
    assert sorted(folder.iterdir()) == before


def test_the_command_itself(folder, tmp_path):
    damaged = AdapterBank(folder).entries()[0]
    content = bytearray((folder / f"{damaged}.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / f"{damaged}.safetensors").write_bytes(content)
    code = (
        "import sys; from grata.cli import main; s = main(sys.argv[1:]); sys.exit(2 if 'torch' in sys.modules else s)"
    )
    command = [sys.executable, "-c", code, "bank", "list", "bank"]
    listed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert listed.returncode == 1 and "site B" in listed.stdout
    assert f"{damaged}: " in listed.stdout and "its content is not what was written" in listed.stdout
    assert not listed.stderr


@pytest.mark.parametrize("name", ["unet", "unet-0123456789ab", "unknown", "mine"])
def test_what_is_not_an_entry_is_neither_listed_nor_removed(name, folder, make_method, make_network, capsys):
    """Weights under any name, also as a model hub calls them, and a saved adaptation that is not of the bank."""
    path = folder / f"{name}.safetensors"
    if name == "mine":
        save(make_method("source"), path)
    else:
        save_file(make_network(2).state_dict(), path)
    before = path.read_bytes()
    assert run_bank("list", folder) == 0
    assert name not in capsys.readouterr().out
    with pytest.raises(GrataError, match=f"there is no entry '{name}'"):
        run_bank("reset", folder, name)
    assert run_bank("reset", folder, all=True) == 0
    assert path.read_bytes() == before and AdapterBank(folder).entries() == []


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[2] / "docs" / "adapter-bank.md"
    example = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(page), "exec"), {})
    north, south, written = capsys.readouterr().out.splitlines()
    assert north.startswith("{'site': 'North'} 3 ") and south.startswith("{'site': 'South'} 2 ")
    assert float(south.split()[-1]) > 0 and written == "48 numbers written"


def occupy(path, kind):
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")


@pytest.mark.skipif(os.name == "nt", reason="pipes and links of POSIX")
@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_lies_in_the_place_of_an_entry_is_named(kind, tmp_path, capsys):
    entry = "north-0123456789ab"
    occupy(AdapterBank(tmp_path).file(entry), kind)
    assert run_bank("list", tmp_path) == 1
    out = capsys.readouterr().out
    assert f"{entry}.safetensors is a {kind}" in out and "Remove it or move it away" in out and "no entry" not in out
    with pytest.raises(GrataError, match=f"is a {kind}"):
        run_bank("inspect", tmp_path, "north")
    if kind == "folder":
        with pytest.raises(GrataError, match="is a folder"):
            run_bank("reset", tmp_path, entry)
    else:
        assert run_bank("reset", tmp_path, entry) == 0 and not AdapterBank(tmp_path).entries()
