"""One image spoils no stream: what is nothing like the source images teaches nothing."""

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn
from torch.nn import functional as F

from grata.methods import create
from grata.session import QualityGuard, Session
from grata.session.familiar import ABSURD, is_absurd


def disc(seed):
    """A noisy picture of a disc, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))
    centre = torch.rand(2, generator=generator) * 16 + 8
    mask = ((grid - centre[:, None, None]).norm(dim=0) < 6).float()[None, None]
    return 0.3 + 0.4 * mask + 0.1 * torch.randn(mask.shape, generator=generator), mask


@pytest.fixture(scope="module")
def trained():
    """Weights of a small network that knows the discs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make()
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for step in range(60):
            pairs = [disc(1000 + 4 * step + index) for index in range(4)]
            x, y = (torch.cat(parts) for parts in zip(*pairs))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(x), y).backward()
            optimizer.step()
    return network.eval().state_dict()


def make():
    return UNet(2, 1, 1, channels=(8, 16), strides=(2,), norm="batch")


@pytest.fixture
def network(trained):
    found = make().eval()
    found.load_state_dict(trained)
    return found


def one_voxel(x):
    x = x.clone()
    x[..., 3, 3] = 1e6
    return x


SPOILT = {
    "tenfold": lambda x: 10 * x,
    "hundredfold": lambda x: 100 * x,
    "huge": lambda x: 1e25 * x,
    "negative": lambda x: -100 * x,
    "shifted": lambda x: x + 1000,
    "one voxel": one_voxel,
    "noise": lambda x: 50 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
}
HARMLESS = {
    "as it is": lambda x: x,
    "brighter": lambda x: 1.5 * x,
    "darker": lambda x: 0.3 * x,
    "lifted": lambda x: x + 0.5,
    "empty": torch.zeros_like,
    "noisier": lambda x: x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
}


def predicted(session, x):
    with session.case(x) as case, torch.no_grad():
        case.adapt()
        return case.judge(session.network(case.images)), case


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("guard", [False, True], ids=["plain", "judged"])
@pytest.mark.parametrize("method", ["dua", "diga", "tent", "cotta"])
def test_what_follows_is_predicted_as_if_the_image_had_not_been_there(trained, spoil, guard, method):
    settings = {"views": 8} if method == "dua" else {}

    def stream(*images):
        network = make().eval()
        network.load_state_dict(trained)
        session = Session(create(method, network, settings, activation="sigmoid"), guard=guard)
        return [predicted(session, image) for image in images]

    (_, absurd), *spoilt = stream(spoil(disc(0)[0]), disc(1)[0], disc(2)[0])
    expected = stream(disc(1)[0], disc(2)[0])
    assert ABSURD in absurd.record["flags"]
    if guard:
        assert absurd.record["verdict"] in ("review", "reject") and absurd.record["reasons"]
    else:
        for (found, _), (as_before, _) in zip(spoilt, expected, strict=True):
            assert torch.equal(found, as_before)
    assert not any(ABSURD in case.record["flags"] for _, case in spoilt)


def test_in_the_middle_of_a_stream_the_memory_stays_to_the_last_bit(network):
    session = Session(create("dua", network, {"views": 8}, activation="sigmoid"), guard=False)
    predicted(session, disc(1)[0])
    before = session.state_dict()
    found, case = predicted(session, 100 * disc(2)[0])
    after = session.state_dict()
    assert set(case.record["flags"]) == {ABSURD, "step_skipped"}
    assert all(torch.equal(before["parameters"][name], after["parameters"][name]) for name in before["parameters"])
    assert before["batches"] == after["batches"] == 1
    with torch.no_grad():
        assert torch.equal(found, session.network(100 * disc(2)[0]))
    assert any("adaptation skipped" in line and ABSURD in line for line in session.remarks())


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_images_of_other_scanners_are_learned_from(network, change):
    method = create("dua", network, {"views": 8}, activation="sigmoid")
    session = Session(method, guard=False)
    for seed in range(3):
        _, case = predicted(session, change(disc(seed)[0]))
        assert ABSURD not in case.record["flags"]
    assert method.batches == 3


def test_a_method_without_a_memory_is_left_alone(network):
    for method, reset in (("ptbn", None), ("source", None), ("tent", "per-case"), ("memo", None)):
        session = Session(create(method, network, activation="sigmoid"), guard=False, reset=reset)
        _, case = predicted(session, 100 * disc(0)[0])
        assert ABSURD not in case.record["flags"]
        session.restore()


def test_asking_changes_nothing_and_works_through_wrappers(network):
    network.train()
    network.model[0].eval()
    modes, before = [module.training for module in network.modules()], network.state_dict()
    for given in (network, nn.DataParallel(network), torch.compile(network, backend="eager"), nn.Sequential(network)):
        method = create("tent", given, activation="sigmoid")
        assert is_absurd(method, 100 * disc(0)[0]) and not is_absurd(method, disc(0)[0])
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_guard_of_ones_own_and_settings_work_with_it(network):
    guard = QualityGuard(activation="sigmoid", on_reject="keep")
    session = Session(create("tent", network, activation="sigmoid"), guard=guard)
    _, case = predicted(session, 10 * disc(0)[0])
    assert any("grey values" in reason for reason in case.record["reasons"])


def test_a_network_that_cannot_be_looked_into_or_keeps_no_statistics_is_not_asked(network, make_network):
    plain = make_network(norm=("instance", {"affine": True}))
    assert not is_absurd(create("tent", plain, activation="softmax"), 100 * disc(0)[0])
    scripted = torch.jit.script(network.eval())
    assert not is_absurd(create("tent", scripted, activation="sigmoid"), 100 * disc(0)[0])
