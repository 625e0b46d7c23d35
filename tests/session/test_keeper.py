"""A run that was stopped at any moment and resumed leaves the same bank as one that never stopped."""

import os

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from grata.bank import AdapterBank
from grata.data import Discovery
from grata.engines import AdaptationHandler, AdaptationRun
from grata.errors import GrataError
from grata.session import Journal
from grata.session.attempts import Attempts

SITES = "ABA"


class Outputs:
    """An ``OutputHandler`` that writes no files."""

    def __init__(self):
        self.scores, self.volumes = {}, {}

    def write(self, engine):
        pass

    def paths(self, case):
        return []

    def remove(self, case):
        pass


def cases(sites=SITES, faulty=()):
    found = []
    for index, site in enumerate(sites):
        image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(index))
        found.append({"image": image * (float("nan") if index in faulty else 1), "case": f"case{index}", "site": site})
    return found


@pytest.fixture
def make_run(make_method, tmp_path):
    def make(items, method=None, output="out", bank="bank", **options):
        # a guard would let these random networks learn nothing that could be lost
        kept = {"guard": False} | {
            key: options.pop(key) for key in ("start_from", "save_to", "guard") if key in options
        }
        reset = None if method else {"name": "every-n", "cases": 1}
        method = method or make_method("tent")
        outputs = Outputs()
        folder = tmp_path / output
        bank = bank and tmp_path / bank
        kept |= {"journal": folder / "journal.jsonl", "bank": bank, "reset": reset}
        adaptation = AdaptationHandler(method, **kept)
        engine = SupervisedEvaluator("cpu", DataLoader(Dataset(items), batch_size=1), method.given)
        engine.add_event_handler(Events.ITERATION_COMPLETED, outputs.write)
        adaptation.attach(engine)
        return AdaptationRun(engine, Discovery(items), adaptation, outputs, folder, **options)

    return make


def states(folder):
    bank = AdapterBank(folder)
    return {bank.read(name).entry.get("site"): bank.read(name) for name in bank.entries()}


class Killed(BaseException):
    """End of the process, which no code catches."""


def test_a_run_killed_before_any_of_its_writes_ends_the_same(make_run, tmp_path, killed_before_each_write, same_state):
    make_run(cases(), bank="whole", output="whole_out").run()
    whole = states(tmp_path / "whole")
    assert {site: found.cases for site, found in whole.items()} == {"A": 2, "B": 1}
    kill = killed_before_each_write(lambda n: make_run(cases(), bank=f"bank{n}", output=f"out{n}").run())
    for moment in kill:
        assert make_run(cases(), bank=f"bank{moment}", output=f"out{moment}", resume=True).run() == 0
        resumed = states(tmp_path / f"bank{moment}")
        assert resumed.keys() == whole.keys()
        for site, found in resumed.items():
            assert same_state(found.state, whole[site].state) and found.cases == whole[site].cases, (moment, site)
        cards = {path.name: path.read_text() for path in (tmp_path / f"bank{moment}").glob("*.json")}
        assert cards == {path.name: path.read_text() for path in (tmp_path / "whole").glob("*.json")}
        lines = Journal(tmp_path / f"out{moment}" / "journal.jsonl").lines()
        assert [line["case"] for line in lines] == [item["case"] for item in cases()]
    # Four files for each case: the note that it has begun, the state, the entry and its card.
    assert moment >= 4 * len(SITES)


def test_a_saved_stream_is_put_right_too(make_run, tmp_path, monkeypatch, same_state):
    make_run(cases(), bank=None, output="whole_out", save_to=tmp_path / "whole").run()
    replace, seen = os.replace, []

    def killing(source, target):
        if str(target).endswith("a.safetensors"):
            seen.append(target)
            if len(seen) == 2:
                raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killing)
        with pytest.raises(Killed):
            make_run(cases(), bank=None, save_to=tmp_path / "a").run()
    make_run(cases(), bank=None, save_to=tmp_path / "a", resume=True).run()
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


class Failing(torch.nn.Module):
    """A network that fails in prediction, after adaptation."""

    def __init__(self, network, image):
        super().__init__()
        self.network, self.image = network, image

    def forward(self, x):
        if not torch.is_grad_enabled() and torch.equal(x[0], self.image):
            raise RuntimeError("broken")
        return self.network(x)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_case_that_fails_leaves_nothing_in_its_entry_nor_in_others(
    index, make_method, make_network, make_run, same_state, tmp_path
):
    items = cases()
    network = Failing(make_network(2), items[index]["image"])
    assert make_run(items, make_method("tent", network)).run() == 1
    rest = [item for i, item in enumerate(items) if i != index]
    whole = Failing(make_network(2), items[index]["image"])
    assert make_run(rest, make_method("tent", whole), bank="whole", output="whole_out").run() == 0
    expected, found = states(tmp_path / "whole"), states(tmp_path / "bank")
    assert expected.keys() == found.keys()
    assert all(same_state(found[site].state, expected[site].state) for site in expected)


def test_a_fault_in_the_first_case_does_not_lose_the_start(make_method, make_run, same_state, tmp_path):
    make_run(cases("C"), make_method("tent"), bank=None, output="start_out", save_to=tmp_path / "start").run()
    faulty = cases("AB")
    faulty[0]["image"] = torch.rand(2, 8, 8)
    for items, name in ((faulty, "faulty"), (faulty[1:], "whole")):
        options = {"start_from": tmp_path / "start", "save_to": tmp_path / name, "bank": None, "output": f"{name}_out"}
        make_run(items, make_method("tent"), **options).run()
    assert (tmp_path / "faulty.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_bank_that_cannot_be_written_stops_the_run_and_resume_goes_on(
    make_run, tmp_path, monkeypatch, same_state, capsys
):
    make_run(cases(), bank="whole", output="whole_out").run()
    replace, seen = os.replace, []

    def full(source, target):
        if "bank" in str(target) and str(target).endswith(".safetensors"):
            seen.append(target)
            if len(seen) > 1:
                raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert make_run(cases()).run() == 1
    printed = capsys.readouterr().out
    assert "case1" in printed and "No space left" in printed and "1 cases are left" in printed
    assert make_run(cases(), resume=True).run() == 0
    found, whole = states(tmp_path / "bank"), states(tmp_path / "whole")
    assert all(same_state(found[site].state, whole[site].state) for site in whole)


@pytest.mark.parametrize("change", ["another run", "reset", "no bank", "another bank"])
def test_a_bank_that_was_changed_meanwhile_is_not_resumed_on(change, make_run, tmp_path, monkeypatch):
    def stop(self, case):
        if case == "case2":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Attempts, "begin", stop)
        with pytest.raises(Killed):
            make_run(cases()).run()
    bank = "bank"
    if change == "another run":
        make_run(cases("AA"), output="other").run()
    elif change == "reset":
        AdapterBank(tmp_path / "bank").reset(AdapterBank(tmp_path / "bank").entries()[0])
    else:
        bank = {"no bank": None, "another bank": "new"}[change]
    before = {path: path.read_bytes() for path in sorted((tmp_path / "bank").glob("*.safetensors"))}
    with pytest.raises(GrataError, match="resume: "):
        make_run(cases(), bank=bank, resume=True)
    assert before == {path: path.read_bytes() for path in sorted((tmp_path / "bank").glob("*.safetensors"))}


def test_an_entry_that_does_not_fit_is_a_fault_of_its_cases_alone(make_run, tmp_path, capsys):
    make_run(cases("AB"), output="first").run()
    bank = AdapterBank(tmp_path / "bank")
    name = bank.entries()[0]
    bank.file(name).write_bytes(b"garbage")
    assert make_run(cases("ABA")).run() == 1
    printed = capsys.readouterr().out
    assert printed.count("damaged") >= 2 and f"bank reset {bank.path} {name}" in printed
    assert bank.file(name).read_bytes() == b"garbage"
    assert bank.read(bank.entries()[1]).cases == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Killed])
def test_the_segmentations_of_a_stopped_run_have_their_verdicts(make_run, tmp_path, stop):
    stopped, done = make_run(cases(), bank=None, guard={"activation": "softmax"}), []

    def stopping(engine):
        done.append(engine.state.batch)
        if len(done) == 3:
            raise stop

    stopped.evaluator.add_event_handler(Events.ITERATION_STARTED, stopping)
    with pytest.raises(stop):
        stopped.run()
    lines = (tmp_path / "out" / "cases.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["case", "case0", "case1"]
    assert lines[1].split(",")[3] in ("ok", "review", "reject")
