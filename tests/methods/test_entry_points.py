"""Methods of other packages, found by the entry point ``grata.methods``."""

import os
import subprocess
import sys
import textwrap

import pytest

PACKAGE = '''
"""A method in a package of its own."""

import torch

from grata.methods import Card, GradientMethod
from grata.settings import number


class Sharpen(GradientMethod):
    """One step that makes the prediction surer."""

    name = "sharpen"
    card = Card(title="Sharpen", reference="nobody", year=2026, rule="sharpens", changes="affine parameters")

    strength: float = number(default=1.0, above=0, help="strength of the sharpening")

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        return -self.strength * self._logits(x).square().mean()
'''


@pytest.fixture
def installed(tmp_path):
    """A folder with an installed distribution, as ``pip install --target`` leaves it."""

    def install(*entries, **modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / "sharpening-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sharpening\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join(["[grata.methods]", *entries]))
        return tmp_path

    return install


def run(folder, code):
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "always::UserWarning", "-c", textwrap.dedent(code)]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


def test_a_method_of_another_package_is_there_under_its_name(installed):
    folder = installed("sharpen = sharpening:Sharpen", sharpening=PACKAGE)
    code = """
        import torch
        from monai.networks.nets import UNet
        from grata.methods import METHODS, create
        from grata.errors import GrataError

        network = UNet(2, 1, 2, channels=(4, 8), strides=(2,), norm="batch")
        method = create("sharpen", network, {"strength": 2}, activation="softmax")
        before = method.network(torch.ones(1, 1, 16, 16))
        assert not method.adapt(torch.rand(1, 1, 16, 16)).flags and method.strength == 2.0
        assert "sharpen" in METHODS and "sharpen" in list(METHODS) and "grata" in METHODS
        try:
            create("sharpen", network, {"strenght": 2}, activation="softmax")
        except GrataError as error:
            print(error)
    """
    out = run(folder, code).stdout
    assert out == "settings#strenght: method sharpen has no such setting; did you mean settings#strength?\n"


# An entry point each, its module, and what is wrong with it.
LEFT_OUT = {
    "sharpen = broken:Sharpen": ("import no_such_module", "its import fails"),
    "sharpest = foreign:torch": (PACKAGE, "not a subclass of grata.methods.Method"),
    "sharper = renamed:Sharpen": (PACKAGE, "named sharpen, the entry point sharper"),
    "grata = double:Grata": (PACKAGE.replace("Sharpen(", "Grata(").replace('"sharpen"', '"grata"'), "already"),
}


def test_what_is_not_a_method_is_left_out_with_a_warning(installed):
    modules = {entry.split(" = ")[1].split(":")[0]: text for entry, (text, _) in LEFT_OUT.items()}
    code = "from grata.methods import METHODS; print(len(METHODS), METHODS['grata'].__module__)"
    result = run(installed(*LEFT_OUT, **modules), code)
    assert result.stdout == "24 grata.methods.grata\n"
    warned = [line for line in result.stderr.splitlines() if "sharpening is left out" in line]
    assert len(warned) == len(LEFT_OUT)
    for _, why in LEFT_OUT.values():
        assert sum(why in line for line in warned) == 1
