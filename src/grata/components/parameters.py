"""All parameters of a network, for methods that adapt more than the normalization layers."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import GrataError

__all__ = ["collect_all_parameters"]


def collect_all_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Every floating-point parameter by its name in the network, without those of auxiliary ``branches``.

    A parameter that the prediction does not depend on is among them: it gets no gradient, and so takes no step.

    Raises:
        GrataError: there is none.
    """
    found = {
        name: parameter
        for name, parameter in network.named_parameters()
        if torch.is_floating_point(parameter) and not name.startswith("branches.")
    }
    if not found:
        raise GrataError(
            f"{getattr(network, 'original_name', type(network).__name__)} has no parameters to adapt. Use method "
            "source or ptbn, or a network whose weights are parameters (a frozen TorchScript file made them constants)."
        )
    return found
