"""Images and streams for the tests of saved adaptations."""

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer

from grata.engines import AdaptationHandler


class Predictions(list):
    """Predictions of a run, in the order of its batches.

    Attributes:
        state: state of the run's session at its end.
    """


@pytest.fixture(scope="session")
def images():
    """Five images ``(1, 1, 16, 16)``."""
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(1, 1, 16, 16, generator=generator) for _ in range(5)]


@pytest.fixture
def run():
    """Function that adapts to items and predicts them by an evaluator with a handler, and returns the predictions."""

    def run(method, items, network=None, batch_size=1, **options):
        seen = Predictions()
        loader = DataLoader(Dataset(items), batch_size=batch_size)
        # random networks do not bear adaptation, and the guard has tests of its own
        handler = AdaptationHandler(method, **{"guard": False} | options)
        engine = SupervisedEvaluator("cpu", loader, network or method.given, inferer=SimpleInferer())
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(_pred(e.state.output).clone()))
        engine.logger.disabled = True
        handler.attach(engine)
        engine.run()
        seen.state = handler.session.state_dict()
        return seen

    def _pred(output):
        return torch.stack([item["pred"] for item in output]) if isinstance(output, list) else output["pred"]

    return run
