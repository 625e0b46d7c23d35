"""What several test files share."""

import os
from pathlib import Path

# Every worker and every command that a test starts computes on one thread. Torch reads this when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from monai.networks.nets import UNet
from monai.utils import set_determinism

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"


@pytest.fixture(scope="session")
def bundle() -> Path:
    return BUNDLE


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


@pytest.fixture(autouse=True)
def _no_global_determinism():
    yield
    set_determinism(seed=None)
