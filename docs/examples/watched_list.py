"""A sixth door: a list that somebody appends arrays to, each of which is adapted to and predicted as it arrives."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer
from monai.networks import eval_mode
from torch import nn

from grata.methods import create
from grata.session import Session, explain


def watch(
    arrays: list[np.ndarray | None],
    network: nn.Module,
    method: str = "grata",
    settings: Mapping[str, Any] | None = None,
    inferer: Inferer | None = None,
    affine: str = "auto",
    prepared: str | None = None,
    pause: float = 0.05,
    **session: Any,
) -> Iterator[tuple[int, np.ndarray | None, str]]:
    """Adapt a network to the arrays of a list, also to those that are appended while this runs.

    Args:
        arrays: images ``(C, H, W)`` or ``(C, D, H, W)``, scaled as in training; None in the list ends the stream.
        network: source network.
        method, settings, affine, prepared: see :func:`grata.methods.create`; the activation is softmax.
        inferer: inferer that predicts; None: the whole image at once.
        pause: seconds between two looks at the list.
        session: ``windows``, ``bank``, ``start_from``, ``save_to``, ``reset``, ``site``, ``journal``, ... of
            :class:`grata.Session`.

    Yields:
        Place in the list and label map ``(H, W)`` or ``(D, H, W)``; or None in its place, and what was wrong.
    """
    inferer = inferer or SimpleInferer()
    made = create(method, network, settings, affine, activation="softmax", prepared=prepared)
    stream, place = Session(made, **session), 0
    while place == len(arrays) or arrays[place] is not None:
        if place == len(arrays):
            time.sleep(pause)
            continue
        try:
            images = torch.as_tensor(arrays[place], dtype=torch.float32)[None]
            with stream.case(images, f"array-{place}") as case, eval_mode(stream.network):
                case.adapt(inferer)
                logits = case.judge(inferer(images, stream.network))
            yield place, logits.argmax(1)[0].numpy(), ""
        except Exception as error:  # noqa: BLE001 (one bad image must not end the stream)
            yield place, None, explain(error)
        place += 1
