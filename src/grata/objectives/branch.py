"""How an objective reaches the auxiliary branches of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..errors import GrataError

__all__ = ["Branch", "check_branch"]

Branch = Callable[[str, torch.Tensor], torch.Tensor]
"""``branch(name, x)``: output of the auxiliary branch ``name`` for ``x``; see :meth:`grata.networks.ResUNet.branch`."""


def check_branch(network: nn.Module, name: str) -> None:
    """Raise :class:`GrataError` unless ``network`` has the branch that the objective ``name`` needs."""
    branches = getattr(network, "branches", None)
    if branches is None or not callable(getattr(network, "branch", None)):
        raise GrataError(
            f"objective {name} needs a network with a {name} branch, which {type(network).__name__} is not made "
            "for. Use grata.networks.ResUNet with branches, or an objective without: entropy, consistency."
        )
    if name not in branches:
        raise GrataError(
            f"objective {name} needs a {name} branch, and this network has {', '.join(branches) or 'none'}. Name it in "
            "network_def#branches and give weights that were trained with it."
        )
