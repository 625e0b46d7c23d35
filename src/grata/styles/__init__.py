"""Strong photometric views, on the tensor's own device."""

from .strong import StrongView, brightness, contrast, gamma_inverted, gaussian_blur, min_max

__all__ = ["StrongView", "brightness", "contrast", "gamma_inverted", "gaussian_blur", "min_max"]
