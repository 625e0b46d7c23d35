"""Learned parameters in a small file beside a readable card, to be put back onto the same source weights only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import nn

from .. import __version__
from ..errors import GrataError
from ..files import atomic_write
from ..methods import Method
from ..normalization import attach_affine
from ..normalization.affine import ATTACHED
from ..prepared import network_digest
from .codec import decode, encode
from .header import FORMAT, HEADER, Header, card_path, content_digest, is_other, read_checked, saved_digest, saved_path

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


@dataclasses.dataclass(frozen=True)
class Adaptation(Header):
    """What a method has learned on one set of source weights, with all it needs to go on in another process.

    Attributes:
        state: state of the method, see :meth:`grata.methods.Method.state_dict`. The other attributes are those of
            :class:`~grata.adapters.header.Header`.
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
        """Return what a method has learned so far.

        Args:
            method: the method as it is now; its network may be adapted.
            cases: number of cases it has seen.
            source: :func:`source_digest` of the method, if it is known already.
            entry: what the adaptation is for, by ``site`` or DICOM keyword.
            state: ``method.state_dict()``, if it is known already.
        """
        state = method.state_dict() if state is None else state
        names, attached = _names(method.given, method.parameters)
        return cls(
            method=method.name,
            settings=state["settings"],
            reset=state["reset"]["policy"],
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
        """Values of the adapted parameters that predictions use, by name; those of a teacher where there is one."""
        return self.state[self.predicts_by or "parameters"] or self.state["parameters"]

    @property
    def digest(self) -> str:
        """Digest of the content, which the file's header holds too, see :func:`saved_digest`."""
        return self.content()[1]["content"]

    def content(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return tensors and header; the header's ``content`` is a digest of both, the same in any process.

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
        """Write ``<name>.safetensors`` and its card ``<name>.json``; neither is ever half written.

        The first holds everything. The card is a copy to read, and is written last.

        Args:
            path: file, with or without ``.safetensors``; its folder exists.

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
        """Return what :meth:`save` wrote, with its tensors on the CPU. The card is not needed.

        Raises:
            GrataError: there is no such file, it is damaged, or of another kind.
        """
        header, data = read_checked(path)
        return cls(**{**header, "state": decode(header["state"], deserialize(data))})

    def check_source(self, digest: str, path: str | os.PathLike[str]) -> None:
        """Raise :class:`GrataError` unless ``digest`` is that of the source weights that were adapted."""
        if digest != self.source:
            raise GrataError(
                f"{path} was learned on other source weights (of a {self.network}) than this network has. Give the "
                "weights that were adapted, or start anew."
            )

    def put(self, method: Method, source: str, path: str | os.PathLike[str]) -> None:
        """Let a method go on from here.

        Args:
            method: method with the same name and settings, on the same source weights.
            source: :func:`source_digest` of the method.
            path: file of the adaptation, for messages.

        Raises:
            GrataError: the method, its weights or its settings are others; nothing is changed then.
        """
        self.check_source(source, path)
        try:
            method.load_state_dict(dict(self.state))
        except GrataError as error:
            raise GrataError(f"{path}: {error}") from error


def save(method: Method, path: str | os.PathLike[str], cases: int | None = None) -> Adaptation:
    """Write what a method has learned, with all that it needs to go on, see :meth:`Adaptation.save`.

    Args:
        method: any method; it stays as it is.
        path: file to write; its folder exists. An older file of that name is replaced.
        cases: number of cases it has seen; None: as many as batches.

    Returns:
        What was written.

    Raises:
        GrataError: a file cannot be written.
    """
    adaptation = Adaptation.of(method, method.batches if cases is None else cases)
    adaptation.save(path)
    return adaptation


def load(method: Method, path: str | os.PathLike[str]) -> Adaptation:
    """Let a method go on from a saved adaptation, bit for bit.

    Args:
        method: method with the same name and settings, on the same source weights.
        path: file of the adaptation.

    Returns:
        What was read.

    Raises:
        GrataError: the file is missing or damaged, or holds another method, other weights or settings; nothing is
            changed then.
    """
    adaptation = Adaptation.read(path)
    adaptation.put(method, source_digest(method), path)
    return adaptation


def apply(network: nn.Module, path: str | os.PathLike[str]) -> int:
    """Write learned parameters into a plain network: to predict with it as it is, or to start another method from it.

    Parameters that were attached to normalization layers are attached first. A method that takes statistics of the
    batch does so in its predictions too; give the network to method ``ptbn`` for that.

    Args:
        network: network with the source weights, which no method adapts at the time.
        path: file of the adaptation.

    Returns:
        The count of numbers that were written.

    Raises:
        GrataError: the file is missing or damaged, or the network has other weights; nothing is changed then.
    """
    adaptation = Adaptation.read(path)
    adaptation.check_source(network_digest(network), path)
    if adaptation.attached:
        attach_affine(network)
    places = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with torch.no_grad():
        for name, value in adaptation.learnt.items():
            places[name].copy_(value)
    return adaptation.parameters


def source_digest(method: Method) -> str:
    """Return the SHA-256 of the source weights of a method's network, also while it is adapted."""
    with method.source_network():
        return network_digest(method.given)


def _bytes(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    for name, value in tensors.items():
        data = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield name, str(value.dtype), tuple(value.shape), data


def _names(
    network: nn.Module, parameters: Mapping[str, torch.Tensor]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the names of each parameter in the network's state dict, and those that attached parameters would have.

    The state dict lists what several layers share several times.
    """
    places: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, value in network.state_dict().items():
        places.setdefault((value.data_ptr(), tuple(value.shape)), []).append(name)
    names: dict[str, list[str]] = {}
    attached: dict[str, list[str]] = {}
    for name, parameter in parameters.items():
        layer, _, leaf = name.rpartition(".")
        owner, _, mark = layer.rpartition(".")
        if mark == ATTACHED:
            module = network.get_submodule(owner)
            paths = [path for path, m in network.named_modules(remove_duplicate=False) if m is module]
            names[name], attached[name] = [], [f"{path}.{leaf}".lstrip(".") for path in paths]
        else:
            names[name] = places.get((parameter.data_ptr(), tuple(parameter.shape)), [name])
    return names, attached


def class_name(network: nn.Module) -> str:
    """Return the name of a network's class, also of one that has become TorchScript."""
    return str(getattr(network, "original_name", type(network).__name__))
