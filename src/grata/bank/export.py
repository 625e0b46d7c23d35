"""Export of an adaptation into a checkpoint of the bundle's own format, for software that does not use grata."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..errors import GrataError
from ..files import absence, atomic_write, expanded
from ..networks import weights_digest
from ..networks.scripts import open_script
from ..networks.wrappers import PREFIXES, without_prefix
from .saved import Adaptation

__all__ = ["NUMPY_NUMBERS", "export_checkpoint"]

# nnU-Net stores NumPy numbers in its checkpoints; loading them runs no code.
_SCALAR = cast("Callable[..., Any]", np.float64(0).__reduce__()[0])
NUMPY_NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def export_checkpoint(
    adaptation: Adaptation, checkpoint: str | os.PathLike[str], output: str | os.PathLike[str]
) -> list[str]:
    """Write a copy of a checkpoint with the adapted values in place of the source's; the rest stays as it is.

    Args:
        adaptation: adaptation to export.
        checkpoint: checkpoint of the source network: a state dict, also nested as in nnU-Net's
            ``checkpoint_final.pth``, or TorchScript (``.ts``).
        output: new file, in a folder that exists.

    Returns:
        Remarks about the new file, one sentence each.

    Raises:
        GrataError: the checkpoint is missing, unreadable or of other weights, ``output`` exists already, or the
            adaptation has attached parameters and the network is TorchScript.
    """
    checkpoint, output = expanded(checkpoint), expanded(output)
    if not checkpoint.is_file():
        raise GrataError(f"{checkpoint} {absence(checkpoint)}. Name the file of the source weights.", key="checkpoint")
    if output.exists():
        raise GrataError(f"{output} exists already and is not overwritten. Name another file.", key="output")
    write = _script if checkpoint.suffix == ".ts" else _weights
    data, rounded = write(adaptation, checkpoint)
    with atomic_write(output) as temporary:
        temporary.write_bytes(data)
    return _remarks(adaptation, output, rounded)


def _weights(adaptation: Adaptation, checkpoint: Path) -> tuple[bytes, set[torch.dtype]]:
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    # Another kind of file can raise anything, and torch's own message advises to allow pickles, which run code.
    except Exception as error:
        raise GrataError(
            f"{checkpoint} cannot be read: it is damaged, is a TorchScript file (name it .ts), or holds Python "
            "objects, which are never loaded because they can run code. Give a file of weights.",
            key="checkpoint",
        ) from error
    states = [state for state in _states(content) if _is_source(adaptation, state)]
    if not states:
        raise _other_weights(adaptation, checkpoint)
    rounded = set()
    for state in states:
        rounded |= _merge(adaptation, state)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue(), rounded


def _script(adaptation: Adaptation, checkpoint: Path) -> tuple[bytes, set[torch.dtype]]:
    if adaptation.attached:
        raise GrataError(
            "a TorchScript network has no place for parameters that were attached to normalization layers, because "
            "its code is fixed. Give the state dict that the network was made from.",
            key="checkpoint",
        )
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            extra = {name.split("/extra/", 1)[1]: "" for name in archive.namelist() if "/extra/" in name}
        network = open_script(checkpoint, extra=extra)
    except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise GrataError(
            f"{checkpoint} is damaged or not a TorchScript network. Copy it again, or name another file.",
            key="checkpoint",
        ) from error
    state = network.state_dict()
    if not _is_source(adaptation, state):
        raise _other_weights(adaptation, checkpoint)
    rounded = _merge(adaptation, state)
    buffer = io.BytesIO()
    torch.jit.save(network, buffer, _extra_files=extra)
    return buffer.getvalue(), rounded


def _states(content: Any) -> Iterator[MutableMapping[str, torch.Tensor]]:
    """Yield all mappings in a checkpoint that hold tensors, at any depth."""
    if isinstance(content, MutableMapping):
        if any(isinstance(value, torch.Tensor) for value in content.values()):
            yield content
        for value in content.values():
            yield from _states(value)


def _is_source(adaptation: Adaptation, state: Mapping[Any, Any]) -> bool:
    """Return whether these are the weights that were adapted; in the file they may be in half precision."""
    tensors = {_plain(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not all(_plain(name) in tensors for names in adaptation.names.values() for name in names):
        return False
    whole = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return _has_digest(tensors, adaptation.source) or _has_digest(whole, adaptation.source)


def _has_digest(tensors: Mapping[str, torch.Tensor], known: str) -> bool:
    """Return whether weights have a digest, also one that was taken through a wrapper."""
    named = ({prefix + name: value for name, value in tensors.items()} for prefix in PREFIXES)
    return any(weights_digest(state) == known for state in named)


def _merge(adaptation: Adaptation, state: MutableMapping[str, torch.Tensor]) -> set[torch.dtype]:
    """Write the adapted values, and return the types that they were rounded to."""
    written = {_plain(name): name for name in state if isinstance(name, str)}
    prefix = next((name.removesuffix(plain) for plain, name in written.items() if name != plain), "")
    rounded = set()
    with torch.no_grad():
        for name, value in adaptation.learnt.items():
            for place in adaptation.names[name]:
                target = state[written[_plain(place)]]
                target.copy_(value)
                if not torch.equal(target.to(value.dtype), value):
                    rounded.add(target.dtype)
            for place in adaptation.attached.get(name, ()):
                state[prefix + _plain(place)] = value.clone()
    return rounded


def _plain(name: Any) -> str:
    return without_prefix(str(name))


def _other_weights(adaptation: Adaptation, checkpoint: Path) -> GrataError:
    return GrataError(
        f"{checkpoint} does not hold the source weights (of a {adaptation.network}) of this adaptation. "
        "Give the file whose weights were adapted.",
        key="checkpoint",
    )


def _remarks(adaptation: Adaptation, output: Path, rounded: set[torch.dtype]) -> list[str]:
    remarks = [f"{output}: {adaptation.parameters} values were replaced by those that {adaptation.method} learned."]
    if rounded:
        types = ", ".join(str(dtype).removeprefix("torch.") for dtype in rounded)
        remarks.append(f"They were rounded to {types}, the type of the checkpoint.")
    if adaptation.attached:
        remarks.append(
            f"{sum(map(len, adaptation.attached.values()))} keys were added, for scale and shift of normalization "
            "layers that had none. The network's definition must have them too, e.g. norm: [instance, {affine: true}]."
        )
    if adaptation.batch_statistics:
        remarks.append(
            f"{adaptation.method} predicts with the statistics of the batch, which a checkpoint cannot hold. Let batch "
            "normalization use them, as method ptbn does; with running statistics the predictions differ."
        )
    if adaptation.predicts_by is None:
        remarks.append(
            f"{adaptation.method} predicts with more than weights: the checkpoint alone predicts differently."
        )
    return remarks
