"""Every bit flip in a file that grata writes is noticed, or changes nothing."""

import random

import pytest
import torch

from grata.bank import Adaptation, AdapterBank, run_bank
from grata.engines.durable import _read_state
from grata.errors import GrataError
from grata.methods import Prepared
from grata.quality import Calibration
from grata.states import read_state, write_state

FLIPS = 300


def flipped(data: bytes, seed: int):
    """Yield copies of some bytes with one bit flipped, most of them near the ends, where the headers are."""
    rng = random.Random(seed)
    for number in range(FLIPS):
        place = rng.randrange(len(data))
        if number % 3:
            place = min(rng.randrange(600), len(data) - 1) if number % 2 else len(data) - 1 - rng.randrange(200)
        damaged = bytearray(data)
        damaged[max(place, 0)] ^= 1 << rng.randrange(8)
        yield bytes(damaged)


@pytest.fixture
def state(make_method, tmp_path):
    keys = {"finished": ["a"], "scores": "{}", "volumes": "{}", "flags": "{}", "settings": "{}", "source": "x"}
    write_state(tmp_path / "state.pt", keys | {"method": make_method("grata").state_dict()})
    return tmp_path / "state.pt", _read_state


@pytest.fixture
def prepared(tmp_path):
    made = Prepared(torch.tensor([0.1, 0.2]), fisher={"norm.weight": torch.rand(7)}, images=3, network="UNet")
    made.save(tmp_path / "prepared.safetensors")
    return tmp_path / "prepared.safetensors", lambda path: vars(Prepared.load(path))


@pytest.fixture
def adaptation(make_method, tmp_path):
    Adaptation.of(make_method("grata"), 3).save(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors", lambda path: vars(Adaptation.read(path))


@pytest.fixture
def quality(bundle, tmp_path):
    Calibration.read(bundle / "models" / "quality.json").save(tmp_path / "quality.json")
    return tmp_path / "quality.json", lambda path: vars(Calibration.read(path))


@pytest.mark.parametrize("kind", ["state", "prepared", "adaptation", "quality"])
def test_every_bit_flip_is_refused_or_harmless(request, kind, same_state):
    path, read = request.getfixturevalue(kind)
    whole, data = read(path), path.read_bytes()
    harmless = 0
    for damaged in flipped(data, seed=len(kind)):
        path.write_bytes(damaged)
        try:
            found = read(path)
        except GrataError as error:
            message = str(error)
            assert path.name in message and any(word in message for word in ("Copy", "Start", "Make", "Write", "Name"))
        else:
            assert same_state(dict(found), dict(whole))
            harmless += 1
    assert harmless < FLIPS / 10
    for cut in (2, 60, len(data) // 2, len(data)):
        path.write_bytes(data[:-cut])
        with pytest.raises(GrataError):
            read(path)


def test_what_the_last_release_wrote_has_no_checksum_and_is_read(tmp_path, bundle):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pt")
    assert torch.equal(read_state(tmp_path / "old.pt")["a"], torch.ones(3))
    new = (bundle / "models" / "quality.json").read_text()
    (tmp_path / "quality.json").write_text(new[: new.index(',\n "sha256"')] + "}")
    assert Calibration.read(tmp_path / "quality.json") == Calibration.read(bundle / "models" / "quality.json")


def test_the_files_that_bundles_come_with_have_one(bundle):
    for path in bundle.parent.glob("*/models/quality.json"):
        assert '"sha256"' in path.read_text()
    for path in bundle.parent.glob("*/models/prepared.safetensors"):
        data = path.read_bytes()
        assert b"content" in data[: 8 + int.from_bytes(data[:8], "little")]


def odd_folder(path):
    path.mkdir()


def odd_link(path):
    path.symlink_to("nowhere")


def odd_header(path):
    header = b'{"__metadata__":{"grata_adaptation":"[1]"}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def odd_bytes(path):
    path.write_bytes(b"\xff" * 100)


@pytest.mark.parametrize("odd", [odd_folder, odd_link, odd_header, odd_bytes])
def test_one_odd_file_does_not_hide_the_entries_of_a_bank(make_method, tmp_path, capsys, odd):
    name = "north-0123456789ab"
    Adaptation.of(make_method("tent"), 3).save(tmp_path / name)
    odd(AdapterBank(tmp_path).file("odd-0123456789ab"))
    assert run_bank("list", tmp_path) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name, "unknown", "tent", "3"] in [row[:4] for row in rows] and ["odd-0123456789ab", "damaged"] in rows
