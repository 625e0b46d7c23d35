"""The example of docs/add-a-method.md, put where it says and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "add-a-method.md"


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the sources with the page's two files in it, and what is generated from them."""
    folder = tmp_path_factory.mktemp("with_method")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "tests" / "methods").mkdir(parents=True)
    for name in ("conftest.py", "methods/test_contract.py"):
        shutil.copyfile(ROOT / "tests" / name, folder / "tests" / name)
    (folder / "docs").mkdir()
    (folder / "scripts").mkdir()
    for name in ("pyproject.toml", "docs/methods.md", "docs/can-i-trust-it.md", "scripts/generate.py"):
        shutil.copyfile(ROOT / name, folder / name)
    files = re.findall(r"^## [^\n]*`(\S+)`\n(?:.*?)```\w+\n(.*?)```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [Path(name).suffix for name, _ in files] == [".py", ".py"]
    for name, text in files:
        assert not (folder / name).exists(), "the example is of a method that is there"
        (folder / name).write_text(text)
    environment = os.environ | {"PYTHONPATH": str(folder / "src")}
    command = [sys.executable, str(folder / "scripts" / "generate.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    names = {"src/grata/methods/catalogue.json", "docs/methods.md", "configs/methods/pseudo_label.yaml"}
    assert {line.split()[0] for line in done.stdout.splitlines()} == names
    return folder


def run(copied, *command):
    environment = os.environ | {"PYTHONPATH": str(copied / "src")}
    result = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=copied,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_its_own_test_and_the_contract_pass(copied):
    out = run(copied, "pytest", "tests", "-k", "pseudo_label", "-p", "no:cacheprovider", "-n", "0", "-v")
    assert "test_pseudo_label.py" in out and "test_contract.py" in out


def test_it_is_listed_described_and_in_the_tables(copied):
    assert "pseudo_label" in run(copied, "grata", "methods")
    assert "least confidence t of a voxel" in " ".join(run(copied, "grata", "methods", "pseudo_label").split())
    assert "configs/methods/pseudo_label.yaml" in run(copied, "grata", "methods", "--form", "readme")
    assert "configs/methods/pseudo_label.yaml" in (copied / "docs" / "methods.md").read_text(encoding="utf-8")


def test_a_bundle_runs_with_it(copied, bundle):
    files = str([str(bundle / "configs" / "adapt.yaml"), "configs/methods/pseudo_label.yaml"])
    scans = bundle / "sample_scans" / "nifti"
    command = ("monai.bundle", "run", "adapt", "--config_file", files, "--bundle_root", bundle, "--dataset_dir", scans)
    meta = ("--meta_file", bundle / "configs" / "metadata.json")
    out = run(copied, *command, *meta, "--output_dir", copied / "output", "--settings#lr", "0.001", "--guard", "false")
    assert "pseudo_label" in out and (copied / "output" / "summary.json").is_file()
