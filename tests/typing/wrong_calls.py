"""Wrong uses of the public names: a type checker finds one error on each marked line. Nothing here is run."""

from __future__ import annotations

import torch
from torch import nn

import grata


def wrong(network: nn.Module, images: torch.Tensor) -> None:
    grata.methods.GraTa(network, activation="sigmoid", lrr=1)  # wrong
    grata.methods.GraTa(network, activation="sigmoid", lr="fast")  # wrong
    grata.adapt(network, images, method=3)  # wrong
    grata.adapt(network, images, "tent", "sigmoid")  # wrong
    grata.adapt(network, images, guard="always")  # wrong
    grata.GrataError()  # wrong
    grata.create("grata")  # wrong
    grata.AdapterBank()  # wrong
    grata.WindowSelection(uncertain="x")  # wrong
    grata.adaptt(network, images)  # wrong
    print(grata.Tent(network, activation="sigmoid").adapt(images).cosinus)  # wrong
