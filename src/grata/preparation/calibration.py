"""The command ``python -m grata calibrate``: what is to be expected of a bundle's network, from its source set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.networks import eval_mode
from scipy.optimize import minimize
from scipy.special import expit
from tqdm import tqdm

from ..bundles.bundle import Bundle, Case
from ..bundles.groups import Groups, every_group, optional_groups
from ..checks import checked
from ..console import say, say_beside_bar
from ..errors import GrataError
from ..methods import Method, create
from ..methods.predictive import logits_in
from ..networks import network_digest
from ..normalization import batch_norm_layers
from ..quality import Calibration, Measures, Segmentation, layer_statistics, measure, overlap, segmentation
from ..quality.calibration import SHARP, Line, changed, familiarity_of, spread_out
from ..quality.features import features, logit
from ..session.faults import explain, quiet
from .run import _evenly, _opened, _whole, check_not_there, given_folders, output_file, writing
from .simulated import SHIFTS, WRONG, Simulation

__all__ = ["Gains", "Sample", "calibrate", "dice_of", "fit", "held_out_gains", "least_gain"]

_NO_TRUTH = ("constant", "only_noise", "texture", "phantom", "shuffled")
"""Simulations that leave nothing of what the label shows: every segmentation of them is wrong."""

_DECAY, _SPARSE = 0.02, 0.3
"""Weight of the squared weights, and of their sum, in the fit."""

_FOLDS = 5

_LEAST = 4
"""Number of images without which nothing is fitted."""

_LINE = 3
"""Number of the fit's parameters that are a, b and c; the margin and the weights follow."""

_LINE_BOUNDS = [(None, None), (0, None), (0, None)]

_LOSS = 2.0
"""How much more a loss of Dice counts than a gain in deciding from which expected gain on adaptation is used."""

_NEVER = 1.0
"""Expected gain that no adaptation can have."""

_ADAPTING = ("ptbn", "bn_alpha")
"""Methods of the adapted predictions: all statistics are the image's, or a tenth of them is."""

Known = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of each sample: how far out its features are ``(N, features)``, how sure the network is, and how much was changed."""


class Gains(NamedTuple):
    """What adaptation gains over the source network.

    Attributes:
        expected: difference of the expected Dice of each adapted prediction.
        true: difference of its Dice.
        home: true for a prediction of a source image as it is, false for one under a shift.
    """

    expected: np.ndarray
    true: np.ndarray
    home: np.ndarray


@dataclass(frozen=True)
class Sample:
    """One prediction whose Dice is known.

    Attributes:
        case: id of the source image.
        simulation: name of the simulation.
        adapted: whether it is a prediction by the image's own statistics.
        measures: signals of the image, in which both predictions stand.
        dice: Dice of each segment.
    """

    case: str
    simulation: str
    adapted: bool
    measures: Measures
    dice: Sequence[float]


def calibrate(
    bundle: str | Path,
    dataset_dir: str | Path,
    labels_dir: str | Path | None = None,
    output: str | Path | None = None,
    images: int | None = 20,
    val_stride: int = 5,
    groups: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    **overrides: Any,
) -> int:
    """Learn what Dice to expect of a bundle's network, and write it as plain numbers to one file.

    The network predicts held-out source images, the same under simulated shifts (grey values, field, resolution, noise,
    scale), and inputs that it must not be trusted with (turned, inverted, of another scale, noise, phantoms), each
    with its running statistics, with the image's own, and with a tenth of these mixed in. From these a small model is
    fitted, see :class:`grata.quality.Calibration`.

    Args:
        bundle: folder of the bundle.
        dataset_dir: folder of the source set's images, with labels; not of a target site's.
        labels_dir: folder of the label maps, if they are not found beside the images.
        output: file to write, relative to the bundle; None: the one that the key ``quality`` of ``configs/adapt.yaml``
            names, or ``models/quality.json``.
        images: maximum number of images, evenly spaced; None: all.
        val_stride: step between the sorted cases, from the first on, that were held out of the network's training, as
            in ``configs/train.yaml``: these are used. 1: all cases.
        groups: what tells which cases belong together, such as those of one patient, see
            :func:`grata.bundles.groups.make_groups`: the step is one between groups then; None: each is by itself.
        seed: seed of the simulations.
        overwrite: whether to replace a file that is there already.
        overrides: values for keys of ``configs/adapt.yaml``, nested keys joined by ``#``.

    Returns:
        0 if every image was used, 1 if one could not be used: it is reported, and the file is made from the others.

    Raises:
        GrataError: the bundle, an argument or the folder is refused, the file is there already, or fewer than four
            images could be used.
    """
    quiet()
    images = None if images is None else _whole("images", images, 1)
    val_stride, seed = _whole("val_stride", val_stride, 1), _whole("seed", seed, 0)
    of_groups = checked(optional_groups, groups, "groups")
    opened = _opened(Path(bundle), {**given_folders(dataset_dir, labels_dir), **overrides}, calibrate)
    path = output_file(opened, output, "quality", "models/quality.json")
    check_not_there(path, overwrite)
    with writing(path):
        cases = _held_out_cases(opened, val_stride, of_groups, images)
        probe = _Probe(opened)
        samples, faults = probe.all_samples(cases, seed)
        used = len({sample.case for sample in samples})
        if used < _LEAST:
            raise GrataError(
                f"{used} of {len(cases)} images could be used, and four are the least. "
                f"{'The first fault: ' + faults[0] if faults else 'Give labelled source images.'}",
                key="dataset_dir",
            )
        made = replace(fit(samples), network=probe.digest)
        made.save(path)
        print(f"Calibrated on {used} of {len(cases)} images: {path} ({path.stat().st_size / 1e3:.0f} kB)")
        print(f"  Dice at home {made.typical:.3f}; 90 % of the errors within {_widest(made):.2f} there")
        for fault in faults:
            say(f"  {fault}")
        return 1 if faults else 0


def _held_out_cases(opened: Bundle, val_stride: int, groups: Groups | None, images: int | None) -> Sequence[Case]:
    found = opened.cases(None)
    cases = _evenly(
        [case for case in every_group(found, val_stride, groups) if {"label", "fault"} & case.keys()], images
    )
    if len(cases) < _LEAST:
        options = f"--val_stride {val_stride}" + ("" if images is None else f" and --images {images}")
        raise GrataError(
            f"{options} leave {len(cases)} labelled images of {len(found)}, and four are the least. Any image that the "
            "network was not trained with will do: with --val_stride 1 all are taken.",
            key="dataset_dir",
        )
    return cases


def _widest(made: Calibration) -> float:
    return max(abs(end) for end in made.errors[-1])


class _Probe:
    """A bundle's network, by its own statistics and by the image's."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        with torch.random.fork_rng(devices=[]):
            self._network = bundle.make_network().eval()
        self.digest = network_digest(self._network)
        self._segments = [region.label for region in bundle.regions]
        self._methods = []
        if not isinstance(self._network, torch.jit.ScriptModule) and any(batch_norm_layers(self._network)):
            self._methods = [create(name, self._network, {}) for name in _ADAPTING]

    def all_samples(self, cases: Sequence[Case], seed: int) -> tuple[list[Sample], list[str]]:
        """Return the samples of all source images, and what was wrong with those that could not be used."""
        samples: list[Sample] = []
        faults = []
        for number, case in enumerate(tqdm(cases, desc="calibrate", unit="image")):
            # One unreadable image must not end the run, and a configuration can call anything that can raise anything.
            try:
                samples += self.samples(case, seed + number)
            except Exception as error:  # noqa: BLE001
                faults.append(f"{case['case']}: {self._bundle.without_folders(explain(error), case)}")
                say_beside_bar(faults[-1])
        return samples, faults

    def samples(self, case: Case, seed: int) -> list[Sample]:
        """Return the samples of one source image."""
        bundle = self._bundle
        if "fault" in case:
            raise GrataError(case["fault"])
        image = bundle.read_image(case)
        plain = image["image"].as_tensor().float()
        label, written = bundle.read_masks(case, image), bundle.written(image)
        found = []
        for simulation in (*SHIFTS, *WRONG):
            if len(plain) >= simulation.channels:
                found += self._of(case["case"], simulation, simulation(plain, seed), label, written)
        return found

    def _of(
        self, case: str, simulation: Simulation, image: torch.Tensor, label: torch.Tensor, written: torch.Tensor
    ) -> list[Sample]:
        label = label if simulation.label is None else simulation.label(label)
        x = image[None].to(self._bundle.device)
        with layer_statistics(self._network) as statistics:
            source = self._predicted(x)
        distances = list(statistics.distances().values())
        about = distances, float("nan"), self._bundle.activation, self._segments
        predictions = [source, *(self._adapted(method, x) for method in self._methods)]
        truth = [0.0] * len(label) if simulation.name in _NO_TRUTH else None
        return [
            Sample(
                case,
                simulation.name,
                prediction is not source,
                measure(image, prediction, source, *about),
                truth or dice_of(prediction, label, written),
            )
            for prediction in predictions
        ]

    def _adapted(self, method: Method, x: torch.Tensor) -> Segmentation:
        method.adapt(x)
        adapted = self._predicted(x)
        method.restore()
        return adapted

    def _predicted(self, x: torch.Tensor) -> Segmentation:
        bundle = self._bundle
        with torch.no_grad(), eval_mode(self._network):
            logits = logits_in(bundle.inferer(x, self._network), bundle.output)
        return segmentation(logits, bundle.activation)


def dice_of(prediction: Segmentation, label: torch.Tensor, written: torch.Tensor) -> list[float]:
    """Return the Dice of each segment, as whoever reads the segmentation finds it.

    Args:
        prediction: prediction for one image.
        label: its masks ``(K, ...)`` of 0 and 1.
        written: which part of a prediction is written, see :meth:`grata.bundles.bundle.Bundle.written`.
    """
    truth, kept = label[None].to(prediction.masks.device), written[None].to(prediction.masks.device)
    read = replace(prediction, masks=prediction.masks & kept)
    found: list[float] = overlap(read, Segmentation(truth, (truth > 0.5) & kept))[0].tolist()
    return found


class _Table(NamedTuple):
    """What is known of samples.

    Attributes:
        thumbnail: mean thumbnail of the source images.
        names: names of the features.
        centre, spread: median and deviation of each feature at home.
        known: what the Dice of each sample is expected from.
        dice: mean Dice of each sample.
    """

    thumbnail: list[float]
    names: tuple[str, ...]
    centre: np.ndarray
    spread: np.ndarray
    known: Known
    dice: np.ndarray


def _tabulated(samples: Sequence[Sample]) -> _Table:
    thumbnail = np.mean([sample.measures.thumbnail for sample in _home(samples)], 0).tolist()
    names, centre, spread, strange = _strangeness(samples, thumbnail)
    sure = np.array([logit(float(np.mean(_sure(s)))) for s in samples])
    change = np.array([changed(float(np.mean(_agreements(s)))) for s in samples])
    dice = np.array([float(np.mean(s.dice)) for s in samples])
    return _Table(thumbnail, names, centre, spread, (strange, sure, change), dice)


def _home(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.simulation == "none" and not sample.adapted]


def fit(samples: Sequence[Sample]) -> Calibration:
    """Fit what is to be expected of a network to predictions whose Dice is known.

    Args:
        samples: predictions of at least four source images, among them unchanged ones (simulation ``none``).
    """
    table, home = _tabulated(samples), _home(samples)
    parameters = _fitted(table.known, table.dice)
    expected = _held_out(samples, table.known, table.dice)
    steps, errors = _intervals(expected, table.dice)
    shares = np.array([s.measures.source["share"] for s in home])
    return Calibration(
        segments=samples[0].measures.segments,
        names=table.names,
        centre=tuple(table.centre.tolist()),
        spread=tuple(table.spread.tolist()),
        weights=tuple(parameters[_LINE + 1 :].tolist()),
        margin=float(parameters[_LINE]),
        sureness=_line(parameters),
        of_segments=_of_segments(samples, _familiarity(parameters, table.known[0])),
        thumbnail=tuple(table.thumbnail),
        typical=float(np.mean([np.mean(s.dice) for s in home])),
        steps=tuple(steps),
        errors=tuple(errors),
        ranges=tuple(zip(shares.min(0).tolist(), shares.max(0).tolist())),
        cases=len(home),
        least_gain=least_gain(_gains(samples, expected, table.dice)),
    )


def held_out_gains(samples: Sequence[Sample]) -> Gains:
    """Return what adaptation is expected to gain on source images and their shifts, and what it does gain.

    Args:
        samples: predictions, see :func:`fit`.

    Returns:
        Gains of all adapted predictions, by fits that know neither their source image nor their kind of change.
    """
    table = _tabulated(samples)
    return _gains(samples, _held_out(samples, table.known, table.dice), table.dice)


def _strangeness(
    samples: Sequence[Sample], thumbnail: Sequence[float]
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
    """Return the names of the features, their median and deviation at home, and how far out they are by sample."""
    rows = [features(s.measures, thumbnail, source=not s.adapted) for s in samples]
    names = tuple(rows[0])
    table = np.array([[row[name] for name in names] for row in rows])
    home = table[[s.simulation == "none" for s in samples]]
    centre = np.median(home, 0)
    spread = np.maximum(home.std(0), 0.02 * np.abs(centre) + 0.02)
    return names, centre, spread, spread_out((table - centre) / spread)


def _line(parameters: np.ndarray) -> Line:
    a, b, c = parameters[:_LINE].tolist()
    return a, b, c


def _of_segments(samples: Sequence[Sample], familiarity: np.ndarray) -> tuple[Line, ...]:
    """Return a, b and c of each segment, with the familiarity as it is."""
    sure = np.array([[logit(value) for value in _sure(s)] for s in samples])
    change = np.array([[changed(value) for value in _agreements(s)] for s in samples])
    dice = np.array([s.dice for s in samples])
    return tuple(_line_of_segment(*columns, familiarity) for columns in zip(sure.T, change.T, dice.T))


def _line_of_segment(sure: np.ndarray, change: np.ndarray, dice: np.ndarray, familiarity: np.ndarray) -> Line:
    def loss(line: np.ndarray) -> float:
        return float(((familiarity * expit(line[0] + line[1] * sure - line[2] * change) - dice) ** 2).mean())

    return _line(minimize(loss, np.array([0.0, 1.0, 0.0]), method="L-BFGS-B", bounds=_LINE_BOUNDS).x)


def _sure(sample: Sample) -> Sequence[float]:
    signals: Mapping[str, Sequence[float]] = sample.measures.adapted if sample.adapted else sample.measures.source
    return signals["self_dice"]


def _agreements(sample: Sample) -> Sequence[float]:
    """Return the agreement of each segment with the source prediction."""
    agreement: Sequence[float] = sample.measures.agreement_source
    return agreement if sample.adapted else [1.0] * len(agreement)


def _familiarity(parameters: np.ndarray, strange: np.ndarray) -> np.ndarray:
    return familiarity_of(strange @ parameters[_LINE + 1 :] - parameters[_LINE])


def _expected(parameters: np.ndarray, known: Known) -> np.ndarray:
    strange, sure, change = known
    a, b, c = parameters[:_LINE]
    return _familiarity(parameters, strange) * expit(a + b * sure - c * change)


def _fitted(known: Known, dice: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Return the line, the margin and the weights of least squares."""
    strange, sure, change = known
    count = strange.shape[1]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, c = parameters[:_LINE]
        r = expit(a + b * sure - c * change)
        weights = parameters[_LINE + 1 :]
        u = strange @ weights - parameters[_LINE]
        familiar = familiarity_of(u)
        error = r * familiar - dice
        of_r = 2 * error * familiar * r * (1 - r)
        of_u = -2 * error * r * familiar * expit(SHARP * u)
        line = of_r.mean(), (of_r * sure).mean(), -(of_r * change).mean()
        value = (error**2).mean() + _SPARSE * _DECAY / count * weights.sum() + _DECAY * (weights @ weights)
        slope = _SPARSE * _DECAY / count + 2 * _DECAY * weights + strange.T @ of_u / len(dice)
        return float(value), np.r_[line, -of_u.mean(), slope]

    start = np.r_[0.0, 1.0, 0.0, 1.0, np.full(count, 0.02)] if start is None else start
    bounds = [*_LINE_BOUNDS, (0.3, None)] + [(0, None)] * count
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x)


def _held_out(samples: Sequence[Sample], known: Known, dice: np.ndarray) -> np.ndarray:
    """Return the expected Dice of each sample by a fit that knows neither its source image nor its kind of change.

    The next hospital's images are changed in a way that no simulation shows; the errors for changes that the fit never
    saw say how far it can then be off.
    """
    cases = sorted({sample.case for sample in samples})
    fold = {case: number % _FOLDS for number, case in enumerate(cases)}
    of = np.array([fold[sample.case] for sample in samples])
    kinds = np.array([sample.simulation for sample in samples])
    expected = np.zeros(len(samples))
    for number in range(min(_FOLDS, len(cases))):
        others = of != number
        start = _fitted(_part(known, others), dice[others])
        for kind in dict.fromkeys(kinds):
            out = (of == number) & (kinds == kind)
            # images as they are were never a change
            seen = others & ((kinds != kind) | (kinds == "none"))
            expected[out] = _expected(_fitted(_part(known, seen), dice[seen], start), _part(known, out))
    return expected


def _part(known: Known, where: np.ndarray) -> Known:
    strange, sure, change = known
    return strange[where], sure[where], change[where]


def _gains(samples: Sequence[Sample], expected: np.ndarray, dice: np.ndarray) -> Gains:
    source = {(s.case, s.simulation): number for number, s in enumerate(samples) if not s.adapted}
    wrong = {simulation.name for simulation in WRONG}
    adapted = [number for number, s in enumerate(samples) if s.adapted and s.simulation not in wrong]
    plain = [source[samples[number].case, samples[number].simulation] for number in adapted]
    home = np.array([samples[number].simulation == "none" for number in adapted], bool)
    return Gains(expected[adapted] - expected[plain], dice[adapted] - dice[plain], home)


def least_gain(gains: Gains) -> float:
    """Return how much more must be expected of an adapted prediction for it to be used: what would have been best.

    Source images as they are count as much as all their shifts together, and a loss counts twice, because a user who
    adapts nothing has none.

    Args:
        gains: gains on source images and their shifts, see :func:`held_out_gains`.
    """
    expected, true, home = gains
    if not len(expected):
        return Calibration.least_gain
    worth = np.where(true < 0, _LOSS * true, true) / np.where(home, home.sum(), max(1, (~home).sum()))
    bounds = np.unique(np.r_[expected[expected > Calibration.least_gain], Calibration.least_gain, _NEVER])
    # the lowest of several that are as good: what adaptation might do for other images is not thrown away
    return float(bounds[np.argmax([worth[expected >= bound].sum() for bound in bounds])])


def _intervals(expected: np.ndarray, dice: np.ndarray) -> tuple[list[float], list[tuple[float, float]]]:
    """Return where the errors change, and their 5 % and 95 % quantiles between these steps."""
    steps = np.quantile(expected, (1 / 3, 2 / 3)).tolist()
    place = np.searchsorted(np.array(steps), expected, side="right")
    errors: dict[int, list[float]] = defaultdict(list)
    for number, error in zip(place.tolist(), (dice - expected).tolist()):
        errors[number].append(error)
    # predictions of which the same is expected leave a step empty
    ends = [np.quantile(errors[number] or dice - expected, (0.05, 0.95)).tolist() for number in range(3)]
    return steps, [(min(low, 0.0), max(high, 0.0)) for low, high in ends]
