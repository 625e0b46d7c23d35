"""Names of weights without what wrappers put into them: they are those of the plain network, however it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = ["PREFIXES", "plain_naming", "unwrapped", "without_prefix", "without_prefixes"]

PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")
"""Prefixes that names have in files which were written through a wrapper."""

_PREFIX = re.compile(r"(?:(?:module|_orig_mod)\.)+")
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside wrappers around the whole of it."""
    while (name := _inner(network)) in network._modules:
        network = getattr(network, name)
    return network


def _inner(module: nn.Module) -> str:
    """Return the name that a wrapped network has in its wrapper, if the module is one."""
    return "module" if isinstance(module, _PARALLEL) else "_orig_mod"


def plain_naming(network: nn.Module) -> Callable[[str], str]:
    """Return the function from a name in ``network`` to the name in the same network without wrappers.

    Wrappers are ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``, around the network or a part of
    it, in any order.
    """
    inserted = set()
    for path, module in network.named_modules(remove_duplicate=False):
        if (inner := _inner(module)) in module._modules:
            inserted.add(f"{path}.{inner}".lstrip("."))

    def plain(name: str) -> str:
        parts = name.split(".")
        return ".".join(part for i, part in enumerate(parts) if ".".join(parts[: i + 1]) not in inserted)

    return plain if inserted else str


def without_prefix(name: str) -> str:
    """Return a name without the prefix of wrappers around the whole network."""
    return _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name


def without_prefixes(value: Any) -> Any:
    """Return a saved value, such as the state of a method, with all names in it without the prefix of wrappers."""
    if isinstance(value, Mapping):
        return {without_prefix(k) if isinstance(k, str) else k: without_prefixes(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_prefixes(item) for item in value)
    return without_prefix(value) if isinstance(value, str) else value
