"""Saved adaptations: a small file beside a readable card, which fits the same source weights only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import nn

from .._version import __version__
from ..errors import GrataError
from ..files import atomic_write
from ..methods import Method
from ..networks import network_digest
from ..networks.parameters import has_digest
from ..networks.wrappers import plain_naming, without_prefix
from ..normalization import attach_affine
from ..normalization.affine import ATTACHED
from ..tensors import content_digest
from .codec import decode, encode
from .header import FORMAT, HEADER, Header, card_path, is_other, read_checked, saved_digest, saved_path

__all__ = [
    "Adaptation",
    "apply",
    "card_path",
    "class_name",
    "is_other",
    "load",
    "save",
    "saved_digest",
    "saved_path",
    "source_digest",
]


class Loads(Protocol):
    """A method, or what holds one with its reset policy."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""


@dataclasses.dataclass(frozen=True)
class Adaptation(Header):
    """The adaptation of a method on one set of source weights, with all it needs to go on in another process.

    Attributes:
        state: state of the method, see :meth:`grata.methods.Method.state_dict`. :class:`Header` has the others.
    """

    state: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        method: Method,
        cases: int,
        source: str | None = None,
        entry: Mapping[str, str] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Adaptation:
        """Return the adaptation of a method in its present state.

        Args:
            method: method, which may be adapted already.
            cases: number of cases so far.
            source: :func:`source_digest` of the method, if it was computed already.
            entry: site or scanner of the adaptation, by ``site`` or DICOM keyword.
            state: state of the method, or of the session that it belongs to, if it was computed already.
        """
        state = method.state_dict() if state is None else state
        names, attached = _names(method.given, method.parameters)
        return cls(
            method=method.name,
            settings=state["settings"],
            reset=state.get("reset", {}).get("policy", ""),
            network=class_name(method.given),
            source=source_digest(method) if source is None else source,
            entry=dict(entry or {}),
            cases=cases,
            batches=method.batches,
            parameters=sum(p.numel() for p in method.parameters.values()),
            parameter_change=method.parameter_change(),
            batch_statistics=method.uses_batch_statistics,
            predicts_by=method.predicts_by,
            names=names,
            attached=attached,
            version=__version__,
            state=state,
        )

    @property
    def learnt(self) -> dict[str, torch.Tensor]:
        """Adapted parameters that predict, by name; those of the teacher if the method has one."""
        return self.state[self.predicts_by or "parameters"] or self.state["parameters"]

    @property
    def digest(self) -> str:
        """Digest of the content, which the file's header holds too, see :func:`saved_digest`."""
        return self.content()[1]["content"]

    def content(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return tensors and header; the header's ``content`` is a digest of both, and the same in any process.

        Raises:
            GrataError: the state holds something that is not a plain value.
        """
        try:
            tensors, skeleton = encode(self.state)
        except TypeError as error:
            raise GrataError(f"The state of method {self.method} cannot be saved: {error}") from error
        header = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        header |= {"state": skeleton, "format": FORMAT}
        return tensors, {**header, "content": content_digest(header, _bytes(tensors))}

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write ``<name>.safetensors`` and its card ``<name>.json``, each whole or not at all.

        The first file holds everything. The card is a readable copy of its header and is written last.

        Args:
            path: path with or without ``.safetensors``, in a folder that exists.

        Returns:
            The digest of the content.

        Raises:
            GrataError: a file cannot be written, or the state holds something that is not a plain value.
        """
        path = saved_path(path)
        tensors, header = self.content()
        data = serialize(tensors, {HEADER: json.dumps(header, sort_keys=True)})
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
        card = {**self.card, "sha256": hashlib.sha256(data).hexdigest()}
        with atomic_write(card_path(path)) as temporary:
            temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        return header["content"]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Adaptation:
        """Read what :meth:`save` wrote; the tensors lie on the CPU. The card is not needed.

        Raises:
            GrataError: there is no such file, it is damaged, or of another kind.
        """
        header, data = read_checked(path)
        return cls(**{**header, "state": decode(header["state"], deserialize(data))})

    def check_source(self, digest: str, path: str | os.PathLike[str]) -> None:
        """Check that the adaptation belongs to these source weights.

        Args:
            digest: digest of the source weights, see :func:`grata.networks.network_digest`.
            path: path of the file, for the message.

        Raises:
            GrataError: it belongs to other source weights.
        """
        if digest != self.source:
            raise GrataError(
                f"{path} was adapted from other source weights (of a {self.network}) than this network has. Give the "
                "weights that were adapted, or start anew."
            )

    def put(self, method: Loads, source: str, path: str | os.PathLike[str]) -> None:
        """Let a method go on from here.

        Args:
            method: method of the same name and settings, on the same source weights, or its session.
            source: :func:`source_digest` of the method.
            path: path of the file, for messages.

        Raises:
            GrataError: the method has another name, other weights or other settings; it is not changed then.
        """
        self.check_source(source, path)
        try:
            method.load_state_dict(dict(self.state))
        except GrataError as error:
            raise GrataError(f"{path}: {error}") from error


def save(method: Method, path: str | os.PathLike[str], cases: int | None = None) -> Adaptation:
    """Save the adaptation of a method and all that the method needs to go on, see :meth:`Adaptation.save`.

    Args:
        method: method, which is not changed.
        path: path of the file, in a folder that exists; an older file of that name is replaced.
        cases: number of cases so far; None: the number of batches.

    Returns:
        The adaptation that was saved.

    Raises:
        GrataError: a file cannot be written.
    """
    adaptation = Adaptation.of(method, method.batches if cases is None else cases)
    adaptation.save(path)
    return adaptation


def load(method: Method, path: str | os.PathLike[str]) -> Adaptation:
    """Let a method go on from a saved adaptation, bit for bit.

    Args:
        method: method of the same name and settings, on the same source weights.
        path: path of the file.

    Returns:
        The adaptation that was loaded.

    Raises:
        GrataError: the file is missing or damaged, or belongs to another method, other weights or other settings; the
            method is not changed then.
    """
    adaptation = Adaptation.read(path)
    adaptation.put(method, source_digest(method, adaptation.source), path)
    return adaptation


def apply(network: nn.Module, path: str | os.PathLike[str]) -> int:
    """Write the adapted parameters into a plain network, for prediction or as the start of another method.

    Parameters that were attached to normalization layers are attached first. A method that uses the statistics of the
    batch also predicts with them; give the network to method ``ptbn`` for that.

    Args:
        network: network with the source weights, which no method adapts.
        path: path of the saved adaptation.

    Returns:
        Number of values that were written.

    Raises:
        GrataError: the file is missing or damaged, or the network has other weights; it is not changed then.
    """
    adaptation = Adaptation.read(path)
    adaptation.check_source(_digest_like(network, adaptation.source), path)
    if adaptation.attached:
        attach_affine(network)
    plain = plain_naming(network)
    places = {plain(name): place for name, place in (*network.named_parameters(), *network.named_buffers())}
    with torch.no_grad():
        for name, value in adaptation.learnt.items():
            places[name if name in places else without_prefix(name)].copy_(value)
    return adaptation.parameters


def source_digest(method: Method, known: str = "") -> str:
    """Return the SHA-256 of the source weights of a method's network, which may be adapted already.

    Args:
        method: method of the network.
        known: digest that is returned if it is that of these weights too, by the names that a wrapper gives them.
    """
    with method.source_network():
        return _digest_like(method.given, known)


def _digest_like(network: nn.Module, known: str) -> str:
    return known if known and has_digest(network, known) else network_digest(network)


def _bytes(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    for name, value in tensors.items():
        data = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield name, str(value.dtype), tuple(value.shape), data


def _names(
    network: nn.Module, parameters: Mapping[str, torch.Tensor]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the names of each parameter in the network's state dict, and the names that attached ones would have.

    The state dict lists a parameter several times that layers share.
    """
    plain = plain_naming(network)
    modules = {plain(path): module for path, module in network.named_modules(remove_duplicate=False)}
    places: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, value in network.state_dict().items():
        places.setdefault((value.data_ptr(), tuple(value.shape)), []).append(plain(name))
    names: dict[str, list[str]] = {}
    attached: dict[str, list[str]] = {}
    for name, parameter in parameters.items():
        layer, _, leaf = name.rpartition(".")
        owner, _, mark = layer.rpartition(".")
        if mark == ATTACHED:
            paths = [path for path, module in modules.items() if module is modules[owner]]
            names[name], attached[name] = [], [f"{path}.{leaf}".lstrip(".") for path in paths]
        else:
            names[name] = places.get((parameter.data_ptr(), tuple(parameter.shape)), [name])
    return names, attached


def class_name(network: nn.Module) -> str:
    """Return the name of a network's class, also of a TorchScript network."""
    return str(getattr(network, "original_name", type(network).__name__))
