"""Conversion of checkpoints by GraTa's authors, whose network has other names for the same tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
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
"""Prefix of the names of the reference's modules, by branch."""

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
"""Function from the groups of a pattern of our keys to the reference's name, by the pattern."""

_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
"""Depth of a ResNet by the number of blocks in each layer, and whether they are bottlenecks."""

# An older layout wrapped the encoder's children in a Sequential.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Attributes:
        state: complete state dict for :class:`grata.networks.ResUNet`.
        depth: depth of the encoder.
        in_channels: number of channels of the image.
        out_channels: number of segmentation channels.
        branches: names of the auxiliary branches, in order.
        renamed: reference's name of every tensor that was used, by our name.
        unmapped: reference names that were not used: the classifier ``res.fc.*``, and batch counters without a layer.
        filled: our names that the checkpoint lacks: batch counters, set to 0.
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
        """Value for the key ``network_def`` of a bundle."""
        return {
            "_target_": "grata.networks.ResUNet",
            "depth": self.depth,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "branches": self.branches,
        }


def convert_checkpoint(state: Mapping[str, object]) -> Conversion:
    """Convert a checkpoint of GraTa's authors (AAAI 2025) for :class:`grata.networks.ResUNet`.

    Encoder, decoder and head are found by name. The modules of a branch (``recon*``, ``denoise*``, ``rotate_head*``,
    ``supres*``) are matched in the order of their definition, which ``torch.save`` keeps: the role and shape of each
    tensor must equal those of our next one.

    Args:
        state: state dict, possibly nested under ``model``, ``state_dict`` or ``model_state_dict``, possibly with
            DataParallel's prefix ``module.``. ``res.*`` is named as in torchvision's ResNet, or by the indices of a
            Sequential.

    Raises:
        GrataError: this is not such a checkpoint, one of its tensors has no place, or a tensor of the network is
            missing; the message names every key.
    """
    reference = _reference_keys(unwrap(state))
    depth, in_channels, out_channels, branches = _describe(reference)
    with torch.device("meta"):
        expected = ResUNet(out_channels, in_channels, depth, branches).state_dict()

    trunk = {ours: _rename(ours) for ours in expected if not ours.startswith("branches.")}
    renamed = {ours: name for ours, name in trunk.items() if name in reference}
    for branch in branches:
        renamed |= _align(branch, reference, expected)
    renamed |= _counters(renamed, reference, expected)

    unmapped = [key for key in reference if key not in renamed.values()]
    filled = [ours for ours in expected if ours not in renamed]
    _refuse(
        {
            "keys of the checkpoint have no place": [key for key in unmapped if not _may_be_left(key)],
            "keys of the network get nothing": [ours for ours in filled if not ours.endswith(COUNTER)],
            "tensors are of another shape": _misshapen(renamed, reference, expected),
        }
    )
    converted = {ours: reference[renamed[ours]] if ours in renamed else torch.tensor(0) for ours in expected}
    return Conversion(converted, depth, in_channels, out_channels, branches, renamed, unmapped, filled)


def to_reference_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict of a :class:`grata.networks.ResUNet` with the names of GraTa's reference implementation.

    Raises:
        GrataError: a key does not belong to a ResUNet.
    """
    return {_rename(key): value for key, value in state.items()}


def _rename(key: str) -> str:
    """Return the reference's name for one of our keys."""
    for pattern, name in _NAMES.items():
        found = re.fullmatch(pattern, key)
        if found:
            return name(*found.groups())
    raise GrataError(f"{key} is not a key of a ResUNet. Give the state dict of a grata.networks.ResUNet.")


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
    """Return depth, image channels, segmentation channels and branches of the reference's network."""
    first, last = reference.get("res.conv1.weight"), reference.get("seg_head.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        raise GrataError(
            "This is not a checkpoint of the reference's ResUNet: it needs res.conv1.weight and seg_head.weight, "
            "and has "
            f"{', '.join(reference)}."
        )
    blocks = {found.groups() for key in reference if (found := re.match(r"res\.layer(\d)\.(\d+)\.", key))}
    counts = tuple(sum(layer == number for layer, _ in blocks) for number in "1234")
    bottleneck = "res.layer1.0.conv3.weight" in reference
    if (counts, bottleneck) not in _DEPTHS:
        raise GrataError(
            f"This encoder is not a ResNet of known depth: its layers have {', '.join(map(str, counts))} "
            f"{'bottleneck' if bottleneck else 'basic'} blocks. Known: {', '.join(map(str, _DEPTHS.values()))}."
        )
    branches = [branch for branch, prefix in _PREFIXES.items() if any(_in_branch(key, prefix) for key in reference)]
    return _DEPTHS[counts, bottleneck], first.shape[1], last.shape[0], branches


def _align(branch: str, reference: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, str]:
    """Return the reference's key of each tensor of a branch except counters, by our key, in order of definition."""
    theirs = [key for key in reference if _in_branch(key, _PREFIXES[branch]) and not key.endswith(COUNTER)]
    ours = [key for key in expected if key.startswith(f"branches.{branch}.") and not key.endswith(COUNTER)]
    for number, (mine, its) in enumerate(zip_longest(ours, theirs), 1):
        if _role(mine, expected) != _role(its, reference):
            raise GrataError(
                f"The {branch} branch of this checkpoint differs from ours: its tensor {number} is {its or 'missing'} "
                f"({_role(its, reference)}), ours is {mine or 'missing'} ({_role(mine, expected)}). Its keys: "
                f"{', '.join(theirs)}. Remove them from the checkpoint to convert it without this branch."
            )
    return dict(zip(ours, theirs))


def _counters(
    renamed: Mapping[str, str], reference: Mapping[str, torch.Tensor], expected: Iterable[str]
) -> dict[str, str]:
    """Return the reference's key of each batch counter that it has, by our key: it lies beside the layer's mean."""
    counters = {}
    for ours in expected:
        mean = renamed.get(ours.removesuffix(COUNTER) + "running_mean")
        if ours.endswith(COUNTER) and mean is not None:
            counters[ours] = mean.removesuffix("running_mean") + COUNTER
    return {ours: counter for ours, counter in counters.items() if counter in reference}


def _misshapen(
    renamed: Mapping[str, str], reference: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> list[str]:
    return [
        f"{name} {tuple(reference[name].shape)}, not {tuple(expected[ours].shape)}"
        for ours, name in renamed.items()
        if reference[name].shape != expected[ours].shape
    ]


def _role(key: str | None, tensors: dict[str, torch.Tensor]) -> str:
    return f"{key.rpartition('.')[2]} {tuple(tensors[key].shape)}" if key else "nothing"


def _in_branch(key: str, prefix: str) -> bool:
    return key.partition(".")[0].startswith(prefix)


def _may_be_left(key: str) -> bool:
    return key.startswith("res.fc.") or key.endswith(COUNTER)


def _refuse(faults: dict[str, list[str]]) -> None:
    details = "; ".join(f"{len(keys)} {what}: {', '.join(keys)}" for what, keys in faults.items() if keys)
    if details:
        raise GrataError(f"This checkpoint cannot be converted completely, so nothing was converted: {details}.")
