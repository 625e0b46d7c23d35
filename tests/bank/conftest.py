"""Methods, images and streams for the tests of saved adaptations."""

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer

from grata.engines import AdaptationHandler
from grata.methods import create

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


@pytest.fixture
def make_method(make_network):
    def make(name="grata", network=None, **settings):
        network = make_network(2, norm="batch") if network is None else network
        return create(name, network, {**SETTINGS[name], **settings}, activation="sigmoid")

    return make


@pytest.fixture(scope="session")
def images():
    """Five images ``(1, 1, 16, 16)``."""
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(1, 1, 16, 16, generator=generator) for _ in range(5)]


@pytest.fixture
def run():
    """Function that adapts to items and predicts them by an evaluator with a handler, and returns the predictions."""

    def run(method, items, network=None, batch_size=1, **options):
        seen = []
        loader = DataLoader(Dataset(items), batch_size=batch_size)
        handler = AdaptationHandler(method, **options)
        engine = SupervisedEvaluator("cpu", loader, network or method.given, inferer=SimpleInferer())
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(_pred(e.state.output).clone()))
        engine.logger.disabled = True
        handler.attach(engine)
        engine.run()
        return seen

    def _pred(output):
        return torch.stack([item["pred"] for item in output]) if isinstance(output, list) else output["pred"]

    return run


@pytest.fixture
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
