"""A network that needs no training, in a sound and in a fragile form, and images for it.

It outlines what is brighter than 0.5. Of the fragile one, a second channel answers to the darkest noise of the
background. By the running statistics this is as good as constant; normalized by those of the image it is as large as
the signal, and drowns it. Networks with convolution, ReLU and then normalization can have such channels.
"""

import torch
from torch import nn

MEAN, VARIANCE = 0.15, 0.08
"""Statistics of the images, which the network has as those of its source."""

EDGE = 40.0


class Outliner(nn.Module):
    def __init__(self, fragile: bool = False, dims: int = 2, outputs: int = 2) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        self.first, self.norm, self.last = convolution(1, 2, 1), norm(2), convolution(2, outputs, 1)
        parameters = {
            "first.weight": [1.0, -1.0],
            "first.bias": [0.0, 0.05 if fragile else 0.0],
            "norm.running_mean": [MEAN, 0.0],
            "norm.running_var": [VARIANCE, 1.0 if fragile else 0.0],
        }
        with torch.no_grad():
            for name, values in parameters.items():
                tensor = self.state_dict()[name]
                tensor.copy_(torch.tensor(values).reshape(tensor.shape))
            slope = EDGE * VARIANCE**0.5
            sign = torch.tensor([-0.5, 0.5])[-outputs:] * (1 if outputs == 2 else 2)
            self.last.weight.copy_(torch.stack([sign * slope, sign * 15.0], 1).reshape(self.last.weight.shape))
            self.last.bias.copy_(sign * EDGE * (MEAN - 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(torch.relu(self.first(x))))


def blob(seed: int, dims: int = 2, size: int = 16, dark: float = 0.0, empty: bool = False) -> torch.Tensor:
    """Return an image ``(1, ...)``: a bright ball on a background of noise, which begins at ``dark``."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.arange(size) + 0.5] * dims, indexing="ij")
    centre = size * (0.4 + 0.2 * torch.rand(dims, generator=generator))
    inside = sum((axis - c) ** 2 for axis, c in zip(axes, centre)) < (0.22 * size if dims == 2 else 0.28 * size) ** 2
    noise = torch.rand(1, *[size] * dims, generator=generator)
    image = dark + (0.1 - dark) * noise
    return image if empty else torch.where(inside, 0.9 + 0.1 * noise, image)
