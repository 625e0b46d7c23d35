"""Overlays: configs/ on top of a bundle's adapt.yaml, and the handler that the docs add to any bundle."""

import json
import re
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from grata.bundles.configuration import check_keys
from grata.methods import METHODS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_an_overlay_that_selects_it_in_a_bundle(bundle, name):
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / "adapt.yaml"), str(ROOT / "configs" / "methods" / f"{name}.yaml")])
    parser["bundle_root"] = str(bundle)
    check_keys(parser.get(), {"initialize", "adapt"})
    handler = parser.get_parsed_content("adaptation")
    assert handler.method.name == name
    assert handler.method.adapt(torch.rand(1, 1, 32, 32, 16)).flags == ()


def test_the_docs_handler_adapts_a_plain_inference_bundle(bundle, python, tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "your-own-model.md").read_text(), flags=re.DOTALL)
    (overlay,) = [block for block in blocks if "GraTaHandler" in block]
    (tmp_path / "overlay.yaml").write_text(textwrap.dedent(overlay))
    files = str([str(bundle / "configs" / "inference.json"), str(tmp_path / "overlay.yaml")])
    command = [python, "-m", "monai.bundle", "run", "--config_file", files, "--bundle_root", str(bundle)]
    meta = ["--meta_file", str(bundle / "configs" / "metadata.json"), "--output_dir", str(tmp_path / "eval")]
    result = subprocess.run([*command, *meta], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "adaptation.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(line["parameter_change"]["l2"] > 0 for line in lines)
    assert len(list((tmp_path / "eval").glob("*.nii.gz"))) == 2
