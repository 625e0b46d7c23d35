"""What several test files share."""

import gc
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Every worker and every command that a test starts computes on one thread. Torch reads this when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet
from monai.utils import set_determinism
from torch import nn

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"


# The files that take longest, longest first: a worker is given file after file, and the quick ones fill the end.
SLOW = (
    *(
        "bundles/test_faults",
        "bundles/test_fundus",
        "bundles/test_hippocampus",
        "docs/test_pages",
        "nnunet/test_nnunet",
    ),
    *(
        "benchmark/test_benchmark",
        "bundles/test_overlay",
        "benchmark/test_command",
        "test_add_a_method",
        "session/test_keeper",
    ),
)

# Settings with which methods take steps that show in a few small images.
SETTINGS = {
    "source": {},
    "ptbn": {},
    "grata": {"lr": 1e-2},
    "tent": {"lr": 1e-2},
    "cotta": {"lr": 1e-2, "augmentations": 2, "restore_probability": 0.2, "momentum": 0.9, "threshold": 1.0},
    "dua": {"views": 4},
    "sar": {"lr": 1e-2},
    "vptta": {},
    "diga": {},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow files first."""
    rank = {Path(__file__).parent / f"{name}.py": number for number, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path, len(SLOW)))


def pytest_collection_finish() -> None:
    """Look no more through what was imported for what can be freed: that took a large part of the tests' time."""
    gc.freeze()


@pytest.fixture(scope="session")
def bundle() -> Path:
    return BUNDLE


@pytest.fixture(scope="session")
def python():
    """A command that does what `sys.executable` does, with most imports done: see forkserver.py."""
    if not sys.platform.startswith("linux"):
        yield sys.executable
        return
    with tempfile.TemporaryDirectory(prefix="grata") as folder:  # a socket's name may have 107 characters
        address, client = Path(folder, "socket"), Path(folder, "python")
        process = subprocess.Popen([sys.executable, Path(__file__).with_name("forkserver.py"), address, client])
        while not (client.exists() and client.stat().st_size):
            assert process.poll() is None, "the server of commands did not start"
            time.sleep(0.05)
        yield str(client)
        process.kill()
        process.wait()


@pytest.fixture
def make_network():
    """A small UNet with any normalization, its running statistics away from their start values."""

    def make(spatial_dims: int = 2, norm="batch", out_channels: int = 2, in_channels: int = 1, dropout: float = 0.0):
        generator_state = torch.get_rng_state()
        torch.manual_seed(7)
        network = UNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            channels=(4, 8),
            strides=(2,),
            norm=norm,
            dropout=dropout,
        )
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.5, 0.5)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
        torch.set_rng_state(generator_state)
        return network

    return make


class Outliner(nn.Module):
    """A network that needs no training: it outlines what is brighter than 0.5, sharply, in a sound or a fragile form.

    Of the fragile one, a second channel answers to the darkest noise of the background. By the running statistics that
    is as good as nothing. Normalized by those of the image it is as large as the signal, and drowns it. Networks with
    convolution, ReLU and then normalization can have such channels.
    """

    mean, variance, edge = 0.12, 0.06, 40.0

    def __init__(self, fragile: bool = False, dims: int = 2, outputs: int = 2) -> None:
        super().__init__()
        convolution, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 2]
        self.first, self.norm, self.last = convolution(1, 3, 1), norm(3), convolution(3, outputs, 1)
        # of a softmax the background has the opposite sign
        sign = torch.tensor([-0.5, 0.5] if outputs == 2 else [1.0])
        values = {
            "first.weight": torch.tensor([1.0, -1.0, 0.0]),
            "first.bias": torch.tensor([0.0, 0.05 if fragile else 0.0, 0.0]),
            "norm.running_mean": torch.tensor([self.mean, 0.0, 0.0]),
            "norm.running_var": torch.tensor([self.variance, 1.0 if fragile else 0.0, 0.0]),
            "last.weight": torch.stack([sign * self.edge * self.variance**0.5, sign * 15, sign * 0], 1),
            "last.bias": sign * self.edge * (self.mean - 0.5),
        }
        for name, tensor in self.state_dict().items():
            if name in values:
                tensor.copy_(values[name].reshape(tensor.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(torch.relu(self.first(x))))


@pytest.fixture(scope="session")
def make_outliner() -> type[Outliner]:
    return Outliner


@pytest.fixture(scope="session")
def blob():
    """Function that makes an image ``(1, ...)``: a bright ball, or nothing, on noise from ``dark`` to 0.1."""

    def blob(seed: int, dims: int = 2, size: int = 16, dark: float = 0.0, empty: bool = False) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        axes = torch.meshgrid(*[torch.arange(size) + 0.5] * dims, indexing="ij")
        centre = size * (0.4 + 0.2 * torch.rand(dims, generator=generator))
        radius = size * (0.14 if dims == 2 else 0.22)
        inside = sum((axis - c) ** 2 for axis, c in zip(axes, centre)) < radius**2
        noise = torch.rand(1, *[size] * dims, generator=generator)
        image = dark + (0.1 - dark) * noise
        return image if empty else torch.where(inside, 0.9 + 0.1 * noise, image)

    return blob


@pytest.fixture
def make_method(make_network):
    """Function that makes a method for a small network, with settings that show."""

    def make(name="grata", network=None, **settings):
        from grata.methods import create

        network = make_network(2, norm="batch") if network is None else network
        return create(name, network, {**SETTINGS[name], **settings}, activation="sigmoid")

    return make


@pytest.fixture(scope="session")
def adapt_case():
    """Function that lets a session adapt to a case and predict it, and returns the records of the steps."""

    def adapt_case(session, images, inferer=None, site=None):
        with session.case(images, site=site) as case:
            case.adapt(inferer)
            with torch.no_grad():
                case.judge((inferer or SimpleInferer())(images, session.network))
        return case.steps

    return adapt_case


@pytest.fixture
def killed_before_each_write(monkeypatch):
    """Function that lets a run be killed before its first, its second ... replacement of a file, until it ends.

    It takes a function of the number of the moment, and yields that number after each time the run was killed.
    """

    class Killed(BaseException):
        """End of the process, which no code catches."""

    def killed(run):
        replace = os.replace
        for moment in itertools.count(1):
            left = moment

            def killing(source, target):
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                replace(source, target)

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", killing)
                try:
                    run(moment)
                    return
                except Killed:
                    pass
            yield moment

    return killed


@pytest.fixture(scope="session")
def same_state():
    """Function that returns whether two states are equal to the last bit, including types and layouts."""

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return (
                isinstance(b, torch.Tensor)
                and a.dtype == b.dtype
                and a.shape == b.shape
                and a.stride() == b.stride()
                and torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
            )
        if type(a) is not type(b):
            return False
        if isinstance(a, dict):
            return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(same, a, b))
        return repr(a) == repr(b)

    return same


@pytest.fixture(autouse=True)
def _no_global_determinism():
    yield
    set_determinism(seed=None)
