import pytest
import torch

from grata.networks import BRANCHES, ResUNet


@pytest.fixture
def make_resunet():
    """Make a ResUNet, by default with all branches, whose normalization layers differ from their start values."""

    def make(depth=18, branches=tuple(BRANCHES), seed=3, **arguments):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = ResUNet(depth=depth, branches=branches, **arguments)
            for name, tensor in network.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 2.0)
                elif tensor.ndim == 1 and tensor.is_floating_point():
                    tensor.add_(torch.empty_like(tensor).uniform_(-0.2, 0.2))
        return network.eval()

    return make
