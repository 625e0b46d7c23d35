"""Record hashes of everything that must stay bit-identical when code is rearranged, and compare with an earlier record.

One line for each value: its name and the SHA-256 of its content. Values that a run measures (seconds, memory), versions
and figures are left out. A record holds for one machine and one set of libraries, which its first lines name.

    python scripts/record.py write before.txt --cache models
    python scripts/record.py compare before.txt --cache models
    python scripts/record.py compare before.txt --only methods,bundles --cache models

`compare` prints each line that differs, is missing or is new, and exits with 1 when any differs or is missing. A new
line, such as that of a new key of the journal, is not a difference. The cache keeps the nnU-Net model that the part
`nnunet` predicts with: training is slow, and both records must use the same model.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = ("fundus_optic_disc_cup_segmentation", "hippocampus_mri_segmentation", "retinal_vessel_segmentation")
HIPPOCAMPUS = BUNDLES[1]
MEASURED = ("seconds", "peak_memory", "cold", "ratio", "timing", "version")
"""Beginnings of keys that no record holds: they are measured, follow from what is measured, or name a version."""

Line = tuple[str, Any]


# Hashes


def digest(value: Any) -> str:
    """Return the SHA-256 of a nested value, whatever the order of its dicts' keys.

    Args:
        value: tensors, arrays and plain values in dicts, lists and tuples.

    Raises:
        TypeError: it holds a value of another kind.
    """
    content = hashlib.sha256()
    for chunk in _chunks(value):
        content.update(chunk)
    return content.hexdigest()


def _chunks(value: Any) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        yield f"dict {len(value)}\n".encode()
        for key in sorted(value, key=lambda key: (type(key).__name__, str(key))):
            yield f"key {key!r}\n".encode()
            yield from _chunks(value[key])
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}\n".encode()
        for item in value:
            yield from _chunks(item)
    else:
        yield _leaf(value)


def _leaf(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        content = plain.flatten().view(torch.uint8).numpy().tobytes()
        return f"tensor {plain.dtype} {tuple(plain.shape)}\n".encode() + content
    if isinstance(value, np.ndarray):
        return f"array {value.dtype.str} {value.shape}\n".encode() + np.ascontiguousarray(value).tobytes()
    if isinstance(value, bytes):
        return b"bytes\n" + value
    if isinstance(value, float):
        return f"float {value.hex()}\n".encode()
    if value is None or isinstance(value, bool | int | str):
        return f"{type(value).__name__} {value!r}\n".encode()
    raise TypeError(f"a {type(value).__name__} cannot be hashed")


def by_key(prefix: str, values: Mapping[str, Any]) -> Iterator[Line]:
    """Yield a line for each key of a mapping that is not measured."""
    for key, value in values.items():
        if not str(key).startswith(MEASURED):
            yield f"{prefix}/{key}".replace(" ", "_"), value


def by_column(prefix: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Yield a line for each key of a table's rows, with the values of all rows; nested tables likewise."""
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        inner = [item for value in values if isinstance(value, list) for item in value if isinstance(item, dict)]
        if inner:
            yield from by_column(f"{prefix}/{key}", inner)
        else:
            yield from by_key(prefix, {key: values})


# Methods, one after the other on small networks


def make_network(spatial_dims: int, norm: Any = "batch") -> torch.nn.Module:
    """Make a UNet of three levels whose running statistics are not at their start values."""
    from monai.networks.nets import UNet

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(11)
        network = UNet(spatial_dims, 1, 2, channels=(4, 8, 8), strides=(2, 2), norm=norm)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.3, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return network


def make_branched_network() -> torch.nn.Module:
    """Make a ResUNet with all auxiliary branches."""
    from grata.networks import BRANCHES, ResUNet

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(11)
        return ResUNet(2, in_channels=1, depth=18, branches=tuple(BRANCHES))


def image(spatial_dims: int, seed: int, size: int = 16) -> torch.Tensor:
    """Make an image ``(1, 1, size, ...)`` of uniform noise."""
    return torch.rand((1, 1, *[size] * spatial_dims), generator=torch.Generator().manual_seed(seed))


def find(name: str, *modules: str) -> Any:
    """Return a name of the first module that is there and has it: a record outlives the move of a class."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"{name} is in none of {', '.join(modules)}")


def make_prepared(network: torch.nn.Module, spatial_dims: int) -> Any:
    """Make all that a method can need of a source set."""
    from grata.networks import AuxiliaryHeads

    places = ("grata.methods", "grata.methods.prepared", "grata.prepared", "grata.preparation")
    heads = AuxiliaryHeads.create(network, image(spatial_dims, 0), seed=1)
    heads.modules.eval()
    return find("Prepared", *places)(
        class_sizes=torch.tensor([0.7, 0.3]),
        centroid=torch.full((2, spatial_dims), 0.5),
        spread=torch.full((2, spatial_dims), 0.2),
        fisher={name: torch.ones_like(p) for name, p in network.named_parameters()},
        heads=heads.saved(),
        images=3,
        network="UNet",
        digest=find("network_digest", "grata.networks", *places)(network),
    )


def plan_methods() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the name, the method and the options of each stream, see :func:`stream_lines`."""
    from grata.methods import METHODS

    for name in METHODS:
        quick = {"steps": 6} if name == "ttas" else {}
        yield f"{name}/2d-sigmoid", name, {"settings": quick}
        yield f"{name}/3d-softmax", name, {"settings": quick, "spatial_dims": 3, "activation": "softmax"}
    yield from VARIANTS


VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *((f"{name}/scripted", name, {"kind": "scripted"}) for name in ("grata", "tent", "ptbn", "cotta")),
    *((f"{name}/attached", name, {"kind": "attached"}) for name in ("grata", "tent")),
    *((f"{name}/median", name, {"settings": {"batch_statistics": "median"}}) for name in ("ptbn", "grata")),
    ("tent/mixed-statistics", "tent", {"settings": {"batch_statistics": 0.3}}),
    ("grata/bfloat16", "grata", {"settings": {"autocast": "bfloat16"}}),
    ("grata/bfloat16-views", "grata", {"settings": {"views_autocast": "bfloat16"}}),
    ("cotta/bfloat16", "cotta", {"settings": {"autocast": "bfloat16"}}),
    *((f"grata/law-{law}", "grata", {"settings": {"learning_rate_law": law}}) for law in ("linear", "softplus")),
    ("grata/law-discrepancy", "grata", {"settings": {"learning_rate_law": "discrepancy"}}),
    ("grata/law-constant-sgd", "grata", {"settings": {"learning_rate_law": "constant", "optimizer": "SGD"}}),
    ("grata/entropy-consistency", "grata", {"settings": {"pseudo": "entropy", "auxiliary": "consistency"}}),
    ("grata/heads", "grata", {"settings": {"pseudo": "rotation", "auxiliary": "denoising"}, "prepared": True}),
    ("grata/views", "grata", {"settings": {"views": ["identity", "flip_h"], "strong_view": {"noise": [0.0, 0.05]}}}),
    *(
        (f"grata/{pseudo}", "grata", {"kind": "branched", "settings": {"pseudo": pseudo, "auxiliary": auxiliary}})
        for pseudo, auxiliary in (("reconstruction", "rotation"), ("super_resolution", "denoising"))
    ),
    ("tent/aligned", "tent", {"settings": {"auxiliary": "consistency", "rho": 0.5, "learning_rate_law": "quadratic"}}),
    ("tent/two-steps", "tent", {"settings": {"steps": 2, "optimizer": "AdamW", "entropy": "plogp"}}),
    ("eata/wide", "eata", {"settings": {"margin": 1.0, "redundancy": 10.0}}),
    ("sar/wide", "sar", {"settings": {"margin": 1.0, "recovery": 0.0}}),
    *((f"{name}/per-case", name, {"reset": "per-case"}) for name in ("grata", "cotta", "dua")),
    ("vptta/online", "vptta", {"reset": "never"}),
    ("grata/every-2", "grata", {"reset": {"name": "every-n", "cases": 2}}),
    ("tent/collapse", "tent", {"reset": {"name": "entropy-collapse", "fraction": 1.0, "first": 1}}),
    ("grata/drift", "grata", {"reset": {"name": "drift", "bound": 1e-9}}),
    ("sar/site-change", "sar", {"reset": "site-change", "settings": {"margin": 1.0}}),
)


def record_methods(work: Path, cache: Path) -> Iterator[Line]:
    """Record each method on a stream of three images, with its defaults and with some settings that are not."""
    for name, method, options in plan_methods():
        for rest, value in stream_lines(method, **options):
            yield f"methods/{name}/{rest}", value


def stream_lines(
    name: str,
    spatial_dims: int = 2,
    activation: str = "sigmoid",
    settings: Mapping[str, Any] | None = None,
    reset: Any = None,
    kind: str = "plain",
    prepared: bool = False,
) -> Iterator[Line]:
    """Adapt a new network to three images, and yield what that gives.

    Args:
        name: name of the method.
        spatial_dims: number of spatial dimensions of the images.
        activation: what the network ends in.
        settings: settings of the method.
        reset: reset policy.
        kind: kind of the network: plain, scripted, attached (its norms have no affine parameters) or branched.
        prepared: whether the settings need what is prepared from a source set, although the method does not.
    """
    from grata.methods import METHODS, create
    from grata.session import Session

    network = network_of(kind, spatial_dims)
    needed = prepared or METHODS[name].card.prepared
    method = create(
        name,
        network,
        dict(settings or {}),
        "attach" if kind == "attached" else "own",
        activation=activation,
        seed=3,
        prepared=make_prepared(network, spatial_dims) if needed else None,
    )
    # the numbers of the methods themselves, whatever a guard would make of them
    session = Session(method, reset=reset, guard=None)
    for index, site in enumerate(("north", "north", "south")):
        images = image(spatial_dims, index, 128 if kind == "branched" else 16)
        with session.case(images, site=site) as case:
            (record,) = case.adapt()
            case.judge(torch.zeros(1))
        with torch.no_grad():
            yield f"prediction/{index}", method.network(images)
        with method.source_network() as source:
            yield f"source/{index}", source(images)
        yield f"network/{index}", network.state_dict()
        yield from by_key(f"record/{index}", record.as_dict())
        yield from by_key(f"state/{index}", session.state_dict())
    session.restore()
    yield "restored/network", network.state_dict()
    yield from by_key("restored/state", session.state_dict())


def network_of(kind: str, spatial_dims: int) -> torch.nn.Module:
    """Make a network of a kind that :func:`stream_lines` names."""
    if kind == "scripted":
        return torch.jit.script(make_network(spatial_dims).eval())
    if kind == "branched":
        return make_branched_network()
    return make_network(spatial_dims, ("instance", {"affine": False}) if kind == "attached" else "batch")


# Commands, each in a process of its own


def run(*arguments: object, folder: Path) -> None:
    """Run ``python -m`` with the code of this repository on one thread of the CPU.

    Raises:
        RuntimeError: the command failed.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def run_bundle(bundle: str, output: Path, *arguments: object) -> None:
    """Run ``adapt`` of a bundle."""
    folder = ROOT / "bundles" / bundle
    files = ("--config_file", folder / "configs" / "adapt.yaml", "--bundle_root", folder)
    options = ("--guard", "false", "--output_dir", output)
    run("monai.bundle", "run", "adapt", *files, *options, *arguments, folder=output.parent)


def make_dataset(folder: Path) -> Path:
    """Write two sites of two labelled scans each: a sample scan at four intensities, its blocks as labels."""
    source = nib.load(ROOT / "bundles" / HIPPOCAMPUS / "sample_scans" / "nifti" / "icbm152_left.nii.gz")
    voxels = source.get_fdata()
    label = np.zeros(voxels.shape, np.uint8)
    label[10:25, 10:25, 10:25], label[10:25, 25:40, 10:25] = 1, 2
    for index, site in enumerate(("north", "north", "south", "south")):
        for kind, array in (("images", (voxels ** (1 + 0.2 * index)).astype(np.float32)), ("labels", label)):
            path = folder / site / kind / f"scan{index}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, source.affine), path)
    return folder


def journal_lines(prefix: str, path: Path) -> Iterator[Line]:
    """Yield a line for each key of a journal or of another file of JSON lines."""
    yield from by_column(prefix, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def table_lines(prefix: str, path: Path) -> Iterator[Line]:
    """Yield a line for each column of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        yield from by_column(prefix, list(csv.DictReader(file)))


def segmentation_lines(prefix: str, folder: Path) -> Iterator[Line]:
    """Yield a line for each segmentation or array of probabilities in a folder."""
    for path in sorted(folder.rglob("*")):
        name = f"{prefix}/{path.relative_to(folder)}"
        if path.name.endswith(".nii.gz"):
            loaded = nib.load(path)
            yield name, [np.asanyarray(loaded.dataobj), loaded.affine]
        elif path.suffix in (".png", ".npz", ".dcm"):
            yield name, _pixels(path)


def _pixels(path: Path) -> Any:
    if path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as picture:
            return np.asarray(picture)
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {key: file[key] for key in file.files}
    import pydicom

    return pydicom.dcmread(path).pixel_array


def saved_lines(prefix: str, path: Path) -> Iterator[Line]:
    """Yield a line for each tensor and each entry of the header of a safetensors file that grata wrote."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        yield from ((f"{prefix}/tensor/{name}", file.get_tensor(name)) for name in sorted(file.keys()))
        for header in (file.metadata() or {}).values():
            content = json.loads(header)
            # the digest is that of all the rest, the version included
            content.pop("content", None)
            yield from by_key(f"{prefix}/header/state", dict(content.pop("state")["dict"]))
            yield from by_key(f"{prefix}/header", content)


def bank_lines(prefix: str, folder: Path) -> Iterator[Line]:
    """Yield the lines of each entry of a bank, and of the card beside it."""
    for path in sorted(folder.rglob("*.safetensors")):
        name = f"{prefix}/{path.relative_to(folder).with_suffix('')}"
        yield from saved_lines(name, path)
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        card.pop("sha256")
        yield from by_key(f"{name}/card", card)


# What each part of a record holds


def record_bundles(work: Path, cache: Path) -> Iterator[Line]:
    """Record the sample runs of all bundles, and one of labelled scans by another method."""
    for bundle in BUNDLES:
        run_bundle(bundle, work / bundle)
        yield from run_lines(f"bundles/{bundle.split('_')[0]}", work / bundle)
    dataset = make_dataset(work / "labelled")
    run_bundle(
        HIPPOCAMPUS,
        work / "scored",
        *("--dataset_dir", dataset / "north", "--site", "north", "--bank", work / "bank"),
        *("--method", "tent", "--settings#lr", 0.01, "--seed", 5),
    )
    yield from run_lines("bundles/labelled", work / "scored")
    yield from bank_lines("bundles/labelled/bank", work / "bank")


def run_lines(prefix: str, folder: Path) -> Iterator[Line]:
    """Yield what a run of a bundle left in its folder, its figures apart."""
    yield from segmentation_lines(f"{prefix}/segmentations", folder / "segmentations")
    yield from journal_lines(f"{prefix}/journal", folder / "journal.jsonl")
    for table in ("volumes", "scores", "cases"):
        if (folder / f"{table}.csv").is_file():
            yield from table_lines(f"{prefix}/{table}", folder / f"{table}.csv")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    # the state holds the settings as well
    summary.pop("settings")
    yield from by_key(f"{prefix}/summary", summary)
    state = torch.load(folder / "state.pt", weights_only=True)
    yield from by_key(f"{prefix}/state/method", state.pop("method"))
    state = {key: _opened(value) for key, value in state.items()}
    yield from by_key(f"{prefix}/state/settings", first_texts(state.pop("settings")))
    yield from by_key(f"{prefix}/state", state)


def first_texts(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a run's configuration with the names that classes and arguments had when the first record was written."""
    try:
        from grata.engines.earlier import first_names
    except ImportError:
        return settings
    texts: Mapping[str, Any] = first_names(settings)
    # the policy was an argument of the method then
    now, then = "affine=@affine, ", "reset=@reset, "
    return {key: value.replace(now, then) if isinstance(value, str) else value for key, value in texts.items()}


def _opened(value: Any) -> Any:
    """Return what a text in JSON holds, and anything else as it is: how it is spaced does not matter."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def record_overlay(work: Path, cache: Path) -> Iterator[Line]:
    """Record a bundle's own inference with the overlay, without and with a bank."""
    import grata

    folder = ROOT / "bundles" / HIPPOCAMPUS
    files = str([str(folder / "configs" / "inference.json"), str(grata.overlay())])
    for name, extra in (("plain", ()), ("bank", ("--adaptation#bank", work / "bank"))):
        output = work / f"overlay-{name}"
        run(
            *("monai.bundle", "run", "adapt", "--config_file", files, "--bundle_root", folder),
            *("--output_dir", output, "--adaptation#output_dir", output / "adaptation"),
            *("--adaptation#guard", "false", *extra),
            folder=work,
        )
        yield from segmentation_lines(f"overlay/{name}/predictions", output)
        yield from journal_lines(f"overlay/{name}/journal", output / "adaptation" / "journal.jsonl")
    yield from saved_lines("overlay/plain/adapted", work / "overlay-plain" / "adaptation" / "adapted.safetensors")
    yield from bank_lines("overlay/bank/entries", work / "bank")


def record_nnunet(work: Path, cache: Path) -> Iterator[Line]:
    """Record the predictions of a small nnU-Net that was trained once, of two folds and with a bank."""
    root = cache / "nnunet"
    model = root / "results" / "Dataset001_Tiny" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    if not model.is_dir():
        train_nnunet(root)
    run(
        *("grata", "nnunet", model, root / "images", work / "nnunet", "--folds", "0,1", "--settings#lr", 0.05),
        *("--use_mirroring", "false", "--save_probabilities", "true", "--site", "north", "--bank", work / "bank"),
        *("--guard", "false"),
        folder=work,
    )
    yield from segmentation_lines("nnunet/predictions", work / "nnunet")
    yield from journal_lines("nnunet/journal", work / "nnunet" / "journal.jsonl")
    yield from bank_lines("nnunet/bank", work / "bank")


def train_nnunet(root: Path) -> None:
    """Let nnU-Net plan and train a small network, and write two images for it.

    Args:
        root: folder for the data, the model and the images.

    Raises:
        subprocess.CalledProcessError: nnU-Net failed.
    """
    raw = root / "raw" / "Dataset001_Tiny"
    for name in (raw / "imagesTr", raw / "labelsTr", root / "images"):
        name.mkdir(parents=True, exist_ok=True)
    for seed in range(3):
        voxels, label = ball(seed, (40, 48, 32), 1.0)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), raw / "imagesTr" / f"scan{seed}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), raw / "labelsTr" / f"scan{seed}.nii.gz")
    for seed in (7, 8):
        nib.save(nib.Nifti1Image(ball(seed, (24, 28, 20), 2.0)[0], np.eye(4)), root / f"images/case{seed}_0000.nii.gz")
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    program = ROOT / "tests" / "nnunet" / "train.py"
    subprocess.run([sys.executable, program, root, "3d_fullres"], capture_output=True, check=True)


def ball(seed: int, shape: tuple[int, int, int], gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Make a noisy image of a ball with a core, and its label map."""
    generator = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + generator.uniform(-2, 2, 3)
    distance = np.linalg.norm(np.stack(np.indices(shape), -1) - centre, axis=-1)
    label = (distance < 9).astype(np.uint8) + (distance < 5)
    return (gain * (100 * label + generator.normal(300, 20 * gain, shape))).astype(np.float32), label


def record_benchmark(work: Path, cache: Path) -> Iterator[Line]:
    """Record a benchmark of four methods on two sites, in two protocols."""
    folder = work / "benchmark"
    config = benchmark_config(make_dataset(work / "sites"), folder)
    (work / "benchmark.json").write_text(json.dumps(config), encoding="utf-8")
    run("grata", "benchmark", work / "benchmark.json", folder=work)
    for table in ("results", "summary"):
        yield from table_lines(f"benchmark/{table}", folder / f"{table}.csv")
    for path in sorted((folder / "parts").rglob("*.jsonl")):
        yield from journal_lines(f"benchmark/parts/{path.relative_to(folder / 'parts').with_suffix('')}", path)
    for path in sorted((folder / "parts").rglob("*.pt")):
        name = f"benchmark/states/{path.relative_to(folder / 'parts').with_suffix('')}"
        yield from by_key(name, torch.load(path, weights_only=True)["method"])
    yield from segmentation_lines("benchmark/label-maps", folder / "parts")


def benchmark_config(dataset: Path, output: Path) -> dict[str, Any]:
    """Return the configuration of a small benchmark over the sites of :func:`make_dataset`."""
    return {
        "bundle": str(ROOT / "bundles" / HIPPOCAMPUS),
        "sources": {"bundle": {"guard": False}},
        "output_dir": str(output),
        "targets": {site: {"dataset_dir": str(dataset / site)} for site in ("north", "south")},
        "methods": {"source": {}, "ptbn": {}, "tent": {"lr": 0.01}, "grata": {"lr": 0.02}},
        "protocol": ["per-target", "continual"],
        "workers": 0,
        "threads": 1,
    }


def record_stream(work: Path, cache: Path) -> Iterator[Line]:
    """Record what a notebook does: three images, with a bank, and from a saved adaptation on."""
    import grata

    items = [{"image": image(2, index), "site": site} for index, site in enumerate(("north", "south", "north"))]
    saved = work / "saved.safetensors"
    common = {"activation": "sigmoid", "settings": {"lr": 0.01}, "seed": 3, "guard": False}
    for name, options in (
        ("bank", {"bank": work / "stream-bank"}),
        ("saved", {"save_to": saved}),
        ("started", {"start_from": saved, "method": "grata"}),
        ("episodic", {"reset": "per-case", "windows": {"uncertain": 1, "random": 1}, "inferer": small_windows()}),
    ):
        network = make_network(2)
        for index, adapted in enumerate(grata.adapt(network, items, **common, **options)):
            yield f"stream/{name}/probabilities/{index}", adapted.probabilities
            yield f"stream/{name}/logits/{index}", adapted.logits
            yield f"stream/{name}/network/{index}", network.state_dict()
            yield from by_column(f"stream/{name}/record/{index}", [adapted.record])
    yield from bank_lines("stream/bank/entries", work / "stream-bank")
    yield from saved_lines("stream/saved/file", saved)


def small_windows() -> Any:
    """Make an inferer whose windows are smaller than the images."""
    from monai.inferers import SlidingWindowInferer

    return SlidingWindowInferer((8, 8), sw_batch_size=4, overlap=0.5)


PARTS = {
    "methods": record_methods,
    "bundles": record_bundles,
    "overlay": record_overlay,
    "nnunet": record_nnunet,
    "benchmark": record_benchmark,
    "stream": record_stream,
}


# Records


def machine() -> dict[str, str]:
    """Return what hashes of floating-point numbers depend on beside the code."""
    return {
        **{name: version(name) for name in ("torch", "monai", "numpy")},
        "python": ".".join(map(str, sys.version_info[:2])),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": processor(),
    }


def processor() -> str:
    """Return the name of the processor and, since several share one, a short hash of what it can do."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or "unknown"
    first = info.read_text(encoding="utf-8").split("\n\n")[0]
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    abilities = digest({key: values.get(key) for key in ("cpu family", "model", "stepping", "flags", "Features")})
    return f"{values.get('model name', platform.machine())}, {abilities[:12]}"


def make_record(parts: Iterable[str], cache: Path | None = None) -> dict[str, str]:
    """Compute hashes by name.

    Args:
        parts: names of :data:`PARTS`.
        cache: folder that keeps the model of nnU-Net; None: it is trained and thrown away.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = {}
            for part in parts:
                work = Path(folder) / part
                work.mkdir()
                lines = PARTS[part](work, cache or Path(folder))
                found |= {name: digest(value) for name, value in lines}
            return found
    finally:
        torch.set_num_threads(threads)


def fold(record: Mapping[str, str]) -> dict[str, str]:
    """Return a short record: one line for each stream of the part ``methods`` and each kind of value in it."""
    groups: dict[str, dict[str, str]] = {}
    for name, value in record.items():
        groups.setdefault("/".join(name.split("/")[:4]), {})[name] = value
    return {name: digest(group) for name, group in groups.items()}


def write(record: Mapping[str, str], path: Path) -> None:
    """Write a record, the machine it holds for first."""
    lines = [f"# {key}: {value}" for key, value in machine().items()]
    lines += [f"{name}  {value}" for name, value in sorted(record.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the machine and the hashes of a record."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return header, dict(line.split("  ") for line in lines if not line.startswith("#"))


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of the lines that differ, are missing or are new."""
    return {
        "differs": sorted(name for name in before if name in after and before[name] != after[name]),
        "missing": sorted(name for name in before if name not in after),
        "new": sorted(name for name in after if name not in before),
    }


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """Print how two records differ.

    Returns:
        1 when a line differs or is missing, else 0.
    """
    found = differences(before, after)
    for kind, names in found.items():
        for name in names:
            print(f"{kind}: {name}")
    equal = sum(before[name] == after.get(name) for name in before)
    print(f"{equal} of {len(before)} lines are equal; " + ", ".join(f"{len(v)} {k}" for k, v in found.items()))
    return 1 if found["differs"] or found["missing"] else 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("file", type=Path, help="the record")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}, separated by commas")
    parser.add_argument("--cache", type=Path, help="folder that keeps the model of nnU-Net")
    parser.add_argument("--fold", action="store_true", help="a short record of the methods, as the tests have it")
    parser.add_argument("--against", type=Path, help="compare with this record instead of computing a new one")
    given = parser.parse_args()
    parts = given.only.split(",")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"--only: there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    if given.against:
        record = read(given.against)[1]
    else:
        record = make_record(parts, given.cache and given.cache.resolve())
        record = fold(record) if given.fold else record
    if given.action == "write":
        write(record, given.file)
        print(f"{len(record)} lines in {given.file}")
        return 0
    header, before = read(given.file)
    for key, value in machine().items():
        if header.get(key) != value:
            print(f"note: {key} was {header.get(key)} and is {value}: numbers may differ for that reason")
    before, record = (
        {name: h for name, h in lines.items() if name.split("/")[0] in parts} for lines in (before, record)
    )
    return compare(before, record)


if __name__ == "__main__":
    # the code beside this script, whichever is installed
    sys.path.insert(0, str(ROOT / "src"))
    sys.exit(main())
