"""Faults of real files and runs, at every door where they can occur: they stay with one case, and say what to do.

``docs/results/faults.md`` names what holds each kind at each door.
"""

import csv
import errno
import gc
import gzip
import importlib.util
import itertools
import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, LoadImaged, SpatialPad
from PIL import Image
from torch import nn

from grata.benchmark import run, run_benchmark
from grata.bundles import ZooAdaptation
from grata.bundles.bundle import Bundle
from grata.bundles.sizes import check_sizes
from grata.cli import main
from grata.data import CompareScand, ScanReader, discover
from grata.data.volume_files import volume_grid
from grata.engines import AdaptationHandler, AdaptationRun
from grata.errors import GrataError
from grata.methods import create
from grata.nnunet import predict
from grata.nnunet.cases import check_files
from grata.nnunet.command import run_command
from grata.nnunet.model import TrainedModel
from grata.session import keeper


def _loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


doors = _loaded(Path(__file__).with_name("test_doors.py"))
slices = _loaded(Path(__file__).parent / "data" / "conftest.py")
ground, volume, each_door = doors.ground, doors.volume, doors.each_door
SIZE = (16, 16, 16)
AFFINE = np.eye(4)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ESCAPE = "\x1b[31mred\x07"


@pytest.fixture(scope="module", autouse=True)
def _quick_to_collect():
    """After each fault a run collects garbage, of which imported modules are the largest part to look through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Benchmarks draw no figures, which take longer than all else here."""
    monkeypatch.setattr(run, "draw_figures", lambda *_: None)


def same(found, expected):
    assert found.records == expected.records
    assert doors.same_network(found.network, expected.network)


# Doors that are given images, and not files, are among these.


@each_door
@pytest.mark.parametrize("method, factor", [("dua", 100.0), ("tent", -1e4)])
def test_an_absurd_image_teaches_nothing(ground, tmp_path, monkeypatch, door, method, factor):
    monkeypatch.setattr(doors, "METHOD", method)
    monkeypatch.setattr(doors, "SETTINGS", {"views": 2} if method == "dua" else {"lr": 1e-2})
    images = {"a": doors.PLAIN["a"], "aa": (factor * volume(7), None), "b": doors.PLAIN["b"]}
    expected = doors.alone(ground, {name: images[name] for name in "ab"}, tmp_path)
    found = doors.DOORS[door](ground, images, tmp_path)
    assert found.faults == {} and "absurd_statistics" in found.records.pop("aa")["flags"]
    same(found, expected)


@each_door
def test_a_network_that_changes_its_input_changes_no_image(ground, tmp_path, door):
    def network(in_place):
        class Changing(ground.module.Network):
            def forward(self, x):
                return super().forward(x.mul_(0.5).add_(0.1) if in_place else x * 0.5 + 0.1)

        return Changing()

    before = {name: image.clone() for name, (image, _) in doors.PLAIN.items()}
    expected = doors.alone(ground, doors.PLAIN, tmp_path, network(False))
    same(doors.DOORS[door](ground, doors.PLAIN, tmp_path, network(True)), expected)
    assert all(torch.equal(image, before[name]) for name, (image, _) in doors.PLAIN.items())


# Of these two the images come from files, and no format has float16.
@pytest.mark.parametrize(
    ("door", "dtype"),
    [(door, torch.float64) for door in doors.DOORS]
    + [(door, torch.float16) for door in doors.DOORS if door not in ("nnunet", "benchmark")],
)
def test_every_number_type_counts_as_float32(ground, tmp_path, door, dtype):
    images = {name: ((20 * volume(seed)).to(dtype), None) for seed, name in enumerate("ab")}
    expected = doors.alone(ground, {name: (x.float(), site) for name, (x, site) in images.items()}, tmp_path)
    same(doors.DOORS[door](ground, images, tmp_path), expected)


# Files.


def nifti(path, dtype=np.float32, code=1, **fields):
    """Write a good NIfTI file, with other values in fields of its header if they are given."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(SIZE)
    header.set_data_dtype(dtype)
    header.set_qform(np.eye(4), 1)
    header.set_sform(np.eye(4), code)
    header.set_xyzt_units("mm")
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header.set_slope_inter(1, 0)
    for name, value in fields.items():
        header[name] = value
    values = volume(3)[0].numpy().astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + values.tobytes("F")))


def unknown_unit(path):
    nifti(path, xyzt_units=5)


def check_sum(path):
    nifti(path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)


def no_voxel_size(path):
    nifti(path, code=0, pixdim=[1, 1, 0, 1, 0, 0, 0, 0])


def claims_more(path):
    nifti(path, dim=[3, 1500, 1500, 1500, 1, 1, 1, 1])


def cut(path):
    nifti(path)
    path.write_bytes(path.read_bytes()[:9000])


def infinite_slope(path):
    nifti(path, scl_slope=np.inf)


def colours(path):
    nifti(path)
    plain = nibabel.load(path)
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(np.zeros(SIZE, kind), plain.affine), path)


def nothing(path):
    path.write_bytes(b"")


BAD = {
    unknown_unit: "unit of length is unknown",
    check_sum: "voxels cannot be read",
    no_voxel_size: "voxel size is 1 × 0 × 1 mm",
    claims_more: "cannot hold",
    cut: "voxels cannot be read",
    infinite_slope: "scaling of its values is not finite",
    colours: "holds colours",
    nothing: r"is empty \(0 bytes\)",
}


def of_bundle(ground, folder, output, transforms=()):
    method = create("tent", ground.module.Network(), {"lr": 1e-2}, activation="softmax")
    handler, outputs = AdaptationHandler(method, journal=output / "journal.jsonl", guard=False), doors.Outputs()
    output.mkdir(parents=True)
    found = discover(folder)
    load = LoadImaged("image", reader=ScanReader, ensure_channel_first=True)
    loader = DataLoader(Dataset(found.cases, Compose([load, *transforms])), batch_size=1)
    engine = SupervisedEvaluator("cpu", loader, method.network, val_handlers=[outputs, handler])
    AdaptationRun(engine, found, handler, outputs, output).run()


def of_overlay(ground, folder, output, transforms=()):
    data = [{"image": str(path)} for path in sorted(folder.iterdir()) if path.is_file()]
    loader = DataLoader(
        Dataset(data, Compose([LoadImaged("image", "NibabelReader", ensure_channel_first=True), *transforms]))
    )
    engine = SupervisedEvaluator("cpu", loader, ground.module.Network())
    own = {"postprocessing": Compose([]), "activation": "softmax", "output_dir": output, "guard": False}
    try:
        ZooAdaptation(engine, "tent", {"lr": 1e-2}, **own).run()
    except SystemExit as end:
        assert end.code == 1


def of_nnunet(ground, folder, output, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainedModel, "network", lambda self, fold: ground.module.Network())
        model = options.pop("model", ground.folder / "nnunet")
        options = {"device": "cpu", "guard": False} | options
        return predict(model, folder, output, "tent", {"lr": 1e-2}, **options)


def configured(ground, folder, output, **keys):
    """Write the configuration of a benchmark of one site."""
    config = {
        "bundle": str(keys.pop("bundle", ground.folder / "bundle")),
        "output_dir": str(output),
        "sources": {"bundle": {"guard": False}},
        "targets": {"north": {"dataset_dir": str(folder)}},
        "methods": {"tent": {"lr": 1e-2}},
        "reference_method": "tent",
        "protocol": "continual",
        "workers": 0,
        "threads": 1,
        **keys,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.with_name("benchmark.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def of_benchmark(ground, folder, output, **keys):
    return run_benchmark(configured(ground, folder, output, **keys))


def rows_of(output):
    with open(output / "results.csv", encoding="utf-8", newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def outcome(door, output):
    """Return the records of the finished cases and the messages of the others."""
    if door == "benchmark":
        rows = rows_of(output)
        return {c for c, row in rows.items() if not row["error"]}, {
            c: row["error"] for c, row in rows.items() if row["error"]
        }
    lines = [json.loads(line) for line in (output / "journal.jsonl").read_text().splitlines()]
    done = {line["case"] for line in lines if "fault" not in line}
    faults = {line["case"]: line["fault"] for line in lines if "fault" in line}
    if (output / "summary.json").exists():
        faults |= {f["case"]: f["message"] for f in json.loads((output / "summary.json").read_text())["faults"]}
    return done, faults


FILE_DOORS = {"bundle": of_bundle, "overlay": of_overlay, "nnunet": of_nnunet, "benchmark": of_benchmark}
each_file_door = pytest.mark.parametrize("door", FILE_DOORS)


def place(door, folder, name, ending=".nii.gz"):
    """Return the path at which a door looks for the image of a case."""
    return folder / (f"{name}_0000{ending}" if door == "nnunet" else f"{name}{ending}")


def labelled(folder, name, affine=AFFINE):
    """Give an image a label, without which a benchmark does not begin."""
    path = folder.with_name("labels") / f"{name}.nii.gz"
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros(SIZE, np.uint8), affine), path)


def write_good(door, folder):
    """Write a good image in front of the others, by name, and one behind them."""
    for name in ("first", "last"):
        nifti(place(door, folder, name))
        labelled(folder, name)


@each_file_door
def test_a_bad_file_is_one_fault_and_the_others_are_done(ground, tmp_path, door):
    folder, output = tmp_path / "images", tmp_path / "out"
    write_good(door, folder)
    for write in BAD:
        write(place(door, folder, f"k_{write.__name__}"))
    FILE_DOORS[door](ground, folder, output)
    done, faults = outcome(door, output)
    assert done == {"first", "last"}
    assert faults.keys() == {f"k_{write.__name__}" for write in BAD}
    for write, words in BAD.items():
        assert re.search(words, faults[f"k_{write.__name__}"]), faults
        assert str(tmp_path) not in faults[f"k_{write.__name__}"]


HEADERS = {
    ".mha": (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = True\n"
        "CompressedDataSize = {}\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\n"
        "DimSize = 16 16 16\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    ),
    ".nrrd": (
        "NRRD0005\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: 16 16 16\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\nencoding: gzip\n"
        "space origin: (0,0,0)\n\n"
    ),
}


@each_file_door
@pytest.mark.parametrize("ending", HEADERS)
def test_other_formats_are_read_and_their_damage_is_noticed(ground, tmp_path, door, ending):
    folder, output = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    pack = zlib.compress if ending == ".mha" else gzip.compress
    packed = pack(volume(3)[0].numpy().tobytes("F"))
    # MONAI's readers of these formats are slow to start
    labelled(folder, "good", AFFINE if door == "overlay" else LPS)
    if door == "overlay":
        nifti(folder / "good.nii.gz")
    else:
        place(door, folder, "good", ending).write_bytes(HEADERS[ending].format(len(packed)).encode() + packed)
    for name, content in (("cut", packed[:-100]), ("flipped", packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:])):
        place(door, folder, name, ending).write_bytes(HEADERS[ending].format(len(content)).encode() + content)
    options = {"model": edited(ground, tmp_path, file_ending=ending)} if door == "nnunet" else {}
    FILE_DOORS[door](ground, folder, output, **options)
    done, faults = outcome(door, output)
    assert done == {"good"} and faults.keys() == {"cut", "flipped"}
    assert all("truncated or damaged" in message for message in faults.values())
    if door == "nnunet":
        assert np.array_equal(volume_grid(output / f"good{ending}")[1], LPS)


def edited(ground, folder, **keys):
    """Return a copy of the trained-model folder with other values in ``dataset.json``."""
    model = shutil.copytree(ground.folder / "nnunet", folder / "model")
    dataset = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps(dataset | keys))
    return model


@each_file_door
def test_a_file_of_other_channels_is_one_fault(ground, tmp_path, door):
    folder, output = tmp_path / "images", tmp_path / "out"
    write_good(door, folder)
    path = place(door, folder, "k_colours")
    nibabel.save(nibabel.Nifti1Image(np.ones((*SIZE, 3), np.float32), AFFINE), path)
    FILE_DOORS[door](ground, folder, output)
    done, faults = outcome(door, output)
    assert done == {"first", "last"} and faults.keys() == {"k_colours"}
    assert door != "nnunet" or "with 3" in faults["k_colours"]


EXPECTED = {
    "modality": ["MR"],
    "spacing": [[1, 1], [1, 1], [1, 1]],
    "extent": [[16, 16], [16, 16], [16, 16]],
    "size": [[16, 16], [16, 16], [16, 16]],
}
UNLIKE = {
    "few_slices": ((16, 16, 3), (1, 1, 1), "16 × 16 × 3|3 × 16 × 16"),
    "thick": ((16, 16, 16), (1, 1, 5), "voxels of 1 × 1 × 5"),
    "large": ((48, 48, 48), (1, 1, 1), "48 × 48 × 48"),
}


@each_file_door
def test_what_a_network_was_not_made_for_is_flagged(ground, tmp_path, door):
    folder, output = tmp_path / "images", tmp_path / "out"
    nifti(place(door, folder, "usual"))
    labelled(folder, "usual")
    for name, (shape, spacing, _) in UNLIKE.items():
        image = nibabel.Nifti1Image(np.random.default_rng(0).random(shape, np.float32), np.diag([*spacing, 1.0]))
        nibabel.save(image, place(door, folder, name))
    options = {}
    if door == "nnunet":
        fingerprint = {"spacings": [[1, 1, 1]], "shapes_after_crop": [[16, 16, 16]]}
        options["model"] = edited(ground, tmp_path)
        (options["model"] / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    elif door == "benchmark":
        options["bundle"] = expecting(ground, tmp_path)
    else:
        options["transforms"] = [CompareScand("image", EXPECTED), padded]
    FILE_DOORS[door](ground, folder, output, **options)
    done, faults = outcome(door, output)
    assert done == {"usual", *UNLIKE}, faults
    assert flagged(door, output) == set(UNLIKE)
    if door != "benchmark":
        lines = map(json.loads, (output / "journal.jsonl").read_text().splitlines())
        found = {line["case"]: line.get("unlike_training", "") for line in lines}
        assert all(re.search(words, found[name]) for name, (*_, words) in UNLIKE.items()), found


def padded(data):
    """Give an image the 16 voxels that the network needs along each axis."""
    return {**data, "image": SpatialPad((16, 16, 16))(data["image"])}


def flagged(door, output):
    if door == "benchmark":
        return {case for case, row in rows_of(output).items() if "unlike_training" in row["flags"].split(";")}
    lines = map(json.loads, (output / "journal.jsonl").read_text().splitlines())
    return {line["case"] for line in lines if "unlike_training" in line["flags"]}


def expecting(ground, folder):
    """Return a copy of the bundle that says what its network was trained on."""
    bundle = shutil.copytree(ground.folder / "bundle", folder / "bundle", ignore=shutil.ignore_patterns("__pycache__"))
    config = yaml.safe_load((bundle / "configs" / "adapt.yaml").read_text())
    compare = {"_target_": "grata.data.CompareScand", "keys": "image", "expected": EXPECTED}
    pad = {"_target_": "SpatialPadd", "keys": ["image", "label"], "spatial_size": SIZE, "allow_missing_keys": True}
    config["preprocessing"]["transforms"] += [compare, {**pad, "spatial_size": list(SIZE)}]
    config["to_probabilities"]["transforms"].append(
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
    )
    (bundle / "configs" / "adapt.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return bundle


@pytest.mark.parametrize("door", ["bundle", "benchmark"])
def test_another_modality_is_flagged(ground, tmp_path, door):
    """The other file doors read no header that names it."""
    folder, output = tmp_path / "images", tmp_path / "out"
    nifti(folder / "usual.nii.gz")
    labelled(folder, "usual")
    for modality in ("MR", "CT"):
        for number, item in enumerate(slices.series_datasets(series=modality, slices=16, size=(16, 16))):
            item.Modality, item.PixelSpacing, item.SliceThickness = modality, [1, 1], 1
            item.ImagePositionPatient = [0, 0, number]
            (folder / modality).mkdir(exist_ok=True)
            item.save_as(folder / modality / f"{number}.dcm", enforce_file_format=True)
    options = {"transforms": [CompareScand("image", EXPECTED)]}
    FILE_DOORS[door](
        ground, folder, output, **({"bundle": expecting(ground, tmp_path)} if door == "benchmark" else options)
    )
    done, faults = outcome(door, output)
    assert len(done) == 3 and not faults
    (case,) = flagged(door, output)
    assert case.startswith("ct")


NAMES = ["Study #12", "@scans", "$HOME", "%x", "~"]


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """Function that returns the folder that a name on the command line stands for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def typed(name):
        found = tmp_path / "home" if name == "~" else tmp_path / name
        found.mkdir()
        return found

    return typed


@pytest.mark.parametrize("name", NAMES[::2])
def test_every_path_of_nnunet_is_what_was_typed(ground, tmp_path, monkeypatch, typed, name):
    folder = typed(name)
    monkeypatch.setattr(TrainedModel, "network", lambda self, fold: ground.module.Network())
    (folder / "model").symlink_to(ground.folder / "nnunet")
    nifti(folder / "images" / "a_0000.nii.gz")
    words = ["nnunet", f"{name}/model", f"{name}/images", f"{name}/out", "--method", "tent", "--settings#lr", "0.01"]
    words += ["--device", "cpu", "--guard", "false"]
    assert main([*words, f"--save_to={name}/saved"]) == 0
    assert main([*words, f"--start_from={name}/saved", f"--bank={name}/bank", "--site", "north"]) == 0
    assert (folder / "out" / "a.nii.gz").is_file() and (folder / "saved" / "fold_0.safetensors").is_file()
    assert len(list((folder / "bank" / "fold_0").glob("north*.safetensors"))) == 1
    # what is read must be there, and its message says where it was looked for
    for key, method in (("prepared", "eata"), ("quality", "tent")):
        (folder / key).write_bytes(b"")
        with pytest.raises(GrataError) as caught:
            run_command(*words[1:4], method, **{key: f"{name}/{key}", "device": "cpu"})
        assert str(folder.relative_to(tmp_path) / key) in str(caught.value)
        assert "exist" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {folder.name}


@pytest.mark.parametrize("turn", [0, 2])
def test_every_path_of_a_benchmark_is_what_was_typed(ground, tmp_path, typed, turn):
    for folder in map(typed, NAMES):
        (folder / "bundle").symlink_to(ground.folder / "bundle")
        nifti(folder / "images" / "a.nii.gz")
        labelled(folder / "images", "a")
    names = itertools.cycle(NAMES[turn:] + NAMES[:turn])

    def next_of(path):
        return f"{next(names)}/{path}"

    outputs, kept, bank = [next_of("out"), next_of("again")], next_of("kept"), next_of("bank")
    config = {
        "bundle": next_of("bundle"),
        "output_dir": outputs[0],
        "sources": {"bundle": {"guard": False, "save_to": kept, "weights": next_of("bundle/model.pt")}},
        "targets": {"north": {"dataset_dir": next_of("images"), "labels_dir": next_of("labels")}},
        "methods": {"tent": {"lr": 1e-2}},
        "reference_method": "tent",
        "workers": 0,
    }
    file = next_of("b.yaml")
    Path(os.path.expanduser(file)).write_text(yaml.safe_dump(config))
    assert main(["benchmark", file]) == 0
    (saved,) = Path(os.path.expanduser(kept)).rglob("*.safetensors")
    start = kept + str(saved).removeprefix(os.path.expanduser(kept))
    words = [f"--sources#bundle#start_from={start}", f"--output_dir={outputs[1]}", f"--bundle={next_of('bundle')}"]
    words += [f"--targets#north#dataset_dir={next_of('images')}", "--sources#bundle#save_to=null"]
    assert main(["benchmark", file, *words, f"--sources#bundle#bank={bank}"]) == 0
    first, again = (rows_of(Path(os.path.expanduser(output)))["a"] for output in outputs)
    assert first["error"] == again["error"] == "" and again["bank"].startswith("north")
    assert len(list(Path(os.path.expanduser(bank)).rglob("*.safetensors"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {*NAMES[:-1], "home"}


@pytest.mark.parametrize("door", ["overlay", "nnunet", "benchmark"])
def test_two_runs_do_not_share_an_output_folder(ground, tmp_path, door):
    folder, output = tmp_path / "images", tmp_path / "out"
    nifti(place(door, folder, "a"))
    labelled(folder, "a")
    output.mkdir()
    with FileLock(output / ".lock"):
        with pytest.raises(GrataError, match=f"another run is writing to {output}"):
            FILE_DOORS[door](ground, folder, output)
        assert {path.name for path in output.iterdir()} == {".lock"}
    FILE_DOORS[door](ground, folder, output)
    assert outcome(door, output) == ({"a"}, {})


@each_door
def test_two_runs_do_not_share_a_saved_adaptation(ground, tmp_path, monkeypatch, capsys, door):
    images = {"a": doors.PLAIN["a"]}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    doors.DOORS[door](ground, images, tmp_path / "first", save_to=tmp_path / "first" / "kept" / "saved")
    (saved,) = (tmp_path / "first" / "kept").rglob("*.safetensors")
    saved = tmp_path / "second" / saved.relative_to(tmp_path / "first")
    saved.parent.mkdir(parents=True)
    monkeypatch.setattr(keeper, "WAIT_S", 0.01)
    with FileLock(saved.with_name(f".{saved.name}.lock")):
        try:
            faults = doors.DOORS[door](
                ground, images, tmp_path / "second", save_to=tmp_path / "second" / "kept" / "saved"
            ).faults
        except GrataError as error:
            faults = {"": str(error)}
    said = capsys.readouterr()
    assert f"another run is writing to {saved}" in f"{faults} {said.out} {said.err}"
    assert not saved.exists()


class Killed(BaseException):
    pass


def test_an_image_that_ends_a_benchmark_twice_is_passed_over(ground, tmp_path, monkeypatch):
    """The other durable doors are in ``tests/engines/test_durable.py`` and ``tests/nnunet/test_resumes.py``."""
    folder, output = tmp_path / "images", tmp_path / "out"
    for name in "abc":
        nifti(folder / f"{name}.nii.gz")
        labelled(folder, name)
    read, noted = Bundle.read_image, []

    def killing(self, case):
        if case["case"] == "b":
            (begun,) = output.rglob("*.begun")
            noted.append((begun, begun.read_text()))
            raise Killed
        return read(self, case)

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Bundle, "read_image", killing)
            of_benchmark(ground, folder, output)
        # a killed process takes nothing back
        path, text = noted[-1]
        path.write_text(text)
    assert of_benchmark(ground, folder, output) == 1
    done, faults = outcome("benchmark", output)
    assert done == {"a", "c"} and "ended twice" in faults["b"]
    remedy = re.search(r"remove the files of this job, (\S+)\.\*", faults["b"])[1]
    for file in (output / "parts" / remedy).parent.glob(f"{Path(remedy).name}.*"):
        file.unlink()
    assert of_benchmark(ground, folder, output) == 0
    assert outcome("benchmark", output) == (set("abc"), {})


@pytest.mark.parametrize("door", ["nnunet", "benchmark"])
def test_whatever_is_advised_on_a_full_disk_works(ground, tmp_path, monkeypatch, capsys, door):
    folder = tmp_path / "images"
    for name in "ab":
        nifti(place(door, folder, name))
        labelled(folder, name)
    # nnU-Net does what lacks its output; the same command of a benchmark goes on
    again = {"overwrite": False} if door == "nnunet" else {}
    fsync, written = os.fsync, []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: (written.append(number), fsync(number)))
        FILE_DOORS[door](ground, folder, tmp_path / "whole")
    for moment in range(2, len(written) + 1, max(2, len(written) // 3)):
        output, left = tmp_path / f"out{moment}", [moment]

        def full(number, left=left, moment=moment):
            left[0] -= 1
            # a disk stays full, or something else makes space at once
            if left[0] == 0 or (left[0] < 0 and moment % 4):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(number)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                status, text = FILE_DOORS[door](ground, folder, output), ""
            except GrataError as error:
                status, text = 1, str(error)
        text += capsys.readouterr().out
        assert status != 0 and "Free some space" in text, text
        assert FILE_DOORS[door](ground, folder, output, **again) == 0
        if door == "nnunet":
            assert all((output / f"{name}.nii.gz").is_file() for name in "ab")
        else:
            assert outcome(door, output) == (set("ab"), {})


@each_file_door
def test_names_steer_neither_a_terminal_nor_a_spreadsheet(ground, tmp_path, capfd, door):
    folder, output = tmp_path / "images", tmp_path / "out"
    for name in ("=cmd()", "+sum", f"b{ESCAPE}"):
        nifti(place(door, folder, name))
        labelled(folder, name)
    nothing(place(door, folder, f"@bad{ESCAPE}"))
    options = {"guard": True} if door == "nnunet" else {}
    FILE_DOORS[door](ground, folder, output, **options)
    said = "".join(capfd.readouterr())
    assert "@bad" in said and "\x1b[31m" not in said and "\x07" not in said
    tables = list(output.glob("*.csv"))
    assert tables or door in ("bundle", "overlay")
    for table in tables:
        text = table.read_text(encoding="utf-8")
        cells = {cell for row in csv.reader(text.splitlines()) for cell in row}
        assert not any(cell.startswith(("=", "+", "@")) for cell in cells), cells


def test_a_benchmark_says_that_a_scripted_network_is_code(ground, tmp_path, capfd):
    """Of the other doors ``tests/networks/test_open_script.py``; nnU-Net and the overlay open no such file."""
    folder, output = tmp_path / "images", tmp_path / "out"
    nifti(folder / "a.nii.gz")
    labelled(folder, "a")
    network = nn.Sequential(nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4), nn.Conv3d(4, 2, 1))
    torch.jit.script(network).save(tmp_path / "model.ts")
    own = {"guard": False, "weights": str(tmp_path / "model.ts"), "network_def": None}
    of_benchmark(ground, folder, output, sources={"bundle": own})
    assert "note: model.ts is code" in capfd.readouterr().err
    assert outcome("benchmark", output) == ({"a"}, {})


def test_a_link_to_nothing_is_the_fault_of_its_case(ground, tmp_path):
    folder, output = tmp_path / "images", tmp_path / "out"
    nifti(place("nnunet", folder, "good"))
    place("nnunet", folder, "link").symlink_to("nowhere")
    assert of_nnunet(ground, folder, output) == 1
    done, faults = outcome("nnunet", output)
    assert done == {"good"} and "is a link whose target does not exist" in faults["link"]


@pytest.mark.parametrize("door", ["overlay", "nnunet"])
def test_a_picture_that_would_fill_the_memory_is_refused_unread(tmp_path, door):
    """The library behind the door is not asked; of the others ``tests/data/test_real_files.py``."""
    path = tmp_path / "a_0000.png"
    Image.new("RGB", (8, 9)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">2I", 20000, 20000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)
    preprocessing = Compose([LoadImaged("image")])
    check_sizes(preprocessing, None)
    with pytest.raises((GrataError, RuntimeError)) as caught:
        check_files([path]) if door == "nnunet" else preprocessing({"image": path})
    assert "megapixels" in f"{caught.value} {caught.value.__cause__}"
