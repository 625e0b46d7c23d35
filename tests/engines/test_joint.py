"""Joint training of the segmentation and auxiliary branches."""

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch.nn import functional as F

from grata.engines import JointInferer
from grata.errors import GrataError
from grata.networks import BRANCHES, ResUNet

WEIGHTS = {"reconstruction": 2.0, "denoising": 1.0, "super_resolution": 0.5, "rotation": 0.1}


def images(seed=0):
    return torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ResUNet(out_channels=2, depth=18, branches=list(BRANCHES)).eval()


def test_the_auxiliary_loss_is_the_weighted_sum(network):
    x = images()
    with torch.no_grad():
        output = JointInferer({"reconstruction": 2.0, "super_resolution": 0.5})(x, network)
        reconstruction = F.mse_loss(network.branch("reconstruction", x).sigmoid(), x)
        sharp = F.mse_loss(network.branch("super_resolution", F.avg_pool2d(x, 2)).sigmoid(), x)
        assert torch.equal(output["logits"], network(x))
    torch.testing.assert_close(output["auxiliary"], 2 * reconstruction + 0.5 * sharp)


def test_noise_and_rotations_come_from_its_own_generator(network):
    losses = []
    for seed in (0, 0, 1):
        state = torch.get_rng_state()
        with torch.no_grad():
            losses.append(JointInferer(WEIGHTS, seed=seed)(images(), network)["auxiliary"].item())
        assert torch.equal(state, torch.get_rng_state())
    assert losses[0] == losses[1] != losses[2]


def test_a_monai_trainer_learns_both(network):
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    history = []
    label = (images(1)[:, :2] > 0.5).float()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=8,
        train_data_loader=[{"image": images(), "label": label}],
        network=network,
        optimizer=optimizer,
        loss_function=lambda output, label: (
            F.binary_cross_entropy_with_logits(output["logits"], label) + output["auxiliary"]
        ),
        inferer=JointInferer(WEIGHTS),
        decollate=False,
    )
    trainer.add_event_handler("ITERATION_COMPLETED", lambda engine: history.append(float(engine.state.output["loss"])))
    trainer.run()
    assert history[-1] < history[0]


def test_an_unknown_branch_is_refused():
    with pytest.raises(GrataError, match="rotations: .*rotation"):
        JointInferer({"rotations": 1.0})
    with pytest.raises(GrataError, match="at least one"):
        JointInferer({})
