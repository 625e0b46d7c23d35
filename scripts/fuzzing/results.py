"""Files that grata wrote itself and reads again, damaged or made up."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import re
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.networks.nets import UNet
from monai.utils import set_determinism
from safetensors.torch import load as deserialize

from grata.bank import Adaptation, AdapterBank, run_bank
from grata.bank.bank import entry_name
from grata.data import Discovery
from grata.engines import AdaptationHandler, AdaptationRun, OutputHandler
from grata.errors import GrataError
from grata.methods import Prepared, create
from grata.networks import load_source
from grata.networks.weights import read_state
from grata.quality import Calibration, measure, segmentation
from grata.session import Journal

from .mutate import alter, damage, odd_integer, odd_text, odd_value
from .watch import Input, Target

__all__ = ["WRITTEN", "evaluator", "network"]

_SEGMENTS = [{"value": 1, "label": "Structure", "category": ["1", "2", "3"], "type": ["1", "2", "3"]}]
_CASES = ("one", "two", "three")
_OTHERS = ("outside.nii.gz", "out/mine.nii.gz", "out/sub/mine.txt")
"""Files beside and in the output folder that are not a run's, and that none may delete."""

_ALTERED = "altered"
"""File beside the output folder that says that the content of the state was altered, not its bytes damaged."""

_QUALITY = Path(__file__).parents[2] / "bundles" / "retinal_vessel_segmentation" / "models" / "quality.json"


def network() -> UNet:
    """Return a small network, the same each time."""
    torch.manual_seed(7)
    return UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), norm="batch")


def evaluator(handlers: Any = ()) -> SupervisedEvaluator:
    """Return an evaluator of three small images."""
    items = []
    for index, case in enumerate(_CASES):
        image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(index))
        items.append({"image": image, "case": case, "site": "north" if index else "south"})
    made = SupervisedEvaluator("cpu", DataLoader(Dataset(items), batch_size=1), network(), val_handlers=list(handlers))
    made.logger.disabled = True
    return made


class _Stopped(BaseException):
    """End of a run, which no code catches."""


class _Outputs(OutputHandler):
    """Outputs that are an empty file for each case."""

    stop_at = ""

    def write(self, engine: Engine) -> None:
        for item in engine.state.batch:
            if item["case"] == self.stop_at:
                raise _Stopped
            path = self.paths(item["case"])[0]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
            self.volumes[item["case"]] = []


def _run(folder: Path, stop_at: str = "", **options: Any) -> AdaptationRun:
    output = folder / "out"
    cases = [{"case": case, "image": f"{case}.nii.gz", "format": "nifti", "site": "north"} for case in _CASES]
    outputs = _Outputs(cases, output, _SEGMENTS, "tent")
    outputs.stop_at = stop_at
    made = evaluator()
    method = create("tent", made.network, {"lr": 0.01}, activation="softmax")
    handler = AdaptationHandler(method, journal=output / "journal.jsonl", bank=folder / "bank", guard=False)
    outputs.attach(made)
    handler.attach(made)
    found = Discovery(cases, [], {case: f"{case}.nii.gz" for case in _CASES})
    return AdaptationRun(made, found, handler, outputs, output, **options)


class _Ended(NamedTuple):
    """All files of a run, and the state of its session at its end."""

    files: dict[str, bytes]
    state: dict[str, Any]


@cache
def _ended(stop_at: str = "") -> _Ended:
    """Return what a run left that was finished, or stopped at a case."""
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as name, redirect_stdout(quiet), redirect_stderr(quiet):
        folder = Path(name)
        run = _run(folder, stop_at)
        with suppress(_Stopped):
            run.run()
        set_determinism(None)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".lock")]
        left = {str(path.relative_to(folder)): _timeless(path.read_bytes()) for path in files}
        return _Ended(left, run.session.state_dict())


def _left(stop_at: str = "") -> dict[str, bytes]:
    return _ended(stop_at).files


def _timeless(data: bytes) -> bytes:
    """Return the bytes of a file with the same time and memory in each run, so that the same inputs follow."""
    return re.sub(rb'("(?:seconds\w*|peak_memory_mib)": )[\d.]+', rb"\g<1>0.5", data)


def _same(first: Any, second: Any) -> bool:
    """Return whether two states are equal to the last bit."""
    if isinstance(first, torch.Tensor):
        raw = [value.contiguous().flatten().view(torch.uint8) for value in (first, second)]
        return (first.dtype, first.shape) == (second.dtype, second.shape) and torch.equal(*raw)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return repr(first) == repr(second)


# A whole output folder


def _make_run(rng: Random) -> Input:
    stop_at = rng.choice(("", "three"))
    files: dict[str, Any] = dict(_left(stop_at))
    kind = rng.choice(("state", "state", "state content", "state content", "journal", "begun", "begun", "odd"))
    if kind == "state":
        files["out/state.pt"], done = damage(files["out/state.pt"], rng)
    elif kind == "state content":
        content = torch.load(io.BytesIO(files["out/state.pt"]), weights_only=True)
        done = alter(content, rng)
        buffer = io.BytesIO()
        torch.save(content, buffer)
        files["out/state.pt"] = buffer.getvalue()
    elif kind == "journal":
        files["out/journal.jsonl"], done = _break_lines(files["out/journal.jsonl"], rng)
    elif kind == "begun":
        files["out/.begun"] = done = _path(rng) if rng.random() < 0.8 else rng.randbytes(20)
    else:
        name = rng.choice(("out/state.pt", "out/journal.jsonl", "out/.begun", "out/segmentations", "out/cases.csv"))
        files = {key: value for key, value in files.items() if not key.startswith(name)}
        places = ((None, "a folder"), ("nowhere", "a link to nothing"), (".", "a link to its folder"))
        files[name], done = rng.choice((*places, (Path(name).name, "a link to itself")))
        done = f"{name} is {done}"
    how = rng.choice(("resume", "resume", "overwrite", ""))
    files |= dict.fromkeys(_OTHERS, b"mine") | {"how": how.encode()}
    if kind == "state content":
        files[_ALTERED] = b""
    return Input(files, f"{how or 'start'}, {kind}: {done!r}")


def _good_run() -> dict[str, bytes]:
    return _left("three") | dict.fromkeys(_OTHERS, b"mine") | {"how": b"resume"}


def _path(rng: Random) -> bytes:
    return rng.choice((b"../outside", b"../../outside", b"@HERE@/outside", b"../mine", b"mine", b"three\n\n"))


def _enter_run(folder: Path) -> bool:
    """Resume, overwrite or start, to the end. What is refused loses nothing."""
    how = (folder / "how").read_text()
    before = _contents(folder / "out")
    try:
        try:
            run = _run(folder, **({how: True} if how else {}))
        except GrataError:
            assert how == "overwrite" or before == _contents(folder / "out"), "a run that was refused changed a file"
            raise
        (_finish_altered if (folder / _ALTERED).exists() else _finish)(run)
        lines = Journal(folder / "out" / "journal.jsonl").lines()
        assert {*_CASES} >= {line["case"] for line in lines}, "the journal has other cases"
        return True
    finally:
        for name in _OTHERS:
            assert (folder / name).is_file(), f"{name} was deleted"


def _finish(run: AdaptationRun) -> None:
    """Run to the end, and check that it is that of a run which was whole."""
    assert run.finished == list(_CASES[: len(run.finished)]), f"resumed after {run.finished}"
    resumed = bool(run.finished)
    run.run()
    assert run.finished == list(_CASES), f"only {run.finished} were done"
    if resumed:
        assert _same(run.session.state_dict(), _ended().state), "the run ended otherwise than one that was whole"


def _finish_altered(run: AdaptationRun) -> None:
    """Run to the end from a state whose content was altered.

    An altered content with a checksum of its own, or without one as the last release wrote it, is another valid state:
    nothing else says what was finished and what was learned. So the results may be others, and a state that no case can
    go on from makes each a fault. But each case must be finished or reported.
    """
    run.run()
    assert {*run.finished, *(fault.case for fault in run.faults)} >= {*_CASES}, f"{run.finished}, {run.faults}"


def _contents(folder: Path) -> dict[str, bytes | str | None]:
    """Return what lies in a folder by path: bytes, where a link leads, or None for a folder; without locks."""
    found: dict[str, bytes | str | None] = {}
    for path in (path for path in folder.rglob("*") if not path.name.endswith(".lock")):
        content = None if path.is_dir() else path.read_bytes() if path.is_file() else ""
        found[str(path.relative_to(folder))] = os.readlink(path) if path.is_symlink() else content
    return found


# Journals

_LINES = (
    *(b"", b"null", b"[]", b"3", b'"text"', b"{}", b'{"case": null}', b'{"case": ["one"]}', b'{"case": {}}', b"NaN"),
    *(b'{"case": "../../outside"}', b'{"case": "@HERE@/outside"}', b'{"case": "one", "fault": "x"}', b"{", b"\xff\xfe"),
    *(b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b'{"case": 1e999}', b'{"case": "one", "lr": ' + b"9" * 5000),
    *(b'{"case": "\\ud800"}', b"\0" * 100, b"\xef\xbb\xbf{}", b'{"case": "one"} {"case": "two"}', b"\x0b\x0c\x1c{}"),
)


def _break_lines(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Damage one line of a journal, or put an odd one between the others."""
    lines, how = data.splitlines(), rng.choice(("odd", "odd", "damage", "cut", "twice", "alter", "utf-16", "crlf"))
    at = rng.randrange(len(lines))
    done = ""
    if how == "odd":
        lines.insert(at, rng.choice(_LINES))
        done = repr(lines[at][:30])
    elif how == "damage":
        lines[at], done = damage(lines[at], rng)
    elif how == "cut":
        return data[: rng.randrange(len(data))], how
    elif how == "twice":
        lines.insert(at, lines[at])
    elif how == "alter":
        line = json.loads(lines[at])
        done = alter(line, rng)
        lines[at] = json.dumps(line).encode()
    elif how == "utf-16":
        return data.decode().encode("utf-16"), how
    return (b"\r\n" if how == "crlf" else b"\n").join([*lines, b""]), f"{how} {done}"


def _make_journal(rng: Random) -> Input:
    data, done = _break_lines(_left()["out/journal.jsonl"], rng)
    return Input({"journal.jsonl": data}, done)


def _enter_journal(folder: Path) -> bool:
    """Read, thin out and continue a journal; a line that is whole is kept as it is."""
    journal = Journal(folder / "journal.jsonl")
    given = _left()["out/journal.jsonl"].splitlines()
    present = [json.loads(line) for line in journal.path.read_bytes().splitlines() if line in given]
    lines = journal.lines()
    assert all(isinstance(line, dict) for line in lines), "a line is no mapping"
    assert all(line in lines for line in present), "a whole line was lost"
    journal.append({"case": "four"})
    assert journal.lines()[-1] == {"case": "four"}, "a new line was lost"
    journal.keep({*_CASES})
    kept = journal.lines()
    assert all(line in kept for line in present) and {"case": "four"} not in kept, "kept other lines"
    return len(lines) == len(given)


# Saved adaptations


@cache
def _entries() -> dict[str, bytes]:
    """Return the files of the bank's entries, by the site."""
    files = {Path(name).name: data for name, data in _left().items() if name.endswith(".safetensors")}
    return {site: files[f"{entry_name({'site': site})}.safetensors"] for site in ("north", "south")}


def _break_saved(data: bytes, header: str, rng: Random) -> tuple[bytes, str]:
    """Damage a safetensors file, or change a value of its header."""
    if rng.random() < 0.5:
        return damage(data, rng)
    length = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + length])
    inner = json.loads(content["__metadata__"][header])
    if rng.random() < 0.3:
        done = alter(content, rng)
    else:
        done = alter(inner, rng)
        content["__metadata__"][header] = json.dumps(inner)
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :], done


def _make_bank(rng: Random) -> Input:
    files: dict[str, Any] = dict(_good_bank())
    south = f"bank/{entry_name({'site': 'south'})}.safetensors"
    if rng.random() < 0.8:
        files[south], done = _break_saved(files[south], "grata_adaptation", rng)
    else:
        del files[south]
        odd = rng.choice((south, "bank/unknown.safetensors", "bank/\udcff-0123456789ab.safetensors"))
        files[odd], done = rng.choice(((None, "a folder"), ("nowhere", "a link to nothing"), (".", "a loop")))
        done = f"{odd} is {done}"
    return Input(files, done)


def _enter_bank(folder: Path) -> bool:
    """List a bank, read its entries, and start from each; one is good."""
    bank, good = AdapterBank(folder / "bank"), entry_name({"site": "north"})
    assert good in bank.entries(), "the good entry is not listed"
    assert run_bank("list", folder / "bank") in (0, 1)
    assert _same(bank.read(good).state, Adaptation.read(bank.file(good)).state)
    accepted = True
    for entry in bank.entries():
        try:
            bank.header(entry)
            found = bank.read(entry)
            found.put(create("tent", network(), {"lr": 0.01}, activation="softmax"), found.source, bank.file(entry))
        except GrataError:
            accepted = False
            continue
        assert _same(dict(deserialize(bank.file(entry).read_bytes())), dict(deserialize(_of(entry)))), "damage accepted"
    return accepted


def _of(entry: str) -> bytes:
    return next(data for site, data in _entries().items() if entry == entry_name({"site": site}))


@cache
def _prepared() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prepared.safetensors")
        sizes = torch.tensor([0.8, 0.2])
        fisher = {"model.0.weight": torch.ones(4), "model.0.bias": torch.ones(4)}
        Prepared(sizes, torch.full((2, 2), 0.5), torch.full((2, 2), 0.1), fisher, None, 3, "UNet", "ab").save(path)
        return path.read_bytes()


def _make_prepared(rng: Random) -> Input:
    data, done = _break_saved(_prepared(), "grata_prepared", rng)
    return Input({"prepared.safetensors": data}, done)


def _enter_prepared(folder: Path) -> bool:
    path = folder / "prepared.safetensors"
    given = path.read_bytes()
    read = Prepared.load(path)
    read.save(path)
    assert _same(dict(deserialize(_prepared())), dict(deserialize(path.read_bytes()))), "damage accepted"
    return bool(given)


@cache
def _quality() -> dict[str, Any]:
    return json.loads(_QUALITY.read_text(encoding="utf-8"))


def _make_calibration(rng: Random) -> Input:
    content = copy.deepcopy(_quality())
    if rng.random() < 0.4:
        data, done = damage(json.dumps(content).encode(), rng)
        return Input({"quality.json": data}, done)
    # with its checksum every change is noticed; files of earlier releases have none
    content.pop("sha256", None)
    done = ", ".join(alter(content, rng) for _ in range(rng.choice((1, 1, 3))))
    return Input({"quality.json": json.dumps(content).encode()}, done)


def _enter_calibration(folder: Path) -> bool:
    """Read a calibration and let it judge a prediction."""
    read = Calibration.read(folder / "quality.json")
    count = len(read.segments)
    image = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    logits = (image[:1] - 0.5).repeat(count, 1, 1)[None]
    found = segmentation(4 * logits, "sigmoid")
    if not read.misfit(count, 3, 2):
        expected = read.expected(measure(image, found, found, [], math.nan, "sigmoid", read.segments))
        assert all(map(math.isfinite, (expected.dice, expected.low, expected.high, *expected.segments))), expected
    return True


# Weights


@cache
def _weights() -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": network().state_dict(), "epoch": 3}, buffer)
    return buffer.getvalue()


def _make_weights(rng: Random) -> Input:
    if rng.random() < 0.4:
        data, done = damage(_weights(), rng)
        return Input({"model.pt": data}, done)
    content: Any = {"model": network().state_dict(), "epoch": 3}
    done = alter(content, rng)
    if rng.random() < 0.3:
        content = rng.choice((odd_value(rng), {odd_text(rng): torch.zeros(2)}, {odd_integer(rng): 1}, [content]))
        done = f"holds a {type(content).__name__}"
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return Input({"model.pt": buffer.getvalue()}, done)


def _enter_weights(folder: Path) -> bool:
    load_source(network(), str(folder / "model.pt"), "cpu")
    return bool(read_state(folder / "model.pt"))


def _good_bank() -> dict[str, bytes]:
    return {f"bank/{entry_name({'site': site})}.safetensors": data for site, data in _entries().items()}


WRITTEN = (
    Target("run", _make_run, _enter_run, _good_run, 8),
    Target("journal", _make_journal, _enter_journal, lambda: {"journal.jsonl": _left()["out/journal.jsonl"]}, 40),
    Target("bank", _make_bank, _enter_bank, _good_bank, 20),
    Target("prepared", _make_prepared, _enter_prepared, lambda: {"prepared.safetensors": _prepared()}, 20),
    Target(
        *("calibration", _make_calibration, _enter_calibration),
        *(lambda: {"quality.json": json.dumps(_quality()).encode()}, 30),
    ),
    Target("weights", _make_weights, _enter_weights, lambda: {"model.pt": _weights()}, 10),
)
