"""Files of named tensors with a checksum over all that they hold, read and checked without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from safetensors import deserialize

__all__ = ["content_digest", "contents", "unpack"]

# Names of torch's types by those of safetensors: digests on the disk were taken with the former.
_TORCH = {
    **{f"F{bits}": f"torch.float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"torch.int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"torch.uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F8_{kind}": f"torch.float8_{kind.lower()}" for kind in ("E5M2", "E4M3FNUZ", "E5M2FNUZ")},
    "F8_E4M3": "torch.float8_e4m3fn",
    "BF16": "torch.bfloat16",
    "BOOL": "torch.bool",
    "C64": "torch.complex64",
}


def unpack(data: bytes, key: str) -> tuple[dict[str, Any], bool | None]:
    """Return the header of a file, and whether the file holds what was written; None: it has no checksum.

    Args:
        data: bytes of the safetensors file.
        key: key of the header in the file's metadata. Its ``content``, the checksum, is taken out.

    Raises:
        Exception: a damaged file can raise ``SafetensorError``, or any ``ValueError`` or ``LookupError``.
    """
    metadata = _metadata(data) or {}
    text = metadata.get(key, "{}") if isinstance(metadata, dict) else None
    header = json.loads(text) if isinstance(text, str) else None
    if not isinstance(header, dict):
        raise ValueError("its header is not a mapping")
    written = header.pop("content", None)
    return header, None if written is None else written == content_digest(header, contents(data))


def contents(data: bytes) -> list[tuple[str, str, list[int], bytes]]:
    """Return name, type, shape and bytes of each tensor in the bytes of a safetensors file."""
    return [(name, _TORCH[view["dtype"]], view["shape"], view["data"]) for name, view in deserialize(data)]


def content_digest(header: Mapping[str, Any], tensors: Iterable[tuple[str, str, Iterable[int], Any]]) -> str:
    """Return the SHA-256 of a header and its tensors.

    Args:
        header: the fields, ready for JSON.
        tensors: name, type (``torch.float32``), shape and bytes of each.
    """
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, kind, shape, data in sorted(tensors, key=lambda tensor: tensor[0]):
        digest.update(f"\n{name} {kind} {tuple(shape)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _metadata(data: bytes) -> Mapping[str, str] | None:
    """Return the metadata of a safetensors file, whose first eight bytes hold the length of its JSON header."""
    length = int.from_bytes(data[:8], "little")
    found: Mapping[str, str] | None = json.loads(data[8 : 8 + length]).get("__metadata__")
    return found
