"""Seeded damage to bytes, texts and trees of plain values: the same random generator gives the same damage."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

__all__ = ["CHUNK", "alter", "damage", "odd_integer", "odd_text", "odd_value", "zeros"]

CHUNK = 1 << 24
"""Zeros in one piece of :func:`zeros`."""

_INTEGERS = (
    *(0, 1, -1, 2, 7, 127, 128, 255, 256, 32767, -32768, 65535, 65536, 2**24, 2**31 - 1),
    *(-(2**31), 2**32 - 1, 2**40, 2**63 - 1, -(2**63), 2**64),
)
_TEXTS = (
    *("", " ", ".", "..", "/", "\\", "0", "-1", "1.5", "nan", "inf", "-inf", "1e400", "true", "false", "null", "~"),
    *("@missing", "%missing", "$1/0", "$[", "@", "::", "#", "a#b", "=1+1", "+1", "-", "@SUM(1)", "\x1b[31m", "\x00"),
    *("a\nb", "a\r", '"', "'", "ä", "\u202e", "\ufeff", "\U0001f600", "\udcff", "../../x", "/etc/hostname", "C:\\x"),
    *("9" * 5000, "x" * 300, "s" * 60, "[" * 40, "{" * 40, "(a|a)*" * 10, "2026-13-45", "1,5", "0x10", "1_0"),
)


def odd_integer(rng: Random) -> int:
    """Return a whole number at which something may overflow."""
    return rng.choice(_INTEGERS) + rng.choice((0, 0, 0, 1, -1))


def odd_text(rng: Random) -> str:
    """Return a text that may be taken for something else."""
    return rng.choice(_TEXTS)


def odd_value(rng: Random) -> Any:
    """Return a plain value of any kind."""
    kinds = (
        lambda: odd_text(rng),
        lambda: odd_integer(rng),
        lambda: rng.choice((0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"))),
        lambda: rng.choice((None, True, False)),
        lambda: rng.choice(([], {}, [[]], [None], {"": None}, [0, -1], ["a", "a"], {"name": None}, {"a": {"b": []}})),
        lambda: _nested(rng.choice((3, 60, 120))),
        lambda: 10 ** rng.choice((20, 309, 4000)),
    )
    return rng.choice(kinds)()


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def damage(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Return damaged bytes, and in words what was done."""
    changed, at = bytearray(data), rng.randrange(max(len(data), 1))
    length = min(rng.choice((1, 2, 4, 16, 100)), len(data) - at)
    how = rng.choice(("flip", "flip", "flip", "cut", "cut", "set", "remove", "insert", "repeat", "zero", "append"))
    if how == "flip":
        places = [rng.randrange(8 * len(data)) for _ in range(rng.choice((1, 1, 2, 8)))] if data else []
        for place in places:
            changed[place // 8] ^= 1 << place % 8
        return bytes(changed), f"bits {places} flipped"
    if how == "cut":
        return data[:at], f"cut to {at} bytes"
    if how == "set":
        value = struct.pack("<Q", odd_integer(rng) % 2**64)[: rng.choice((1, 2, 4, 8))]
        changed[at : at + len(value)] = value[:: rng.choice((1, -1))]
    elif how == "remove":
        del changed[at : at + length]
    elif how == "insert":
        changed[at:at] = rng.randbytes(length)
    elif how == "repeat":
        changed[at:at] = data[at : at + length] * rng.choice((1, 3, 100))
    elif how == "zero":
        changed[at : at + length] = bytes(length)
    else:
        changed += rng.choice((rng.randbytes(9), bytes(1000), data))
    return bytes(changed), f"{how} at {at}, {length} bytes"


def alter(tree: Any, rng: Random) -> str:
    """Change one place of a tree of dicts and lists, and return in words what was done.

    Args:
        tree: a dict or a list, which is changed.
        rng: random generator.
    """
    holder, key, path = rng.choice(list(_places(tree, "")))
    how = rng.choice(("value", "value", "value", "value", "remove", "add", "text"))
    if how == "remove":
        del holder[key]
    elif how == "add" and isinstance(holder, dict):
        holder[odd_text(rng)] = odd_value(rng)
    elif how == "text" and isinstance(holder[key], str):
        text, at = holder[key], rng.randrange(len(holder[key]) + 1)
        holder[key] = text[:at] + odd_text(rng) + text[at + rng.choice((0, 1, 3)) :]
    else:
        how, holder[key] = "value", odd_value(rng)
        return f"{path} is {repr(holder[key])[:60]}"
    return f"{how} at {path}"


def _places(tree: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    for key, value in items:
        yield tree, key, f"{path}#{key}"
        if isinstance(value, dict | list):
            yield from _places(value, f"{path}#{key}")


@cache
def zeros(chunks: int) -> bytes:
    """Return a deflate stream that becomes ``chunks`` times :data:`CHUNK` zeros, without writing them out."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    # After a full flush nothing refers back, so the piece can be repeated.
    piece = packer.compress(bytes(CHUNK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * chunks + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
