"""The command ``python -m grata prepare``: from a bundle and its source set to one small file.

It reads bundles, images and label maps as a benchmark does.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..bundles.bundle import Bundle, Case
from ..bundles.groups import Groups, every_group, optional_groups
from ..bundles.paths import verbatim
from ..checks import checked, did_you_mean
from ..console import say, say_beside_bar
from ..errors import GrataError
from ..files import check_output_dir, expanded, locked, remove_leftovers
from ..methods import Prepared
from ..methods.predictive import logits_in
from ..networks import HEADS, SavedHeads, network_digest
from ..normalization import BatchStatistics, ImageSpread, ScriptedNetwork, collect_affine_parameters
from ..predictions import activate
from ..session.faults import explain, quiet
from .fisher import squared_gradient
from .moments import ShapeMoments, channel_masks
from .training import train_heads
from .windows import check_inferer, foreground_windows

__all__ = ["check_not_there", "output_file", "prepare", "writing"]

_KEEP = "keep"

_LEAST_OVER_CHANCE = 1.5
"""Accuracy of a rotation head that has learned something, in parts of that of guessing."""


def prepare(
    bundle: str | Path,
    dataset_dir: str | Path,
    labels_dir: str | Path | None = None,
    output: str | Path | None = None,
    images: int | None = None,
    val_stride: int = 0,
    groups: str | None = None,
    heads: str | Sequence[str] | None = HEADS,
    epochs: int = 20,
    seed: int = 0,
    overwrite: bool | None = None,
    **overrides: Any,
) -> int:
    """Take what methods need beyond images from the source set, and write it to one file.

    What cannot be prepared, such as class sizes without labels, is reported and left out. Images are kept in memory.

    Args:
        bundle: folder of the bundle.
        dataset_dir: folder of the source set's images, not of a target site's.
        labels_dir: folder of the label maps, if they are not found beside the images.
        output: file to write, relative to the bundle; None: the one that the key ``prepared`` of ``configs/adapt.yaml``
            names, or ``models/prepared.safetensors``.
        images: maximum number of images, evenly spaced over the sorted cases; None: all.
        val_stride: step between the sorted cases, from the first on, that were held out of the network's training and
            are left out here too, as ``val_stride`` in ``configs/train.yaml``; 0: none.
        groups: what tells which cases belong together, such as those of one patient, see
            :func:`grata.bundles.groups.make_groups`: the step is one between groups then; None: each is by itself.
        heads: names of the auxiliary heads to train, ``rotation`` and ``denoising``, as a list or separated by commas;
            ``none``; or ``keep``: those of the present file, which is replaced.
        epochs: number of epochs of the heads' training.
        seed: seed of the heads' training.
        overwrite: whether to replace a file that is there already; None: it is replaced, with a warning. From the next
            release on that is refused.
        overrides: values for keys of ``configs/adapt.yaml``, nested keys joined by ``#``.

    Returns:
        0 if every image was used, 1 if one could not be used: it is reported, and the file is made from the others.

    Raises:
        GrataError: the bundle, an argument or the folder is refused, the file is there already, or no image could be
            used.
    """
    quiet()
    keep = heads == _KEEP
    names = () if keep else _head_names(heads)
    images = None if images is None else _whole("images", images, 1)
    val_stride, epochs, seed = _whole("val_stride", val_stride, 0), _whole("epochs", epochs, 1), _whole("seed", seed, 0)
    of_groups = checked(optional_groups, groups, "groups")
    opened = _opened(Path(bundle), {**given_folders(dataset_dir, labels_dir), **overrides}, prepare)
    path = output_file(opened, output, "prepared", "models/prepared.safetensors")
    check_not_there(path, overwrite is not False)
    with writing(path):
        cases = _evenly(_trained_with(opened.cases(None, labelled=False), val_stride, of_groups), images)
        if not cases:
            raise GrataError(
                f"{val_stride} leaves no image. Give the value from the network's training, or 0.", key="val_stride"
            )
        if path.exists() and overwrite is None:
            say(f"note: {path} is replaced. From the next release on this needs --overwrite true.", sys.stderr)
        preparation = _Preparation(opened)
        kept = Prepared.load(path) if keep else None
        if kept is not None:
            kept.check_network(preparation.network)
        faults = _added(preparation, opened, cases)
        prepared = preparation.finish(names, epochs, seed)
        if kept is not None:
            prepared = replace(prepared, heads=kept.heads, results=kept.results)
        prepared.save(path)
        _report(prepared, path, len(cases), preparation.remarks, faults)
        return 1 if faults else 0


def _added(preparation: _Preparation, opened: Bundle, cases: Sequence[Case]) -> list[str]:
    """Add all images that can be used, and return what was wrong with the others.

    Raises:
        GrataError: none could be used.
    """
    faults = []
    for case in tqdm(cases, desc="prepare", unit="image"):
        # One unreadable image must not end the run, and a configuration can call anything that can raise anything.
        try:
            preparation.add(case)
        except Exception as error:  # noqa: BLE001
            faults.append(f"{case['case']}: {opened.without_folders(explain(error), case)}")
            say_beside_bar(faults[-1])
    if not preparation.images:
        raise GrataError(f"none of the {len(cases)} images could be used. The first: {faults[0]}", key="dataset_dir")
    return faults


def check_not_there(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file.

    Raises:
        GrataError: it exists, and ``overwrite`` is false.
    """
    if path.exists() and not overwrite:
        raise GrataError(
            f"{path} exists. Add --overwrite true to replace it, or name another file by --output.", key="output"
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let no other run write a file for a ``with`` block, and remove what a killed one left of it.

    Raises:
        OutputError: its folder cannot be written, or another run is writing it.
    """
    check_output_dir(path.parent)
    with locked(path, key="output"):
        remove_leftovers(path.parent, path.name.__eq__)
        yield


def _trained_with(cases: list[dict[str, Any]], val_stride: int, groups: Groups | None) -> list[dict[str, Any]]:
    """Return the cases that were not held out."""
    held_out = [case["case"] for case in every_group(cases, val_stride, groups)] if val_stride else []
    return [case for case in cases if case["case"] not in held_out]


def given_folders(dataset_dir: str | Path, labels_dir: str | Path | None) -> dict[str, Any]:
    """Return the folders of the source set as overrides of a bundle's configuration, in which no name is code."""
    given = {"dataset_dir": dataset_dir, "labels_dir": labels_dir}
    return {key: verbatim(path) if isinstance(path, str) else path for key, path in given.items() if path is not None}


def _opened(root: Path, overrides: Mapping[str, Any], command: Callable[..., int]) -> Bundle:
    try:
        return Bundle(root, overrides, command.__name__)
    except GrataError as error:
        if error.head != command.__name__:
            raise
        key = str(error.key).partition("#")[2]
        options = [name for name in inspect.signature(command).parameters if name not in ("bundle", "overrides")]
        hint = did_you_mean(key, options, prefix="--") if key not in options else ""
        raise GrataError(f"{error.message} {hint}".strip(), f"--{key}") from error


def output_file(opened: Bundle, output: str | Path | None, key: str, default: str) -> Path:
    """Return the file to write: the given one, or the one that the bundle reads by this key, or the default."""
    named = opened.value(key) if output is None else None
    if named:
        path = expanded(str(named))
        # Most bundles join it to their folder by themselves.
        return path if path.resolve().is_relative_to(opened.root.resolve()) else opened.root / path
    return opened.root / expanded(str(output or default))


def _report(prepared: Prepared, path: Path, cases: int, remarks: Sequence[str], faults: Sequence[str]) -> None:
    for name, reached in prepared.results.items():
        accuracy = f", accuracy {reached['accuracy']:.3f} on images held out" if "accuracy" in reached else ""
        say(f"  {name} head: loss {reached['first_loss']:.4f} to {reached['last_loss']:.4f}{accuracy}")
        if not _has_learned(prepared, reached):
            say(
                f"  The {name} head has learned nothing, and a method that follows it goes astray. Give it more images "
                "or --epochs."
            )
    for remark in remarks:
        say(f"  {remark}")
    say(f"Prepared from {prepared.images} of {cases} images: {path} ({path.stat().st_size / 1e6:.2f} MB)")
    for fault in faults:
        say(f"  {fault}")


def _has_learned(prepared: Prepared, reached: Mapping[str, float]) -> bool:
    """Return whether a head does better than before its training, and clearly better than guessing a view."""
    heads = prepared.heads
    if heads is not None and "accuracy" in reached and reached["accuracy"] <= _LEAST_OVER_CHANCE / len(heads.views):
        return False
    return reached["last_loss"] < reached["first_loss"]


class _Preparation:
    """Collects what images give, one after the other, and makes one :class:`~grata.methods.Prepared` from it."""

    def __init__(self, bundle: Bundle) -> None:
        self.remarks: list[str] = []
        self.images: list[torch.Tensor] = []
        self._bundle = bundle
        self._moments = ShapeMoments()
        self._fisher: dict[str, torch.Tensor] = {}
        self._activation, self._inferer, self._regions = bundle.activation, bundle.inferer, bundle.regions
        check_inferer(self._inferer)
        # A network draws its first weights from the global generator, which is restored.
        with torch.random.fork_rng(devices=[]):
            self._given = bundle.make_network().eval()
        for parameter in self._given.parameters():
            parameter.requires_grad_(False)
        self._network = ScriptedNetwork(self._given) if isinstance(self._given, torch.jit.ScriptModule) else self._given
        self._statistics = BatchStatistics(self._network, 1.0)
        self._parameters: dict[str, nn.Parameter] = {}
        try:
            self._parameters = collect_affine_parameters(self._given)
        except GrataError as error:
            self.remarks.append(f"Fisher information left out: {error}")
        self._spread: ImageSpread | None = None
        try:
            self._spread = ImageSpread(self._network)
        except GrataError as error:
            self.remarks.append(f"Statistics of images left out: {error}")

    @property
    def network(self) -> nn.Module:
        """The source network as it is."""
        return self._given

    def add(self, case: Case) -> None:
        """Add one image completely, or not at all.

        Raises:
            GrataError: the image cannot be used.
        """
        if "fault" in case:
            raise GrataError(case["fault"])
        item = self._bundle.read_image(case)
        tensor = item["image"]
        image = (tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor)[None].to(self._bundle.device)
        if not torch.isfinite(image).all():
            raise GrataError("The image holds NaN or infinite values.")
        labelled = "label" in case
        if labelled:
            label = torch.as_tensor(self._bundle.read_label(case, item, "network"))[None, None].to(image)
        else:
            label = self._predicted_foreground(image)
        windows, labels = foreground_windows(image, label, self._inferer)
        squares, channels = self._forward(windows)
        if self._spread is not None:
            # all windows of a volume, also those of air, because the network predicts these too
            with torch.no_grad(), self._spread.watching():
                self._inferer(image, self._logits)
        if labelled:
            self._moments.add(channel_masks(labels, channels, self._activation, self._regions))
        for name, square in squares.items():
            self._fisher[name] = self._fisher[name] + square if name in self._fisher else square
        self.images.append(windows.cpu())

    def finish(self, heads: Sequence[str], epochs: int, seed: int) -> Prepared:
        """Train the heads, and return everything that was prepared."""
        sizes = moments = None
        unlabelled = len(self.images) - self._moments.images
        if self._moments.images:
            sizes, moments = self._moments.class_sizes(), self._moments.moments()
            if moments is None:
                self.remarks.append("Centroid and spread left out: no label map holds one of the segments.")
            if unlabelled:
                self.remarks.append(f"{unlabelled} images have no label: class sizes and moments come from the others.")
        else:
            self.remarks.append(
                "Class sizes, centroid and spread left out: no image has a label. Name their folder by labels_dir."
            )
        trained, results = self._train(heads, epochs, seed)
        return Prepared(
            class_sizes=sizes,
            centroid=None if moments is None else moments[0],
            spread=None if moments is None else moments[1],
            fisher={name: total / len(self.images) for name, total in self._fisher.items()},
            image_statistics={} if self._spread is None else self._spread.collected(),
            heads=trained,
            images=len(self.images),
            network=getattr(self._given, "original_name", type(self._given).__name__),
            digest=network_digest(self._given),
            results=results,
        )

    def _train(
        self, heads: Sequence[str], epochs: int, seed: int
    ) -> tuple[SavedHeads | None, Mapping[str, Mapping[str, float]]]:
        if not heads:
            return None, {}
        self._statistics.attach()
        try:
            return train_heads(self._given, self.images, heads, epochs, seed, self._bundle.device)
        except GrataError as error:
            self.remarks.append(f"Heads left out: {error}")
            return None, {}
        finally:
            self._statistics.detach()

    def _forward(self, windows: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
        """Return the image's part of the Fisher information, and the number of the network's channels."""
        channels = 0

        def logits(x: torch.Tensor) -> torch.Tensor:
            nonlocal channels
            result = self._logits(x)
            channels = result.shape[1]
            return result

        self._statistics.attach()
        try:
            if not self._parameters:
                with torch.no_grad():
                    logits(windows[:1])
                return {}, channels
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)
            return squared_gradient(logits, windows, self._parameters, self._activation), channels
        finally:
            for parameter in self._parameters.values():
                parameter.requires_grad_(False)
            self._statistics.detach()

    def _predicted_foreground(self, image: torch.Tensor) -> torch.Tensor:
        """Return the foreground ``(1, 1, ...)`` that the source network predicts on its own site."""
        with torch.no_grad():
            probabilities = activate(self._inferer(image, self._logits).float(), self._activation)
        if self._activation == "softmax":
            return (probabilities.argmax(1, keepdim=True) > 0).to(image)
        return (probabilities > 0.5).any(1, keepdim=True).to(image)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return logits_in(self._network(x), self._bundle.output).float()


def _head_names(heads: str | Sequence[str] | None) -> tuple[str, ...]:
    # The command line turns names separated by commas into a tuple.
    names = heads.split(",") if isinstance(heads, str) else heads or ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise GrataError(f"must be {', '.join(HEADS)} or none, got {heads!r}.", key="heads")
    names = tuple(dict.fromkeys(name.strip() for name in names))
    if names == ("none",):
        return ()
    for name in names:
        if name not in HEADS:
            raise GrataError(f"there is no head {name!r}; there are {', '.join(HEADS)}, or none.", key="heads")
    return names


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise GrataError(f"must be a whole number of at least {least}, got {value!r}.", key=name)
    return value


def _evenly(cases: list[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    if most is None or most >= len(cases):
        return cases
    return [cases[math.floor((n + 0.5) * len(cases) / most)] for n in range(most)]
