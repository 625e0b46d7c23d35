"""What people write: lists of cases, configurations, values of options, names of patients."""

from __future__ import annotations

import codecs
import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import yaml
from pydicom import Dataset

from grata.benchmark.config import load_config
from grata.bundles import ZooAdaptation
from grata.bundles.bundle import Bundle
from grata.data import discover
from grata.data.identifiers import patient_identifiers, remove_identifiers
from grata.doctor.doctor import examine
from grata.methods import METHODS, settings_of

from .mutate import alter, damage, odd_text, odd_value
from .results import evaluator
from .scans import good_nifti, read_case
from .watch import Input, Target

__all__ = ["CONFIGS"]


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, where odd relative paths do no harm."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# Lists of cases

_ROWS = [["image", "mask", "site"], ["a.nii", "", "north"], ["b.nii", "b_seg.nii", ""], ["c.nii", "", "south"]]
_CELLS = ("../a.nii", "/etc/hostname", "a.nii/", "A.NII", "a.nii ", ".\\a.nii", "c.nii", "nowhere.nii", "images", "~")


def _make_list(rng: Random) -> Input:
    rows = copy.deepcopy(_ROWS)
    row, how = rng.randrange(len(rows)), rng.choice(("cell", "cell", "cell", "row", "bytes", "bytes", "encoding"))
    done = how
    if how == "cell":
        column = rng.randrange(3)
        rows[row][column] = rng.choice((*_CELLS, odd_text(rng), odd_text(rng), "x" * 200_000))
        done = f"row {row}, column {column} is {rows[row][column][:40]!r}"
    elif how == "row":
        rows[row] = rng.choice(([], [""] * 3, rows[row][:1], rows[row] * 2, rows[(row + 1) % 4], ["#"]))
    text = rng.choice(("\n", "\r\n", "\r")).join(rng.choice((",", ",", ",", ";")).join(cells) for cells in rows)
    data = text.encode(errors="surrogateescape")
    if how == "bytes":
        data, done = damage(data, rng)
    elif how == "encoding":
        done = rng.choice(("utf-16", "utf-8-sig", "utf-32", "latin-1"))
        data = text.replace("north", "nörth").encode(done)
    return Input({**_good_list(), "cases.csv": data, "images": None}, done)


def _good_list() -> dict[str, bytes]:
    images = {f"{name}.nii": good_nifti() for name in ("a", "b", "b_seg", "c")}
    return {"cases.csv": "\n".join(map(",".join, _ROWS)).encode(), **images}


def _enter_list(folder: Path) -> bool:
    """Read a list and the images in it; what the list names and is good is read."""
    found = discover(folder, cases_file="cases.csv")
    assert found.cases or found.faults, "nothing was found, and nobody told"
    good = {f"{folder / name}.nii" for name in ("a", "b", "c")}
    for case in found.cases:
        assert case["image"] not in good or read_case(case, folder) is not None, f"{case} was not read"
        # what a list says goes into tables and the journal
        json.dumps(case).encode()
        f"{case['case']} {case['site']}".encode()
    return not found.faults


# Configurations

_NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "norm": "batch",
}
_TRANSFORMS = [
    {"_target_": "LoadImaged", "keys": "image", "reader": "$grata.data.ScanReader", "ensure_channel_first": True},
    {"_target_": "ScaleIntensityd", "keys": "image"},
]
_ADAPT: dict[str, Any] = {
    "imports": ["$import grata"],
    "device": "cpu",
    "dataset_dir": "images",
    "site": None,
    "method": "tent",
    "seed": 0,
    "settings": {"lr": 0.01},
    "reset": {"name": "every-n", "cases": 3},
    "activation": "softmax",
    "weights": None,
    "windows": {"uncertain": 2, "random": 2},
    "segments": [{"value": 1, "label": "Structure"}],
    "scored": ["Structure"],
    "network": _NETWORK,
    "discovery": {"_target_": "grata.data.discover", "dataset_dir": "@dataset_dir", "site": "@site", "spatial_dims": 3},
    "preprocessing": {"_target_": "Compose", "transforms": _TRANSFORMS},
    "inferer": {"_target_": "SimpleInferer"},
    "to_probabilities": {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    "to_label_map": {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    "amp": False,
}
_MADE = ("device", "site", "amp", "inferer", "activation", "output", "windows", "regions", "scored", "_preprocessing")
_KNOTS = (
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi")),
    "a: &a [*a]\n",
    "settings: &s {lr: 0.1, again: *s}\n",
    "a: !!python/object/apply:os.system ['true']\n",
    "2026-01-01: 1\n1: 2\nnull: 3\n? [a]\n: 4\n",
    "a: 1\na: 2\n",
    "a: 12:30:45\nb: 0b1\nc: 2026-13-45\nd: .inf\ne: !!binary xx\nf: !!set {a}\n",
    "[" * 20_000,
    "a: " * 50,
    "\t",
    "",
    "- a",
    "3",
    "'text'",
)


def _broken(config: dict[str, Any], rng: Random, as_json: bool = False) -> tuple[bytes, str]:
    """Return a configuration as YAML or JSON, with an odd value, an odd text or a damaged byte."""
    how = rng.choice(("value",) * 6 + ("bytes", "knot", "instead"))
    tree = copy.deepcopy(config)
    done = how
    if how == "value":
        done = ", ".join(alter(tree, rng) for _ in range(rng.choice((1, 1, 2))))
    text = (
        json.dumps(tree) if as_json or rng.random() < 0.3 else yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    )
    data = text.encode(errors="surrogatepass")
    if how == "bytes":
        data, done = damage(data, rng)
    elif how in ("knot", "instead"):
        knot = rng.choice(_KNOTS)
        data, done = (b"" if how == "instead" else data) + knot.encode(), f"{how} {knot[:20]!r}"
    if rng.random() < 0.05:
        data, done = codecs.BOM_UTF16_LE + text.encode("utf-16-le", "surrogatepass"), "utf-16"
    return data, done


def _make_bundle(rng: Random) -> Input:
    data, done = _broken(_ADAPT, rng)
    return Input({**_good_bundle(), "bundle/configs/adapt.yaml": data}, done)


def _good_bundle() -> dict[str, bytes]:
    return {"bundle/configs/adapt.yaml": yaml.safe_dump(_ADAPT).encode(), "images/a.nii": good_nifti()}


def _enter_bundle(folder: Path) -> bool:
    """Read a bundle's adapt.yaml and make all that it describes."""
    with _inside(folder):
        bundle = Bundle(Path("bundle"), {}, "sources#bundle")
        for name in _MADE:
            getattr(bundle, name)
        bundle.make_network()
        return bool(bundle.cases(None, labelled=False))


_INFERENCE = {
    "imports": ["$import grata", "$import monai"],
    "bundle_root": ".",
    "dataset_dir": "images",
    "device": "cpu",
    "network_def": _NETWORK,
    "preprocessing": {"_target_": "Compose", "transforms": _TRANSFORMS},
    "dataset": {"_target_": "Dataset", "data": [], "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network_def",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
    },
    "run": ["$@evaluator.run()"],
}
_METADATA = {
    "version": "0.1.0",
    "monai_version": "1.6.1",
    "task": "segmentation",
    "network_data_format": {
        "inputs": {"image": {"type": "image", "num_channels": 1, "spatial_shape": [64, 64], "value_range": [0, 1]}},
        "outputs": {"pred": {"type": "image", "num_channels": 2, "channel_def": {"0": "background", "1": "organ"}}},
    },
}


def _make_doctor(rng: Random) -> Input:
    files = {"inference": _INFERENCE, "metadata": _METADATA}
    if rng.random() < 0.5:
        # the number of classes is looked for in the metadata then
        given = ", ".join(f"{key}={value!r}" for key, value in _NETWORK.items() if key != "_target_")
        files["inference"] = {**_INFERENCE, "network_def": f"$monai.networks.nets.UNet({given})"}
    name = rng.choice(tuple(files))
    data, done = _broken(files[name], rng, as_json=True)
    return Input({**_configs(files), f"bundle/configs/{name}.json": data}, f"{name}: {done}")


def _configs(files: dict[str, Any]) -> dict[str, bytes]:
    return {f"bundle/configs/{name}.json": json.dumps(config).encode() for name, config in files.items()}


def _good_doctor() -> dict[str, bytes]:
    return _configs({"inference": _INFERENCE, "metadata": _METADATA})


def _enter_doctor(folder: Path) -> bool:
    with _inside(folder):
        return examine("bundle", method="tent").adapts


_BENCHMARK = {
    "bundle": "bundle",
    "output_dir": "results",
    "sources": {"one": {"guard": False, "scored": ["Structure"]}, "two": {}},
    "targets": {
        "north": {"dataset_dir": "images", "stride": 2, "scored": ["Structure"]},
        "south": {"dataset_dir": "s"},
    },
    "methods": {"source": {}, "tent": {"lr": 0.01, "reset": {"name": "every-n", "cases": 3}}, "b": {"method": "grata"}},
    "common": {"lr": 0.001},
    "reference_method": "tent",
    "protocol": ["per-target", {"name": "continual"}],
    "seeds": [0, 1],
    "shuffle": True,
    "limit": 5,
    "metrics": {"space": "input", "empty": "nan"},
    "workers": 2,
    "threads": 1,
}


def _make_benchmark(rng: Random) -> Input:
    if rng.random() < 0.7:
        data, done = _broken(_BENCHMARK, rng)
        return Input({**_benchmark({}), "benchmark.yaml": data}, done)
    keys = (*_BENCHMARK, "methods#tent#lr", "sources#one#windows#uncertain", "targets#north", odd_text(rng))
    overrides = {rng.choice(keys): odd_value(rng)}
    return Input(dict(_benchmark(overrides)), str(overrides)[:80])


def _benchmark(overrides: dict[str, Any]) -> dict[str, bytes]:
    return {"benchmark.yaml": yaml.safe_dump(_BENCHMARK).encode(), "overrides.json": json.dumps(overrides).encode()}


def _enter_benchmark(folder: Path) -> bool:
    with _inside(folder):
        load_config("benchmark.yaml", json.loads(Path("overrides.json").read_text()))
    return True


# Values of options

_TAKEN: dict[str, Any] = {
    **dict.fromkeys(("output_dir", "reset", "seed", "activation", "output", "affine", "prepared", "windows", "bank")),
    **dict.fromkeys(("start_from", "save_to", "site", "guard", "on_reject", "quality", "overwrite", "traceback")),
    **dict.fromkeys(("postprocessing", "bundle_root")),
}
_NAMES = {
    "reset": "every-n", "windows": "uncertain", "bank": "tags", "guard": "evidence", "activation": "softmax",
}  # fmt: skip


def _make_overlay(rng: Random) -> Input:
    method = rng.choice(tuple(METHODS))
    given: dict[str, Any] = {"method": method}
    if rng.random() < 0.5:
        names = list(settings_of(method)) or ["lr"]
        given["settings"] = {rng.choice((*names, *names, odd_text(rng))): odd_value(rng)}
    else:
        key = rng.choice((*_TAKEN, "settings", "method"))
        value = odd_value(rng)
        if key in _NAMES and rng.random() < 0.5:
            value = {"name": _NAMES[key], rng.choice(("cases", "path", "tags", "random", "batch_size")): value}
        given[key] = value
    return Input(dict(_options(given)), str(given)[:100])


def _options(given: dict[str, Any]) -> dict[str, bytes]:
    return {"options.json": json.dumps({"activation": "softmax", **given}).encode()}


def _enter_overlay(folder: Path) -> bool:
    """Plug a method into an evaluator with an odd option."""
    given = json.loads((folder / "options.json").read_text())
    with _inside(folder):
        ZooAdaptation(evaluator(), **given)
    return True


# Names of patients

_WORDS = ("s", "ss", "ae", "Müller", "a-b_c d", "19610824", "20170230", "(", "[a", "\\", "ß", "김", "é", ".", "-", "1")
_KEYWORDS = ("PatientName", "PatientID", "AccessionNumber", "StudyDate", "PatientBirthDate", "OtherPatientNames")


def _make_identifiers(rng: Random) -> Input:
    def text() -> str:
        many = rng.choice((1, 1, 2, 30, 60, 300))
        return rng.choice(("", "", "^", " ", "_")).join([rng.choice((*_WORDS, odd_text(rng)))] * many)

    header = {keyword: text() for keyword in rng.sample(_KEYWORDS, 3)}
    shown = rng.choice((text(), rng.choice(list(header.values())), "".join(header.values()) + "s" * 60))
    made = _words(header, shown[: rng.choice((46, 400, 4000))])
    return Input(dict(made), made["words.json"].decode()[:80])


def _words(header: dict[str, str], text: str) -> dict[str, bytes]:
    return {"words.json": json.dumps({"header": header, "text": text}).encode()}


def _enter_identifiers(folder: Path) -> bool:
    given = json.loads((folder / "words.json").read_text())
    header = Dataset()
    for keyword, value in given["header"].items():
        header.add_new(keyword, "LO", value)
    remove_identifiers(given["text"], patient_identifiers(header))
    return True


CONFIGS = (
    Target("list", _make_list, _enter_list, _good_list, 55),
    Target("bundle", _make_bundle, _enter_bundle, _good_bundle, 15),
    Target("doctor", _make_doctor, _enter_doctor, _good_doctor, 8),
    Target("benchmark", _make_benchmark, _enter_benchmark, lambda: _benchmark({}), 40),
    Target("overlay", _make_overlay, _enter_overlay, lambda: _options({"method": "tent"}), 20),
    Target("identifiers", _make_identifiers, _enter_identifiers, lambda: _words({"PatientID": "KH-4711"}, "a"), 70),
)
