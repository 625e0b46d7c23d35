"""Memory of the last few keys with a value each, searched for those nearest to a new key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["MemoryBank"]


class MemoryBank:
    """Keys with values, first in, first out; nearest by the cosine between keys.

    Args:
        size: number of pairs that it keeps.
    """

    _keys: list[torch.Tensor]
    _values: list[torch.Tensor]

    def __init__(self, size: int) -> None:
        self.size = size
        self.forget()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep copies of a pair, in place of the oldest when the memory is full; the others follow to its device.

        Args:
            key: key of any shape, the same for all pairs.
            value: value of any shape.
        """
        # tensors of a state that was read from a file lie on the CPU
        keys, values = [k.to(key.device) for k in self._keys], [v.to(value.device) for v in self._values]
        self._keys = [*keys, key.detach().flatten().clone()][-self.size :]
        self._values = [*values, value.detach().clone()][-self.size :]

    def nearest(self, key: torch.Tensor, count: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the pairs whose keys are nearest to ``key``: the nearest first, of two as near the older first.

        Args:
            key: key of the shape of the others.
            count: number of pairs; fewer are returned when the memory holds fewer.

        Returns:
            Their cosines ``(n,)`` and their values, on the device of ``key``.
        """
        if not self._keys:
            return key.new_zeros(0), []
        keys = torch.stack(self._keys).to(key)
        cosines = torch.cosine_similarity(keys, key.detach().flatten()[None], dim=1)
        order = cosines.argsort(descending=True, stable=True)[:count]
        return cosines[order], [self._values[index].to(key.device) for index in order.tolist()]

    def forget(self) -> None:
        """Forget all pairs."""
        self._keys = []
        self._values = []

    def state_dict(self) -> dict[str, Any]:
        """Return all pairs; safe for ``torch.load(weights_only=True)``."""
        return {"keys": list(self._keys), "values": list(self._values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self._keys = [key.clone() for key in state["keys"]][-self.size :]
        self._values = [value.clone() for value in state["values"]][-self.size :]
