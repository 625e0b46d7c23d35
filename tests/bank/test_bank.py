import json
import os
import subprocess
import sys

import pydicom
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.transforms import LoadImaged

from grata.bank import Adaptation, AdapterBank, save
from grata.engines import AdaptationHandler
from grata.errors import GrataError, OutputError, RunError
from grata.session import Journal
from grata.session.keeper import Keeper
from grata.session.learner import Learner

METHODS = ("grata", "tent", "cotta", "ptbn", "dua", "sar", "vptta", "diga")
STREAM = "ABBACAB"


def items(sites=STREAM, only=None):
    """Return one image per letter of ``sites``, or of site ``only`` alone."""
    found = []
    for index, site in enumerate(sites):
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(1, 16, 16, generator=generator) * (1 + ord(site) % 3)
        found.append({"image": image, "case": f"case{index}", "site": site})
    return [item for item in found if only in (None, item["site"])]


def entry(bank, site):
    (found,) = [name for name in bank.entries() if name.startswith(f"{site.lower()}-")]
    return bank.read(found)


@pytest.mark.parametrize("name", METHODS)
def test_each_site_goes_on_as_if_it_were_alone_also_on_the_next_day(name, make_method, run, tmp_path, same_state):
    """Parameters and predictions are equal to the last bit in a mixed stream of two runs."""
    first, second = items()[:4], items()[4:]
    mixed = run(make_method(name), first, bank=tmp_path) + run(make_method(name), second, bank=tmp_path)
    for site in "ABC":
        alone = run(make_method(name), items(only=site))
        found = [p for p, item in zip(mixed, items(), strict=True) if item["site"] == site]
        assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))
        saved = entry(AdapterBank(tmp_path), site)
        assert same_state(saved.state, alone.state)
        assert saved.cases == len(alone) and saved.entry == {"site": site}


@pytest.mark.parametrize("reset", [{"name": "every-n", "cases": 2}, "entropy-collapse", "site-change", "per-case"])
def test_each_site_has_a_reset_policy_of_its_own(reset, make_method, run, tmp_path, same_state):
    run(make_method("tent"), items(), bank=tmp_path, reset=reset)
    for site in "AB":
        alone = run(make_method("tent"), items(only=site), reset=reset)
        assert same_state(entry(AdapterBank(tmp_path), site).state, alone.state)


def test_another_process_goes_on_where_each_site_stood(make_method, run, tmp_path, same_state):
    method = make_method("grata")
    torch.save(method.given.state_dict(), tmp_path / "source.pt")
    run(method, items()[:4], bank=tmp_path / "bank")
    torch.save(items()[4:], tmp_path / "items.pt")
    script = """
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.networks.nets import UNet
from grata.engines import AdaptationHandler
from grata.methods import create
network = UNet(2, 1, 2, channels=(4, 8), strides=(2,), norm="batch")
network.load_state_dict(torch.load("source.pt", weights_only=True))
method = create("grata", network, {"lr": 1e-2}, activation="sigmoid")
loader = DataLoader(Dataset(torch.load("items.pt", weights_only=True)), batch_size=1)
SupervisedEvaluator("cpu", loader, network, val_handlers=[AdaptationHandler(method, bank="bank", guard=False)]).run()
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for site in "ABC":
        alone = run(make_method("grata"), items(only=site))
        assert same_state(entry(AdapterBank(tmp_path / "bank"), site).state, alone.state)


def test_scanners_are_known_by_their_headers_and_nothing_about_the_patient_is_written(
    make_method, make_network, run, tmp_path, bundle
):
    files = sorted((bundle / "sample_scans" / "dicom" / "right").glob("*.dcm"))[:4]
    for index, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Mustermann^Erika", "KH-4711", "19610824"
        dataset.StudyDate, dataset.AccessionNumber = "20170503", "ACC998877"
        dataset.StationName = f"MRC{index % 2}"
        dataset.save_as(tmp_path / f"{index}.dcm")
    scans = [{"image": str(tmp_path / f"{i}.dcm"), "case": f"case{i}", "site": "unknown"} for i in range(4)]
    load = LoadImaged(keys="image", reader="ITKReader", ensure_channel_first=True, image_only=True)
    scans = [{**item, "image": load(item)["image"].squeeze(-1)[:, :16, :16]} for item in scans]
    run(make_method("tent"), scans, bank=tmp_path / "bank", journal=tmp_path / "journal.jsonl")
    bank = AdapterBank(tmp_path / "bank")
    assert [name.rpartition("-")[0] for name in bank.entries()] == [
        "mcconnell-brain-imaging-centre-mrc0",
        "mcconnell-brain-imaging-centre-mrc1",
    ]
    assert [bank.read(name).cases for name in bank.entries()] == [2, 2]
    entries = [line["bank"] for line in Journal(tmp_path / "journal.jsonl").lines()]
    assert entries == bank.entries() * 2
    for path in bank.path.iterdir():
        content = (path.name.encode() + path.read_bytes()).lower()
        for word in ("mustermann", "erika", "kh-4711", "19610824", "20170503", "acc998877", "case0", str(tmp_path)):
            assert word.lower().encode() not in content, (path.name, word)


def test_scans_that_tell_nothing_have_an_entry_of_their_own_and_a_flag(make_method, run, tmp_path):
    journal = tmp_path / "journal.jsonl"
    run(make_method("tent"), items("AB") + [{**items("X")[0], "site": "unknown"}], bank=tmp_path / "b", journal=journal)
    lines = Journal(journal).lines()
    assert [line["flags"] for line in lines] == [[], [], ["unknown_site"]]
    assert [line["bank"].split("-")[0] for line in lines] == ["a", "b", "unknown"]
    assert AdapterBank(tmp_path / "b").read("unknown").entry == {}


def test_without_a_bank_the_journal_is_as_it_was(make_method, run, tmp_path):
    run(make_method("tent"), items("AB"), journal=tmp_path / "journal.jsonl")
    assert all("bank" not in line and line["flags"] == [] for line in Journal(tmp_path / "journal.jsonl").lines())


def test_a_batch_of_two_sites_is_refused(make_method, run, tmp_path):
    with pytest.raises(GrataError, match="batch_size to 1"):
        run(make_method("tent"), items("AB"), batch_size=2, bank=tmp_path / "bank")
    run(make_method("tent"), items("AA"), batch_size=2, bank=tmp_path / "bank")
    assert entry(AdapterBank(tmp_path / "bank"), "A").cases == 2


class Broken(Exception):
    pass


def test_a_case_that_was_not_finished_is_taken_back_before_the_next(
    make_method, make_network, run, tmp_path, same_state
):
    """The evaluator fails after adaptation, once at a site that goes on afterwards, once at a new site."""
    method = make_method("tent")
    handler = AdaptationHandler(method, bank=tmp_path, guard=False)

    def predict(stream, fails):
        engine = SupervisedEvaluator("cpu", DataLoader(Dataset(stream), batch_size=1), method.given)
        handler.attach(engine)
        if fails:
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, fail)
        engine.logger.disabled = True
        if not fails:
            return engine.run()
        with pytest.raises(Broken):
            engine.run()

    def fail(engine):
        raise Broken

    predict(items("AB"), fails=False)
    predict(items("A"), fails=True)
    predict(items("C"), fails=True)
    predict(items("CA"), fails=False)
    for site, stream in (("A", [items("AB")[0], items("CA")[1]]), ("C", items("C"))):
        alone = run(make_method("tent"), stream)
        assert same_state(entry(AdapterBank(tmp_path), site).state, alone.state)


@pytest.mark.parametrize("change", ["weights", "settings", "damaged", "renamed"])
def test_an_entry_that_does_not_fit_is_reported_and_kept(change, make_method, make_network, run, tmp_path):
    run(make_method("tent"), items("AB"), bank=tmp_path)
    bank = AdapterBank(tmp_path)
    name = next(name for name in bank.entries() if name.startswith("a-"))
    network, settings = make_network(2), {}
    if change == "weights":
        with torch.no_grad():
            next(network.parameters()).add_(1)
    elif change == "settings":
        settings = {"lr": 3e-3}
    elif change == "damaged":
        bank.file(name).write_bytes(bank.file(name).read_bytes()[:-7])
    else:
        other = next(name for name in bank.entries() if name.startswith("b-"))
        bank.file(name).write_bytes(bank.file(other).read_bytes())
    before = bank.file(name).read_bytes()
    message = {
        "weights": "other source weights",
        "settings": "another optimizer",
        "damaged": f"damaged.*bank reset {tmp_path} {name}",
        "renamed": "another site or scanner",
    }[change]
    with pytest.raises(GrataError, match=message):
        run(make_method("tent", network, **settings), items("A"), bank=tmp_path)
    assert bank.file(name).read_bytes() == before


def test_two_runs_at_a_time_do_not_write_over_each_other(make_method, run, tmp_path, same_state):
    def other_run(engine=None):
        run(make_method("tent"), items("A"), bank=tmp_path)

    class Slow(AdapterBank):
        def write(self, *args):
            other_run()
            return super().write(*args)

    run(make_method("tent"), items("B"), bank=tmp_path)
    with pytest.raises(OutputError, match="by another process"):
        run(make_method("tent"), items("A"), bank=Slow(tmp_path))
    alone = run(make_method("tent"), items("A"))
    assert same_state(entry(AdapterBank(tmp_path), "A").state, alone.state)


@pytest.mark.parametrize("name", METHODS)
def test_what_another_run_writes_right_after_an_entry_was_read_is_not_lost(
    name, make_method, run, tmp_path, same_state
):
    class Slow(AdapterBank):
        def read(self, entry):
            found = super().read(entry)
            run(make_method(name), items("A"), bank=tmp_path)
            return found

    run(make_method(name), items("A"), bank=tmp_path)
    with pytest.raises(OutputError, match="by another process"):
        run(make_method(name), items("A"), bank=Slow(tmp_path))
    alone = run(make_method(name), items("A") * 2)
    assert same_state(entry(AdapterBank(tmp_path), "A").state, alone.state)
    # A run alone goes on.
    run(make_method(name), items("A"), bank=tmp_path)
    assert entry(AdapterBank(tmp_path), "A").cases == 3


def test_an_entry_that_was_reset_starts_from_the_source(make_method, run, tmp_path, same_state):
    run(make_method("tent"), items(), bank=tmp_path)
    bank = AdapterBank(tmp_path)
    name = next(name for name in bank.entries() if name.startswith("a-"))
    bank.reset(name)
    assert name not in bank.entries() and not list(tmp_path.glob("a-*")) and len(bank.entries()) == 2
    run(make_method("tent"), items("A"), bank=tmp_path)
    alone = run(make_method("tent"), items("A"))
    assert same_state(entry(bank, "A").state, alone.state)


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        ({"path": "b", "tag": []}, "bank#tag: there is no such setting"),
        ({"tags": ["Manufacturer"]}, "bank#path"),
        ({"path": "b", "tags": ["PatientName"]}, "PatientName is not allowed"),
        (3, "bank: must be a folder"),
        (__file__, "is a file"),
    ],
)
def test_settings_that_are_none_are_refused(bank, message, make_method, run):
    with pytest.raises(GrataError, match=message):
        run(make_method("tent"), items("A"), bank=bank)


# --- start_from and save_to


def test_a_stream_without_a_bank_is_saved_after_each_case_and_goes_on(make_method, run, tmp_path, same_state):
    path = tmp_path / "deep" / "adapted.safetensors"
    run(make_method("cotta"), items("AB"), save_to=path)
    assert Adaptation.read(path).cases == 2
    run(make_method("cotta"), items()[2:4], start_from=path, save_to=path)
    alone = run(make_method("cotta"), items()[:4])
    assert Adaptation.read(path).cases == 4
    assert same_state(Adaptation.read(path).state, alone.state)
    assert json.loads(path.with_suffix(".json").read_text())["cases"] == 4


def test_what_an_earlier_run_adapted_is_not_written_over(make_method, run, tmp_path):
    run(make_method("tent"), items("AB"), save_to=tmp_path / "a")
    before = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(OutputError, match="Give it as start_from"):
        run(make_method("tent"), items("B"), save_to=tmp_path / "a")
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_what_another_run_saves_after_the_start_was_read_is_not_lost(make_method, images, run, tmp_path):
    path = tmp_path / "a.safetensors"
    run(make_method("tent"), items("A"), save_to=path)
    method = make_method("tent")
    keeper = Keeper(Learner(method), start_from=path, save_to=path)
    run(make_method("tent"), items("B"), start_from=path, save_to=path)
    before = path.read_bytes()
    keeper.begin(images[0])
    method.adapt(images[0])
    with pytest.raises(OutputError, match="by another process"):
        keeper.keep()
    assert path.read_bytes() == before


def test_new_entries_start_from_a_saved_adaptation(make_method, run, tmp_path, same_state):
    start = make_method("grata")
    run(start, items("CC"))
    save(start, tmp_path / "start")
    run(make_method("grata"), items()[2:4], bank=tmp_path / "bank", start_from=tmp_path / "start")
    for site in "AB":
        alone = run(
            make_method("grata"), [item for item in items()[2:4] if item["site"] == site], start_from=tmp_path / "start"
        )
        assert same_state(entry(AdapterBank(tmp_path / "bank"), site).state, alone.state)


def test_a_start_that_does_not_fit_is_refused(make_method, run, tmp_path):
    save(make_method("tent"), tmp_path / "start")
    with pytest.raises(GrataError, match="method 'tent', not by 'grata'"):
        run(make_method("grata"), items("A"), start_from=tmp_path / "start")
    with pytest.raises(GrataError, match="does not exist"):
        run(make_method("tent"), items("A"), start_from=tmp_path / "none")
    with pytest.raises(GrataError, match="save_to: the bank saves the adaptations already"):
        run(make_method("tent"), items("A"), bank=tmp_path / "b", save_to=tmp_path / "a")


@pytest.mark.parametrize("key", ["start_from", "save_to"])
@pytest.mark.parametrize("given", ["a folder", "a name that ends like a folder", "", 3])
def test_what_is_not_a_file_is_refused(make_method, tmp_path, key, given):
    paths = {"a folder": tmp_path, "a name that ends like a folder": f"{tmp_path}/new/"}
    with pytest.raises(GrataError) as caught:
        Keeper(Learner(make_method("tent")), **{key: paths.get(given, given)})
    assert caught.value.key == key and "<name>.safetensors" in caught.value.message
    assert list(tmp_path.iterdir()) == [] and not tmp_path.with_name(f"{tmp_path.name}.safetensors").exists()


def test_a_start_of_another_method_ends_the_run_with_key_and_remedy(make_method, run, tmp_path):
    run(make_method("tent"), items("A"), save_to=tmp_path / "start")
    with pytest.raises(RunError) as caught:
        run(make_method("ptbn"), items("A"), start_from=tmp_path / "start")
    assert caught.value.key == "start_from" and "Use that method, or start without" in caught.value.message
    with pytest.raises(GrataError, match="^start_from: .*none.safetensors does not exist"):
        Keeper(Learner(make_method("tent")), start_from=tmp_path / "none")
