"""Access of an objective to the auxiliary branches of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..errors import GrataError

__all__ = ["Branch", "check_branch"]

Branch = Callable[[str, torch.Tensor], torch.Tensor]
"""Function ``branch(name, x)`` that returns the output of the auxiliary branch ``name`` for the images ``x``, such as
:meth:`grata.networks.EfficientUNet.branch`."""


def check_branch(network: nn.Module, name: str) -> None:
    """Check that a network has the auxiliary branch that an objective needs.

    Args:
        network: network to adapt.
        name: name of the objective and of its branch, one of :data:`grata.objectives.BRANCH_LOSSES`.

    Raises:
        GrataError: the network has no such branch.
    """
    branches = getattr(network, "branches", None)
    if branches is None or not callable(getattr(network, "branch", None)):
        raise GrataError(
            f"objective {name} needs a network with a {name} branch, and {type(network).__name__} is not made for "
            "branches. Use grata.networks.EfficientUNet with branches, or another objective: entropy, consistency."
        )
    if name not in branches:
        raise GrataError(
            f"objective {name} needs a {name} branch, and this network has {', '.join(branches) or 'none'}. Name it in "
            "network_def#branches, and give weights that were trained with it."
        )
