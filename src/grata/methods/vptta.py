"""VPTTA: visual prompt-based test-time adaptation (CVPR 2024)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import GrataError
from ..normalization import Rule
from ..normalization.rules import running_statistics
from ..optimization import MemoryBank, cloned, gradient_norm, gradient_of, load_optimizer
from ..settings import count, excluded, number, numbers
from .card import Card
from .gradient import GradientRecord, non_finite
from .predictive import PredictionNetwork, PredictiveMethod

__all__ = ["VPTTA"]


class VPTTA(PredictiveMethod):
    """A prompt on the low frequencies, learned for each image, with a frozen network (VPTTA, Chen et al., CVPR 2024).

    .. code-block:: text

        x̃  = Re F⁻¹(F(x) · P)                      P: the prompt in the middle of the spectrum, 1 elsewhere
        P₀ = Σ_k softmax_k(cos(a, a_k)/0.2)·P_k     over the nearest entries of the memory; 1 while there are too few
        m  = 1/(√n/τ + 1)                           n: images since the source
        μ  = m·μ(x̃) + (1 − m)·μ_source              of σ² likewise; warmed-up statistics, without gradient
        L  = mean_layers [mean |μ − μ_b(x̃)| + mean |σ − σ_b(x̃)|]        over images b and channels
        P  ← Adam(P, ∇L, lr)
        memory ← (a, P)                             a: low-frequency amplitude of x; the oldest entry goes
        prediction: f(x̃)

    The prompt multiplies the amplitude of ``max(1, int(alpha·size))`` frequencies along each axis, in 2D or 3D, in each
    channel; the phase does not change. The rule does not use the prediction, so it is the same for every task.

    The images of a batch share one prompt, which is learned from all of them. It also fits batches of another size,
    such as the windows of the same volume. Each batch of windows counts as an image in n, and adds its own entries to
    the memory. The authors' code takes one image at a time. The prompt starts from the mean of the starting prompts
    that the memory gives for the images. The memory holds images of one size and number of channels. When an image of
    another size arrives, the memory is emptied and the prompt starts from ones. Until the method has adapted to images
    of a size, it predicts them without a prompt.

    The authors' code places a prompt of odd width one frequency beside the middle, and permutes the prompt's channels
    (it shifts the spectrum over channels too). Here the prompt is centred, and each channel has its own. The memory of
    the authors' code holds 41 entries; here it holds the paper's 40. As in the authors' code, Adam keeps its moments
    from image to image while the prompt starts anew. Also as there, no gradient flows through the warmed-up statistics,
    although they move with the prompt. Early in a stream these are mostly the batch's, and a step can raise L.

    Raises:
        GrataError: the network has no batch normalization with running statistics, or a setting is out of range.
    """

    name = "vptta"
    card = Card(
        title="VPTTA",
        reference="Chen et al., Each test image deserves a specific prompt: continual test-time adaptation for 2D "
        "medical image segmentation, CVPR 2024, arXiv:2311.18363",
        year=2024,
        rule="a prompt on the image's low-frequency amplitudes moves the image's statistics towards the source's",
        changes="no parameters: a prompt on the image; statistics that move from the batch's to the source's",
        needs=("running statistics",),
        forwards=2,
        backwards=1,
    )
    predicts_by = None

    alpha: float = number(
        default=0.01, at_least=0, at_most=1, help="share of the spectrum along each axis that the prompt covers"
    )
    warm_up: float = number(default=5.0, above=0, help="τ in the weight of the batch's statistics")
    memory: int = count(default=40, help="number of entries in the memory")
    neighbours: int = count(default=16, help="number of nearest entries that give the starting prompt, at most memory")
    lr: float = number(default=0.05, at_least=0, help="learning rate of the prompt")
    betas: Sequence[float] = numbers(default=(0.9, 0.99), length=2, at_least=0, at_most=1 - 1e-6, help="betas of Adam")
    steps: int = count(default=1, help="number of steps on each batch")
    batch_statistics: float | Rule | str = excluded(why="its own follow from warm_up. Leave the setting out.")

    def _rule(self) -> float | Rule | str:
        return self._warmed_up

    def _setup(self) -> None:
        super()._setup()
        if self.neighbours > self.memory:
            raise GrataError(f"must be at most memory, {self.memory}, got {self.neighbours!r}.", key="neighbours")
        self._prompt = self._keep(None, _Prompt(self._make_optimizer, MemoryBank(self.memory), self._network))
        self._distances: list[torch.Tensor] | None = None

    def _make_optimizer(self, prompt: nn.Parameter) -> torch.optim.Optimizer:
        first, second = self.betas
        return torch.optim.Adam([prompt], lr=self.lr, betas=(first, second))

    def _predicting(self) -> nn.Module:
        return PredictionNetwork(self)

    def _adapt(self, images: torch.Tensor) -> GradientRecord:
        x = _exact(images)
        self._prompt.seen += 1
        if self._prompt.shape != x.shape[1:]:
            ones = torch.ones([1, x.shape[1], *self._sizes(x)], dtype=x.dtype, device=x.device)
            self._prompt.begin(ones, tuple(x.shape[1:]))
        keys = self._low_frequencies(x)[0].abs()
        with torch.no_grad():
            self._prompt.values.copy_(self._start(keys))
        records = [self._step(images) for _ in range(self.steps)]
        flags = tuple(dict.fromkeys(flag for record in records for flag in record.flags))
        if not flags:
            for key in keys:
                self._prompt.memory.add(key, self._prompt.values[0])
        if self.steps == 1:
            return records[0]
        return dataclasses.replace(records[-1], flags=flags, steps=tuple(records))

    def _step(self, x: torch.Tensor) -> GradientRecord:
        self._distances = []
        try:
            self._logits(self._prompted(x))
            if not self._distances:
                raise GrataError(
                    "the network ran none of its batch normalization layers. Use method tent.", key="vptta"
                )
            loss = cast(torch.Tensor, sum(self._distances) / len(self._distances))
        finally:
            self._distances = None
        (gradient,) = gradient_of(loss, [self._prompt.values], self._half_precision(x))
        record = GradientRecord(loss=loss.item(), gradient_norm=gradient_norm([gradient]))
        if flags := non_finite("", record.loss, record.gradient_norm):
            return dataclasses.replace(record, flags=flags)
        self._prompt.step(gradient)
        return dataclasses.replace(record, learning_rate=self.lr)

    def _start(self, keys: torch.Tensor) -> torch.Tensor:
        """Return the starting prompt, from the memory's nearest entries to ``keys`` ``(B, C, ...)``."""
        if len(self._prompt.memory) < self.neighbours:
            return torch.ones_like(self._prompt.values)
        starts = []
        for key in keys:
            cosines, prompts = self._prompt.memory.nearest(key, self.neighbours)
            starts.append(torch.tensordot((cosines / 0.2).softmax(0), torch.stack(prompts), 1))
        return torch.stack(starts).mean(0, keepdim=True)

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        return self._logits(self._prompted(x) if x.shape[1:] == self._prompt.shape else x)

    def _prompted(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` with its low frequencies multiplied by the prompt; exactly ``x`` for a prompt of ones."""
        with torch.autocast(x.device.type, enabled=False):
            low, margins = self._low_frequencies(_exact(x))
            axes = list(range(2, x.ndim))
            # the transform is linear, so only what the prompt adds needs the inverse transform
            added = F.pad(low * (self._prompt.values - 1), margins)
            added = torch.fft.ifftn(torch.fft.ifftshift(added, axes), dim=axes).real
            return x + added.to(x.dtype)

    def _low_frequencies(self, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Return the middle of the spectrum of ``x``, and its margins as :func:`torch.nn.functional.pad` takes them."""
        axes = list(range(2, x.ndim))
        spectrum = torch.fft.fftshift(torch.fft.fftn(x, dim=axes), axes)
        margins: list[int] = []
        for axis, width in zip(axes, self._sizes(x)):
            size = x.shape[axis]
            first = size // 2 - width // 2
            spectrum = spectrum.narrow(axis, first, width)
            margins = [first, size - first - width, *margins]
        return spectrum, margins

    def _sizes(self, x: torch.Tensor) -> list[int]:
        return [max(1, int(self.alpha * size)) for size in x.shape[2:]]

    def _warmed_up(self, layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the statistics to normalize by; while the prompt learns, note their distance to each image's."""
        weight = 1 / (math.sqrt(self._prompt.seen) / self.warm_up + 1)
        dims = [0, *range(2, x.ndim)]
        batch = x.detach()
        source_mean, source_variance = running_statistics(layer)
        mean = weight * batch.mean(dims) + (1 - weight) * source_mean
        variance = weight * batch.var(dims, unbiased=False) + (1 - weight) * source_variance
        if self._distances is not None:
            flat = x.flatten(2)
            # a constant channel has a deviation of 0, where the root has no finite slope
            deviation = (flat.var(2, unbiased=False) + 1e-10).sqrt()
            distance = (mean - flat.mean(2)).abs().mean() + (variance.sqrt() - deviation).abs().mean()
            self._distances.append(distance)
        return mean, variance


class _Prompt:
    """Prompt for images of one shape, with its optimizer and a memory of earlier prompts.

    Args:
        make: function that makes the optimizer of a prompt.
        memory: memory of prompts, with the images' low-frequency amplitudes as keys.
        network: network whose device a loaded prompt is moved to.

    Attributes:
        shape: shape ``(C, ...)`` of the images; None: there is no prompt yet.
        memory: memory of prompts.
    """

    shape: tuple[int, ...] | None
    _values: nn.Parameter | None

    def __init__(
        self, make: Callable[[nn.Parameter], torch.optim.Optimizer], memory: MemoryBank, network: nn.Module
    ) -> None:
        self.memory = memory
        self._make = make
        self._network = network
        self.forget()

    @property
    def values(self) -> nn.Parameter:
        """The prompt ``(1, C, ...)``; it exists after a call of :meth:`begin`."""
        assert self._values is not None
        return self._values

    def begin(self, values: torch.Tensor, shape: tuple[int, ...]) -> None:
        """Begin with a prompt for images of ``shape`` ``(C, ...)`` and an empty memory."""
        self.memory.forget()
        self.shape = shape
        self._values = nn.Parameter(values)
        self._optimizer = self._make(self._values)

    def step(self, gradient: torch.Tensor | None) -> None:
        """Take one step of the optimizer."""
        self.values.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def forget(self) -> None:
        """Remove the prompt and empty the memory."""
        self.memory.forget()
        self.shape = None
        self.seen = 0
        self._values = None

    def state_dict(self) -> dict[str, Any]:
        """Return prompt, shape, optimizer and memory; ``prompt`` is None where there is none yet."""
        if self._values is None or self.shape is None:
            return {"seen": self.seen, "prompt": None}
        return {
            "seen": self.seen,
            "prompt": self._values.detach().clone(),
            "shape": list(self.shape),
            "prompt_optimizer": cloned(self._optimizer.state_dict()),
            "memory": self.memory.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self.seen = int(state["seen"])
        if state["prompt"] is None:
            return
        device = next((p.device for p in self._network.parameters()), torch.device("cpu"))
        self.begin(state["prompt"].to(device, copy=True), tuple(state["shape"]))
        load_optimizer(self._optimizer, state["prompt_optimizer"])
        self.memory.load_state_dict(state["memory"])


def _exact(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in the precision of the Fourier transforms."""
    return x if x.dtype == torch.float64 else x.float()
