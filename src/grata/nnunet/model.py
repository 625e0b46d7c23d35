"""A trained-model folder of nnU-Net v2 and its networks."""

from __future__ import annotations

import importlib
import inspect
import pydoc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..config_files import read_config
from ..errors import GrataError
from ..files import absence, expanded
from .checkpoints import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

__all__ = ["CHECKPOINT", "TrainedModel", "load_model"]

CHECKPOINT = "checkpoint_final.pth"
"""Name of nnU-Net's checkpoint at the end of a training."""

_PACKAGES = ("torch", "dynamic_network_architectures", "nnunetv2")


@dataclass(frozen=True)
class TrainedModel:
    """One trained configuration with the checkpoints of some of its folds.

    Attributes:
        folder: folder of ``plans.json`` and ``dataset.json``.
        plans: nnU-Net's manager of the plans.
        dataset: content of ``dataset.json``.
        checkpoints: checkpoint of each fold; as in nnU-Net, the first one names the trainer and the configuration.
    """

    folder: Path
    plans: PlansManager
    dataset: dict[str, Any]
    checkpoints: dict[str, Checkpoint]

    @property
    def checkpoint(self) -> Checkpoint:
        """Checkpoint of the first fold."""
        return next(iter(self.checkpoints.values()))

    @property
    def configuration(self) -> ConfigurationManager:
        """nnU-Net's manager of the trained configuration."""
        try:
            return self.plans.get_configuration(self.checkpoint.configuration)
        except (RuntimeError, ValueError) as error:
            raise GrataError(
                f"{self.folder / 'plans.json'} has no configuration {self.checkpoint.configuration}, with which "
                "the checkpoint was trained. Use the plans of that training."
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
    def segments(self) -> list[str]:
        """Names of the labels or regions, in the order of the network's outputs."""
        named = {name: value for name, value in self.dataset["labels"].items() if name not in ("background", "ignore")}
        if self.labels.has_regions:
            return list(named)
        return sorted(named, key=lambda name: int(named[name]))

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return len(self.dataset.get("channel_names") or self.dataset["modality"])

    def check(self) -> None:
        """Check that the model can be adapted.

        Raises:
            GrataError: the model is the second stage of a cascade.
        """
        if previous := self.configuration.previous_stage_name:
            raise GrataError(
                f"{self.folder}: {self.checkpoint.configuration} is the second stage of a cascade. Its input contains "
                f"the segmentation of {previous}, which the views of adaptation would blur and brighten like an image. "
                "Adapt a model of 3d_fullres, 3d_lowres or 2d."
            )

    def network(self, fold: str) -> nn.Module:
        """Return the network of a fold with its weights, on the CPU, in evaluation mode.

        Args:
            fold: key of ``checkpoints``.

        Raises:
            GrataError: the trainer is not installed, the plans name something that is not a part of a network, or the
                weights belong to another network.
        """
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

        name, configuration = self.checkpoint.trainer, self.configuration
        try:
            trainer = recursive_find_trainer_class_by_name(name)
        # The search imports one trainer after the other, and each of them may fail in any way.
        except Exception as error:
            if str(error).startswith("Could not find"):
                raise GrataError(
                    f"{self.folder}: it was trained with {name}, which is not among the trainers of the installed "
                    "nnU-Net. Install the package that has it, or name its folder in nnU-Net's environment variable "
                    "nnUNet_extTrainer."
                ) from error
            raise GrataError(
                f"{self.folder}: it was trained with {name}, and nnU-Net's search for it failed "
                f"({type(error).__name__}: {error}). Repair the package that the error names."
            ) from error
        self._check_architecture(configuration)
        channels = determine_num_input_channels(self.plans, configuration, self.dataset)
        heads = self.labels.num_segmentation_heads
        described: tuple[Any, ...] = (self.plans, configuration)
        if "plans_manager" not in inspect.signature(trainer.build_network_architecture).parameters:
            # Trainers for nnU-Net before 2.7 take these instead of the managers.
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
        """Check that the plans name only parts of networks, because nnU-Net imports and calls what they name."""
        arguments = configuration.network_arch_init_kwargs
        required = [arguments.get(key) for key in configuration.network_arch_init_kwargs_req_import]
        for name in (configuration.network_arch_class_name, *required):
            if name is None:
                continue
            # Looking up a name imports its module, from the working directory too.
            known = isinstance(name, str) and name.partition(".")[0] in _PACKAGES
            found = pydoc.locate(name) if known else None
            if not known or not (found is None or (isinstance(found, type) and issubclass(found, nn.Module))):
                raise GrataError(
                    f"{self.folder / 'plans.json'}: its architecture names {name}, which is not a part of a network in "
                    f"{', '.join(_PACKAGES)}. It was not called. Use the plans that nnU-Net wrote."
                )


def load_model(
    folder: str | Path, folds: int | str | Sequence[int | str] | None = None, checkpoint_name: str = CHECKPOINT
) -> TrainedModel:
    """Read a trained-model folder.

    Args:
        folder: folder ``<trainer>__<plans>__<configuration>`` of nnU-Net's results.
        folds: folds to read, e.g. ``0``, ``[0, 1]`` or ``all``; None: every numbered fold that has the checkpoint, or
            else ``all``.
        checkpoint_name: name of the checkpoint's file in the folder of a fold.

    Raises:
        GrataError: nnU-Net is not installed, or a file is missing or damaged.
    """
    _require_nnunet()
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = expanded(folder)
    plans, dataset = (_read_json(folder / name) for name in ("plans.json", "dataset.json"))
    names = _folds(folder, folds, checkpoint_name)
    checkpoints = {name: read_checkpoint(folder / f"fold_{name}" / checkpoint_name) for name in names}
    return TrainedModel(folder, PlansManager(plans), dataset, checkpoints)


def _folds(folder: Path, folds: int | str | Sequence[int | str] | None, checkpoint_name: str) -> list[str]:
    found = [path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint_name}")]
    found = sorted((name for name in found if name.isdecimal()), key=int) + ["all"] * ("all" in found)
    if not found:
        raise GrataError(
            f"{folder}: no fold has a {checkpoint_name}. Give the folder that contains fold_0, or name the checkpoint "
            "by checkpoint_name."
        )
    if folds is None:
        return [name for name in found if name != "all"] or found
    names = _names(folds)
    if missing := [name for name in names if name not in found]:
        raise GrataError(
            f"{folder} has no fold {missing[0]} with {checkpoint_name}; it has {', '.join(found)}.", key="folds"
        )
    return names


def _names(folds: int | str | Sequence[int | str]) -> list[str]:
    names = [str(fold) for fold in (folds if isinstance(folds, list | tuple) else [folds])]
    if not names or len(set(names)) < len(names):
        raise GrataError(f"must name at least one fold, and each once, got {folds!r}.", key="folds")
    return names


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise GrataError(
            f"{path} cannot be read (it {absence(path)}). Give a trained-model folder of nnU-Net v2, which holds "
            "plans.json, dataset.json and fold_0, ..."
        )
    return read_config(path, remedy="Copy it again.")


def _require_nnunet() -> None:
    try:
        importlib.import_module("nnunetv2")
    except ImportError as error:
        raise GrataError('nnU-Net v2 is not installed. In the clone of grata: pip install -e ".[nnunet]".') from error
