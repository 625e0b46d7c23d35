"""Values that methods need beyond images, taken from the source set once and kept in one small file of the bundle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import nn

from ..errors import GrataError
from ..files import absence, atomic_write, expanded
from ..networks import SavedHeads
from ..networks.parameters import has_digest
from ..tensors import content_digest, contents, unpack

__all__ = ["Prepared", "require", "without_command"]

_HEADER = "grata_prepared"
_FORMAT = 1
_STATISTICS = ("class_sizes", "centroid", "spread")

_WORDS = {
    "class_sizes": "the class sizes of the source set",
    "centroid": "the centroids of the source set's labels",
    "spread": "the spreads of the source set's labels",
    "fisher": "the Fisher information of the source set",
    "rotation": "a rotation head trained on the source set",
    "denoising": "a denoising head trained on the source set",
}
_PREPARE = (
    "run `python -m grata prepare <bundle> --dataset_dir <source images>`, which writes models/prepared.safetensors of "
    "a bundle with a configs/adapt.yaml, and give that file as `prepared`."
)
_NOT_PREPARED = "`grata prepare` makes this only for bundles with a configs/adapt.yaml, so choose another method."


@dataclass(frozen=True)
class Prepared:
    """Everything that was prepared from the source set; what was not prepared is None or empty.

    Attributes:
        class_sizes: mean share of each output channel's foreground in one image or window, ``(C,)``. With softmax the
            shares add up to 1, with sigmoid they are independent.
        centroid: mean centre of mass of each channel's foreground along each axis, ``(C, spatial dims)``, from 0 to 1
            (the first of n pixels lies at 0.5/n).
        spread: mean standard deviation around the centroid, ``(C, spatial dims)`` in the same unit (Bateson et al.
            2022).
        fisher: diagonal Fisher information of the affine parameters of normalization layers, by the parameter's name:
            mean over images of the squared gradient of the cross-entropy to the network's own hard labels (EATA, Niu et
            al. 2022). Parameters that the prediction does not depend on are not in it.
        heads: auxiliary heads.
        images: number of images that everything was taken from.
        network: name of the network's class.
        digest: digest of the network's weights, see :func:`grata.networks.network_digest`.
        version: version of this package.
        results: losses of each head, and its accuracy on images held out, by head.
        image_statistics: how each channel's mean and variance vary between source images, see
            :class:`grata.normalization.ImageSpread`.
    """

    class_sizes: torch.Tensor | None = None
    centroid: torch.Tensor | None = None
    spread: torch.Tensor | None = None
    fisher: Mapping[str, torch.Tensor] = field(default_factory=dict)
    heads: SavedHeads | None = None
    images: int = 0
    network: str = ""
    digest: str = ""
    version: str = field(default_factory=lambda: version("grata"))
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    image_statistics: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, completely or not at all.

        Args:
            path: file to write, usually ``prepared.safetensors``, in a folder that exists.

        Raises:
            GrataError: the file cannot be written.
        """
        tensors = {name: value for name in _STATISTICS if (value := getattr(self, name)) is not None}
        tensors |= {f"fisher/{name}": value for name, value in self.fisher.items()}
        tensors |= {f"image_statistics/{name}": value for name, value in self.image_statistics.items()}
        header: dict[str, Any] = {
            "format": _FORMAT,
            "images": self.images,
            "network": self.network,
            "digest": self.digest,
            "version": self.version,
            "results": self.results,
        }
        if self.heads is not None:
            tensors |= {f"heads/{name}": value for name, value in self.heads.state.items()}
            header["heads"] = {key: value for key, value in vars(self.heads).items() if key != "state"}
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        # of the header as it is read
        header = json.loads(json.dumps(header))
        header["content"] = content_digest(header, contents(serialize(tensors)))
        data = serialize(tensors, {_HEADER: json.dumps(header, sort_keys=True)})
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Prepared:
        """Read a file that :meth:`save` wrote; the tensors are on the CPU. Older files have no checksum.

        Raises:
            GrataError: the file is missing, damaged, or of another kind.
        """
        path = expanded(path)
        if not path.is_file():
            raise GrataError(
                f"{path} {absence(path)}. "
                "Write it with python -m grata prepare <bundle> --dataset_dir <source images>.",
                key="prepared",
            )
        try:
            data = path.read_bytes()
            header, written = unpack(data, _HEADER)
            tensors = deserialize(data)
        except (SafetensorError, OSError, ValueError, LookupError) as error:
            raise GrataError(
                f"{path} cannot be read ({error}). Copy it again, or write it with python -m grata prepare.",
                key="prepared",
            ) from error
        if written is False:
            raise GrataError(
                f"{path} is damaged: its content is not what was written. Copy it again, or write it with python -m "
                "grata prepare.",
                key="prepared",
            )
        if header.get("format") != _FORMAT:
            raise GrataError(
                f"{path} was not written by this version's python -m grata prepare. Write it again with that command.",
                key="prepared",
            )
        try:
            return cls._from(header, tensors)
        except (KeyError, TypeError) as error:
            raise GrataError(
                f"{path} is incomplete ({error}). Write it again with python -m grata prepare.", key="prepared"
            ) from error

    @classmethod
    def _from(cls, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Prepared:
        heads = header.get("heads")
        if heads:
            lists = {"names": tuple(heads["names"]), "views": tuple(heads["views"])}
            heads = SavedHeads(**{**heads, **lists}, state=_under("heads/", tensors))
        return cls(
            class_sizes=tensors.get("class_sizes"),
            centroid=tensors.get("centroid"),
            spread=tensors.get("spread"),
            fisher=_under("fisher/", tensors),
            image_statistics=_under("image_statistics/", tensors),
            heads=heads,
            images=header["images"],
            network=header["network"],
            digest=header["digest"],
            version=header["version"],
            results=header["results"],
        )

    def check_network(self, network: nn.Module) -> None:
        """Check that this was prepared for a network.

        Args:
            network: source network as it was given, before any adaptation.

        Raises:
            GrataError: the network has other weights.
        """
        if not has_digest(network, self.digest):
            raise GrataError(
                f"was prepared for other weights (of a {self.network}) than this network has. Run python "
                "-m grata prepare <bundle> --dataset_dir <source images> with the weights that are to be adapted.",
                key="prepared",
            )


def require(prepared: Prepared | None, what: str, method: str) -> Any:
    """Return a prepared value that a method needs.

    Args:
        prepared: prepared values; None: there are none.
        what: ``class_sizes``, ``centroid``, ``spread``, ``fisher``, or a head: ``rotation``, ``denoising``.
        method: name of the method, for the message.

    Returns:
        The value of that name; for a head all heads, as :class:`~grata.networks.SavedHeads`.

    Raises:
        GrataError: the value was not prepared.
    """
    found: Any = None
    if prepared is not None and what in (*_STATISTICS, "fisher"):
        found = getattr(prepared, what)
    elif prepared is not None and prepared.heads is not None and what in prepared.heads.names:
        found = prepared.heads
    if found is None or (isinstance(found, Mapping) and not found):
        raise GrataError(f"method {method} needs {_WORDS[what]}: {_PREPARE}")
    return found


def without_command(message: str) -> str:
    """Return the message of :func:`require` for a model that ``grata prepare`` cannot read; any other one as it is."""
    return message.replace(_PREPARE, _NOT_PREPARED)


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
