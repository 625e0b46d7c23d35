"""Five doors lead to one session: the same images give the same records, the same roll-back and the same messages.

The doors are the stream of a notebook, a bundle's own run, the overlay, nnU-Net and the benchmark. Each gets the same
network and the same volumes, which fit into one window of nnU-Net.
"""

import contextlib
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose

import grata
from grata.bank import Adaptation
from grata.benchmark import run_benchmark
from grata.bundles import ZooAdaptation
from grata.data import Discovery
from grata.engines import AdaptationHandler, AdaptationRun
from grata.errors import GrataError
from grata.methods import create
from grata.session import Case, Session

METHOD, SETTINGS = "tent", {"lr": 1e-2}
MEASURED = ("seconds", "seconds_predict", "seconds_judge", "peak_memory_mib")

NETWORK = '''
import torch
from monai.networks.nets import UNet
from torch import nn

from grata.errors import GrataError

RAISES, RAISES_LATER, NAN = 90, 91, 92


class Network(nn.Module):
    """A U-Net that fails on images with a certain maximum."""

    def __init__(self, norm="batch"):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.unet = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm=norm)
            for name, buffer in self.unet.named_buffers():
                if name.endswith("running_var"):
                    buffer.uniform_(0.5, 2.0)

    def forward(self, x):
        mark, adapting = round(float(x.max())), torch.is_grad_enabled()
        if mark == (RAISES if adapting else RAISES_LATER):
            raise GrataError("the network cannot take it. Give another one.", key="image")
        y = self.unet(x)
        return y * float("nan") if mark == NAN and not adapting else y
'''


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A bundle for the benchmark and a folder as nnU-Net's training leaves it, both with the network above."""
    folder = tmp_path_factory.mktemp("doors")
    (folder / "bundle" / "configs").mkdir(parents=True)
    source = folder / "bundle" / "doors_network.py"
    source.write_text(NETWORK)
    spec = importlib.util.spec_from_file_location("doors_network", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.save(module.Network().state_dict(), folder / "bundle" / "model.pt")
    (folder / "bundle" / "configs" / "adapt.yaml").write_text(yaml.safe_dump(ADAPT, sort_keys=False))
    make_nnunet(folder / "nnunet", module.Network())
    return SimpleNamespace(folder=folder, module=module)


ADAPT = {
    "imports": ["$import os", "$import grata"],
    "bundle_root": ".",
    "weights": "$os.path.join(@bundle_root, 'model.pt')",
    **dict.fromkeys(("dataset_dir", "labels_dir", "site", "bank", "start_from", "save_to", "reset", "prepared")),
    "affine": "auto",
    "method": METHOD,
    "settings": {},
    "seed": 0,
    "activation": "softmax",
    "segments": [{"value": 1, "label": "Organ"}],
    "network_def": {"_target_": "doors_network.Network"},
    "network": {
        "_target_": "grata.networks.load_source",
        "network_def": "@network_def",
        "weights": "@weights",
        "device": "cpu",
    },
    "discovery": {
        "_target_": "grata.data.discover",
        "dataset_dir": "@dataset_dir",
        "labels_dir": "@labels_dir",
        "site": "@site",
    },
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {
                "_target_": "LoadImaged",
                "keys": ["image", "label"],
                "reader": "$grata.data.ScanReader",
                "ensure_channel_first": True,
                "image_only": True,
                "allow_missing_keys": True,
            },
        ],
    },
    "inferer": {"_target_": "SimpleInferer"},
    "to_probabilities": {
        "_target_": "Compose",
        "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
    },
    "to_label_map": {
        "_target_": "Compose",
        "transforms": [{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}],
    },
}


def make_nnunet(folder: Path, network: torch.nn.Module) -> None:
    resampling = {"order": 1, "order_z": 0, "force_separate_z": None}
    functions = {
        f"resampling_fn_{name}{end}": value
        for name in ("data", "seg", "probabilities")
        for end, value in (("", "resample_data_or_seg_to_shape"), ("_kwargs", {"is_seg": name == "seg", **resampling}))
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "median_image_size_in_voxels": [16.0, 16.0, 16.0],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        **functions,
        "architecture": {"network_class_name": "torch.nn.Identity", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": False,
    }
    plans = {
        "dataset_name": "Dataset001_Doors",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [16, 16, 16],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


@dataclass
class Visit:
    """What came out of a door.

    Attributes:
        records: record of each finished image, by its name, without what is measured.
        faults: message of each image that failed, by its name; under "" that of the whole run.
        network: the network, as the door left it.
        measured: values that were measured, by the name of the image.
    """

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    network: torch.nn.Module | None = None
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, record: dict[str, Any]) -> None:
        about = ("case", "site", "method", "version", "fold")
        plain = {key: value for key, value in record.items() if key not in about}
        # only a guard that judges takes its time
        self.measured[name] = {key: plain.pop(key) for key in MEASURED if key in plain}
        # JSON has no NaN, and a journal holds null in its place
        self.records[name] = json.loads(json.dumps(plain), parse_constant=lambda constant: None)


def volume(seed: int, mark: int = 0) -> torch.Tensor:
    x = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(seed)) + 0.1
    if mark:
        x[0, 0, 0, 0] = mark
    return x


def alone(ground, images, folder, network=None, site=None, affine="auto", prepared=None, **options) -> Visit:
    """Use a session by hand."""
    options.setdefault("guard", False)
    network = network or ground.module.Network()
    method = create(METHOD, network, SETTINGS, affine, activation="softmax", prepared=prepared)
    session, visit = Session(method, site=site, **options), Visit(network=network)
    for name, (x, place) in images.items():
        try:
            with session.case(x[None], name, place) as case:
                case.adapt()
                with torch.no_grad():
                    case.judge(session.network(x[None]))
            visit.add(name, case.record)
        except GrataError as error:
            visit.faults[name] = str(error)
    return visit


def stream(ground, images, folder, network=None, **options) -> Visit:
    options.setdefault("guard", False)
    network = network or ground.module.Network()
    items = [{"image": x[None], **({"site": site} if site else {})} for x, site in images.values()]
    visit = Visit(network=network)
    adapted = grata.adapt(network, items, METHOD, activation="softmax", settings=SETTINGS, **options)
    for name in images:
        try:
            visit.add(name, next(adapted).record)
        except GrataError as error:
            visit.faults[name] = str(error)
    return visit


class Outputs:
    """An ``OutputHandler`` that writes no files."""

    def __init__(self):
        self.scores, self.volumes = {}, {}

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine):
        pass

    def paths(self, case):
        return []

    def remove(self, case):
        pass


def evaluator(network, images, handlers=()):
    cases = [{"case": name, "image": x, **({"site": site} if site else {})} for name, (x, site) in images.items()]
    loader = DataLoader(Dataset(cases), batch_size=1)
    return cases, SupervisedEvaluator("cpu", loader, network, val_handlers=list(handlers))


def of_journal(path: Path, visit: Visit, names: list[str]) -> Visit:
    # the overlay's images have no files that could name them
    named = {f"image-{number}": name for number, name in enumerate(names, 1)}
    for line in map(json.loads, path.read_text().splitlines()):
        name = named.get(line["case"], line["case"])
        if "fault" in line:
            visit.faults[name] = line["fault"]
        else:
            visit.add(name, line)
    return visit


def bundle(ground, images, folder, network=None, affine="auto", prepared=None, **options) -> Visit:
    options.setdefault("guard", False)
    network = network or ground.module.Network()
    method = create(METHOD, network, SETTINGS, affine, activation="softmax", prepared=prepared)
    handler, outputs = AdaptationHandler(method, journal=folder / "journal.jsonl", **options), Outputs()
    cases, engine = evaluator(network, images, [outputs, handler])
    run = AdaptationRun(engine, Discovery(tuple(cases), ()), handler, outputs, folder)
    visit = Visit(network=network)
    run.run()
    visit.faults = {fault.case: fault.message for fault in run.faults}
    return of_journal(folder / "journal.jsonl", visit, list(images)) if (folder / "journal.jsonl").exists() else visit


def overlay(ground, images, folder, network=None, **options) -> Visit:
    options.setdefault("guard", False)
    network, visit = network or ground.module.Network(), Visit()
    _, engine = evaluator(network, images)
    adaptation = ZooAdaptation(
        engine,
        METHOD,
        SETTINGS,
        postprocessing=Compose([]),
        activation="softmax",
        output_dir=folder / "adaptation",
        **options,
    )
    visit.network = network
    try:
        with contextlib.suppress(SystemExit):
            adaptation.run()
    except GrataError as error:
        visit.faults[""] = str(error)
        return visit
    return of_journal(folder / "adaptation" / "journal.jsonl", visit, list(images))


def save(x: torch.Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(x.numpy(), np.eye(4)), path)


def nnunet(ground, images, folder, network=None, **options) -> Visit:
    options.setdefault("guard", False)
    pytest.importorskip("nnunetv2")
    from grata.nnunet import predict
    from grata.nnunet.model import TrainedModel

    network = network or ground.module.Network()
    for name, (x, _) in images.items():
        # nnU-Net's axes are in the opposite order
        save(x[0].permute(2, 1, 0), folder / "images" / f"{name}_0000.nii.gz")
    if any(site for _, site in images.values()):
        options["site"] = {name: site for name, (_, site) in images.items()}
    visit = Visit(network=network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainedModel, "network", lambda self, fold: network)
        try:
            folders = ground.folder / "nnunet", folder / "images", folder / "output"
            predict(*folders, METHOD, SETTINGS, device="cpu", **options)
        except GrataError as error:
            visit.faults[""] = str(error)
            return visit
    return of_journal(folder / "output" / "journal.jsonl", visit, list(images))


def benchmark(ground, images, folder, network=None, **options) -> Visit:
    options.setdefault("guard", False)
    from grata.bundles.bundle import Bundle

    network = network or ground.module.Network()
    for name, (x, site) in images.items():
        save(x[0], folder / (site or "site") / "images" / f"{name}.nii.gz")
        save(torch.zeros(16, 16, 16, dtype=torch.uint8), folder / (site or "site") / "labels" / f"{name}.nii.gz")
    sites = list(dict.fromkeys(site or "site" for _, site in images.values()))
    options = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    config = {
        "bundle": str(ground.folder / "bundle"),
        "output_dir": str(folder / "results"),
        "sources": {"bundle": options},
        "targets": {site: {"dataset_dir": str(folder / site / "images")} for site in sites},
        "methods": {METHOD: SETTINGS},
        "reference_method": METHOD,
        "protocol": "continual",
        "workers": 0,
        "threads": torch.get_num_threads(),
    }
    (folder / "benchmark.json").write_text(json.dumps(config))
    visit = Visit(network=network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "make_network", lambda self: network)
        run_benchmark(folder / "benchmark.json")
    path = folder / "results" / "parts" / "continual" / "bundle" / "all" / METHOD / "seed-0.jsonl"
    for row in map(json.loads, path.read_text().splitlines()) if path.exists() else ():
        if row["error"]:
            visit.faults[row["case"]] = row["error"]
        else:
            change = {key: row.pop(f"parameter_change/{key}") for key in ("l2", "relative")}
            row["flags"] = row["flags"].split(";") if row["flags"] else []
            columns = {"protocol", "source", "target", "seed", "stream", "round", "position", "error", "cold"}
            scores = {key for key in row if "/" in key}
            record = {key: value for key, value in row.items() if key not in columns | scores}
            visit.add(row["case"], record | {"parameter_change": change})
    return visit


DOORS = {"stream": stream, "bundle": bundle, "overlay": overlay, "nnunet": nnunet, "benchmark": benchmark}
each_door = pytest.mark.parametrize("door", DOORS)


def same_network(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


PLAIN = {"a": (volume(0), None), "b": (volume(1), None), "c": (volume(2), None)}
SITES = {"a": (volume(0), "north"), "b": (volume(1), "north"), "c": (volume(2), "south")}
EVERY_2 = {"name": "every-n", "cases": 2}


@each_door
def test_the_same_record_and_the_same_network(ground, tmp_path, door):
    expected = alone(ground, PLAIN, tmp_path)
    found = DOORS[door](ground, PLAIN, tmp_path)
    assert found.records == expected.records and found.faults == {}
    assert same_network(found.network, expected.network)
    for measured in found.measured.values():
        assert measured["seconds"] > 0 and measured["seconds_predict"] > 0
        # Linux can measure the process's peak, which holds torch at least
        assert measured["peak_memory_mib"] is None or measured["peak_memory_mib"] > 50


@each_door
@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (90, "image: the network cannot take it. Give another one."),
        (91, "image: the network cannot take it. Give another one."),
        (92, "The prediction holds NaN or infinite values. Export the scan again with values in their usual range, or "
             "check the weights."),
    ],
    ids=["raises-while-adapting", "raises-while-predicting", "nan"],
)  # fmt: skip
@pytest.mark.parametrize("bad", ["a", "b"])
def test_an_image_that_fails_leaves_no_trace(ground, tmp_path, door, mark, message, bad):
    images = {**PLAIN, bad: (volume(7, mark), None)}
    expected = alone(ground, {name: value for name, value in PLAIN.items() if name != bad}, tmp_path)
    found = DOORS[door](ground, images, tmp_path)
    assert found.faults == {bad: message}
    assert found.records == expected.records
    assert same_network(found.network, expected.network)


@each_door
@pytest.mark.parametrize("reset", ["site-change", EVERY_2, "per-case"], ids=["site-change", "every-n", "per-case"])
def test_a_reset_policy(ground, tmp_path, door, reset):
    expected = alone(ground, SITES, tmp_path, reset=reset)
    found = DOORS[door](ground, SITES, tmp_path, reset=reset)
    assert found.records == expected.records and found.faults == {}
    resets = [record["reset"] for record in found.records.values()]
    assert resets == ([False, True, True] if reset == "per-case" else [False, False, True])
    assert same_network(found.network, expected.network)


@pytest.fixture
def judged(monkeypatch):
    """What guards said of the cases since, in their order: doors name images in their own ways."""
    found = []

    def take(case, verdict):
        found.extend(judgement.as_dict() for judgement in verdict.judgements)
        original(case, verdict)

    original = Case._take
    monkeypatch.setattr(Case, "_take", take)
    return found


def assert_alike(one, other, tolerance):
    """Compare nested values; measured numbers may differ by a tolerance."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other):
            assert_alike(first, second, tolerance)
    elif isinstance(one, bool | str) or one is None:
        assert one == other
    else:
        assert one == pytest.approx(other, abs=tolerance, rel=tolerance, nan_ok=True)


@each_door
@pytest.mark.parametrize("fragile", [False, True], ids=["sound", "fragile"])
def test_a_guard_says_the_same_and_does_the_same(ground, tmp_path, door, fragile, make_outliner, blob, judged):
    images = {name: (blob(seed, 3), None) for seed, name in enumerate("abcd")}
    images["c"] = (100 * images["c"][0], None)
    # the doors know different names, and nnU-Net its own mirrored views
    guard = {"segments": ["organ"], "view": "flip_w", "patience": 2}
    expected = alone(ground, images, tmp_path, make_outliner(fragile, 3), guard=guard)
    said = judged.copy()
    judged.clear()
    found = DOORS[door](ground, images, tmp_path, make_outliner(fragile, 3), guard=guard)
    assert found.faults == {} and len(said) == len(judged) == 4
    assert [item["verdict"] for item in judged] == ["ok", "ok", "reject", "ok"]
    assert [item["used"] for item in judged] == (["source"] * 4 if fragile else ["adapted"] * 2 + ["source", "adapted"])
    # nnU-Net adds its windows up in half precision
    tolerance = 1e-2 if door == "nnunet" else 0.0
    assert_alike(judged, said, tolerance)
    for record in expected.records.values():
        # a table holds plain values
        for key in ("reasons", "quality") if door == "benchmark" else ():
            record.pop(key)
    assert_alike(found.records, expected.records, tolerance)
    assert same_network(found.network, expected.network)
    assert same_network(found.network, make_outliner(fragile, 3)) is fragile
    assert all(measured["seconds_judge"] > 0 for measured in found.measured.values())


@each_door
def test_the_settings_of_a_guard_are_checked(ground, tmp_path, door, make_outliner, blob):
    images, network = {"a": (blob(0, 3), None)}, make_outliner(True, 3)
    with pytest.raises(GrataError, match="guard#patience: must be"):
        found = DOORS[door](ground, images, tmp_path, network, guard={"patience": 0})
        raise GrataError(found.faults[""])
    with pytest.raises(GrataError, match=r"guard#patiense: .*patience"):
        found = DOORS[door](ground, images, tmp_path, network, guard={"patiense": 1})
        raise GrataError(found.faults[""])


def entries(folder: Path) -> list[tuple[Any, ...]]:
    """What the saved adaptations in a folder hold, wherever the door has put them; it may have settings of its own."""
    found = sorted(folder.rglob("*.safetensors"), key=lambda path: path.stem)
    read = [Adaptation.read(path) for path in found]
    return [(a.entry, a.cases, a.batches, a.reset, {k: v.tolist() for k, v in a.learnt.items()}) for a in read]


@each_door
def test_a_bank_keeps_each_site_and_a_failing_image_is_not_in_it(ground, tmp_path, door):
    expected = alone(ground, SITES, tmp_path, bank=tmp_path / "alone")
    bad = {"a": SITES["a"], "aa": (volume(7, 92), "north"), "b": SITES["b"], "c": SITES["c"]}
    found = DOORS[door](ground, bad, tmp_path, bank=tmp_path / "bank")
    assert found.records == expected.records and list(found.faults) == ["aa"]
    assert [record["bank"].split("-")[0] for record in found.records.values()] == ["north", "north", "south"]
    assert entries(tmp_path / "bank") == entries(tmp_path / "alone")


@each_door
def test_a_site_for_all_images_is_that_of_the_bank(ground, tmp_path, door):
    expected = alone(ground, PLAIN, tmp_path, bank=tmp_path / "alone", site="west")
    images = PLAIN
    found = DOORS[door](ground, images, tmp_path, bank=tmp_path / "bank", site="west")
    assert found.records == expected.records
    assert all(record["bank"].startswith("west-") for record in found.records.values())
    assert entries(tmp_path / "bank") == entries(tmp_path / "alone")


@each_door
def test_a_saved_adaptation_is_gone_on_from(ground, tmp_path, door):
    first = {name: PLAIN[name] for name in "ab"}
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    DOORS[door](ground, first, folders[0], save_to=tmp_path / "kept" / "saved")
    (saved,) = (tmp_path / "kept").rglob("*.safetensors")
    found = DOORS[door](ground, {"c": PLAIN["c"]}, folders[1], start_from=saved)
    expected = alone(ground, PLAIN, tmp_path)
    assert found.records == {"c": expected.records["c"]} and found.faults == {}
    assert same_network(found.network, expected.network)


@each_door
def test_an_adaptation_is_saved(ground, tmp_path, door):
    alone(ground, PLAIN, tmp_path, save_to=tmp_path / "alone" / "saved.safetensors")
    DOORS[door](ground, PLAIN, tmp_path, save_to=tmp_path / "save_to" / "saved")
    assert entries(tmp_path / "save_to") == entries(tmp_path / "alone")


@each_door
def test_parameters_are_attached_where_there_are_none(ground, tmp_path, door):
    norm = ("instance", {"affine": False})
    expected = alone(ground, PLAIN, tmp_path, ground.module.Network(norm))
    found = DOORS[door](ground, PLAIN, tmp_path, ground.module.Network(norm), affine="attach")
    assert found.records == expected.records and found.records["a"]["parameter_change"]["l2"] > 0


@each_door
@pytest.mark.parametrize("norm", ["batch", ("instance", {"affine": True})], ids=["batch", "instance"])
def test_a_network_that_is_adapted_already_is_refused(ground, tmp_path, door, norm):
    network = ground.module.Network(norm)
    source = {name: value.clone() for name, value in network.state_dict().items()}
    earlier = grata.adapt(network, [volume(0)[None]], METHOD, activation="softmax", settings=SETTINGS)
    next(earlier)
    adapted = {name: value.clone() for name, value in network.state_dict().items()}
    found = DOORS[door](ground, PLAIN, tmp_path, network)
    assert found.records == {} and len(found.faults) <= len(PLAIN)
    message = (
        f"network: method {METHOD} adapts it already, for a stream or a handler that is still there. Call "
        "grata.restore(network) to bring its source weights back, and begin anew."
    )
    assert set(found.faults.values()) <= {message}
    assert found.faults or door == "benchmark"
    assert all(torch.equal(value, adapted[name]) for name, value in network.state_dict().items())
    # the remedy of the message
    assert grata.restore(network)
    assert all(torch.equal(value, source[name]) for name, value in network.state_dict().items())
    again = tmp_path / "again"
    again.mkdir()
    expected = alone(ground, PLAIN, tmp_path, ground.module.Network(norm))
    assert DOORS[door](ground, PLAIN, again, network).records == expected.records


def watched_list(ground, images, folder, network=None, **options) -> Visit:
    """The example of a sixth door, as the documentation has it."""
    options.setdefault("guard", False)
    path = Path(__file__).parents[1] / "docs" / "examples" / "watched_list.py"
    assert len(path.read_text().splitlines()) < 60
    spec = importlib.util.spec_from_file_location("watched_list", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = network or ground.module.Network()
    visit, names, arrays = Visit(network=network), list(images), []
    journal = folder / "journal.jsonl"
    watched = module.watch(arrays, network, METHOD, SETTINGS, pause=0.001, journal=journal, **options)
    for name, (x, _) in images.items():
        # the list is empty when the door opens, and grows while it is watched
        arrays.append(x.numpy())
        place, labels, message = next(watched)
        assert names[place] == name and (labels is None) == bool(message)
        if message:
            visit.faults[name] = message
    arrays.append(None)
    assert next(watched, None) is None
    for line in map(json.loads, journal.read_text().splitlines()):
        visit.add(names[int(line["case"].removeprefix("array-"))], line)
    return visit


def test_a_sixth_door_is_thin_and_keeps_the_promises_of_the_others(ground, tmp_path):
    images = {"a": PLAIN["a"], "aa": (volume(7, 92), None), "b": PLAIN["b"], "c": PLAIN["c"]}
    expected = alone(ground, PLAIN, tmp_path, bank=tmp_path / "alone", site="west", reset=EVERY_2)
    found = watched_list(ground, images, tmp_path, bank=tmp_path / "bank", site="west", reset=EVERY_2)
    assert found.records == expected.records and list(found.faults) == ["aa"]
    assert entries(tmp_path / "bank") == entries(tmp_path / "alone")
    assert same_network(found.network, expected.network)


def test_a_bank_of_a_benchmark_may_name_its_tags_and_is_checked_before_anything_runs(ground, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bank = {"path": str(tmp_path / "bank"), "tags": ["Manufacturer"]}
    found = benchmark(ground, SITES, tmp_path, bank=bank)
    assert len(found.records) == 3 and len(list((tmp_path / "bank").rglob("*.safetensors"))) == 2
    for options, message in (
        ({"bank": "b", "save_to": "s"}, "the bank saves the adaptations already"),
        ({"bank": {"path": "b", "tag": []}}, "bank#tag"),
        ({"reset": "sometimes"}, "there is no policy"),
        ({"affine": "never"}, "affine"),
    ):
        with pytest.raises(GrataError, match=message):
            benchmark(ground, SITES, tmp_path / message.split()[0], **options)
    assert {path.name for path in tmp_path.iterdir() if not path.is_dir()} <= {"benchmark.json"}


def test_the_sites_of_nnunets_images_can_be_written_on_the_command_line(ground, tmp_path):
    pytest.importorskip("nnunetv2")
    from grata.cli.options import SITE
    from grata.nnunet import predict

    assert SITE.read("{case-1: north, case-2: '7'}") == {"case-1": "north", "case-2": "7"}
    assert [SITE.read(text) for text in ("north", "7", "1.50")] == ["north", "7", "1.50"]
    save(volume(0)[0], tmp_path / "images" / "case-1_0000.nii.gz")
    with pytest.raises(GrataError, match="site#case-2: there is no such case"):
        predict(ground.folder / "nnunet", tmp_path / "images", tmp_path / "out", site={"case-2": "n"}, device="cpu")


def test_a_saved_adaptation_of_an_earlier_run_is_refused_before_anything_is_removed(ground, tmp_path):
    saved = tmp_path / "saved.safetensors"
    alone(ground, {"a": PLAIN["a"]}, tmp_path, save_to=saved)
    before = saved.read_bytes()
    bundle(ground, PLAIN, tmp_path)
    earlier = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    network = ground.module.Network()
    method = create(METHOD, network, SETTINGS, activation="softmax")
    handler, outputs = AdaptationHandler(method, journal=tmp_path / "journal.jsonl", save_to=saved), Outputs()
    cases, engine = evaluator(network, PLAIN, [outputs, handler])
    with pytest.raises(GrataError, match="save_to: .* holds the adaptation of an earlier run"):
        AdaptationRun(engine, Discovery(tuple(cases), ()), handler, outputs, tmp_path, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == earlier
    # the overlay replaces what lies in its own folder, and nothing elsewhere
    with pytest.raises(GrataError, match="adaptation#save_to: .* holds the adaptation of an earlier run"):
        overlay(ground, PLAIN, tmp_path / "overlay", save_to=saved, overwrite=True)
    assert saved.read_bytes() == before
    for overwrite in (False, True):
        overlay(ground, {"a": PLAIN["a"]}, tmp_path / "overlay", overwrite=overwrite)
    assert len((tmp_path / "overlay" / "adaptation" / "journal.jsonl").read_text().splitlines()) == 1
