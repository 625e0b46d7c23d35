"""A checkpoint with what was learnt in place: in the bundle's own format, for software that knows nothing of this."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import GrataError
from ..files import atomic_write
from ..prepared import weights_digest
from .saved import Adaptation

__all__ = ["NUMPY_NUMBERS", "export_checkpoint"]

_PREFIX = "module."
"""What a network that was trained on several devices at once has before its names."""

# nnU-Net logs numbers of numpy in its checkpoints; they run no code.
_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def export_checkpoint(
    adaptation: Adaptation, checkpoint: str | os.PathLike[str], output: str | os.PathLike[str]
) -> list[str]:
    """Write a copy of a checkpoint with the adapted values in place of the source's; all else in it stays as it is.

    Args:
        adaptation: what was learnt.
        checkpoint: of the source network: a state dict, also nested as in nnU-Net's ``checkpoint_final.pth``, or
            TorchScript (``.ts``).
        output: the new file; its folder exists.

    Returns:
        What there is to know of it, a sentence each.

    Raises:
        GrataError: the checkpoint is missing, unreadable or of other weights, ``output`` is there already, or attached
            parameters have no place in a TorchScript network.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if not checkpoint.is_file():
        raise GrataError(f"{checkpoint} does not exist. Name the file with the source weights.", key="checkpoint")
    if output.exists():
        raise GrataError(f"{output} is there already, and nothing is written over it. Name another file.", key="output")
    write = _script if checkpoint.suffix == ".ts" else _weights
    data, rounded = write(adaptation, checkpoint)
    with atomic_write(output) as temporary:
        temporary.write_bytes(data)
    return _remarks(adaptation, output, rounded)


def _weights(adaptation: Adaptation, checkpoint: Path) -> tuple[bytes, set[torch.dtype]]:
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    # A file of another kind can end in any exception; torch's own text advises to allow pickles, which run code.
    except Exception as error:
        raise GrataError(
            f"{checkpoint} cannot be read: it is damaged, a TorchScript file (name it .ts), or holds "
            "Python objects, which are never loaded because they can run code.",
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
            "what was attached to normalization layers has no place in a TorchScript network, whose code "
            "is fixed. Give the state dict that the network was made from.",
            key="checkpoint",
        )
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            extra = {name.split("/extra/", 1)[1]: "" for name in archive.namelist() if "/extra/" in name}
        network = torch.jit.load(checkpoint, map_location="cpu", _extra_files=extra)
    except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise GrataError(f"{checkpoint} is no TorchScript network, or damaged.", key="checkpoint") from error
    state = network.state_dict()
    if not _is_source(adaptation, state):
        raise _other_weights(adaptation, checkpoint)
    rounded = _merge(adaptation, state)
    buffer = io.BytesIO()
    torch.jit.save(network, buffer, _extra_files=extra)
    return buffer.getvalue(), rounded


def _states(content: Any) -> Iterator[MutableMapping[str, torch.Tensor]]:
    """All mappings in a checkpoint that hold tensors, at any depth."""
    if isinstance(content, MutableMapping):
        if any(isinstance(value, torch.Tensor) for value in content.values()):
            yield content
        for value in content.values():
            yield from _states(value)


def _is_source(adaptation: Adaptation, state: Mapping[Any, Any]) -> bool:
    """Whether these are the weights that were adapted; on the disk they may be in half precision."""
    tensors = {_plain(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not all(name in tensors for names in adaptation.names.values() for name in names):
        return False
    whole = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return adaptation.source in (weights_digest(tensors), weights_digest(whole))


def _merge(adaptation: Adaptation, state: MutableMapping[str, torch.Tensor]) -> set[torch.dtype]:
    """Write the adapted values; returns the types that they were rounded to."""
    written = {_plain(name): name for name in state if isinstance(name, str)}
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in state if isinstance(name, str)) else ""
    rounded = set()
    with torch.no_grad():
        for name, value in adaptation.learnt.items():
            for place in adaptation.names[name]:
                target = state[written[place]]
                target.copy_(value)
                if not torch.equal(target.to(value.dtype), value):
                    rounded.add(target.dtype)
            for place in adaptation.attached.get(name, ()):
                state[prefix + place] = value.clone()
    return rounded


def _plain(name: Any) -> str:
    return str(name).removeprefix(_PREFIX)


def _other_weights(adaptation: Adaptation, checkpoint: Path) -> GrataError:
    return GrataError(
        f"{checkpoint} does not hold the source weights (of a {adaptation.network}) that this was learnt "
        "on. Give the file that was adapted.",
        key="checkpoint",
    )


def _remarks(adaptation: Adaptation, output: Path, rounded: set[torch.dtype]) -> list[str]:
    remarks = [f"{output}: {adaptation.parameters} numbers are those that {adaptation.method} has learnt."]
    if rounded:
        types = ", ".join(str(dtype).removeprefix("torch.") for dtype in rounded)
        remarks.append(f"They were rounded to {types}, as the checkpoint has it.")
    if adaptation.attached:
        remarks.append(
            f"{sum(map(len, adaptation.attached.values()))} keys were added, for scale and shift of normalization "
            "layers that had none: the network's definition now needs them, e.g. norm: [instance, {affine: true}]."
        )
    if adaptation.batch_statistics:
        remarks.append(
            f"{adaptation.method} predicts by statistics of the batch. The checkpoint holds no such thing: where it is "
            "used batch normalization has to take them as well, as method ptbn does; with the running statistics it "
            "predicts otherwise."
        )
    if adaptation.predicts_by is None:
        remarks.append(
            f"{adaptation.method} predicts by more than weights: the checkpoint alone does not predict as it does."
        )
    return remarks
