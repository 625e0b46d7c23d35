"""What is known of a network from its source set: plain numbers, from which the Dice of a prediction is expected."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import is_finite
from ..errors import GrataError
from ..files import absence, atomic_write, expanded
from .features import features, in_words, known_features, logit
from .image import THUMBNAIL
from .measures import Measures, mean

__all__ = ["FORMAT", "SHARP", "Calibration", "Expected", "changed", "familiarity_of", "spread_out"]

FORMAT = "grata quality 1"
"""First key of a file of a calibration."""

SHARP = 4.0
"""Sharpness of the bend below which strangeness costs nothing."""

_FARTHEST = 30.0
"""Deviations from which on a feature is as strange as it can be."""

_NOTABLE = 0.1
"""What a feature adds to the strangeness from which on it is named."""


Line = tuple[float, float, float]
"""a, b and c of how sure a network is of its own mask, see :class:`Calibration`."""


@dataclass(frozen=True)
class Expected:
    """Dice that is expected of a prediction.

    Attributes:
        dice: expected Dice, mean over the segments, 0 to 1.
        low, high: ends of its 90 % interval.
        segments: expected Dice of each segment.
        strange: what makes the image or its prediction least like those of the source set, in words, the strangest
            first.
        familiarity: factor by which strangeness lowers the expected Dice, 0 to 1.
    """

    dice: float
    low: float
    high: float
    segments: Sequence[float]
    strange: Sequence[str]
    familiarity: float

    def as_dict(self) -> dict[str, Any]:
        """Return the keys of a journal."""
        return {
            "expected_dice": round(self.dice, 4),
            "expected_low": round(self.low, 4),
            "expected_high": round(self.high, 4),
            "familiarity": round(self.familiarity, 4),
        }


@dataclass(frozen=True)
class Calibration:
    """What is known of a network from its source set.

    .. code-block:: text

        expected Dice = r · N
        r = sigmoid(a + b·logit(self-Dice) − c·d/(d + ¼))        how sure the network is of its own mask
        N = exp(−softplus(Σ_i w_i·ln(1 + z_i²/2) − m))           how like the source's the image and its prediction are

    The change ``d`` is 1 minus the agreement with the source prediction, and 0 for that one itself: batch statistics
    may make a network surer of masks that are no better. ``z_i`` is a feature's distance from its median over the
    source images in deviations. As ``b``, ``c`` and ``w_i`` are at least 0, whatever is less sure, more changed or
    farther from the source can only lower the expected Dice. The numbers are fitted to held-out source images, to the
    same images under simulated shifts, and to inputs that the network must not be trusted with.

    Attributes:
        segments: names of the segments.
        names: names of the features, see :func:`grata.quality.features`.
        centre, spread: median and deviation of each feature over the source images.
        weights: weight of each feature, at least 0.
        margin: m, strangeness that costs nothing.
        sureness: a, b and c of the mean over the segments.
        of_segments: a, b and c of each segment.
        thumbnail: mean thumbnail of the source images.
        typical: mean Dice on held-out source images.
        steps: expected values at which the interval changes, rising.
        errors: lowest and highest error of each step, true minus expected, 5 % and 95 % of the cases.
        ranges: least and greatest share of the voxels that each segment has in the source images.
        cases: number of source images.
        least_gain: how much more, or if negative less, than of the source prediction must be expected of an adapted one
            for it to be used. Files of the last release do not have it.
        network: digest of the network's weights, see :func:`grata.networks.network_digest`; empty, as in files of the
            last release: not known.
    """

    segments: tuple[str, ...]
    names: tuple[str, ...]
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    margin: float
    sureness: Line
    of_segments: tuple[Line, ...]
    thumbnail: tuple[float, ...]
    typical: float
    steps: tuple[float, ...]
    errors: tuple[tuple[float, float], ...]
    ranges: tuple[tuple[float, float], ...]
    cases: int
    least_gain: float = -0.01
    network: str = ""

    def expected(self, measures: Measures, source: bool = False) -> Expected:
        """Return what is expected of a prediction.

        Args:
            measures: its signals.
            source: whether the source prediction is meant, not the adapted one.
        """
        strangeness = self.strangeness(measures, source)
        familiarity = float(familiarity_of(strangeness.sum() - self.margin))
        signals = measures.source if source else measures.adapted
        sure = signals["self_dice"]
        agreement = [1.0] * len(sure) if source else measures.agreement_source
        dice = _on(self.sureness, mean(sure), mean(agreement)) * familiarity
        by_segment = [_on(*of) * familiarity for of in zip(self.of_segments, sure, agreement)]
        low, high = self.errors[sum(dice >= step for step in self.steps)]
        order = [i for i in np.argsort(-strangeness) if strangeness[i] > _NOTABLE]
        strange = list(dict.fromkeys(in_words(self.names[i]) for i in order))[:3]
        return Expected(dice, _unit(dice + low), _unit(dice + high), by_segment, strange, familiarity)

    def strangeness(self, measures: Measures, source: bool = False) -> np.ndarray:
        """Return what each feature adds to the strangeness of a prediction, at least 0.

        What is not a number is infinitely strange.
        """
        # an entrance may know other names of the segments, or none
        found = features(replace(measures, segments=self.segments), self.thumbnail, source)
        z = (np.array([found[name] for name in self.names]) - np.array(self.centre)) / np.array(self.spread)
        return np.where(np.isnan(z), math.inf, np.array(self.weights) * spread_out(z))

    def misfit(self, segments: int, channels: int, dims: int) -> str:
        """Return why this belongs to a network of other inputs or outputs; empty: it may be this one's.

        Args:
            segments: number of segments.
            channels: number of input channels.
            dims: number of spatial dimensions.
        """
        known = sum(name.startswith("image/mean_") for name in self.names)
        places = sum(name.startswith(f"{self.segments[0]}/centre_") for name in self.names)
        if (segments, channels, dims) == (len(self.segments), known, places):
            return ""
        return (
            f"the calibration is that of another network ({places}D, {known} input channels, {len(self.segments)} "
            f"segments; here {dims}D, {channels} and {segments}) and does not count. Make one by python -m grata "
            "calibrate, or give null"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the numbers as JSON, whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        content = {"format": FORMAT, **{name: _plain(value) for name, value in vars(self).items()}}
        content["sha256"] = _digest(content)
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what :meth:`save` wrote. Files of the last release have no checksum.

        Raises:
            GrataError: the file is missing, damaged, or something else.
        """
        path = expanded(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise GrataError(f"{path} {absence(path)}. Make it by python -m grata calibrate, or give null.") from None
        except (OSError, ValueError) as error:
            raise GrataError(f"{path} cannot be read ({error}). Make it anew by python -m grata calibrate.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise GrataError(f"{path} is not a file of python -m grata calibrate. Name one, or give null.")
        digest = content.pop("sha256", None)
        try:
            if digest not in (None, _digest(content)):
                raise ValueError
            del content["format"]
            made = cls(**{name: _tuples(value) for name, value in content.items()} | {"cases": content["cases"]})
            if made._is_sound():
                return made
        except (TypeError, ValueError, LookupError, OverflowError):
            pass
        raise GrataError(f"{path} is damaged. Make it anew by python -m grata calibrate.")

    def _is_sound(self) -> bool:
        count = len(self.names)
        shapes = {
            "centre": (count,),
            "spread": (count,),
            "weights": (count,),
            "margin": (),
            "sureness": (3,),
            "of_segments": (len(self.segments), 3),
            "thumbnail": (len(self.thumbnail),),
            "typical": (),
            "errors": (len(self.steps) + 1, 2),
            "ranges": (len(self.segments), 2),
            "cases": (),
            "least_gain": (),
        }
        sound = all(np.shape(getattr(self, key)) == shape for key, shape in shapes.items())
        return sound and self._numbers_are_sound() and self._names_are_known()

    def _numbers_are_sound(self) -> bool:
        numbers = [value for key, value in vars(self).items() if key not in ("segments", "names", "network")]
        # the steps have no shape of their own
        if not all(map(_finite, numbers)) or len(np.shape(self.steps)) != 1:
            return False
        return all(weight >= 0 for weight in self.weights) and all(spread > 0 for spread in self.spread)

    def _names_are_known(self) -> bool:
        """Return whether the features are those of these segments, of images of two or three dimensions."""
        if not all(isinstance(text, str) for text in (*self.names, *self.segments, self.network)):
            return False
        dims = sum(name.startswith(f"{self.segments[0]}/centre_") for name in self.names)
        channels = sum(name.startswith("image/mean_") for name in self.names)
        if dims not in (2, 3) or channels < 1 or len(self.thumbnail) != THUMBNAIL**dims:
            return False
        parts = {name.rpartition("/")[0] for name in self.names}
        known = known_features(self.segments, channels, dims)
        return parts == {"image", *self.segments} and known.issuperset(self.names)


def familiarity_of(excess: np.ndarray) -> np.ndarray:
    """Return ``exp(−softplus(u))`` of the strangeness ``u`` beyond the margin, see :data:`SHARP`."""
    return np.exp(-np.logaddexp(0, SHARP * excess) / SHARP)


def spread_out(z: np.ndarray) -> np.ndarray:
    """Return ``ln(1 + z²/2)``: small near the source, and far away the same for all that is far."""
    return np.log1p(np.clip(z, -_FARTHEST, _FARTHEST) ** 2 / 2)


def changed(agreement: float) -> float:
    """Return ``d/(d + ¼)`` of the change ``d = 1 − agreement``: the first tenths of it cost most."""
    return (1 - agreement) / (1.25 - agreement)


def _on(line: Line, sure: float, agreement: float) -> float:
    x = line[0] + line[1] * logit(sure) - line[2] * changed(agreement)
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, x))))


def _unit(value: float) -> float:
    return max(0.0, min(1.0, value))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _finite(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_finite, value))
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    # numpy makes objects of integers that are too large for its own
    return float(value) if type(value) is int else value
