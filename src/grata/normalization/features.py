"""The deepest feature of a network, whatever its architecture."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..errors import GrataError

__all__ = ["deepest_feature"]


@contextlib.contextmanager
def deepest_feature(network: nn.Module, ndim: int) -> Iterator[Callable[[], torch.Tensor]]:
    """Watch for the output with the fewest positions in space among those of all modules, the last one of several.

    Args:
        network: whose forward runs inside the ``with`` block; it has no hooks of ours afterwards.
        ndim: of the images, 4 for ``(B, C, H, W)``, 5 for ``(B, C, D, H, W)``.

    Yields:
        A function that gives the feature ``(B, F, ...)`` of the last forward.

    Raises:
        GrataError: by that function, when no module gave such an output; a TorchScript network cannot be watched.
    """
    found: dict[str, Any] = {}

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor) or output.ndim != ndim:
            return
        size = math.prod(output.shape[2:])
        if size <= found.get("size", math.inf):
            found.update(size=size, feature=output)

    def feature() -> torch.Tensor:
        if "feature" not in found:
            raise GrataError(
                f"{type(network).__name__} shows no feature maps: no module of it gives an output of {ndim} "
                "dimensions. A TorchScript network cannot be looked into; use the Python network."
            )
        return found["feature"]

    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        handles = []
    else:
        handles = [module.register_forward_hook(watch) for module in network.modules()]
    try:
        yield feature
    finally:
        for handle in handles:
            handle.remove()
