"""Size, centroid and spread of segmented structures (the shape moments of TTAS, Bateson et al. 2022)."""

from __future__ import annotations

import math

import torch

from ..bundles.regions import Region
from ..errors import GrataError
from ..objectives.shape_moments import soft_moments

__all__ = ["ShapeMoments", "channel_masks"]


def channel_masks(label: torch.Tensor, channels: int, activation: str, regions: list[Region]) -> torch.Tensor:
    """Return the foreground mask of each output channel.

    Args:
        label: label maps ``(N, 1, ...)``.
        channels: number of output channels of the network.
        activation: ``softmax``: channel v is label value v; ``sigmoid``: channel i is segment i with the values that it
            includes.
        regions: regions of the segments.

    Returns:
        Masks ``(N, channels, ...)`` of 0 and 1 in float64.

    Raises:
        GrataError: the channels do not match the segments.
    """
    if activation == "softmax":
        values = [[value] for value in range(channels)]
        over = max((value for region in regions for value in region.values), default=0)
        if over >= channels:
            raise GrataError(
                f"hold the value {over}, but the network has {channels} channels, for the values 0 to "
                f"{channels - 1}. Correct the segments, or activation.",
                key="segments",
            )
    else:
        values = [list(region.values) for region in regions]
        if len(values) != channels:
            raise GrataError(
                f"are {len(values)}, but the network has {channels} channels, one per segment with activation "
                "sigmoid. Correct the segments, or activation.",
                key="segments",
            )
    whole = label.round().long()[:, 0]
    return torch.stack([torch.isin(whole, torch.tensor(v, device=whole.device)) for v in values], 1).double()


class ShapeMoments:
    """Means over images of each channel's size, centroid and spread; every image counts once, whatever its windows."""

    def __init__(self) -> None:
        self._sizes: list[torch.Tensor] = []
        self._centroids: list[torch.Tensor] = []
        self._spreads: list[torch.Tensor] = []

    def add(self, masks: torch.Tensor) -> None:
        """Add one image's windows ``(N, C, ...)`` of 0 and 1; channels without foreground only get a size."""
        sizes, *moments = soft_moments(masks)
        self._sizes.append(sizes.mean(0).cpu())
        # An empty channel has no centroid: nanmean skips its windows.
        centroid, spread = (moment.masked_fill(sizes[..., None] == 0, math.nan).nanmean(0).cpu() for moment in moments)
        self._centroids.append(centroid)
        self._spreads.append(spread)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self._sizes)

    def class_sizes(self) -> torch.Tensor:
        """Return the mean size of each channel, ``(C,)`` in float32."""
        return torch.stack(self._sizes).mean(0).float()

    def moments(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return centroid and spread, each ``(C, spatial dims)`` in float32; None if a channel never has foreground."""
        centroid, spread = (torch.stack(found).nanmean(0).float() for found in (self._centroids, self._spreads))
        return None if centroid.isnan().any() else (centroid, spread)
