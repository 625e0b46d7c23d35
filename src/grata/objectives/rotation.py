"""Recognition of the flip or rotation of an image by an auxiliary branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..errors import GrataError
from ..views import ROTATION_VIEWS, View, resolve_views
from .branch import Branch

__all__ = ["rotation_loss"]


def rotation_loss(
    branch: Branch, x: torch.Tensor, generator: torch.Generator, views: Sequence[str] = ROTATION_VIEWS
) -> torch.Tensor:
    """Return the cross-entropy of the rotation branch on randomly turned samples.

    .. code-block:: text

        −mean_b log softmax(branch(v_k(x_b)))_k      k drawn for each sample b, v_k: view of class k

    The task is that of TTT (Sun et al., ICML 2020) with the six classes of GraTa (AAAI 2025).

    Args:
        branch: function that runs the branch ``rotation``; its output is ``(B, K)``, one logit for each class.
        x: images ``(B, C, H, W)`` or ``(B, C, D, H, W)``; the plane of a quarter turn must be square.
        generator: random generator that draws the classes, on the CPU.
        views: names of the K classes in the order of the branch's outputs, see :data:`grata.views.VIEWS`.

    Returns:
        The loss in nats, a scalar of at least 0; ln K is chance.

    Raises:
        GrataError: a view is not known or needs a 3D image, or the plane of a quarter turn is not square: the shape
            alone would show the turn.
    """
    turns = resolve_views(views, x.shape[2:])
    for view in turns:
        _check_square(view, x)
    classes = torch.randint(len(turns), (len(x),), generator=generator)
    turned = torch.stack([turns[k](sample) for k, sample in zip(classes.tolist(), x)])
    return F.cross_entropy(branch("rotation", turned).float(), classes.to(x.device))


def _check_square(view: View, x: torch.Tensor) -> None:
    first, second = (x.shape[axis] for axis in view.plane)
    if view.quarter_turn and first != second:
        size = "×".join(map(str, x.shape[2:]))
        needed, unit = ("square images", "pixels") if x.ndim == 4 else (f"a square plane for {view.name}", "voxels")
        raise GrataError(
            f"The rotation objective needs {needed}, and these images have {size} {unit}. Use square images or windows "
            "(roi_size), or another objective."
        )
