"""Statistics that move away from the source's only as far as an image differs more than source images do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from .affine import TrackedNorm, batch_norm_layers
from .rules import Rule, check_size, sample_statistics
from .statistics import BatchStatistics

__all__ = ["PARTS", "ImageSpread", "excess_rule", "spread_of"]

PARTS = ("mean", "mean_sd", "log_variance", "log_variance_sd")
"""What is kept of a channel: mean and standard deviation, over source images, of its mean and of its log-variance."""


class ImageSpread:
    """Collects how each channel's mean and variance vary from one source image to the next.

    Args:
        network: source network in evaluation mode.

    Attributes:
        network: network that watched images are to pass through.
        statistics: statistics of the network; attached only while images are watched.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.statistics = BatchStatistics(network, self._watch)
        self._names = {layer: name for name, layer in batch_norm_layers(network)}
        self._means: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._logarithms: dict[str, list[torch.Tensor]] = defaultdict(list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect from each image of each forward in a ``with`` block; the source's own statistics normalize it."""
        self.statistics.attach()
        try:
            yield
        finally:
            self.statistics.detach()

    def _watch(self, layer: TrackedNorm, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = sample_statistics(x)
        name = self._names[layer]
        self._means[name] += list(mean.detach().cpu())
        self._logarithms[name] += list(torch.log(variance + layer.eps).detach().cpu())
        return layer.running_mean, layer.running_var

    def collected(self) -> dict[str, torch.Tensor]:
        """Return, for each layer of two or more images, ``<layer>.<part>`` of all :data:`PARTS`, each ``(C,)``."""
        found: dict[str, torch.Tensor] = {}
        for name, means in self._means.items():
            if len(means) > 1:
                for part, values in (("mean", means), ("log_variance", self._logarithms[name])):
                    together = torch.stack(values)
                    found |= {f"{name}.{part}": together.mean(0), f"{name}.{part}_sd": together.std(0)}
        return found


def spread_of(
    layers: Iterable[tuple[str, nn.Module]],
    collected: Mapping[str, torch.Tensor],
    plain: Callable[[str], str] = str,
) -> dict[nn.Module, list[torch.Tensor]] | None:
    """Return the :data:`PARTS` of each batch normalization layer.

    Args:
        layers: names and layers, as :func:`grata.normalization.batch_norm_layers` gives them.
        collected: what :meth:`ImageSpread.collected` returned.
        plain: function that returns a layer's name in the network that they were collected from.

    Returns:
        The parts by layer; None where those of a layer are missing, or there is no layer.
    """
    keys = {layer: [f"{plain(name)}.{part}" for part in PARTS] for name, layer in layers}
    if not keys or any(key not in collected for parts in keys.values() for key in parts):
        return None
    return {layer: [collected[key] for key in parts] for layer, parts in keys.items()}


def excess_rule(spread: Mapping[nn.Module, list[torch.Tensor]], tolerance: tuple[float, float]) -> Rule:
    """Return the rule that corrects only what source images do not vary by.

    .. code-block:: text

        d = μ_image − mean of μ over source images,   t = tolerance of the layer · their standard deviation
        μ = μ_running + sign(d)·max(|d| − t, 0)
        σ²: the same for its logarithm

    A batch normalization layer that takes an image's own statistics removes what the scanner changed, and with it what
    the image shows, such as a large structure. What source images vary by is content; what goes beyond it is a shift.
    On images like those of the source the rule is the source's statistics.

    Args:
        spread: parts by layer in the order of the network, see :func:`spread_of`.
        tolerance: tolerance of the first layer and of the last one, in standard deviations over source images, each at
            least 0; between them it changes evenly from layer to layer.
    """
    first, last = tolerance
    steps = max(1, len(spread) - 1)
    tolerances = {layer: first + (last - first) * i / steps for i, layer in enumerate(spread)}
    return partial(_excess, spread, tolerances)


def _excess(
    spread: Mapping[nn.Module, list[torch.Tensor]],
    tolerances: Mapping[nn.Module, float],
    layer: TrackedNorm,
    x: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    check_size(x, samples=True)
    typical, deviation, typical_log, deviation_log = (part.to(x) for part in spread[layer])
    mean, variance = sample_statistics(x)
    moved = _beyond(mean - typical, tolerances[layer] * deviation)
    scaled = _beyond(torch.log(variance + layer.eps) - typical_log, tolerances[layer] * deviation_log).exp()
    # channels that the source network never used have no variance, and get none
    return layer.running_mean + moved, ((layer.running_var + layer.eps) * scaled - layer.eps).clamp_min(0)


def _beyond(difference: torch.Tensor, tolerated: torch.Tensor) -> torch.Tensor:
    return difference.sign() * (difference.abs() - tolerated).clamp_min(0)
