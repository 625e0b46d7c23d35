"""A bundle as a benchmark reads it: its network, its sites and the way from images to label maps."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, Invertd, ResampleToMatch
from torch import nn

from ..bank.header import saved_path
from ..bundles.configuration import check_keys, check_method_settings
from ..engines.earlier import first_names
from ..errors import GrataError
from ..machine import check_device
from ..methods import Method, create, settings_of
from ..predictions import ACTIVATIONS
from ..session import Session, WindowSelection, window_selection
from ..session.faults import explain
from .config import OF_ROWS, MethodRow
from .metrics import Region, make_regions

__all__ = ["Bundle", "Case", "is_random"]

Case = Mapping[str, Any]
"""A case as :func:`grata.data.discover` returns it; a case that cannot be used has a ``fault`` instead of an image."""

_REQUIRED = (
    "network",
    "discovery",
    "preprocessing",
    "inferer",
    "segments",
    "to_probabilities",
    "to_label_map",
    "weights",
)

_READ_OF_SITES = ("imports", "site", "discovery", "preprocessing", "to_probabilities", "to_label_map")
"""Configuration keys that a benchmark reads for a target site."""

_OF_METHODS = ("activation", "prepared", "reset", "affine")
"""Configuration keys that apply to every method."""

_OF_SESSIONS = ("bank", "start_from", "save_to")
"""Configuration keys that say where an adaptation is kept, and what it starts from."""

_KEPT = ("bank", "save_to")
"""Of these, each job has its own."""

_READ = {
    *(*_REQUIRED, *_OF_METHODS, *_OF_SESSIONS, "method", "settings", "seed"),
    *("windows", "amp", "keep_pages", "scored", "initialize", "adapt"),
}
"""Configuration keys that are read directly, so that no other key has to refer to them."""

_READ_OF_SOURCES = (
    *_READ_OF_SITES,
    *_REQUIRED,
    *_OF_METHODS,
    *_OF_SESSIONS,
    "device",
    "amp",
    "keep_pages",
    "windows",
    "scored",
)
"""Configuration keys that a benchmark reads for a source network; its overrides apply to its sites too."""

# A relative reference (@##key) may mean another key than the one found here: too many keys are found, never too few.
_REFERENCE = re.compile(r"[@%]#*([A-Za-z_]\w*)")


class Bundle:
    """A bundle's ``configs/adapt.yaml`` with overrides.

    Args:
        root: folder of the bundle.
        overrides: values by key, nested keys joined by ``#``.
        name: key that the overrides stand under, for messages.

    Raises:
        GrataError: there is no such file, it lacks a key that a benchmark needs, or an override names an unknown key.
    """

    def __init__(self, root: Path, overrides: Mapping[str, Any], name: str) -> None:
        self.root = Path(root)
        self.name = name
        path = self.root / "configs" / "adapt.yaml"
        if not path.is_file():
            raise GrataError(f"{path} does not exist. Name the folder of a bundle that has it.", key="bundle")
        self._parser = ConfigParser()
        self._parser.read_config(path)
        config = self._parser.get()
        missing = [key for key in _REQUIRED if key not in config]
        if missing:
            raise GrataError(f"{path} lacks {', '.join(missing)}. A benchmark needs each of them.", key="bundle")
        check_keys(config, _READ)
        self._parser["bundle_root"] = str(self.root)
        for key, value in overrides.items():
            self._override(key, value)
        check_method_settings(self._parser.get())

    def _override(self, key: str, value: Any) -> None:
        parent = key.rpartition("#")[0]
        if parent and parent not in self._parser:
            raise GrataError(f"{self.root.name} has no key {parent}.", key=f"{self.name}#{key}")
        if not parent and key not in self._parser:
            try:
                check_keys({**self._parser.get(), key: value}, _READ)
            except GrataError as error:
                raise GrataError(error.message, key=f"{self.name}#{key}") from error
        if isinstance(self._parser.get(key), bool) and not isinstance(value, bool):
            raise GrataError(f"must be true or false, got {value!r}.", key=f"{self.name}#{key}")
        self._parser[key] = value

    def refuse_idle(self, overrides: Iterable[str], of_a_site: bool) -> None:
        """Refuse overrides that would change nothing.

        Args:
            overrides: keys of overrides that this bundle was made with.
            of_a_site: whether the overrides belong to a site, else to the source network.

        Raises:
            GrataError: nothing that a benchmark reads refers to one of the keys.
        """
        known = self._referred(_READ_OF_SITES if of_a_site else _READ_OF_SOURCES)
        for key in overrides:
            head = key.split("#")[0]
            if head in known:
                continue
            if of_a_site and head in self._referred(_READ_OF_SOURCES):
                raise GrataError(
                    "has no effect on how a site is read. Set it in sources: streams cross sites with one network.",
                    key=f"{self.name}#{key}",
                )
            raise GrataError(
                "a benchmark does not read it; only the bundle's own workflow does. Leave it out.",
                key=f"{self.name}#{key}",
            )

    def _referred(self, keys: Iterable[str]) -> set[str]:
        """Return the top-level keys that these keys refer to, directly or not, with the keys themselves."""
        config = self._parser.get()
        found: set[str] = set()
        waiting = [key for key in keys if key in config]
        while waiting:
            key = waiting.pop()
            if key in found:
                continue
            found.add(key)
            waiting += {name for text in _texts(config[key]) for name in _REFERENCE.findall(text)} & set(config)
        return found

    def _resolve(self, key: str) -> Any:
        try:
            return self._parser.get_parsed_content(key)
        # A configuration can call anything, which can raise anything.
        except Exception as error:
            raise GrataError(explain(error), key=self.name) from error

    def make_network(self) -> nn.Module:
        """Return the source network with its weights."""
        return self._resolve("network")

    def make_method(self, row: MethodRow, network: nn.Module, seed: int) -> Method:
        """Return the method of a row; the row's settings take precedence over the bundle's keys for all methods.

        Args:
            row: row of the tables.
            network: source network.
            seed: seed of the method's random generator.

        Raises:
            GrataError: a setting is not known, or the method refuses it or the network; the key is that of the row.
        """
        with _under_row(row):
            return self.create_method(row, network, seed)

    def create_method(self, row: MethodRow, network: nn.Module, seed: int) -> Method:
        """Return the method of a row; errors keep the keys that :func:`grata.methods.create` gives them."""
        common = {key: self._value(key) for key in ("activation", "prepared")}
        affine = row.affine or self._value("affine") or "auto"
        return create(row.method, network, row.settings, affine, seed=seed, **common)

    def make_session(self, row: MethodRow, network: nn.Module, seed: int, job: str = "") -> Session:
        """Return a session of the method of a row, see :meth:`make_method`.

        Args:
            row: row of the tables.
            network: source network.
            seed: seed of the method's random generator.
            job: name of the job, which has its own folder in the bank and its own saved adaptation; empty: nothing is
                kept.
        """
        method = self.make_method(row, network, seed)
        bank, save_to = (Path(str(path)) / job if job and (path := self._value(key)) else None for key in _KEPT)
        with _under_row(row):
            return Session(
                method,
                self.windows,
                bank,
                self._value("start_from"),
                save_to,
                reset=self._value("reset") if row.reset is None else row.reset,
            )

    def _value(self, key: str) -> Any:
        return self._resolve(key) if key in self._parser else None

    @cached_property
    def site(self) -> str | None:
        """Name of the site that methods are told; None: the target's own."""
        return self._value("site")

    @cached_property
    def device(self) -> torch.device:
        """Device of the network."""
        try:
            return torch.device(check_device(self._resolve("device") if "device" in self._parser else "cpu"))
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
        value = self._resolve(key) if key in self._parser else False
        if not isinstance(value, bool):
            raise GrataError(f"must be true or false, got {value!r}.", key=f"{self.name}#{key}")
        return value

    @cached_property
    def inferer(self) -> Inferer:
        """Inferer that applies the network to an image."""
        return self._resolve("inferer")

    @cached_property
    def activation(self) -> str:
        """Activation of the logits, ``sigmoid`` or ``softmax``: the key ``activation``, else ``grata#activation``.

        Raises:
            GrataError: neither key is there, or its value is another.
        """
        key = "activation" if "activation" in self._parser else "grata#activation"
        activation = self._resolve(key) if key in self._parser else None
        if activation not in ACTIVATIONS:
            raise GrataError(f"must be {' or '.join(ACTIVATIONS)}, got {activation!r}.", key=f"{self.name}#activation")
        return activation

    @cached_property
    def output(self) -> str | int | None:
        """Key or index of the logits in the network's output, from the method's settings; None: the output itself."""
        key = next((key for key in ("settings#output", "grata#output") if key in self._parser), None)
        return None if key is None else self._resolve(key)

    @cached_property
    def windows(self) -> WindowSelection:
        """Selection of the windows of a large volume that methods adapt to."""
        return window_selection(self._resolve("windows") if "windows" in self._parser else None)

    @cached_property
    def regions(self) -> list[Region]:
        """Regions of the segments."""
        return make_regions(self._resolve("segments"))

    @cached_property
    def scored(self) -> list[str] | None:
        """Labels in the bundle's key ``scored``; None: it has none.

        Raises:
            GrataError: the value is not a list of names.
        """
        labels = self._resolve("scored") if "scored" in self._parser else None
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
        given = [self._resolve(key) for key in ("dataset_dir", "labels_dir") if key in self._parser]
        roots = [os.path.abspath(Path(folder).expanduser()) for folder in given if isinstance(folder, str | Path)]
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
        return self._resolve("preprocessing")

    def cases(self, limit: int | None, labelled: bool = True, stride: int = 1) -> list[dict[str, Any]]:
        """Return the first cases of the site, sorted by id, with those that cannot be used.

        Args:
            limit: maximum number of cases; None: all.
            labelled: whether a site without any label is refused.
            stride: step between the cases, from the first on.

        Raises:
            GrataError: the folder cannot be read, or no case has a label.
        """
        discovery = self._resolve("discovery")
        faults = [{"case": fault.case, "fault": fault.message} for fault in discovery.faults]
        cases = sorted([*map(dict, discovery.cases), *faults], key=lambda case: case["case"])[::stride][:limit]
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

    def postprocess(self, image: Mapping[str, Any], logits: torch.Tensor, space: str) -> tuple[np.ndarray, np.ndarray]:
        """Return label map ``(H, W[, D])`` and probabilities ``(C, H, W[, D])`` of a prediction.

        Args:
            image: result of :meth:`read_image`.
            logits: output of the network, ``(C, H, W[, D])``.
            space: ``input`` or ``network``.
        """
        transforms = self._resolve("to_probabilities")
        if space == "network":
            transforms = Compose([t for t in transforms.flatten().transforms if not isinstance(t, Invertd)])
        item = transforms({**image, "pred": logits})
        probabilities = _array(item["pred"]).astype(np.float32)
        labels = _array(self._resolve("to_label_map")(item)["pred"])
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

    def fingerprint(self) -> dict[str, Any]:
        """Return what results depend on: the configuration with its overrides, and digests of the weights."""
        weights = self._resolve("weights")
        digests = []
        for path in map(Path, [weights] if isinstance(weights, str | Path) else weights):
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        apart = {*_WHERE, *_OF_METHODS}
        config = {key: value for key, value in self._parser.get().items() if key not in apart}
        return {"weights": digests, "config": first_names(config)}

    def method_fingerprint(self, row: MethodRow) -> dict[str, Any]:
        """Return what a row's method depends on beside the network: its settings, and a digest of the prepared file."""
        known = settings_of(row.method)
        of_methods = [key for key in ("activation", "prepared") if key in self._parser and key in known]
        common: dict[str, Any] = {key: self._resolve(key) for key in of_methods}
        # As long as it was one, a policy stood among the settings of the methods that have an activation.
        digest, settings = _digest(common.pop("prepared", None)), dict(row.settings)
        if "activation" in known:
            settings |= {} if row.reset is None else {"reset": row.reset}
            common |= {"reset": self._value("reset")} if "reset" in self._parser else {}
        found = {"method": row.method, **common, "settings": settings, "prepared": digest}
        # Digests on the disk hold what is not at its default alone.
        if (affine := row.affine or self._value("affine") or "auto") != "auto":
            found["affine"] = affine
        if (start_from := self._value("start_from")) is not None:
            found["start_from"] = _digest(saved_path(start_from))
        return found


# Keys without influence on a result: where files lie, and what only the command `adapt` reads.
_WHERE = {
    "bundle_root",
    "weights",
    "dataset_dir",
    "labels_dir",
    "cases_file",
    "keep_pages",
    "output_dir",
    "num_workers",
    "resume",
    "overwrite",
    "compare",
    "traceback",
    "dataset",
    "dataloader",
    "adaptation",
    "outputs",
    "handlers",
    "evaluator",
    "adaptation_run",
    "initialize",
    "adapt",
    "method",
    "seed",
    "settings",
}


def is_random(row: MethodRow) -> bool:
    """Return whether a row's method has a random generator."""
    return "seed" in settings_of(row.method)


def _digest(file: Any) -> str | None:
    """Return the SHA-256 of a file; None where there is none."""
    path = Path(file) if isinstance(file, str | Path) else None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else None


@contextlib.contextmanager
def _under_row(row: MethodRow) -> Iterator[None]:
    """Name the row in errors of its method and its session."""
    try:
        yield
    except GrataError as error:
        where, key = f"methods#{row.name}", error.key or ""
        if error.head == "settings":
            raise GrataError(error.message, f"{where}{key.removeprefix('settings')}") from error
        if getattr(row, error.head, None) is not None and error.head in OF_ROWS:
            raise GrataError(error.message, f"{where}#{key}") from error
        raise GrataError(str(error), where) from error


def _texts(config: Any) -> Iterator[str]:
    """Yield all strings in a value of a configuration."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, Mapping | list | tuple):
        for value in config.values() if isinstance(config, Mapping) else config:
            yield from _texts(value)


def _array(tensor: torch.Tensor) -> np.ndarray:
    plain = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    return plain.detach().cpu().numpy()
