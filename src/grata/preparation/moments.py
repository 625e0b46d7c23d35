"""Size, centroid and spread of what is segmented (the shape moments of TTAS, Bateson et al. 2022)."""

from __future__ import annotations

import math

import torch

from ..benchmark.metrics import Region
from ..errors import GrataError
from ..objectives.shape_moments import soft_moments

__all__ = ["ShapeMoments", "channel_masks"]


def channel_masks(label: torch.Tensor, channels: int, activation: str, regions: list[Region]) -> torch.Tensor:
    """Foreground of each output channel.

    Args:
        label: label maps ``(N, 1, ...)``.
        channels: how many the network has.
        activation: ``softmax``: channel v is label value v; ``sigmoid``: channel i is segment i with what it includes.
        regions: of the segments.

    Returns:
        ``(N, channels, ...)`` of 0 and 1 in float64.

    Raises:
        GrataError: channels and segments do not belong together.
    """
    if activation == "softmax":
        values = [[value] for value in range(channels)]
        over = max((value for region in regions for value in region.values), default=0)
        if over >= channels:
            raise GrataError(
                f"there is a value {over}, and the network has {channels} channels, of the values 0 to "
                f"{channels - 1}. Correct the segments, or activation.",
                key="segments",
            )
    else:
        values = [list(region.values) for region in regions]
        if len(values) != channels:
            raise GrataError(
                f"there are {len(values)}, and the network has {channels} channels, of one segment each with "
                "activation sigmoid. Correct the segments, or activation.",
                key="segments",
            )
    whole = label.round().long()[:, 0]
    return torch.stack([torch.isin(whole, torch.tensor(v, device=whole.device)) for v in values], 1).double()


class ShapeMoments:
    """Means over images of each channel's share, centroid and spread; an image counts once, whatever its windows."""

    def __init__(self) -> None:
        self._sizes: list[torch.Tensor] = []
        self._centroids: list[torch.Tensor] = []
        self._spreads: list[torch.Tensor] = []

    def add(self, masks: torch.Tensor) -> None:
        """One image's windows ``(N, C, ...)`` of 0 and 1; a channel without foreground has no part in its moments."""
        sizes, *moments = soft_moments(masks)
        self._sizes.append(sizes.mean(0).cpu())
        # An empty channel is nowhere: nanmean passes its windows over.
        centroid, spread = (moment.masked_fill(sizes[..., None] == 0, math.nan).nanmean(0).cpu() for moment in moments)
        self._centroids.append(centroid)
        self._spreads.append(spread)

    @property
    def images(self) -> int:
        """How many there were."""
        return len(self._sizes)

    def class_sizes(self) -> torch.Tensor:
        """``(C,)``, float32."""
        return torch.stack(self._sizes).mean(0).float()

    def moments(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Centroid and spread, each ``(C, spatial dims)`` in float32; None where a channel never has any foreground."""
        centroid, spread = (torch.stack(found).nanmean(0).float() for found in (self._centroids, self._spreads))
        return None if centroid.isnan().any() else (centroid, spread)
