"""All parameters of a network, for methods that adapt more than its normalization layers."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import GrataError

__all__ = ["collect_all_parameters"]


def collect_all_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return every floating-point parameter of a network, except those of its auxiliary ``branches``.

    Parameters that the prediction does not depend on are included; they get no gradient, and so take no step.

    Args:
        network: network to adapt.

    Returns:
        The parameters by their names in ``network.named_parameters()``.

    Raises:
        GrataError: there are none.
    """
    found = {
        name: parameter
        for name, parameter in network.named_parameters()
        if torch.is_floating_point(parameter) and not name.startswith("branches.")
    }
    if not found:
        raise GrataError(
            f"{getattr(network, 'original_name', type(network).__name__)} has no parameters to adapt. Use method "
            "source or ptbn, or a network whose weights are parameters (a frozen TorchScript file has constants)."
        )
    return found
