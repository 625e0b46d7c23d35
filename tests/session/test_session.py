"""A session: a case is committed or leaves no trace, whatever fails and wherever."""

import json

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from grata.bank import AdapterBank
from grata.errors import GrataError, OutputError
from grata.methods import METHODS, create
from grata.session import Session, Verdict, together


def image(seed, batch=1):
    return torch.rand(batch, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def session(network, name="tent", settings=None, **options):
    settings = {"lr": 1e-2} if settings is None and name != "source" else settings or {}
    # the guard has tests of its own, in test_judge.py
    return Session(create(name, network, settings, activation="softmax"), **{"guard": False} | options)


def do(stream, seed, name="case", site=None):
    with stream.case(image(seed), name, site) as case:
        case.adapt()
        with torch.no_grad():
            case.judge(stream.network(image(seed)))
    return case


def frozen(value):
    """A nested state as something that compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(item) for item in value]
    return value


def everything(stream, folder):
    """All that a case could change."""
    state = frozen(stream.state_dict())
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.exists() else {}
    files.pop(".bank.lock", None)
    return state, frozen(dict(stream.method.given.state_dict())), stream.flags, files


class Broken(Exception):
    pass


def in_the_block(stream, patch):
    with stream.case(image(9), "bad") as case:
        case.adapt()
        case.judge(stream.network(image(9)))
        raise Broken


def while_adapting(stream, patch):
    def fail(images):
        stream.method._adapted = {}
        for parameter in stream.method.parameters.values():
            parameter.data.add_(1.0)
        raise Broken

    patch.setattr(stream.method, "_adapt", fail)
    do(stream, 9, "bad")


def not_finite(stream, patch):
    with stream.case(image(9), "bad") as case:
        case.adapt()
        case.judge({"logits": [torch.ones(1, 2, 4, 4), torch.full((1, 2, 4, 4), float("inf"))]})


def writing_the_journal(stream, patch):
    append = stream.journal.append

    def fail(line):
        append(line)
        raise OutputError("the disk is full.")

    patch.setattr(stream.journal, "append", fail)
    do(stream, 9, "bad")


def writing_the_bank(stream, patch):
    def fail(*args):
        raise OutputError("the disk is full.")

    patch.setattr(AdapterBank, "write", fail)
    do(stream, 9, "bad")


def interrupted(stream, patch):
    with stream.case(image(9), "bad") as case:
        case.adapt()
        raise KeyboardInterrupt


FAULTS = [in_the_block, while_adapting, not_finite, writing_the_journal, writing_the_bank, interrupted]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("name", ["tent", "cotta", "vptta", "dua", "ptbn"])
@pytest.mark.parametrize("after", [0, 2], ids=["first", "third"])
def test_a_case_that_fails_leaves_no_trace(make_network, tmp_path, monkeypatch, fault, name, after):
    settings = {"cotta": {"lr": 1e-2, "augmentations": 2}, "dua": {"views": 4}}.get(name)
    settings = settings or ({"lr": 1e-2} if name == "tent" else {})
    options = {"bank": tmp_path / "bank", "journal": tmp_path / "journal.jsonl", "site": "north"}
    options |= {"reset": {"name": "every-n", "cases": 3}} if name != "ptbn" else {}
    stream = session(make_network(), name, settings, **options)
    for seed in range(after):
        do(stream, seed, f"case{seed}")
    before = everything(stream, tmp_path)
    with monkeypatch.context() as patch, pytest.raises((Broken, GrataError, KeyboardInterrupt)):
        fault(stream, patch)
    assert everything(stream, tmp_path) == before
    # and the stream goes on as if the case had never been there
    whole = session(make_network(), name, settings, **options | {"bank": tmp_path / "other", "journal": None})
    for seed in range(after):
        do(whole, seed)
    records = [do(each, 5).record for each in (stream, whole)]
    for record in records:
        for key in ("seconds", "seconds_predict", "peak_memory_mib"):
            record.pop(key)
    assert repr(records[0]) == repr(records[1])
    assert frozen(stream.state_dict()) == frozen(whole.state_dict())


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.card.prepared])
def test_every_method_is_put_back(make_network, name):
    quick = {"ttas": {"steps": 2}, "dua": {"views": 4}, "cotta": {"augmentations": 2}, "test": {"steps": 1}}
    stream = session(make_network(), name, quick.get(name, {}))
    do(stream, 0)
    before = frozen(stream.state_dict())
    with pytest.raises(Broken):
        in_the_block(stream, None)
    assert frozen(stream.state_dict()) == before


def test_the_journal_has_a_line_for_each_image_of_a_case_and_keeps_its_keys(make_network, tmp_path):
    stream = session(make_network(), journal=tmp_path / "j.jsonl", about={"fold": "3"})
    with stream.case(image(0, 2), ["one", "two"], ["north", "south"]) as case:
        case.adapt()
        case.judge(torch.zeros(1))
    with stream.case(image(1)) as case:
        case.adapt()
        case.judge(torch.zeros(1))
    stream.fail("three", "it is torn.")
    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert [(line["case"], line.get("site"), line.get("fold")) for line in lines] == [
        ("one", "north", "3"),
        ("two", "south", "3"),
        ("case-2", None, "3"),
        ("three", None, None),
    ]
    assert list(lines[0])[:5] == ["case", "site", "fold", "method", "version"]
    assert lines[3]["fault"] == "it is torn."
    assert {"flags", "reset", "parameter_change", "seconds", "seconds_predict", "peak_memory_mib"} <= set(lines[0])


def test_a_case_is_judged_before_it_ends_and_one_at_a_time(make_network):
    stream = session(make_network())
    with pytest.raises(RuntimeError, match="judged before it ends"), stream.case(image(0)) as case:
        case.adapt()
    assert not stream.method.active and not case.finished
    with pytest.raises(RuntimeError, match="in the middle of another"), stream.case(image(0)) as case:
        case.adapt()
        do(stream, 1)
    # both were put back
    assert do(stream, 0).finished


def test_what_a_guard_refuses_is_not_learnt_and_the_case_is_finished_all_the_same(make_network, tmp_path):
    seen = []

    def guard(method, images, prediction, record):
        seen.append((method.batches, tuple(images.shape), record["flags"]))
        good = float(images.mean()) < 0.9
        return Verdict(prediction if good else torch.zeros(1), good, {"verdict": "ok" if good else "refused"})

    options = {"bank": tmp_path / "bank", "site": "north", "journal": tmp_path / "j.jsonl"}
    stream = session(make_network(), guard=guard, **options)
    do(stream, 0, "a")
    before = frozen(stream.state_dict())
    with stream.case(torch.ones(1, 1, 16, 16), "b") as case:
        case.adapt()
        used = case.judge(torch.ones(1, 2, 16, 16))
    assert torch.equal(used, torch.zeros(1)) and case.finished
    assert frozen(stream.state_dict()) == before
    assert [count for count, *_ in seen] == [1, 2]
    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["ok", "refused"]
    bank = AdapterBank(tmp_path / "bank")
    (entry,) = bank.entries()
    saved = bank.read(entry)
    assert saved.cases == 2 and saved.batches == 1
    # the next case, and another process, go on from what was kept
    plain = session(make_network(), bank=tmp_path / "plain", site="north")
    do(plain, 0), do(plain, 2), do(stream, 2, "c")
    assert frozen(stream.state_dict()) == frozen(plain.state_dict())


def test_a_first_case_that_a_guard_refuses_leaves_the_source(make_network):
    network = make_network()
    source = frozen(dict(network.state_dict()))
    stream = session(network, guard=lambda method, images, prediction, record: Verdict(prediction, keep=False))
    do(stream, 0)
    assert frozen(dict(network.state_dict())) == source and stream.method.batches == 0


def test_cases_of_several_sessions_are_committed_together_or_not_at_all(make_network, tmp_path):
    streams = [
        session(make_network(), journal=tmp_path / "j.jsonl", about={"fold": str(fold)}, site="n") for fold in range(3)
    ]
    with together([stream.case(image(0), "a") for stream in streams]) as cases:
        for case in cases:
            case.adapt()
            case.judge(torch.zeros(1))
    folds = [json.loads(line)["fold"] for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert folds == ["0", "1", "2"]
    before = [frozen(stream.state_dict()) for stream in streams]
    with pytest.raises(Broken), together([stream.case(image(1), "b") for stream in streams]) as cases:
        for case in cases:
            case.adapt()
        raise Broken
    assert [frozen(stream.state_dict()) for stream in streams] == before
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 3


def test_another_process_goes_on_from_what_the_store_was_given(make_network, tmp_path):
    stored = []
    options = {"bank": tmp_path / "bank", "reset": {"name": "every-n", "cases": 3}}
    stream = session(make_network(), **options)
    stream.store = lambda case, state, kept: stored.append((case.names, state, kept))
    sites = ["n", "s", "n", "n", "n"]
    for index in range(3):
        do(stream, index, f"case{index}", sites[index])
    # the process was stopped after the state and before the bank was written
    stream.store = lambda case, state, kept: stored.append((case.names, state, kept)) or (_ for _ in ()).throw(Broken)
    assert [names for names, *_ in stored] == [["case0"], ["case1"], ["case2"]]
    other = session(make_network(), **options)
    other.resume(*stored[-1][1:])
    whole = session(make_network(), **options | {"bank": tmp_path / "whole"})
    for index in range(5):
        do(whole, index, site=sites[index])
    do(other, 3, site="n"), do(other, 4, site="n")
    assert frozen(other.state_dict()) == frozen(whole.state_dict())
    with pytest.raises(GrataError, match="another bank, start_from or save_to"):
        session(make_network(), reset=options["reset"]).resume(*stored[-1][1:])


def test_windows_of_a_large_image_are_chosen_and_other_inferers_refused(make_network):
    stream = session(make_network(), windows={"uncertain": 1, "random": 1})
    with stream.case(image(0)) as case:
        steps = case.adapt(SlidingWindowInferer((8, 8), 1, overlap=0))
        case.judge(torch.zeros(1))
    assert len(steps) == 2 and len(case.record["steps"]) == 2
    with pytest.raises(GrataError, match="inferer: adaptation does not know Patches"), stream.case(image(1)) as case:
        case.adapt(type("Patches", (SimpleInferer.__mro__[1],), {"__call__": None})())
    with stream.case(image(1)) as case:
        steps = case.adapt(lambda method, windows: [image(1), image(2), image(3)])
        case.judge(torch.zeros(1))
    assert len(steps) == 3


def test_the_peak_is_that_of_the_case_and_not_of_what_was_before(make_network):
    stream = session(make_network(), "source")
    waste = torch.ones(64 * 2**20)  # 256 MiB
    del waste
    case = do(stream, 0)
    held = torch.ones(64 * 2**20)
    with stream.case(image(1)) as larger:
        larger.adapt()
        more = torch.ones(64 * 2**20)
        larger.judge(torch.zeros(1))
    peaks = [each.record["peak_memory_mib"] for each in (case, larger)]
    if None in peaks:
        pytest.skip("this system cannot measure the peak of a block")
    assert peaks[1] - peaks[0] > 400
    assert held.numel() == more.numel()


def test_one_site_is_that_of_all_images_of_a_batch(make_network, tmp_path):
    stream = session(make_network(), bank=tmp_path / "bank", site="north", journal=tmp_path / "j.jsonl")
    for site in (None, "south", ["south"], ["west", "west"]):
        with stream.case(image(0, 2), ["a", "b"], site) as case:
            case.adapt()
            case.judge(torch.zeros(1))
    sites = [json.loads(line)["site"] for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert sites == ["north"] * 2 + ["south"] * 4 + ["west"] * 2
    with pytest.raises(GrataError, match="several sites"), stream.case(image(0, 2), ["a", "b"], ["a", "b"]):
        pass


def test_a_prediction_is_judged_after_the_adaptation(make_network):
    with pytest.raises(RuntimeError, match="adapted to before"), session(make_network()).case(image(0)) as case:
        case.judge(torch.zeros(1))


def test_names_and_sites_may_be_missing_or_numbers_and_are_one_for_each_image(make_network, tmp_path):
    stream = session(make_network(), journal=tmp_path / "j.jsonl", site="home")
    for name, site in (
        ("", None),
        (torch.tensor([3, 4]), torch.tensor([1, 2])),
        (["a", "b"], [None, "south"]),
        ([5, 6], ""),
    ):
        with stream.case(image(0, 2), name, site) as case:
            case.adapt()
            case.judge(torch.zeros(1))
    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert [(line["case"], line["site"]) for line in lines] == [
        ("case-1-1", "home"),
        ("case-1-2", "home"),
        ("3", "1"),
        ("4", "2"),
        ("a", "home"),
        ("b", "south"),
        ("5", None),
        ("6", None),
    ]
    for name, site, message in (
        ("one", None, "name: there are 1 for 2 images"),
        ("", "abc", "site: there are 3 for 2"),
    ):
        with pytest.raises(GrataError, match=message):
            stream.case(image(0, 2), name, list(site) if site else None)


def test_a_guard_returns_a_verdict_that_is_finite_and_cannot_rename_a_case(make_network, tmp_path):
    given = {"record": {"case": "Doe", "quality": 1.0}}
    stream = session(
        make_network(),
        journal=tmp_path / "j.jsonl",
        guard=lambda method, images, prediction, record: Verdict(prediction, **given),
    )
    do(stream, 0, "a")
    (line,) = map(json.loads, (tmp_path / "j.jsonl").read_text().splitlines())
    assert line["case"] == "a" and line["quality"] == 1.0
    before = frozen(stream.state_dict())
    stream.guard = lambda method, images, prediction, record: prediction
    with pytest.raises(TypeError, match="a guard returns a grata.session.Verdict, got Tensor"):
        do(stream, 1)
    stream.guard = lambda method, images, prediction, record: Verdict(prediction * float("nan"))
    with pytest.raises(GrataError, match="NaN"):
        do(stream, 1)
    assert frozen(stream.state_dict()) == before


def test_an_array_is_judged_as_a_tensor_is(make_network):
    with pytest.raises(GrataError, match="NaN"), session(make_network()).case(image(0)) as case:
        case.adapt()
        case.judge({"labels": [torch.full((2, 2), float("nan")).numpy()]})
