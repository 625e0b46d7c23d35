"""VPTTA: visual prompt-based test-time adaptation (CVPR 2024)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..alignment import gradient_norm
from ..components.gradients import cloned, gradient_of, load_optimizer
from ..components.memory import MemoryBank
from ..errors import GrataError
from ..normalization import check_running_statistics
from .card import Card
from .gradient import GradientRecord, non_finite
from .predictive import PredictionNetwork, PredictiveMethod, check_count, check_number, check_positive

__all__ = ["VPTTA"]


class VPTTA(PredictiveMethod):
    """A prompt on an image's low frequencies, learnt for each image; the network stays (VPTTA, Chen et al., CVPR 2024).

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
    channel; the phase stays. Nothing of the rule depends on the task: it looks at no prediction.

    The images of a batch have one prompt, learnt from all of them, which also fits batches of another size, such as the
    windows of the same volume; each batch of windows counts as an image in n, and has entries of its own in the memory.
    The authors' code takes one image at a time. The prompt starts from the mean of what the memory has for each image.
    The memory is of images of one size and number of channels: when another comes, it is emptied, and the prompt starts
    from ones. Until the method has adapted to images of a size, these are predicted without a prompt.

    The authors' code places a prompt of odd width one frequency beside the middle, and takes its channels in turned
    order (it shifts the spectrum over channels too); here it is centred, and each channel has its own. Its memory holds
    41 entries; here the paper's 40. As there, Adam keeps its moments from image to image, while the prompt starts anew,
    and no gradient flows through the warmed-up statistics, though they move with the prompt: early in a stream, when
    they are mostly the batch's, a step can raise L.

    Args:
        network: the source network; it needs batch normalization with running statistics.
        alpha: share of the spectrum along each axis that the prompt covers, 0 to 1.
        warm_up: τ, of the weight of the batch's statistics.
        memory: how many entries it holds.
        neighbours: how many of them the prompt starts from.
        lr: learning rate.
        betas: of Adam.
        steps: on each batch.
        settings: see :class:`PredictiveMethod`; ``batch_statistics`` are the method's own.

    Raises:
        GrataError: the network has no batch normalization with running statistics, or a setting is out of range.
    """

    name = "vptta"
    card = Card(
        title="VPTTA",
        reference="Chen et al., Each test image deserves a specific prompt: continual test-time adaptation for 2D "
        "medical image segmentation, CVPR 2024, arXiv:2311.18363",
        year=2024,
        rule="a prompt on the image's low-frequency amplitudes brings its statistics to those of the source",
        changes="nothing: a prompt on the image; statistics warmed up from batch to source",
        needs=("running statistics",),
        forwards=2,
        backwards=1,
    )
    predicts_by = None
    refused = ("batch_statistics",)

    def __init__(
        self,
        network: nn.Module,
        *,
        alpha: float = 0.01,
        warm_up: float = 5.0,
        memory: int = 40,
        neighbours: int = 16,
        lr: float = 0.05,
        betas: Sequence[float] = (0.9, 0.99),
        steps: int = 1,
        **settings: Any,
    ) -> None:
        if "batch_statistics" in settings:
            raise GrataError("vptta has its own, by warm_up. Leave the setting out.", key="batch_statistics")
        super().__init__(network, {}, batch_statistics=self._warmed_up, **settings)
        check_running_statistics(self.name, network, self._statistics)
        self.alpha = check_number("alpha", alpha, low=0.0, high=1.0)
        self.warm_up = check_positive("warm_up", warm_up)
        self.neighbours = check_count("neighbours", neighbours)
        self.memory = check_count("memory", memory)
        self._memory = MemoryBank(self.memory)
        if self.neighbours > memory:
            raise GrataError(f"must be at most memory, {memory}, got {neighbours!r}.", key="neighbours")
        self.lr = check_number("lr", lr, low=0.0)
        if isinstance(betas, str) or not isinstance(betas, Sequence) or len(betas) != 2:
            raise GrataError(f"must be two numbers, got {betas!r}.", key="betas")
        self.betas = tuple(check_number("betas", beta, low=0.0, high=1.0 - 1e-6) for beta in betas)
        self.steps = check_count("steps", steps)
        self._prediction_network = PredictionNetwork(self)
        self._seen = 0
        self._distances: list[torch.Tensor] | None = None
        self._forget()

    @property
    def network(self) -> nn.Module:
        return self._prediction_network

    def _adapt(self, images: torch.Tensor) -> GradientRecord:
        x = _exact(images)
        self._seen += 1
        if self._shape != x.shape[1:]:
            self._make_prompt(torch.ones([1, x.shape[1], *self._sizes(x)], dtype=x.dtype, device=x.device), x.shape[1:])
        keys = self._low_frequencies(x)[0].abs()
        with torch.no_grad():
            self._prompt.copy_(self._start(keys))
        records = [self._step(images) for _ in range(self.steps)]
        flags = tuple(dict.fromkeys(flag for record in records for flag in record.flags))
        if not flags:
            for key in keys:
                self._memory.add(key, self._prompt[0])
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
            loss = sum(self._distances) / len(self._distances)
        finally:
            self._distances = None
        (gradient,) = gradient_of(loss, [self._prompt], self._half_precision(x))
        record = GradientRecord(loss=loss.item(), gradient_norm=gradient_norm([gradient]))
        if flags := non_finite("", record.loss, record.gradient_norm):
            return dataclasses.replace(record, flags=flags)
        self._prompt.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return dataclasses.replace(record, learning_rate=self.lr)

    def _start(self, keys: torch.Tensor) -> torch.Tensor:
        """The prompt to begin with, from the memory's nearest entries to ``keys`` ``(B, C, ...)``."""
        if len(self._memory) < self.neighbours:
            return torch.ones_like(self._prompt)
        starts = []
        for key in keys:
            cosines, prompts = self._memory.nearest(key, self.neighbours)
            starts.append(torch.tensordot((cosines / 0.2).softmax(0), torch.stack(prompts), 1))
        return torch.stack(starts).mean(0, keepdim=True)

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        return self._logits(self._prompted(x) if x.shape[1:] == self._shape else x)

    def _prompted(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` with its low frequencies multiplied by the prompt; with a prompt of ones ``x`` to the last bit."""
        with torch.autocast(x.device.type, enabled=False):
            low, margins = self._low_frequencies(_exact(x))
            axes = list(range(2, x.ndim))
            # the transform is linear: only what the prompt adds has to go there and back
            added = F.pad(low * (self._prompt - 1), margins)
            added = torch.fft.ifftn(torch.fft.ifftshift(added, axes), dim=axes).real
            return x + added.to(x.dtype)

    def _low_frequencies(self, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Middle of the spectrum of ``x``, and its margins as :func:`torch.nn.functional.pad` takes them."""
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
        """Statistics to normalize by; how far those of each image are from them is noted while the prompt learns."""
        weight = 1 / (math.sqrt(self._seen) / self.warm_up + 1)
        dims = [0, *range(2, x.ndim)]
        batch = x.detach()
        mean = weight * batch.mean(dims) + (1 - weight) * layer.running_mean
        variance = weight * batch.var(dims, unbiased=False) + (1 - weight) * layer.running_var
        if self._distances is not None:
            flat = x.flatten(2)
            # the root has no finite slope at 0, the deviation of a constant channel
            deviation = (flat.var(2, unbiased=False) + 1e-10).sqrt()
            distance = (mean - flat.mean(2)).abs().mean() + (variance.sqrt() - deviation).abs().mean()
            self._distances.append(distance)
        return mean, variance

    def _make_prompt(self, values: torch.Tensor, shape: Sequence[int]) -> None:
        """A prompt for images of ``shape`` (C, ...), with an empty memory."""
        self._memory.forget()
        self._shape = tuple(shape)
        self._prompt = nn.Parameter(values)
        self._optimizer = torch.optim.Adam([self._prompt], lr=self.lr, betas=self.betas)

    def _forget(self) -> None:
        self._memory.forget()
        self._shape: tuple[int, ...] | None = None
        self._prompt: nn.Parameter | None = None
        self._optimizer: torch.optim.Adam | None = None

    def restore(self) -> None:
        super().restore()
        self._seen = 0
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict() | {"seen": self._seen, "prompt": None}
        if self._prompt is None:
            return state
        return state | {
            "prompt": self._prompt.detach().clone(),
            "shape": list(self._shape),
            "prompt_optimizer": cloned(self._optimizer.state_dict()),
            "memory": self._memory.state_dict(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._seen = int(state["seen"])
        if state["prompt"] is None:
            return
        device = next((p.device for p in self._network.parameters()), torch.device("cpu"))
        self._make_prompt(state["prompt"].to(device, copy=True), state["shape"])
        load_optimizer(self._optimizer, state["prompt_optimizer"])
        self._memory.load_state_dict(state["memory"])


def _exact(x: torch.Tensor) -> torch.Tensor:
    """In the precision that transforms are made in."""
    return x if x.dtype == torch.float64 else x.float()
