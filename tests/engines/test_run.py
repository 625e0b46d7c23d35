"""A run of a bundle's evaluator: a fault affects only its image; the rest is as if the faulty image did not exist."""

import json
import multiprocessing

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader, StatsHandler
from monai.inferers import SimpleInferer
from monai.transforms import Activationsd, Compose, LoadImaged, ScaleIntensityd
from PIL import Image
from torch.utils.data import IterableDataset

from grata.bank import Adaptation
from grata.bundles import ZooAdaptation
from grata.engines import AdaptationHandler, EvaluatorRun
from grata.errors import GrataError, RunError
from grata.files import locked
from grata.methods import create
from grata.session.faults import causes

READ = Compose([LoadImaged("image", ensure_channel_first=True, image_only=True), ScaleIntensityd("image")])


@pytest.fixture
def scans(tmp_path):
    """Function that writes images by name; ``broken`` in a name makes an unreadable file, ``nan`` an image of NaN."""

    def make(*names):
        (tmp_path / "scans").mkdir(exist_ok=True)
        paths = []
        for name in names:
            path = tmp_path / "scans" / f"{name}.npy"
            path.parent.mkdir(exist_ok=True)
            image = np.random.default_rng(len(name) + ord(name[-1])).random((32, 32), dtype=np.float32)
            np.save(path, np.full_like(image, np.nan) if "nan" in name else image)
            if "broken" in name:
                path.write_bytes(b"no image")
            paths.append({"image": str(path)})
        return paths

    return make


@pytest.fixture
def make_evaluator(make_network):
    def make(data, handlers=(), network=None, **loader):
        dataset = data if isinstance(data, IterableDataset) else Dataset(data, READ)
        loader = DataLoader(dataset, **{"batch_size": 1, "num_workers": 0, **loader})
        return SupervisedEvaluator(
            torch.device("cpu"),
            loader,
            network or make_network(),
            inferer=SimpleInferer(),
            postprocessing=Compose([Activationsd("pred", softmax=True)]),
            val_handlers=list(handlers) or None,
        )

    return make


def run(evaluator, method="grata", journal=None):
    adapted = create(method, evaluator.network, {}, activation="softmax")
    outcome = EvaluatorRun(evaluator, AdaptationHandler(adapted, journal=journal))
    outcome.run()
    return outcome, adapted.state_dict()["parameters"]


@pytest.mark.parametrize("bad", [("broken-a",), ("nan-a",), ("broken-a", "nan-b")])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_faulty_image_leaves_no_trace(scans, make_evaluator, tmp_path, bad, place):
    good = ["one", "two", "three"]
    _, expected = run(make_evaluator(scans(*good), [StatsHandler(iteration_log=False)]))
    names = [*good[:place], *bad, *good[place:]]
    outcome, parameters = run(
        make_evaluator(scans(*names), [StatsHandler(iteration_log=False)]), journal=tmp_path / "journal.jsonl"
    )
    assert sorted(fault.case for fault in outcome.faults) == sorted(bad)
    assert (outcome.done, outcome.images) == (3, 3 + len(bad))
    assert all(torch.equal(parameters[name], value) for name, value in expected.items())
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [line["case"] for line in lines] == names
    assert {line["case"] for line in lines if "fault" in line} == set(bad)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_with_a_faulty_image_is_taken_apart(scans, make_evaluator, workers):
    data = scans("one", "broken-a", "two", "three")
    outcome, _ = run(make_evaluator(data, batch_size=2, num_workers=workers))
    (fault,) = outcome.faults
    assert fault.case == "broken-a" and outcome.done == 3
    assert str(data[1]["image"]) not in fault.message and "Traceback" not in fault.message


def test_after_a_fault_the_loaders_processes_end_by_themselves(scans, make_evaluator, monkeypatch):
    """One that does not end is waited for, five seconds, and then killed."""
    killed = []
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "terminate", lambda process: killed.append(process.pid))
    outcome, _ = run(make_evaluator(scans("one", "broken-a", "two", "broken-b"), num_workers=2))
    assert len(outcome.faults) == 2 and not killed


def test_images_come_in_the_order_of_the_list(scans, make_evaluator):
    data = scans("one", "two", "three", "four")
    _, expected = run(make_evaluator(data))
    _, shuffled = run(make_evaluator(data, shuffle=True))
    assert all(torch.equal(shuffled[name], value) for name, value in expected.items())


@pytest.mark.parametrize("method", ["grata", "cotta", "ptbn"])
def test_weights_that_are_loaded_at_each_start_undo_nothing(scans, make_evaluator, make_network, tmp_path, method):
    torch.save(make_network().state_dict(), tmp_path / "model.pt")

    def outcome(*names):
        torch.manual_seed(11)
        network = make_network()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter)  # the checkpoint replaces these
        loader = CheckpointLoader(str(tmp_path / "model.pt"), {"model": network})
        return run(make_evaluator(scans(*names), [loader], network), method)

    _, expected = outcome("one", "two", "three")
    found, parameters = outcome("broken-a", "one", "broken-b", "two", "three")
    assert len(found.faults) == 2
    assert all(torch.equal(parameters[name], value) for name, value in expected.items())


def test_what_a_bundle_writes_at_the_end_is_written_whatever_image_was_faulty(scans, make_evaluator):
    evaluator = make_evaluator(scans("one", "broken-a"))
    ends = []
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: ends.append("epoch"))
    evaluator.add_event_handler(Events.COMPLETED, lambda: ends.append("run"))
    run(evaluator)
    assert ends == ["epoch", "run"]


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_COMPLETED])
def test_what_is_no_images_fault_ends_the_run(scans, make_evaluator, event):
    def fail():
        raise OSError("no space left")

    evaluator = make_evaluator(scans("one", "two"))
    evaluator.add_event_handler(event, fail)
    outcome = EvaluatorRun(evaluator, AdaptationHandler(create("ptbn", evaluator.network, {})))
    with pytest.raises(OSError, match="no space left"):
        outcome.run()
    assert not outcome.faults


def test_names_are_those_of_files_and_each_is_its_own(scans, make_evaluator):
    data = scans("x/broken", "y/broken", "z/broken-2", "broken-one")
    data += [{"image": "patient/series"}, {"image": "patient/IM0001.dcm"}]
    outcome, _ = run(make_evaluator(data), "ptbn")
    names = {fault.case for fault in outcome.faults}
    assert len(outcome.faults) == len(names) == 6 and "broken-one" in names
    assert {"image-5", "image-6"} <= names, "files and folders of DICOM may name the patient"
    assert not any("patient" in text for fault in outcome.faults for text in (fault.case, fault.message))


def test_no_file_of_a_faulty_image_is_named_whatever_its_key(make_evaluator, tmp_path):
    item = {"image": torch.rand(1, 32, 32), "art": str(tmp_path / "DOE_JANE" / "series.npy")}
    evaluator = make_evaluator([item])
    evaluator.data_loader.dataset.transform = LoadImaged("art")
    outcome, _ = run(evaluator, "ptbn")
    (fault,) = outcome.faults
    assert "DOE" not in fault.case and "DOE" not in fault.message


@pytest.mark.parametrize("wrong", [{"output": "foo"}, {"start_from": "other"}])
def test_what_no_image_could_pass_ends_the_run(scans, make_evaluator, tmp_path, wrong):
    if "start_from" in wrong:
        ZooAdaptation(make_evaluator(scans("one")), "tent", output_dir=tmp_path / "tent", activation="softmax").run()
        wrong = {"start_from": tmp_path / "tent" / "adapted"}
    adaptation = ZooAdaptation(make_evaluator(scans("one", "two")), activation="softmax", **wrong)
    with pytest.raises(Exception) as error:
        adaptation.run()
    assert any(isinstance(cause, RunError) for cause in causes(error.value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("overwrite", "maybe"),
        ("traceback", 3),
        ("output_dir", 3),
        ("prepared", "nowhere.safetensors"),
        ("affine", "maybe"),
        ("windows", 3),
        ("bank", {"tags": ["PatientName"]}),
        ("seed", "abc"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(make_evaluator, scans, key, value):
    with pytest.raises(GrataError, match=f"adaptation#{key}"):
        ZooAdaptation(make_evaluator(scans("one")), activation="softmax", **{key: value})


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return ({"image": torch.rand(1, 32, 32)} for _ in range(self.count))


def test_a_stream_without_indices(make_evaluator):
    outcome, _ = run(make_evaluator(Stream(3)))
    assert (outcome.done, outcome.images) == (3, 3)
    with pytest.raises(GrataError, match="no image"):
        run(make_evaluator(Stream(0)))


def test_no_image_is_no_success(make_evaluator):
    with pytest.raises(GrataError, match="no image"):
        run(make_evaluator([]))


def test_what_an_earlier_run_adapted_is_never_lost_by_accident(scans, make_evaluator, tmp_path):
    folder = tmp_path / "adaptation"

    def adaptation(**options):
        return ZooAdaptation(make_evaluator(scans("one", "two")), output_dir=folder, activation="softmax", **options)

    adaptation().run()
    first = (folder / "adapted.safetensors").read_bytes()
    with pytest.raises(GrataError, match="holds the files of an earlier run"):
        adaptation()
    with pytest.raises(GrataError, match="does not exist"):
        adaptation(overwrite=True, start_from=tmp_path / "mistyped")
    assert (folder / "adapted.safetensors").read_bytes() == first
    adaptation(start_from=folder / "adapted").run()
    assert Adaptation.read(folder / "adapted").cases == 4
    adaptation(overwrite=True).run()
    assert (folder / "adapted.safetensors").read_bytes() == first
    assert len((folder / "journal.jsonl").read_text().splitlines()) == 2


def test_the_folder_of_the_overlay_is_locked_and_tidied(scans, make_evaluator, tmp_path):
    folder = tmp_path / "adaptation"

    def adaptation(**options):
        return ZooAdaptation(make_evaluator(scans("one")), output_dir=folder, activation="softmax", **options)

    first, second = adaptation(), adaptation()
    own, other = folder / ".0123456789ab-adapted.safetensors", folder / ".0123456789ab-scan.nii.gz"
    for path in (own, other):
        path.write_text("half")
    with locked(folder), pytest.raises(GrataError, match="adaptation#output_dir: another run is writing to"):
        first.run()
    assert own.exists()
    first.run()
    assert not own.exists() and other.exists()
    saved = (folder / "adapted.safetensors").read_bytes()
    # made while the folder was empty
    with pytest.raises(GrataError, match="holds the files of an earlier run"):
        second.run()
    assert (folder / "adapted.safetensors").read_bytes() == saved


def test_what_a_compiled_network_learns_belongs_to_its_own_names(scans, make_evaluator, make_network, tmp_path):
    evaluator = make_evaluator(scans("one"))
    plain = evaluator.network
    evaluator.network = torch.compile(plain, backend="eager")
    ZooAdaptation(evaluator, output_dir=tmp_path / "adaptation", activation="softmax").run()
    names = Adaptation.read(tmp_path / "adaptation" / "adapted").names
    assert names and all(place in plain.state_dict() for places in names.values() for place in places)


def cut(path, image, ending):
    """Write an image, and leave of its file what a copy that was stopped leaves."""
    if ending == ".png":
        Image.fromarray((255 * image).astype(np.uint8)).save(path)
    elif ending == ".npy":
        np.save(path, image)
    else:
        nibabel.save(nibabel.Nifti1Image(image[..., None], np.eye(4)), path)
    path.write_bytes(path.read_bytes()[: 2 * path.stat().st_size // 3])


@pytest.mark.parametrize("ending, workers", [(".nii.gz", 0), (".nii.gz", 1), (".nii", 0), (".png", 0), (".npy", 0)])
def test_a_damaged_file_is_named_with_what_to_do(make_evaluator, tmp_path, ending, workers):
    paths = [{"image": str(tmp_path / "patient" / f"scan-a{ending}")}]
    (tmp_path / "patient").mkdir()
    cut(tmp_path / "patient" / f"scan-a{ending}", np.random.default_rng(0).random((32, 32), np.float32), ending)
    evaluator = make_evaluator(paths, num_workers=workers)
    run = EvaluatorRun(evaluator, AdaptationHandler(create("source", evaluator.network)))
    run.run()
    (fault,) = run.faults
    assert fault.case == "scan-a" and f"'scan-a{ending}'" in fault.message
    assert "damaged" in fault.message and "opy or export it again" in fault.message
    assert "patient" not in fault.message and "Traceback" not in fault.message and "\n" not in fault.message
    assert "Error" not in fault.message or ending == ".npy"


def test_what_is_wrong_elsewhere_is_not_called_damage(make_evaluator, scans):
    def fail(image):
        raise ValueError("another thing")

    evaluator = make_evaluator(scans("a"))
    evaluator.data_loader.dataset.transform = Compose([READ, fail])
    run = EvaluatorRun(evaluator, AdaptationHandler(create("source", evaluator.network)))
    run.run()
    assert "another thing" in run.faults[0].message and "damaged" not in run.faults[0].message
