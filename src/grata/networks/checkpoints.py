"""Checkpoints of GraTa's authors, whose network has other names for the same tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

import torch

from ..errors import GrataError
from .resunet import ResUNet
from .weights import COUNTER, unwrap

__all__ = ["Conversion", "convert_checkpoint", "to_reference_names"]

_PREFIXES = {
    "reconstruction": "recon",
    "denoising": "denoise",
    "rotation": "rotate_head",
    "super_resolution": "supres",
}
"""First letters of the reference's modules of each branch."""

_BRANCH = f"branches\\.({'|'.join(_PREFIXES)})"
_MODULES = {"up": "tr_conv", "skip": "x_conv", "norm": "bn", "conv": "conv"}
_NAMES: dict[str, Callable[..., str]] = {
    r"encoder\.(.+)": lambda rest: f"res.{rest}",
    r"decoder\.(\d)\.(up|skip|norm)\.(\w+)": lambda i, module, leaf: f"up{int(i) + 1}.{_MODULES[module]}.{leaf}",
    r"up\.(\w+)": lambda leaf: f"up5.{leaf}",
    r"norm\.(\w+)": lambda leaf: f"bnout.{leaf}",
    r"head\.(\w+)": lambda leaf: f"seg_head.{leaf}",
    rf"{_BRANCH}\.blocks\.(\d)\.(conv|norm)\.(\w+)": lambda branch, i, module, leaf: (
        f"{_PREFIXES[branch]}{int(i) + 1}.{_MODULES[module]}.{leaf}"
    ),
    rf"{_BRANCH}\.(?:head|convolutions)\.(.+)": lambda branch, rest: f"{_PREFIXES[branch]}_head.{rest}",
    rf"{_BRANCH}\.perceptron\.(.+)": lambda branch, rest: f"{_PREFIXES[branch]}.{rest}",
}
"""The reference's name of our key, from the groups of the pattern that the key is."""

_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
"""Depth of a ResNet by the blocks of its layers, and whether these are bottlenecks."""

# An older layout wrapped the encoder's children in a Sequential.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Attributes:
        state: state dict of :class:`grata.networks.ResUNet`, complete.
        depth: of the encoder.
        in_channels: of the image.
        out_channels: number of segmentation channels.
        branches: names of the auxiliary branches, in their order.
        renamed: the reference's name of every tensor that was taken, by ours.
        unmapped: reference names that nothing was taken from: the classifier ``res.fc.*``, and counters of batches
            without a layer.
        filled: our keys that the checkpoint had nothing for: counters of batches, set to 0.
    """

    state: dict[str, torch.Tensor]
    depth: int
    in_channels: int
    out_channels: int
    branches: list[str]
    renamed: dict[str, str] = field(repr=False)
    unmapped: list[str]
    filled: list[str]

    @property
    def network_def(self) -> dict[str, object]:
        """What a bundle's ``network_def`` is to be."""
        return {
            "_target_": "grata.networks.ResUNet",
            "depth": self.depth,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "branches": self.branches,
        }


def convert_checkpoint(state: Mapping[str, object]) -> Conversion:
    """Convert a checkpoint of GraTa's authors (AAAI 2025) for :class:`grata.networks.ResUNet`.

    Encoder, decoder and head are found by name. The modules inside a branch (``recon*``, ``denoise*``,
    ``rotate_head*``, ``supres*``) are taken in the order of their definition, which ``torch.save`` keeps, and every
    tensor's role and shape must be the one that comes next in ours.

    Args:
        state: state dict, also nested under ``model``, ``state_dict`` or ``model_state_dict``, also with the prefix
            ``module.`` of DataParallel; ``res.*`` named as torchvision's ResNet, or by the indices of a Sequential.

    Raises:
        GrataError: it is no such checkpoint, or not all of it has a place, or a place stays empty; names every key.
    """
    reference = _reference_keys(unwrap(state))
    depth, in_channels, out_channels, branches = _describe(reference)
    with torch.device("meta"):
        expected = ResUNet(out_channels, in_channels, depth, branches).state_dict()

    trunk = {ours: _rename(ours) for ours in expected if not ours.startswith("branches.")}
    renamed = {ours: name for ours, name in trunk.items() if name in reference}
    for branch in branches:
        renamed |= _align(branch, reference, expected)
    for ours in expected:
        mean = ours.removesuffix(COUNTER) + "running_mean"
        if ours.endswith(COUNTER) and mean in renamed:
            counter = renamed[mean].removesuffix("running_mean") + COUNTER
            if counter in reference:
                renamed[ours] = counter

    unmapped = [key for key in reference if key not in renamed.values()]
    filled = [ours for ours in expected if ours not in renamed]
    _refuse(
        {
            "keys of the checkpoint have no place": [key for key in unmapped if not _may_be_left(key)],
            "keys of the network get nothing": [ours for ours in filled if not ours.endswith(COUNTER)],
            "tensors are of another shape": [
                f"{name} {tuple(reference[name].shape)}, not {tuple(expected[ours].shape)}"
                for ours, name in renamed.items()
                if reference[name].shape != expected[ours].shape
            ],
        }
    )
    converted = {ours: reference[renamed[ours]] if ours in renamed else torch.tensor(0) for ours in expected}
    return Conversion(converted, depth, in_channels, out_channels, branches, renamed, unmapped, filled)


def to_reference_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a :class:`grata.networks.ResUNet` under the names of GraTa's reference implementation.

    Raises:
        GrataError: a key is not one of a ResUNet's.
    """
    return {_rename(key): value for key, value in state.items()}


def _rename(key: str) -> str:
    """Our key as the reference names it."""
    for pattern, name in _NAMES.items():
        found = re.fullmatch(pattern, key)
        if found:
            return name(*found.groups())
    raise GrataError(f"{key} is no key of a ResUNet. Give the state dict of a grata.networks.ResUNet.")


def _reference_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    keys = {}
    for key, value in state.items():
        root, _, rest = key.partition(".")
        child, _, leaf = rest.partition(".")
        name = f"res.{_SEQUENTIAL[child]}.{leaf}" if root == "res" and child in _SEQUENTIAL else key
        if name in keys:
            raise GrataError(f"This checkpoint holds {name} twice, also as {key}. Remove one of the two encoders.")
        keys[name] = value
    return keys


def _describe(reference: dict[str, torch.Tensor]) -> tuple[int, int, int, list[str]]:
    """Depth, channels of the image, of the segmentation, and branches of the reference's network."""
    first, last = reference.get("res.conv1.weight"), reference.get("seg_head.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        raise GrataError(
            "This is no checkpoint of the reference's ResUNet: it needs res.conv1.weight and seg_head.weight, and has "
            f"{', '.join(reference)}."
        )
    blocks = {found.groups() for key in reference if (found := re.match(r"res\.layer(\d)\.(\d+)\.", key))}
    counts = tuple(sum(layer == number for layer, _ in blocks) for number in "1234")
    bottleneck = "res.layer1.0.conv3.weight" in reference
    if (counts, bottleneck) not in _DEPTHS:
        raise GrataError(
            f"This encoder is no ResNet of known depth: its layers have {', '.join(map(str, counts))} "
            f"{'bottleneck' if bottleneck else 'basic'} blocks. Known: {', '.join(map(str, _DEPTHS.values()))}."
        )
    branches = [branch for branch, prefix in _PREFIXES.items() if any(_in_branch(key, prefix) for key in reference)]
    return _DEPTHS[counts, bottleneck], first.shape[1], last.shape[0], branches


def _align(branch: str, reference: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, str]:
    """The reference's key of every tensor of a branch but the counters, by ours: one by one in order of definition."""
    theirs = [key for key in reference if _in_branch(key, _PREFIXES[branch]) and not key.endswith(COUNTER)]
    ours = [key for key in expected if key.startswith(f"branches.{branch}.") and not key.endswith(COUNTER)]
    for number, (mine, its) in enumerate(zip_longest(ours, theirs), 1):
        if _role(mine, expected) != _role(its, reference):
            raise GrataError(
                f"The {branch} branch of this checkpoint is another: its tensor {number} is {its or 'missing'} "
                f"({_role(its, reference)}), ours is {mine or 'missing'} ({_role(mine, expected)}). Its keys: "
                f"{', '.join(theirs)}. Remove them from the checkpoint to convert it without this branch."
            )
    return dict(zip(ours, theirs))


def _role(key: str | None, tensors: dict[str, torch.Tensor]) -> str:
    return f"{key.rpartition('.')[2]} {tuple(tensors[key].shape)}" if key else "nothing"


def _in_branch(key: str, prefix: str) -> bool:
    return key.partition(".")[0].startswith(prefix)


def _may_be_left(key: str) -> bool:
    return key.startswith("res.fc.") or key.endswith(COUNTER)


def _refuse(faults: dict[str, list[str]]) -> None:
    details = "; ".join(f"{len(keys)} {what}: {', '.join(keys)}" for what, keys in faults.items() if keys)
    if details:
        raise GrataError(f"This checkpoint does not convert whole, so nothing was converted: {details}.")
