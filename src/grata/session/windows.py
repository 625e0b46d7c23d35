"""Choice of the windows of a large volume to adapt on: where the network is least certain, and some at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch.nn import functional as F

from ..errors import GrataError
from ..methods import Method
from ..settings import Settings, count

__all__ = ["WindowSelection", "window_selection"]


class WindowSelection(Settings):
    """Choice of the windows of a sliding-window inferer that a method adapts on; never all of them."""

    uncertain: int = count(
        default=2, at_least=0, help="number of windows with the highest mean entropy under the present network"
    )
    random: int = count(default=2, at_least=0, help="number of other windows, drawn by the method's own generator")
    batch_size: int | None = count(
        default=None,
        optional=True,
        help="number of windows that the method gets at once; null: as many as the inferer predicts at once. A "
        "gradient takes several times the memory of a prediction",
    )

    def _setup(self) -> None:
        if self.uncertain + self.random < 1:
            raise GrataError(
                "uncertain and random must give at least one window together, "
                f"got uncertain={self.uncertain}, random={self.random}."
            )

    def select(self, images: torch.Tensor, inferer: SlidingWindowInferer, method: Method) -> list[torch.Tensor]:
        """Return batches of windows to adapt on, each of at most ``batch_size``.

        Args:
            images: ``(B, C, H, W)`` or ``(B, C, D, H, W)``. One that fits into the window is taken whole, padded as the
                inferer pads it.
            inferer: inferer that gives roi_size, overlap, padding and sw_batch_size.
            method: method that measures the uncertainty, and owns the generator for the random windows.

        Returns:
            Batches of windows ``(N, C, *roi_size)``; for a ``SliceInferer`` 2D slices.
        """
        x = images.as_tensor() if hasattr(images, "as_tensor") else images
        # that of MONAI's inferer for HoVerNet, whose output is smaller than its window
        x = _pad(x, list(getattr(inferer, "extra_input_padding", None) or ()), inferer)
        roi_size = _roi_size(inferer, x)
        x = _pad(x, _missing(x, roi_size), inferer)
        slices = dense_patch_slices(x.shape[2:], roi_size, _interval(x.shape[2:], roi_size, inferer))
        windows = [(sample, window) for sample in range(len(x)) for window in slices]
        size = max(1, int(inferer.sw_batch_size))

        def crop(chosen: list[tuple[int, tuple[slice, ...]]]) -> torch.Tensor:
            batch = torch.stack([x[sample][(slice(None), *window)] for sample, window in chosen])
            batch = batch.squeeze(inferer.spatial_dim + 2) if isinstance(inferer, SliceInferer) else batch
            return batch.to(inferer.sw_device or batch.device)

        if len(slices) == 1:
            chosen = windows
        else:
            # Numbers, not tensors: small tensors between large ones leave holes in the heap that grow with the volume.
            entropy: list[float] = []
            for i in range(0, len(windows), size):
                entropy += method.uncertainty(crop(windows[i : i + size])).tolist()
            chosen = [windows[i] for i in self.choose(entropy, method.generator)]
        size = self.batch_size or size
        return [crop(chosen[i : i + size]) for i in range(0, len(chosen), size)]

    def choose(self, entropy: list[float], generator: torch.Generator) -> list[int]:
        """Return which of two or more windows to adapt on, by their mean entropy; the most uncertain first."""
        most = len(entropy) - 1
        ranked = sorted(range(len(entropy)), key=lambda i: (-entropy[i], i))
        uncertain = ranked[: min(self.uncertain, most)]
        others = sorted(ranked[len(uncertain) :])
        drawn = torch.randperm(len(others), generator=generator)[: min(self.random, most - len(uncertain))]
        return uncertain + [others[i] for i in drawn.tolist()]


def window_selection(windows: WindowSelection | Mapping[str, Any] | None) -> WindowSelection:
    """Return a selection from its settings.

    Raises:
        GrataError: a setting is not known or out of range.
    """
    if isinstance(windows, WindowSelection):
        return windows
    if not isinstance(windows, Mapping | None):
        raise GrataError(f"must hold the settings uncertain, random and batch_size, got {windows!r}.", key="windows")
    WindowSelection.check_names(windows or {}, "windows")
    try:
        return WindowSelection(**(windows or {}))
    except GrataError as error:
        raise error.under("windows") from error


def _roi_size(inferer: SlidingWindowInferer, x: torch.Tensor) -> tuple[int, ...]:
    if isinstance(inferer, SliceInferer):
        # the inferer itself inserts the third axis only when it is called
        size = list(inferer.orig_roi_size)
        size.insert(inferer.spatial_dim, 1)
        return fall_back_tuple(size, x.shape[2:])
    return fall_back_tuple(inferer.roi_size, x.shape[2:])


def _missing(x: torch.Tensor, roi_size: tuple[int, ...]) -> list[int]:
    """Return what ``x`` needs on both sides of each axis, the last first, to be as large as the window."""
    pad = []
    for size, roi in zip(reversed(x.shape[2:]), reversed(roi_size)):
        missing = max(roi - size, 0)
        pad += [missing // 2, missing - missing // 2]
    return pad


def _pad(x: torch.Tensor, pad: list[int], inferer: SlidingWindowInferer) -> torch.Tensor:
    """Pad as the inferer does, so that the method sees what is predicted later."""
    if not any(pad):
        return x
    mode = str(getattr(inferer.padding_mode, "value", inferer.padding_mode))
    return F.pad(x, pad, mode=mode, value=inferer.cval) if mode == "constant" else F.pad(x, pad, mode=mode)


def _interval(size: tuple[int, ...], roi_size: tuple[int, ...], inferer: SlidingWindowInferer) -> tuple[int, ...]:
    overlap = ensure_tuple_rep(inferer.overlap, len(size))
    return tuple(
        roi if roi == length else max(1, int(roi * (1 - part))) for length, roi, part in zip(size, roi_size, overlap)
    )
