"""The files of one job after its process was killed between any two writes."""

import contextlib
import json

import pytest
import torch

from grata.benchmark.part import Part
from grata.errors import GrataError

FINGERPRINT = {"methods": "a", "threads": "b"}


class Killed(BaseException):
    pass


@pytest.fixture
def part(tmp_path):
    return Part(tmp_path, "stream/seed-0", FINGERPRINT)


def file(part, ending):
    return part.lock.with_suffix(ending)


def state_of(n):
    return {"weight": torch.full((2,), float(n))}


def advance(part, n, keep=True):
    """Finish image ``n``, counted from 1."""
    part.append({"image": n})
    part.commit(n, state_of(n) if keep else None)


def check(part, rows, n):
    """Check that ``rows`` rows are finished, and that the state is the one after image ``n``; None: no state."""
    done, state = part.open()
    assert [row["image"] for row in done] == list(range(1, rows + 1)) == [row["image"] for row in part.rows()]
    assert state is None if n is None else torch.equal(state["weight"], state_of(n)["weight"])


def test_rows_and_the_state_after_them_are_kept_and_an_unneeded_state_is_removed(part):
    assert part.open() == ([], None)
    advance(part, 1)
    advance(part, 2)
    check(part, 2, 2)
    advance(part, 3, keep=False)
    check(part, 3, None)
    assert not file(part, ".pt").exists()


def test_rows_and_fingerprints_are_read_without_the_state(part, monkeypatch, tmp_path):
    part.open()
    advance(part, 1)
    monkeypatch.setattr(torch, "load", None)
    assert part.rows() == [{"image": 1}] and part.changed() == []
    assert Part(tmp_path, "stream/seed-0", FINGERPRINT | {"threads": "c"}).changed() == ["threads"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("write", ["append", "_write_state", "_remove_state", "_write_progress"])
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_write_of_the_second_image(part, monkeypatch, first, second, write, before):
    """The image is finished or not, and the state, if one is needed, is that of the last finished image."""
    part.open()
    advance(part, 1, keep=first)
    real = getattr(Part, write)

    def kill(*arguments):
        if not before:
            real(*arguments)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Part, write, kill)
        with contextlib.suppress(Killed):
            advance(part, 2, keep=second)
    done, _ = part.open()
    check(part, len(done), len(done) if (first, second)[len(done) - 1] else None)
    advance(part, len(done) + 1)
    check(part, len(done) + 1, len(done) + 1)


def test_a_job_whose_state_or_rows_are_gone_starts_anew(part):
    for ending in (".pt", ".jsonl"):
        part.open()
        advance(part, 1)
        advance(part, 2)
        file(part, ending).unlink()
        check(part, 0, None)


def test_killed_while_it_starts_anew(part, monkeypatch):
    for write in ("_remove_state", "_write_rows", "_write_progress"):
        part.open()
        advance(part, 1)
        file(part, ".jsonl").unlink()
        with monkeypatch.context() as patched:
            patched.setattr(Part, write, lambda *arguments: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                part.open()
        check(part, 0, None)


def test_damaged_files_are_named_with_the_remedy(part):
    part.open()
    advance(part, 1)
    progress, state = file(part, ".json"), file(part, ".pt")
    kept = progress.read_text(), state.read_bytes()
    for text in ("", "[1]", '{"finished": 1}', "null", json.dumps({**json.loads(kept[0]), "finished": "many"})):
        progress.write_text(text)
        for call in (part.rows, part.changed, part.open):
            with pytest.raises(GrataError, match="seed-0.json is damaged. Remove it and seed-0.pt beside it; the"):
                call()
    progress.unlink()
    with pytest.raises(GrataError, match="seed-0.pt is there without seed-0.json.*Remove it; the job starts again"):
        part.changed()
    progress.write_text(kept[0])
    file(part, ".jsonl").write_text("[1]\n")
    with pytest.raises(GrataError, match="seed-0.jsonl is damaged. Remove it; the job starts again"):
        part.rows()
    file(part, ".jsonl").write_text('{"image": 1}\n')
    for damage in (b"nothing", kept[1][:-20]):
        state.write_bytes(damage)
        for call in (part.check, part.open):
            with pytest.raises(GrataError, match=r"seed-0.pt is damaged .*\(\w+Error: .+\). Remove it; the job starts"):
                call()
    state.unlink()
    check(part, 0, None)


def test_a_state_of_another_device_is_read_on_the_cpu(part, monkeypatch):
    part.open()
    advance(part, 1)
    devices, load = [], torch.load

    def noting(*arguments, map_location=None, **options):
        devices.append(map_location)
        return load(*arguments, map_location=map_location, **options)

    monkeypatch.setattr(torch, "load", noting)
    check(part, 1, 1)
    assert set(devices) == {"cpu"}
