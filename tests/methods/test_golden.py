"""Reference traces of five online steps; skipped where their folder is not beside the checkout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.networks.nets import UNet

from grata.engines import AdaptationHandler
from grata.methods import GraTa
from grata.views import brightness, contrast, gamma_inverted, gaussian_blur, min_max

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference traces are not part of the repository")
TRACES = ["batch1_adam", "batch2_adam_affine"]


class Trace:
    """Archive of the source network and the values of each step."""

    def __init__(self, name: str, memory_format: torch.memory_format = torch.contiguous_format) -> None:
        self.values = np.load(GOLDEN / f"{name}.npz")
        self.network = UNet(
            spatial_dims=2, in_channels=3, out_channels=2, channels=(8, 16, 32), strides=(2, 2), norm="batch"
        )
        self.network.load_state_dict(
            {
                k.removeprefix("state/"): torch.tensor(self.values[k])
                for k in self.values.files
                if k.startswith("state/")
            }
        )
        self.network.to(memory_format=memory_format)
        self.method = GraTa(self.network, activation="sigmoid", optimizer="Adam", lr=1e-3)
        self.start = {n: p.detach().clone() for n, p in self.method.parameters.items()}
        self.worst: dict[str, float] = {}

    def __call__(self, step: int, key: str) -> torch.Tensor:
        return torch.tensor(self.values[f"s{step}/{key}"])

    def note(self, what: str, deviation: float | torch.Tensor) -> None:
        self.worst[what] = max(self.worst.get(what, 0.0), float(deviation))

    def compare(self, step: int, record, probability: torch.Tensor) -> None:
        self.note("auxiliary loss, relative", abs(record.auxiliary_loss / self(step, "aux_loss").item() - 1))
        self.note("pseudo loss, relative", abs(record.loss / self(step, "pse_loss").item() - 1))
        self.note("cosine, relative", abs(record.cosine / self(step, "cosine").item() - 1))
        self.note("learning rate, relative", abs(record.learning_rate / self(step, "lr").item() - 1))
        for kind, norm in (("aux", record.auxiliary_gradient_norm), ("pse", record.gradient_norm)):
            reference = torch.cat([self(step, f"{kind}_grad/{n}").flatten() for n in self.method.parameters])
            self.note("gradient norms, relative", abs(norm / reference.norm().item() - 1))
        for name, parameter in self.method.parameters.items():
            reference = self(step, f"param/{name}")
            self.note("parameters, absolute", (parameter.detach() - reference).abs().max())
        moved, should = (
            torch.cat([(value(n) - self.start[n]).flatten() for n in self.start])
            for value in (lambda n: self.method.parameters[n].detach(), lambda n: self(step, f"param/{n}"))
        )
        self.note("move, relative", (moved - should).norm() / should.norm())
        self.note("probabilities, absolute", (probability - self(step, "final_prob")).abs().max())

    def check(self, title: str) -> None:
        print(title, {k: f"{v:.1e}" for k, v in self.worst.items()})
        limits = {
            "auxiliary loss, relative": 1e-6,
            "pseudo loss, relative": 1e-6,
            "cosine, relative": 2e-3,
            "learning rate, relative": 2e-3,
            "gradient norms, relative": 2e-3,
            "gradients, relative": 2e-3,
            "parameters, absolute": 5e-7,
            "move, relative": 0.02,
            "probabilities, absolute": 1e-5,
        }
        assert {k: v for k, v in self.worst.items() if v > limits[k]} == {}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", TRACES)
def test_the_public_api_reproduces_the_trace(name, memory_format):
    trace = Trace(name, memory_format)
    assert set(trace.method.parameters) == set(trace.values["bn_names"].tolist())
    gradients = _spy_on_gradients(trace.method)
    for step in range(5):
        images = trace(step, "image")
        record = trace.method.adapt(images, strong_view=trace(step, "strong_normalised"))
        with torch.no_grad():
            trace.compare(step, record, trace.method.network(images).sigmoid())
        for kind, got in zip(("aux", "pse"), gradients[-2:]):
            reference = torch.cat([trace(step, f"{kind}_grad/{n}").flatten() for n in trace.method.parameters])
            trace.note("gradients, relative", (got - reference).norm() / reference.norm())
    trace.check(f"{name}, API, {memory_format}:")


def _spy_on_gradients(method):
    """Return a list that fills with the two gradients of each step, each as one vector."""
    seen = []
    original = method._loss_and_gradient

    def spy(*args):
        loss, gradient = original(*args)
        seen.append(torch.cat([g.flatten() for g in gradient]))
        return loss, gradient

    method._loss_and_gradient = spy
    return seen


@pytest.mark.parametrize("name", TRACES)
def test_the_handler_in_an_evaluator_reproduces_the_trace(name):
    trace = Trace(name)
    strong = iter([trace(step, "strong_normalised") for step in range(5)])
    trace.method.strong_view = lambda images, generator: next(strong)
    loader = [{"image": trace(step, "image")} for step in range(5)]
    handler = AdaptationHandler(trace.method, guard=False)
    evaluator = SupervisedEvaluator(
        "cpu", loader, trace.network, val_handlers=[handler], epoch_length=5, decollate=False
    )
    records = []
    adapt = trace.method.adapt
    trace.method.adapt = lambda *args, **kwargs: records.append(adapt(*args, **kwargs)) or records[-1]

    @evaluator.on(Events.ITERATION_COMPLETED)
    def compare(engine):
        trace.compare(engine.state.iteration - 1, records[-1], engine.state.output["pred"].sigmoid())

    evaluator.run()
    assert len(records) == 5
    trace.check(f"{name}, handler:")


def test_the_strong_view_reproduces_each_transform_and_the_chain():
    values = np.load(GOLDEN / "strong_view.npz")
    x = torch.tensor(values["input"])
    transforms = {
        "brightness": brightness,
        "contrast_preserve": contrast,
        "gamma_invert": gamma_inverted,
        "blur": gaussian_blur,
    }
    worst = {}
    for key in values.files:
        kind, _, value = key.partition("/")
        if kind in transforms:
            difference = transforms[kind](x, [float(value)] * 3) - torch.tensor(values[key])
            worst[kind] = max(worst.get(kind, 0.0), float(difference.abs().max()))
    noisy = x + torch.tensor(values["noise_field"])
    worst["noise"] = float((noisy - torch.tensor(values["noise_std0.03"])).abs().max())

    y = brightness(x, values["chain/brightness_m"])
    y = contrast(y, values["chain/contrast_f"])
    y = gamma_inverted(y, values["chain/gamma"])
    y = y + torch.tensor(values["chain/after_noise"] - values["chain/after_gamma"])
    y = min_max(gaussian_blur(y, values["chain/blur_sigma"]))
    worst["chain"] = float((y - torch.tensor(values["chain/normalised"])).abs().max())
    print("strong view:", {k: f"{v:.1e}" for k, v in worst.items()})
    assert set(worst) == {*transforms, "noise", "chain"}
    assert max(worst.values()) < 1e-6
