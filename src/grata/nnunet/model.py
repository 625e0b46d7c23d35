"""A trained-model folder of nnU-Net v2: what it holds, and its networks."""

from __future__ import annotations

import importlib
import inspect
import json
import pydoc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import GrataError
from .checkpoints import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

__all__ = ["CHECKPOINT", "TrainedModel", "load_model"]

CHECKPOINT = "checkpoint_final.pth"
"""What nnU-Net calls the checkpoint at the end of a training."""

_PACKAGES = ("torch", "dynamic_network_architectures", "nnunetv2")


@dataclass(frozen=True)
class TrainedModel:
    """One trained configuration, with the checkpoints of some of its folds.

    Attributes:
        folder: that holds ``plans.json`` and ``dataset.json``.
        plans: nnU-Net's manager of the plans.
        dataset: content of ``dataset.json``.
        checkpoints: by fold; the first says what the trainer and the configuration are, as nnU-Net has it.
    """

    folder: Path
    plans: PlansManager
    dataset: dict[str, Any]
    checkpoints: dict[str, Checkpoint]

    @property
    def checkpoint(self) -> Checkpoint:
        """That of the first fold."""
        return next(iter(self.checkpoints.values()))

    @property
    def configuration(self) -> ConfigurationManager:
        """nnU-Net's manager of the configuration that was trained."""
        try:
            return self.plans.get_configuration(self.checkpoint.configuration)
        except (RuntimeError, ValueError) as error:
            raise GrataError(
                f"{self.folder / 'plans.json'}: it has no configuration {self.checkpoint.configuration}, with which "
                "the checkpoint was trained. Put the plans of that training back."
            ) from error

    @property
    def labels(self) -> LabelManager:
        """nnU-Net's manager of the labels."""
        return self.plans.get_label_manager(self.dataset)

    @property
    def activation(self) -> str:
        """``sigmoid`` for regions, which may overlap, ``softmax`` for labels."""
        return "sigmoid" if self.labels.has_regions else "softmax"

    @property
    def channels(self) -> int:
        """How many files an image has, one a channel."""
        return len(self.dataset.get("channel_names") or self.dataset["modality"])

    def check(self) -> None:
        """Raise :class:`GrataError` for a model that cannot be adapted."""
        if previous := self.configuration.previous_stage_name:
            raise GrataError(
                f"{self.folder}: {self.checkpoint.configuration} is the second stage of a cascade. Beside the image it "
                f"is given the segmentation of {previous}, which the views of adaptation would blur and brighten like "
                "an image. Adapt a model of 3d_fullres, 3d_lowres or 2d."
            )

    def network(self, fold: str) -> nn.Module:
        """The network of a fold with its weights, on the CPU, in evaluation mode.

        Raises:
            GrataError: its trainer is not installed, the plans name what is no part of a network, or the weights are of
                another network.
        """
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

        name, configuration = self.checkpoint.trainer, self.configuration
        try:
            trainer = recursive_find_trainer_class_by_name(name)
        # The search imports one trainer after the other, with all that each of them imports.
        except Exception as error:
            if str(error).startswith("Could not find"):
                raise GrataError(
                    f"{self.folder}: it was trained with {name}, which is not among the trainers of the installed "
                    "nnU-Net. Install the package that has it, or name its folder in nnU-Net's variable "
                    "nnUNet_extTrainer."
                ) from error
            raise GrataError(
                f"{self.folder}: it was trained with {name}, and nnU-Net fails in looking for it "
                f"({type(error).__name__}: {error}). Put the package right that this is about."
            ) from error
        self._check_architecture(configuration)
        channels = determine_num_input_channels(self.plans, configuration, self.dataset)
        heads = self.labels.num_segmentation_heads
        described: tuple[Any, ...] = (self.plans, configuration)
        if "plans_manager" not in inspect.signature(trainer.build_network_architecture).parameters:
            # as trainers were written for nnU-Net before 2.7
            described = (
                configuration.network_arch_class_name,
                configuration.network_arch_init_kwargs,
                configuration.network_arch_init_kwargs_req_import,
            )
        network = trainer.build_network_architecture(*described, channels, heads, enable_deep_supervision=False)
        try:
            network.load_state_dict(self.checkpoints[fold].weights)
        except RuntimeError as error:
            raise GrataError(
                f"{self.folder / f'fold_{fold}'}: its weights do not fit the network that plans.json and {name} "
                "describe. Use the plans, the data set's description and the folds of one training."
            ) from error
        return network.eval()

    def _check_architecture(self, configuration: ConfigurationManager) -> None:
        """nnU-Net imports and calls what the plans name: nothing but parts of networks must be among it."""
        arguments = configuration.network_arch_init_kwargs
        required = [arguments.get(key) for key in configuration.network_arch_init_kwargs_req_import]
        for name in (configuration.network_arch_class_name, *required):
            if name is None:
                continue
            # looking a name up imports its module, from the working directory too
            known = isinstance(name, str) and name.partition(".")[0] in _PACKAGES
            found = pydoc.locate(name) if known else None
            if not known or not (found is None or (isinstance(found, type) and issubclass(found, nn.Module))):
                raise GrataError(
                    f"{self.folder / 'plans.json'}: its architecture names {name}, which is no part of a network in "
                    f"{', '.join(_PACKAGES)}. It was not called. Use the plans that nnU-Net wrote."
                )


def load_model(
    folder: str | Path, folds: int | str | Sequence[int | str] | None = None, checkpoint_name: str = CHECKPOINT
) -> TrainedModel:
    """Read a trained-model folder.

    Args:
        folder: ``<trainer>__<plans>__<configuration>`` of nnU-Net's results.
        folds: which of its folds, e.g. ``0``, ``[0, 1]`` or ``all``; None: every numbered one that holds the
            checkpoint, else ``all``.
        checkpoint_name: of the file in the folder of a fold.

    Raises:
        GrataError: nnU-Net is not installed, or a file is missing or damaged.
    """
    _require_nnunet()
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = Path(folder)
    plans, dataset = (_read_json(folder / name) for name in ("plans.json", "dataset.json"))
    names = _folds(folder, folds, checkpoint_name)
    checkpoints = {name: read_checkpoint(folder / f"fold_{name}" / checkpoint_name) for name in names}
    return TrainedModel(folder, PlansManager(plans), dataset, checkpoints)


def _folds(folder: Path, folds: int | str | Sequence[int | str] | None, checkpoint_name: str) -> list[str]:
    found = [path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint_name}")]
    found = sorted((name for name in found if name.isdecimal()), key=int) + ["all"] * ("all" in found)
    if not found:
        raise GrataError(
            f"{folder}: no fold holds {checkpoint_name}. Give the folder that fold_0 is in, or the checkpoint's name "
            "by checkpoint_name."
        )
    if folds is None:
        return [name for name in found if name != "all"] or found
    names = [str(fold) for fold in (folds if isinstance(folds, list | tuple) else [folds])]
    if not names or len(set(names)) < len(names):
        raise GrataError(f"name at least one, and each once, got {folds!r}.", key="folds")
    if missing := [name for name in names if name not in found]:
        raise GrataError(
            f"{folder} has no fold {missing[0]} with {checkpoint_name}; it has {', '.join(found)}.", key="folds"
        )
    return names


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GrataError(
            f"{path}: cannot be read ({error.strerror}). Give a trained-model folder of nnU-Net v2, which holds "
            "plans.json, dataset.json and fold_0, ..."
        ) from error
    except ValueError as error:
        raise GrataError(f"{path}: is no JSON ({error}). Copy it again.") from error
    if not isinstance(content, dict):
        raise GrataError(f"{path}: holds a {type(content).__name__}, not a mapping. Copy it again.")
    return content


def _require_nnunet() -> None:
    try:
        importlib.import_module("nnunetv2")
    except ImportError as error:
        raise GrataError('nnU-Net v2 is not installed. Install it by: pip install "grata[nnunet]".') from error
