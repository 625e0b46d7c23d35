"""The bundles' commands as a user types them, and scans to give them."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

import grata

# A Python process sets the limit, because a preexec_fn after a fork of this process, which has threads, could hang.
LAUNCHER = """
import os, resource, sys
largest_file, *command = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file), int(largest_file)))
os.execv(command[0], command)
"""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a command.

    Attributes:
        status: exit status.
        text: stdout and stderr together.
    """

    status: int
    text: str


class Scans(runpy.run_path(str(Path(__file__).parents[1] / "data" / "conftest.py"))["Scans"]):
    """The writers of synthetic scans of tests/data (pytest's importlib mode has no imports between test files)."""

    @staticmethod
    def volume(shape: Sequence[int] = (32, 40, 32), seed: int = 0) -> np.ndarray:
        """Return two bright blobs on a noisy background."""
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:3]), indexing="ij"))
        blobs = sum(np.exp(-8 * ((grid.T - centre) ** 2).sum(-1).T) for centre in ((0.3, 0.2, 0.0), (-0.4, -0.3, 0.1)))
        return (300 * blobs + 20 * np.random.default_rng(seed).random(shape[:3])).astype(np.float32)

    @staticmethod
    def save_volume(volume: np.ndarray, path: Path) -> Path:
        """Write a NIfTI image of 1 mm voxels."""
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(volume, np.eye(4))
        image.set_qform(np.eye(4), code=1)
        nibabel.save(image, path)
        return path


@pytest.fixture(scope="session")
def scans() -> type[Scans]:
    """Writers of synthetic scans."""
    return Scans


@pytest.fixture(scope="session")
def run(python):
    """Run ``python -m monai.bundle <arguments>``; ``afresh``: in a process that shares no imports with others."""

    def run(*arguments: object, cwd: Path, check: bool = True, afresh: bool = False) -> subprocess.CompletedProcess:
        command = [sys.executable if afresh else python, "-m", "monai.bundle", *map(str, arguments)]
        result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
        if check and result.returncode:
            pytest.fail(result.stdout[-3000:] + result.stderr[-3000:])
        return result

    return run


@pytest.fixture(scope="session")
def adapt(run):
    """Run ``adapt`` of a bundle into a folder; ``guard``: setting of that key, None: that of the bundle."""

    def adapt(
        bundle: Path, output: Path, *arguments: object, cwd: Path, check: bool = True, guard: str | None = "false"
    ):
        return run(
            *("run", "adapt", "--config_file", bundle / "configs" / "adapt.yaml", "--bundle_root", bundle),
            *(() if guard is None else ("--guard", guard)),
            *("--output_dir", output, *arguments),
            cwd=cwd,
            check=check,
        )

    return adapt


@pytest.fixture(scope="session")
def with_overlay(run):
    """Run ``adapt`` of a bundle's inference.json with the overlay, into a folder; ``guard`` as for ``adapt``."""

    def with_overlay(bundle: Path, output: Path, *arguments: object, cwd: Path, guard: str | None = "false"):
        files = str([str(bundle / "configs" / "inference.json"), str(grata.overlay())])
        return run(
            *("run", "adapt", "--config_file", files, "--bundle_root", bundle, "--output_dir", output),
            *("--adaptation#output_dir", output / "adaptation"),
            *(() if guard is None else ("--adaptation#guard", guard)),
            *arguments,
            cwd=cwd,
            check=guard is not None,
        )

    return with_overlay


@pytest.fixture(scope="session")
def run_adapt(bundle, python):
    """Run ``python -m monai.bundle run adapt`` without a guard in another working directory, as a user without
    privileges.
    """

    def run(folder: Path, *arguments: object, largest_file: int = 0) -> Outcome:
        command = [python, "-m", "monai.bundle", "run", "adapt", "--bundle_root", bundle, "--guard", "false"]
        if "--config_file" not in arguments:
            command += ["--config_file", bundle / "configs" / "adapt.yaml"]
        if largest_file:
            command = [sys.executable, "-c", LAUNCHER, largest_file, *command]
        process = subprocess.run(
            list(map(str, [*command, *arguments])),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            timeout=300,
            check=False,
        )
        return Outcome(process.returncode, process.stdout)

    return run


@pytest.fixture(scope="module")
def in_background():
    """Run functions two at a time, because a command spends most of its time on imports, on one core."""
    pool = ThreadPoolExecutor(2)

    def submit(function, *arguments, **options) -> Future:
        return pool.submit(function, *arguments, **options)

    yield submit
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def metadata_schema() -> dict:
    """Schema of a bundle's metadata, from the Model Zoo's documentation; its own schema would have to be downloaded."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "required": ["version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task", "description",
                     "authors", "copyright", "network_data_format"],
        "properties": {
            "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
            "changelog": {"type": "object", "minProperties": 1},
            "required_packages_version": {"type": "object", "additionalProperties": {"type": "string"}},
            "network_data_format": {
                "type": "object",
                "required": ["inputs", "outputs"],
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": {
                        "type": "object",
                        "required": ["type", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"],
                        "properties": {
                            "type": {"enum": ["image", "series", "tuples", "probabilities"]},
                            "num_channels": {"type": "integer", "minimum": 1},
                            "spatial_shape": {"type": "array"},
                            "channel_def": {"type": "object"},
                        },
                    },
                },
            },
        },
    }  # fmt: skip
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


@pytest.fixture
def check_workflow(tmp_path, monkeypatch):
    """Check that a workflow has the properties of an inference bundle; ``keys`` are of its configuration."""

    def check(bundle: Path, config: str, run_id: str, **keys: object) -> None:
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # adapt.yaml sets it
        workflow = ConfigWorkflow(
            config_file=str(bundle / "configs" / config),
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
            run_id=run_id,
            bundle_root=str(bundle),
            output_dir=str(tmp_path),
            **keys,
        )
        workflow.initialize()
        assert workflow.check_properties() == []

    return check


@pytest.fixture
def check_zoo_bundle(run, metadata_schema, tmp_path, check_workflow):
    """Check a bundle by the rules of the Model Zoo: metadata, network, workflows, sizes; ``keys`` are of ``adapt``."""

    def check(bundle: Path, **keys: object) -> None:
        meta, inference = bundle / "configs" / "metadata.json", bundle / "configs" / "inference.json"
        (tmp_path / "schema.json").write_text(json.dumps(metadata_schema))
        run("verify_metadata", "--filepath", tmp_path / "schema.json", "--meta_file", meta, cwd=tmp_path)
        metadata = json.loads(meta.read_text())
        assert metadata["version"] in metadata["changelog"]
        checked = ("verify_net_in_out", "--net_id", "network_def", "--device", "cpu")
        run(*checked, "--meta_file", meta, "--config_file", inference, cwd=tmp_path)
        check_workflow(bundle, "inference.json", "run")
        check_workflow(bundle, "adapt.yaml", "adapt", **keys)
        assert all(path.stat().st_size < 25e6 for path in (bundle / "models").iterdir())

    return check
