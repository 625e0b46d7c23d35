"""Training of auxiliary heads on the source set, with a frozen network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import nn
from tqdm import tqdm

from ..networks import AuxiliaryHeads, SavedHeads
from ..networks.heads import RotationHead
from ..objectives import denoising_loss, rotation_loss
from ..views import VIEWS, default_views

__all__ = ["train_heads"]

_Loss = Callable[[torch.Tensor], torch.Tensor]

_BATCH = 4
_LEARNING_RATE = 1e-3
_HELD_OUT = 5
"""Step between the images that are held out of the training."""


def train_heads(
    network: nn.Module,
    images: Sequence[torch.Tensor],
    names: Sequence[str],
    epochs: int,
    seed: int,
    device: torch.device,
) -> tuple[SavedHeads, dict[str, dict[str, float]]]:
    """Train heads with Adam at 1e-3, in batches of at most four samples of one shape; every fifth image is held out.

    The network normalizes each image by its own statistics, as it does during adaptation.

    Args:
        network: frozen network in evaluation mode, with batch statistics as in adaptation.
        images: images of the source set, each as its windows ``(N, C, ...)``.
        names: names of the heads: ``rotation``, ``denoising``.
        epochs: number of passes over all images.
        seed: seed of first weights, order, views and noise.
        device: device of the network.

    Returns:
        The heads, and for each head its mean loss in the first and the last epoch; for ``rotation`` also the accuracy
        over all views of the images held out, if there are at least two images.

    Raises:
        GrataError: the network cannot have heads.
    """
    samples, held_out = _split(images)
    heads = AuxiliaryHeads.create(network, images[0][:1].to(device), names, _common_views(images), seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(heads.modules.parameters(), lr=_LEARNING_RATE)

    if "rotation" in names:
        _standardize(heads, samples, generator, device)
    losses = _losses(heads, names, generator)
    history: dict[str, list[float]] = {name: [] for name in names}
    with tqdm(range(epochs), desc="heads", unit="epoch") as bar:
        for _ in bar:
            for name, loss in _epoch(losses, samples, optimizer, generator, device).items():
                history[name].append(loss)
            bar.set_postfix({name: f"{values[-1]:.4f}" for name, values in history.items()})
    heads.modules.eval()
    results = {name: {"first_loss": history[name][0], "last_loss": history[name][-1]} for name in names}
    if "rotation" in results and held_out:
        results["rotation"]["accuracy"] = _accuracy(heads, held_out, device)
    return heads.saved(), results


def _split(images: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the samples to train on and those held out, each ``(C, ...)``; all windows of an image stay together."""
    if len(images) == 1:
        return list(images[0]), []
    trained_on = [sample for n, windows in enumerate(images) for sample in windows if n % _HELD_OUT]
    return trained_on, [sample for windows in images[::_HELD_OUT] for sample in windows]


def _standardize(
    heads: AuxiliaryHeads, samples: Sequence[torch.Tensor], generator: torch.Generator, device: torch.device
) -> None:
    """Give the rotation head mean and standard deviation of its inputs, each sample under a random view."""
    with torch.no_grad():
        turned = (VIEWS[_drawn(heads.views, generator)](sample[None].to(device)) for sample in samples)
        pooled = torch.cat([heads.features(x).flatten(2).mean(2) for x in turned])
    cast(RotationHead, heads.modules["rotation"]).standardize(pooled)


def _losses(heads: AuxiliaryHeads, names: Sequence[str], generator: torch.Generator) -> dict[str, _Loss]:
    """Return the loss of each head, as a function of images ``(B, C, ...)``."""

    def branch(name: str, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            feature = torch.cat([heads.features(sample[None]) for sample in x])
        return heads.head(name, feature, x.shape[2:])

    losses: dict[str, _Loss] = {
        "rotation": lambda x: rotation_loss(branch, x, generator, heads.views),
        "denoising": lambda x: denoising_loss(branch, x, generator),
    }
    return {name: losses[name] for name in names}


def _epoch(
    losses: Mapping[str, _Loss],
    samples: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    device: torch.device,
) -> dict[str, float]:
    """Take a step for each batch of samples, and return the mean of each loss over the samples."""
    total = dict.fromkeys(losses, 0.0)
    for batch in _batches(samples, generator):
        x = torch.stack([samples[i] for i in batch]).to(device)
        for name, loss in _step(losses, x, optimizer).items():
            total[name] += loss * len(x)
    return {name: value / len(samples) for name, value in total.items()}


def _step(losses: Mapping[str, _Loss], x: torch.Tensor, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Take one step on the sum of all losses, and return each loss."""
    values = {name: loss(x) for name, loss in losses.items()}
    optimizer.zero_grad()
    cast(torch.Tensor, sum(values.values())).backward()
    optimizer.step()
    return {name: value.item() for name, value in values.items()}


def _drawn(names: Sequence[str], generator: torch.Generator) -> str:
    return names[int(torch.randint(len(names), (), generator=generator))]


def _common_views(images: Sequence[torch.Tensor]) -> list[str]:
    """Return the default views that every image allows."""
    names = [[view.name for view in default_views(shape)] for shape in {tuple(x.shape[2:]) for x in images}]
    return [name for name in names[0] if all(name in others for others in names)]


def _batches(samples: Sequence[torch.Tensor], generator: torch.Generator) -> list[list[int]]:
    """Return batches of indices of samples of the same shape, in random order."""
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for index in torch.randperm(len(samples), generator=generator).tolist():
        by_shape[samples[index].shape].append(index)
    batches = [group[i : i + _BATCH] for group in by_shape.values() for i in range(0, len(group), _BATCH)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _accuracy(heads: AuxiliaryHeads, samples: Sequence[torch.Tensor], device: torch.device) -> float:
    right = 0
    with torch.no_grad():
        for sample in samples:
            for index, name in enumerate(heads.views):
                logits = heads.branch("rotation", VIEWS[name](sample[None].to(device)))
                right += int(logits.argmax(1).item() == index)
    return right / (len(samples) * len(heads.views))
