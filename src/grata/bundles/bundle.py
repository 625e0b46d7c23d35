"""A bundle of this project's layout: its network, its sites, and the way from images to label maps."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, Invertd, ResampleToMatch
from torch import nn

from ..data import Discovery
from ..errors import GrataError
from ..files import absence, expanded
from ..machine import check_device
from ..predictions import ACTIVATIONS
from ..session import WindowSelection, window_selection
from .configuration import check_keys, check_method_settings
from .groups import Groups, every_group
from .paths import as_given, keep_texts, verbatim
from .reader import Configuration, parser_of
from .regions import Region, make_regions

__all__ = ["REQUIRED", "Bundle", "Case"]

Case = Mapping[str, Any]
"""A case as :func:`grata.data.discover` returns it; a case that cannot be used has a ``fault`` instead of an image."""

REQUIRED = (
    *("network", "discovery", "preprocessing", "inferer", "segments", "to_probabilities", "to_label_map", "weights"),
)
"""Configuration keys that a bundle of this project must have."""

_READ = {
    *(*REQUIRED, "activation", "prepared", "reset", "affine", "bank", "start_from", "save_to"),
    *("guard", "on_reject", "quality"),
    *("method", "settings", "seed", "windows", "amp", "keep_pages", "scored", "initialize", "adapt"),
}
"""Configuration keys that are read directly, so that no other key has to refer to them."""


class Bundle(Configuration):
    """A bundle's ``configs/adapt.yaml`` with overrides.

    Args:
        root: folder of the bundle.
        overrides: values by key, nested keys joined by ``#``.
        name: key that the overrides stand under, for messages.

    Raises:
        GrataError: there is no such file, it is wrong or lacks a key that is needed, or an override names an unknown
            key.
    """

    root: Path

    def __init__(self, root: Path, overrides: Mapping[str, Any], name: str) -> None:
        root = expanded(root)
        path = root / "configs" / "adapt.yaml"
        if not path.is_file():
            missing = root if root.is_symlink() else path
            raise GrataError(f"{missing} {absence(missing)}. Name the folder of a bundle that has it.", key="bundle")
        parser = parser_of([path], "bundle")
        super().__init__(parser, root, name, path)
        lacking = [key for key in REQUIRED if key not in self.raw()]
        if lacking:
            raise GrataError(f"{path} lacks {', '.join(lacking)}. A benchmark needs each of them.", key="bundle")
        check_keys(self.raw(), _READ)
        parser["bundle_root"] = verbatim(str(self.root))
        for key, value in overrides.items():
            self._override(key, value)
        keep_texts(parser)
        check_method_settings(self.raw())

    def _override(self, key: str, value: Any) -> None:
        parent = key.rpartition("#")[0]
        if parent and parent not in self:
            raise GrataError(f"{self.root.name} has no key {parent}.", key=f"{self.name}#{key}")
        if not parent and key not in self:
            try:
                check_keys({**self.raw(), key: value}, _READ)
            except GrataError as error:
                raise GrataError(error.message, key=f"{self.name}#{key}") from error
        # a guard is switched, or given its settings
        if isinstance(self.raw(key), bool) and not isinstance(value, bool) and key != "guard":
            raise GrataError(f"must be true or false, got {value!r}.", key=f"{self.name}#{key}")
        self.parser[key] = as_given(key, value)

    def make_network(self) -> nn.Module:
        """Return the source network with its weights."""
        return self.resolve("network")

    @cached_property
    def site(self) -> str | None:
        """Name of the site that methods are told; None: the target's own."""
        return self.value("site")

    @cached_property
    def device(self) -> torch.device:
        """Device of the network."""
        try:
            return torch.device(check_device(self.value("device", "cpu")))
        except GrataError as error:
            raise error.under(self.name) from error

    @cached_property
    def amp(self) -> bool:
        """Whether inference runs in CUDA's mixed precision."""
        return self._flag("amp")

    @cached_property
    def keeps_pages(self) -> bool:
        """Whether the allocator keeps freed memory, see :func:`grata.machine.keep_pages`."""
        return self._flag("keep_pages")

    def _flag(self, key: str) -> bool:
        value = self.value(key, False)
        if not isinstance(value, bool):
            raise GrataError(f"must be true or false, got {value!r}.", key=f"{self.name}#{key}")
        return value

    @cached_property
    def inferer(self) -> Inferer:
        """Inferer that applies the network to an image."""
        return self.resolve("inferer")

    @cached_property
    def activation(self) -> str:
        """Activation of the logits, ``sigmoid`` or ``softmax``: the key ``activation``, else ``grata#activation``.

        Raises:
            GrataError: neither key is there, or its value is another.
        """
        key = "activation" if "activation" in self else "grata#activation"
        activation = self.value(key)
        if activation not in ACTIVATIONS:
            raise GrataError(f"must be {' or '.join(ACTIVATIONS)}, got {activation!r}.", key=f"{self.name}#activation")
        return activation

    @cached_property
    def output(self) -> str | int | None:
        """Key or index of the logits in the network's output, from the method's settings; None: the output itself."""
        key = next((key for key in ("settings#output", "grata#output") if key in self), None)
        return None if key is None else self.resolve(key)

    @cached_property
    def windows(self) -> WindowSelection:
        """Selection of the windows of a large volume that methods adapt to."""
        return window_selection(self.value("windows"))

    @cached_property
    def regions(self) -> list[Region]:
        """Regions of the segments."""
        return make_regions(self.resolve("segments"))

    @cached_property
    def scored(self) -> list[str] | None:
        """Labels in the bundle's key ``scored``; None: it has none.

        Raises:
            GrataError: the value is not a list of names.
        """
        labels = self.value("scored")
        if labels is not None and (
            not isinstance(labels, list | tuple) or not labels or any(not isinstance(label, str) for label in labels)
        ):
            raise GrataError(f"must be a list of labels of its segments or null, got {labels!r}.", key="bundle#scored")
        return labels if labels is None else list(labels)

    def without_folders(self, text: str, case: Case) -> str:
        """Return a message without the folders of a case, so that results can be shared.

        Args:
            text: one line.
            case: case whose files the message may name.
        """
        given = [self.resolve(key) for key in ("dataset_dir", "labels_dir") if key in self]
        roots = [os.path.abspath(expanded(folder)) for folder in given if isinstance(folder, str | Path)]
        files = [case.get("label"), *(image if isinstance(image := case.get("image"), list | tuple) else [image])]
        # The files' own folders come last, so that paths inside the site's folder keep their inner part.
        roots += dict.fromkeys(os.path.dirname(os.path.abspath(path)) for path in files if path is not None)
        for root in (root for root in roots if os.path.basename(root)):
            text = re.sub(rf"(?<![\w.-]){re.escape(root + os.sep)}", "", text)
            # The folder itself; a function, since a plain replacement would read its backslashes as escapes.
            text = re.sub(rf"(?<![\w.-]){re.escape(root)}(?![\w.-])", lambda found: os.path.basename(found[0]), text)
        return text

    @cached_property
    def _preprocessing(self) -> Compose:
        return self.resolve("preprocessing")

    def cases(
        self, limit: int | None, labelled: bool = True, stride: int = 1, groups: Groups | None = None
    ) -> list[dict[str, Any]]:
        """Return the first cases of the site, sorted by id, with those that cannot be used.

        Args:
            limit: maximum number of cases; None: all.
            labelled: whether a site without any label is refused.
            stride: step between the cases, or between their groups, from the first on.
            groups: what gives the group of a case, such as its patient.

        Raises:
            GrataError: ``discovery`` is something else, the folder cannot be read, or no case has a label.
        """
        discovery = self.resolve("discovery")
        if not isinstance(discovery, Discovery):
            raise GrataError(
                f"must be what grata.data.discover returns, got a {type(discovery).__name__}. Name it by _target_.",
                key=f"{self.name}#discovery",
            )
        faults = [{"case": fault.case, "fault": fault.message} for fault in discovery.faults]
        cases = sorted([*map(dict, discovery.cases), *faults], key=lambda case: case["case"])
        cases = every_group(cases, stride, groups)[:limit]
        if labelled and not any("label" in case for case in cases):
            raise GrataError("no image has a label. Name their folder by labels_dir.", key=self.name)
        return cases

    def read_image(self, case: Case) -> dict[str, Any]:
        """Return the preprocessed image; the transforms do not get the name of the label."""
        return self._preprocessing({key: value for key, value in case.items() if key != "label"})

    def read_label(self, case: Case, image: Mapping[str, Any], space: str) -> np.ndarray:
        """Return the label map ``(H, W[, D])`` of a case.

        Args:
            case: case with a ``label``.
            image: result of :meth:`read_image` for the case.
            space: ``input`` or ``network``, see :class:`~grata.benchmark.keys.MetricSettings`.
        """
        # Together with its image, because a transform may need the one to process the other.
        label = self._preprocessing(dict(case))["label"]
        if space == "network":
            label = ResampleToMatch(mode="nearest", dtype=np.float32)(MetaTensor(label), img_dst=image["image"])
        return _array(label)[0].round().astype(np.int16)

    def read_masks(self, case: Case, image: Mapping[str, Any]) -> torch.Tensor:
        """Return the label of a case as masks ``(K, ...)`` of 0 and 1 on the network's grid, one for each region.

        Args:
            case: case with a ``label``.
            image: result of :meth:`read_image` for the case.
        """
        values = self.read_label(case, image, "network")
        return torch.as_tensor(np.stack([np.isin(values, region.values) for region in self.regions]).astype(np.float32))

    def written(self, image: Mapping[str, Any]) -> torch.Tensor:
        """Return which part of a prediction is written, as a mask ``(1, ...)`` of the network's grid.

        What a bundle pads is taken away again: nobody sees what a network says of it.

        Args:
            image: result of :meth:`read_image`.
        """
        everything = torch.ones_like(torch.as_tensor(image["image"])[:1])
        inverse = [t for t in self.resolve("to_probabilities").flatten().transforms if isinstance(t, Invertd)]
        if not inverse:
            return everything > 0
        item = Compose(inverse)({**image, "pred": everything})
        back = ResampleToMatch(mode="nearest", padding_mode="zeros", dtype=np.float32)
        return torch.as_tensor(_array(back(MetaTensor(item["pred"]), img_dst=image["image"])) > 0.5)

    def postprocess(self, image: Mapping[str, Any], logits: torch.Tensor, space: str) -> tuple[np.ndarray, np.ndarray]:
        """Return label map ``(H, W[, D])`` and probabilities ``(C, H, W[, D])`` of a prediction.

        Args:
            image: result of :meth:`read_image`.
            logits: output of the network, ``(C, H, W[, D])``.
            space: ``input`` or ``network``.
        """
        transforms = self.resolve("to_probabilities")
        if space == "network":
            transforms = Compose([t for t in transforms.flatten().transforms if not isinstance(t, Invertd)])
        item = transforms({**image, "pred": logits})
        probabilities = _array(item["pred"]).astype(np.float32)
        labels = _array(self.resolve("to_label_map")(item)["pred"])
        return labels[0].round().astype(np.uint8), probabilities

    def spacing(self, case: Case, image: Mapping[str, Any], space: str) -> list[float]:
        """Return the distance between neighbouring pixels along each axis, in mm; 1 for pictures.

        Args:
            case: case of a site.
            image: result of :meth:`read_image` for the case.
            space: ``input`` or ``network``.
        """
        tensor = image["image"]
        dims = tensor.ndim - 1
        if case["format"] == "picture":
            return [1.0] * dims
        affine = np.asarray(tensor.affine if space == "network" else tensor.meta["original_affine"], dtype=float)
        return np.linalg.norm(affine[:-1, :-1], axis=0)[:dims].tolist()

    def picture(self, image: Mapping[str, Any], space: str) -> np.ndarray | None:
        """Return the image ``(C, H, W[, D])`` on the grid of the scores; None if the bundle keeps no ``original``."""
        tensor = image.get("original") if space == "input" else image["image"]
        return None if tensor is None else _array(tensor).astype(np.float32)


def _array(tensor: torch.Tensor) -> np.ndarray:
    plain = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    return plain.detach().cpu().numpy()
