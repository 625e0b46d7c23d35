"""Joint training of the segmentation and auxiliary branches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from monai.inferers import Inferer

from ..errors import GrataError
from ..networks import EfficientUNet, ResUNet
from ..objectives import BRANCH_LOSSES

__all__ = ["JointInferer"]


class JointInferer(Inferer):
    """An inferer for ``monai.engines.SupervisedTrainer``: segmentation logits and loss of the auxiliary branches.

    The training loss takes both: ``loss(output["logits"], label) + output["auxiliary"]``.

    Args:
        weights: weight of each branch's loss, by the branch's name.
        seed: seed of the noise and the rotations.

    Raises:
        GrataError: a branch is unknown, or there is none.
    """

    def __init__(self, weights: Mapping[str, float], seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        if not weights:
            raise GrataError(
                f"must name at least one branch. The branches are {', '.join(BRANCH_LOSSES)}.", key="weights"
            )
        for name in weights:
            if name not in BRANCH_LOSSES:
                raise GrataError(
                    f"there is no such branch. The branches are {', '.join(BRANCH_LOSSES)}.", key=f"weights#{name}"
                )
        self.weights = dict(weights)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Return ``logits`` ``(B, out_channels, H, W)`` and ``auxiliary``, the weighted sum of the branches' losses.

        Args:
            inputs: images ``(B, C, H, W)`` in 0..1.
            network: :class:`grata.networks.EfficientUNet` or ``ResUNet`` with the branches that have a weight.
        """
        x = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        with_branches = cast(EfficientUNet | ResUNet, network)

        def branch(name: str, x: torch.Tensor) -> torch.Tensor:
            return with_branches.branch(name, x).float()

        losses = (w * BRANCH_LOSSES[name](branch, x, self.generator) for name, w in self.weights.items())
        auxiliary = sum(losses)
        return {"logits": network(x), "auxiliary": auxiliary}
