"""Training of auxiliary branches beside the segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.inferers import Inferer

from ..errors import GrataError
from ..networks import ResUNet
from ..objectives import BRANCH_LOSSES

__all__ = ["JointInferer"]


class JointInferer(Inferer):
    """For ``monai.engines.SupervisedTrainer``: logits of the segmentation, and the loss of the auxiliary branches.

    A loss function takes both: ``loss(output["logits"], label) + output["auxiliary"]``.

    Args:
        weights: of each branch's loss, by the branch's name.
        seed: of the noise and the rotations.

    Raises:
        GrataError: unknown branch, or none.
    """

    def __init__(self, weights: Mapping[str, float], seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        if not weights:
            raise GrataError(f"name at least one branch; there are {', '.join(BRANCH_LOSSES)}.", key="weights")
        for name in weights:
            if name not in BRANCH_LOSSES:
                raise GrataError(
                    f"there is no such branch; there are {', '.join(BRANCH_LOSSES)}.", key=f"weights#{name}"
                )
        self.weights = dict(weights)

    def __call__(self, inputs: torch.Tensor, network: ResUNet, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Logits ``(B, out_channels, H, W)`` and the weighted sum of the branches' losses, a scalar.

        Args:
            inputs: ``(B, C, H, W)`` in 0..1.
            network: with the branches that have a weight.
        """
        x = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs

        def branch(name: str, x: torch.Tensor) -> torch.Tensor:
            return network.branch(name, x).float()

        losses = (w * BRANCH_LOSSES[name](branch, x, self.generator) for name, w in self.weights.items())
        auxiliary = sum(losses)
        return {"logits": network(x), "auxiliary": auxiliary}
