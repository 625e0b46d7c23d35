"""Named weights: copied, written, put in place for a block, moved along a direction, compared and digested.

Everywhere here ``parameters`` are tensors of a network by name, such as ``dict(network.named_parameters())``, and
``values`` are tensors of the same names and shapes that lie beside the network.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from ..errors import GrataError
from .wrappers import PREFIXES, plain_naming

__all__ = [
    "collect_all_parameters",
    "copied",
    "digest",
    "distance",
    "has_digest",
    "in_place",
    "moved",
    "network_digest",
    "network_dtype",
    "shapes",
    "weights_digest",
    "write",
]

_COUNTER = "num_batches_tracked"

Weights = Mapping[str, torch.Tensor]


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


def copied(parameters: Weights) -> dict[str, torch.Tensor]:
    """Return a copy of each parameter, detached from any graph."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def shapes(parameters: Weights) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter."""
    return {name: tuple(parameter.shape) for name, parameter in parameters.items()}


@torch.no_grad()
def write(parameters: Weights, values: Weights) -> None:
    """Write ``values`` into ``parameters``, in place."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


@contextlib.contextmanager
def in_place(parameters: Weights, values: Weights) -> Iterator[None]:
    """Put ``values`` in place for a ``with`` block, then what was there before, exactly."""
    before = copied(parameters)
    try:
        write(parameters, values)
        yield
    finally:
        write(parameters, before)


@contextlib.contextmanager
def moved(parameters: Weights, direction: Sequence[torch.Tensor | None], length: float) -> Iterator[None]:
    """Move to ``θ + length·direction`` for a ``with`` block, then back to ``θ`` exactly.

    Args:
        parameters: θ.
        direction: one tensor for each parameter, in their order; None leaves its parameter where it is.
        length: factor on the direction.
    """
    before = copied(parameters)
    try:
        with torch.no_grad():
            for parameter, part in zip(parameters.values(), direction, strict=True):
                if part is not None:
                    parameter.add_(part, alpha=length)
        yield
    finally:
        write(parameters, before)


def distance(parameters: Weights, source: Weights) -> dict[str, float]:
    """Return how far parameters are from the source's: Euclidean (``l2``) and relative to the source's norm."""
    change = sum((p.detach().double() - source[n].double()).square().sum() for n, p in parameters.items())
    norm = sum(s.double().square().sum() for s in source.values())
    l2 = float(change) ** 0.5
    return {"l2": l2, "relative": l2 / (float(norm) ** 0.5 + 1e-12)}


def digest(parameters: Weights) -> str:
    """Return the SHA-256 of names and values, to the last bit.

    A state holds it, so that it need not carry the source's weights to know them again. It depends on the order of the
    parameters; :func:`weights_digest` does not, and knows whole state dicts.
    """
    found = hashlib.sha256()
    for name, value in parameters.items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def network_digest(network: nn.Module, prefix: str = "") -> str:
    """Return :func:`weights_digest` of a network's present weights and statistics, the same through a wrapper.

    Args:
        network: network, also wrapped by ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``.
        prefix: prefix that the names get.
    """
    plain = plain_naming(network)
    return weights_digest({prefix + plain(name): value for name, value in network.state_dict().items()})


def has_digest(network: nn.Module, known: str) -> bool:
    """Return whether a network has the weights of a digest, also of one that was taken through a wrapper before
    version 0.3.
    """
    return any(network_digest(network, prefix) == known for prefix in PREFIXES)


def network_dtype(network: nn.Module) -> torch.dtype | None:
    """Return the floating point type that a network computes in; None: it has no parameters of such a type."""
    return next((p.dtype for p in network.parameters() if torch.is_floating_point(p)), None)


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the weights and statistics in a state dict, the same on every device and in any order.

    Batch counters are left out because no prediction depends on them, and auxiliary ``branches`` because a network may
    have them or not.
    """
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if name.endswith(_COUNTER) or name.startswith("branches."):
            continue
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
