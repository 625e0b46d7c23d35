"""The code blocks of all pages: Python and bash are run, YAML and JSON are read (scripts/code_blocks.py)."""

import ast
import contextlib
import inspect
import io
import json
import os
import pydoc
import re
import runpy
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from grata.bank import save
from grata.benchmark.config import load_config
from grata.benchmark.suite import load_suite
from grata.methods import create

ROOT = Path(__file__).parents[2]
CODE_BLOCKS = runpy.run_path(str(ROOT / "scripts" / "code_blocks.py"))
BLOCKS = CODE_BLOCKS["blocks"]()
HIPPOCAMPUS = "bundles/hippocampus_mri_segmentation"
READERS = {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}
# Commands on the path of an environment where grata is installed.
COMMANDS = {
    "python": 'exec {python} "$@"',
    "python3": 'exec {python} "$@"',
    "grata": 'exec {python} -m grata "$@"',
    "pip": 'echo "pip $*"',
}


def of(fate, *languages):
    return [block for block in BLOCKS if block.fate == fate and block.language in languages]


def by_page(found):
    pages = {block.page: [] for block in found}
    for block in found:
        pages[block.page].append(block)
    return pages


PYTHON = by_page(of("run", "python"))
BASH = {block.text: block for block in of("run", "bash")}
"""What two pages say alike is run once."""


def test_every_block_has_a_known_language_and_every_marker_a_reason():
    assert [block.fault for block in BLOCKS if block.fault] == []
    assert len(BLOCKS) > 20, "the pages are there"


def test_a_block_without_language_and_a_marker_without_reason_are_faults(tmp_path, monkeypatch):
    monkeypatch.setitem(CODE_BLOCKS["read"].__globals__, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```\nx\n```\n<!-- not run -->\n```bash\nx\n```\n  <!-- not run: slow -->\n  ```bash\n  x\n  ```\n")
    plain, marked, reasoned = CODE_BLOCKS["read"](page)
    assert "page.md:1: language missing" in plain.fault and "page.md:5: not run, without a reason" in marked.fault
    assert (reasoned.fault, reasoned.reason, reasoned.text, reasoned.line) == (None, "slow", "x\n", 9)


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """From top to bottom, in one namespace: a page is complete."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in PYTHON[page]:
        tree = ast.parse("\n" * block.line + block.text, filename=str(ROOT / page))
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(tree, str(ROOT / page), "exec"), namespace)


class Place:
    """A folder that looks like a clone of the repository, and what placeholders such as <scans> stand for in it."""

    def __init__(self, folder, python, make_network):
        self.folder, self.make_network = folder, make_network
        for name in ("benchmarks", "bundles", "configs", "scripts"):
            shutil.copytree(ROOT / name, folder / name, copy_function=os.symlink)
        (folder / "bin").mkdir()
        for name, text in COMMANDS.items():
            path = folder / "bin" / name
            path.write_text(f"#!/bin/sh\n{text.format(python=python)}\n")
            path.chmod(0o755)

    def filled(self, match):
        assert hasattr(self, match[1]), f"{match[0]}: give Place a method of this name that returns what it stands for"
        return shlex.quote(str(getattr(self, match[1])()))

    def run(self, text):
        text = re.sub(r"<(\w+)>", self.filled, text)
        environment = os.environ | {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        command = ["bash", "-euo", "pipefail", "-c", text]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    def bundle(self):
        return HIPPOCAMPUS

    def scans(self):
        (self.folder / "scans").mkdir(exist_ok=True)
        shutil.copy(ROOT / HIPPOCAMPUS / "sample_scans" / "nifti" / "icbm152_left.nii.gz", self.folder / "scans")
        return self.folder / "scans"

    images = scans

    def output(self):
        return "output"

    def bank(self):
        if not (self.folder / "bank").exists():
            network = self.make_network()
            torch.save(network.state_dict(), self.folder / "model.pt")
            method = create("tent", network, {"lr": 0.01}, activation="sigmoid")
            method.adapt(torch.rand(1, 1, 16, 16))
            (self.folder / "bank").mkdir()
            save(method, self.folder / "bank" / "unknown.safetensors")
        return "bank"

    def entry(self):
        return "unknown"

    def checkpoint(self):
        return "model.pt"

    def config(self):
        made = runpy.run_path(str(ROOT / "tests" / "benchmark" / "conftest.py"))
        made["make_site"](self.folder / "site", 2, 1.0, 0)
        config = {
            "bundle": str(made["write_bundle"](self.folder / "small")),
            "output_dir": "nowhere",
            "targets": {"site": {"dataset_dir": str(self.folder / "site" / "images")}},
            "methods": {"source": {}, "ptbn": {}},
            "reference_method": "ptbn",
            "workers": 0,
        }
        (self.folder / "benchmark.yaml").write_text(yaml.safe_dump(config))
        return "benchmark.yaml"


@pytest.mark.parametrize("block", BASH.values(), ids=lambda block: block.name)
def test_the_commands_of_a_page_run(block, python, make_network, tmp_path):
    done = Place(tmp_path, python, make_network).run(block.text)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def targets(node):
    """Every mapping of a configuration that names a class or function of grata."""
    if isinstance(node, dict):
        if str(node.get("_target_", "")).startswith("grata."):
            yield node
        node = node.values()
    if not isinstance(node, str | None.__class__) and hasattr(node, "__iter__"):
        for value in node:
            yield from targets(value)


@pytest.mark.parametrize("block", of("read", *READERS), ids=lambda block: block.name)
def test_configurations_of_a_page_can_be_read(block, tmp_path):
    content = READERS[block.language](block.text)
    assert content
    for node in targets(content):
        found = pydoc.locate(node["_target_"])
        assert found is not None, node["_target_"]
        inspect.signature(found).bind_partial(**{k: v for k, v in node.items() if not k.startswith("_")})
    if isinstance(content, dict) and "tasks" in content:
        assert all(config.methods for config in load_suite(content).tasks.values())
    elif isinstance(content, dict) and ("targets" in content or block.page == "docs/benchmark.md"):
        # A page may show some keys alone: they change its first configuration, which is whole.
        whole = yaml.safe_load(next(b for b in BLOCKS if b.page == block.page and b.language == "yaml").text)
        (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(whole | content))
        assert load_config(tmp_path / "benchmark.yaml").methods
