"""What is known of a network from its source set: written and read, monotone, and fitted to what is true."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import grata
from grata.errors import GrataError
from grata.preparation.calibration import Sample, fit
from grata.quality import Calibration, decide, measure, segmentation
from grata.quality import Thresholds as Bounds
from grata.quality.features import features

SEGMENTS = ("organ", "lesion")
GAINS = (1.0, 0.5, 2.0, 4.0, 8.0)
SHARPNESS = (12.0, 3.0, 1.0)


def image(case, gain=1.0, size=24):
    """A ball with a core in noise, ``(1, H, W)``."""
    generator = torch.Generator().manual_seed(case)
    axis = torch.arange(size) + 0.5
    centre = size * (0.4 + 0.2 * torch.rand(2, generator=generator))
    distance = ((axis[:, None] - centre[0]) ** 2 + (axis[None] - centre[1]) ** 2).sqrt()
    noise = 0.1 * torch.rand(size, size, generator=generator)
    return (gain * (0.4 * (distance < 8) + 0.4 * (distance < 4) + noise))[None]


def measured(case, gain=1.0, sharpness=12.0, source_sharpness=None):
    """Signals of an image whose network is not disturbed by the gain, and whose predictions are as sharp as given."""
    plain = image(case)[0]
    logits = torch.stack([plain - 0.3, plain - 0.65])[None]
    adapted, source = (segmentation(s * logits, "sigmoid") for s in (sharpness, source_sharpness or sharpness))
    return measure(image(case, gain), adapted, source, [], math.nan, "sigmoid", SEGMENTS)


def true_dice(case, gain, sharpness):
    """Dice that falls with the distance of the grey values, and where the network is not sure."""
    fall = 0.35 * abs(math.log(gain)) + 0.1 * math.log(12 / sharpness)
    return [max(0.0, 0.95 - fall + 0.02 * math.sin(case)), max(0.0, 0.9 - fall + 0.02 * math.cos(case))]


def samples(cases=range(8)):
    found = []
    for case in cases:
        for gain in GAINS:
            for sharpness in SHARPNESS if gain == 1 else SHARPNESS[:1]:
                name = "none" if (gain, sharpness) == (1, 12) else f"gain-{gain}-{sharpness}"
                for adapted in (False, True):
                    m, dice = measured(case, gain, sharpness), true_dice(case, gain, sharpness)
                    found.append(Sample(f"case{case}", name, adapted, m, dice))
    return found


@pytest.fixture(scope="module")
def fitted():
    return fit(samples())


def test_a_fit_finds_the_order_of_predictions_that_it_has_not_seen(fitted):
    expected, true = [], []
    for case in range(100, 106):
        for gain, sharpness in [(1, 12), (1, 5), (1, 2), (0.7, 12), (1.5, 12), (3, 12), (6, 12)]:
            expected.append(fitted.expected(measured(case, gain, sharpness)).dice)
            true.append(np.mean(true_dice(case, gain, sharpness)))
    assert spearmanr(expected, true).statistic > 0.9
    assert np.abs(np.subtract(expected, true)).mean() < 0.1


def test_a_fit_holds_what_the_source_images_are_like(fitted):
    assert fitted.segments == SEGMENTS and fitted.cases == 8
    assert all(weight >= 0 for weight in fitted.weights) and any(fitted.weights)
    home = [np.mean(true_dice(case, 1, 12)) for case in range(8)]
    assert fitted.typical == pytest.approx(np.mean(home))
    shares = np.array([measured(case).source["share"] for case in range(8)])
    np.testing.assert_allclose(fitted.ranges, np.stack([shares.min(0), shares.max(0)], 1), rtol=1e-6)
    assert len(fitted.errors) == len(fitted.steps) + 1 and list(fitted.steps) == sorted(fitted.steps)
    assert all(low <= 0 <= high for low, high in fitted.errors)
    assert repr(fit(samples())) == repr(fitted)


def test_an_expected_dice_lies_in_its_interval_and_names_what_is_strange(fitted):
    home, far = (fitted.expected(measured(50, gain)) for gain in (1, 8))
    for found in (home, far):
        assert 0 <= found.low <= found.dice <= found.high <= 1 and 0 < found.familiarity <= 1
        assert len(found.segments) == 2 and all(0 <= dice <= 1 for dice in found.segments)
    assert home.dice > 0.8 > 0.5 > far.dice and far.familiarity < home.familiarity
    assert far.strange and far.strange[0].startswith("its ") and len(far.strange) <= 3
    assert far.as_dict().keys() == {"expected_dice", "expected_low", "expected_high", "familiarity"}


def test_nothing_is_expected_of_an_image_whose_signals_are_no_numbers(fitted):
    plain = measured(50)
    found = decide(dataclasses.replace(plain, image=dict.fromkeys(plain.image, math.nan)), Bounds(), fitted)
    assert found.verdict == "reject" and found.of_adapted.dice == found.of_adapted.familiarity == 0.0
    assert 0 <= found.of_adapted.low <= found.of_adapted.high < 1


def test_most_of_what_is_true_lies_in_the_interval(fitted):
    inside = []
    for sample in samples(range(200, 208)):
        found = fitted.expected(sample.measures)
        inside.append(found.low - 0.02 <= np.mean(sample.dice) <= found.high + 0.02)
    assert np.mean(inside) > 0.8


def test_the_source_prediction_is_judged_by_its_own_signals(fitted):
    both = measured(3, sharpness=1.0, source_sharpness=12.0)
    assert fitted.expected(both, source=True) == fitted.expected(measured(3, sharpness=12.0))
    assert fitted.expected(both) == fitted.expected(measured(3, sharpness=1.0))
    assert fitted.expected(both, source=True).dice > fitted.expected(both).dice


def moved(measures, name, value):
    """The same signals with another value of one feature."""
    head, _, key = name.partition("/")
    if head == "image":
        return dataclasses.replace(measures, image={**measures.image, key: value})
    k = measures.segments.index(head)
    inverse = {"share": lambda v: math.exp(v) - 1e-4, "components": math.expm1, "confidence": _unlogit}
    values = list(measures.adapted[key])
    values[k] = inverse.get(key, lambda v: v)(value)
    return dataclasses.replace(measures, adapted={**measures.adapted, key: values})


def _unlogit(value):
    e = math.exp(value)
    return (e * 1.001 - 0.001) / (1 + e)


def test_whatever_is_farther_from_the_source_never_raises_the_expected_dice(fitted):
    """But for the self-Dice, which also shows how sure the network is, and the likeness, which has its own input."""
    measures = measured(60)
    weights = [1.0] * len(fitted.names)
    for calibration in (fitted, dataclasses.replace(fitted, weights=tuple(weights))):
        for name, centre, spread in zip(calibration.names, calibration.centre, calibration.spread):
            if name.endswith("/self_dice") or name == "image/likeness":
                continue
            for sign in (-1, 1):
                last = math.inf
                for z in (0, 0.5, 1, 3, 10, 29, 60, 1e4):
                    value = centre + sign * z * spread
                    if name.endswith("/confidence") and abs(value) > 6.8:
                        continue  # no share has such a logit
                    if name.endswith(("/share", "/components")) and not -9.2 < value < 50:
                        continue
                    there = moved(measures, name, value)
                    assert features(there, calibration.thumbnail)[name] == pytest.approx(value, rel=1e-6, abs=1e-9)
                    found = calibration.expected(there).dice
                    assert found <= last + 1e-12, name
                    last = found


def test_surer_is_never_expected_to_be_worse(fitted):
    """Without the strangeness, which a self-Dice has as well."""
    free = dataclasses.replace(fitted, weights=tuple(0.0 for _ in fitted.weights))
    assert all(number >= 0 for line in (free.sureness, *free.of_segments) for number in line[1:])
    found = []
    for sure in np.linspace(0, 1, 11):
        m = measured(60)
        found.append(free.expected(dataclasses.replace(m, adapted={**m.adapted, "self_dice": [sure, sure]})).dice)
    assert found == sorted(found)


def test_what_a_change_costs_at_home_is_known():
    """A network that is no less sure of what it changed to its harm."""
    of_home, rng = [], np.random.default_rng(0)
    for s in samples():
        change = rng.uniform(0, 0.2) if s.adapted else 0.3
        m = dataclasses.replace(s.measures, agreement_source=[1 - change] * 2)
        of_home.append(dataclasses.replace(s, measures=m, dice=[d - change * s.adapted for d in s.dice]))
    made = fit(of_home)
    changed = dataclasses.replace(measured(50), agreement_source=[0.9, 0.9])
    costs = made.expected(changed, source=True).dice - made.expected(changed).dice
    assert costs == pytest.approx(0.1, abs=0.05) and made.expected(changed, source=True) == made.expected(measured(50))
    by_segment = [made.expected(changed, source).segments for source in (True, False)]
    assert all(kept > lost for kept, lost in zip(*by_segment))


def test_what_is_written_is_read_again(fitted, tmp_path):
    path, again = tmp_path / "quality.json", tmp_path / "again.json"
    fitted.save(path)
    read = Calibration.read(path)
    read.save(again)
    assert path.read_bytes() == again.read_bytes() and Calibration.read(again) == read
    assert read.names == fitted.names and read.segments == fitted.segments
    np.testing.assert_allclose(read.weights, fitted.weights, rtol=1e-5)
    for gain in (1, 2, 8):
        assert read.expected(measured(3, gain)).dice == pytest.approx(fitted.expected(measured(3, gain)).dice, abs=1e-4)


DAMAGE = {
    "no key": lambda c: c.pop("weights"),
    "another key": lambda c: c.update(more=1),
    "weights of another number": lambda c: c["weights"].append(1.0),
    "a weight below 0": lambda c: c["weights"].__setitem__(0, -0.1),
    "text for a number": lambda c: c["centre"].__setitem__(0, "one"),
    "no number": lambda c: c["spread"].__setitem__(0, float("nan")),
    "a number for a list": lambda c: c.update(errors=3),
    "an interval too few": lambda c: c["errors"].pop(),
    "a segment too few": lambda c: c["ranges"].pop(),
    "no deviation": lambda c: c["spread"].__setitem__(0, 0.0),
    "a list for a number": lambda c: c.update(typical=[0.9]),
    "an end of a range": lambda c: c["ranges"][0].pop(),
    "an end of an interval": lambda c: c["errors"][0].pop(),
    "numbers for names": lambda c: c.update(segments=[1, 2]),
    "another feature": lambda c: c["names"].__setitem__(0, "image/foo"),
    "another part": lambda c: c["names"].__setitem__(0, "lung/share"),
    "a nested list": lambda c: c["centre"].__setitem__(0, [1.0]),
    "half a thumbnail": lambda c: c.update(thumbnail=c["thumbnail"][:5]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(fitted, tmp_path, damage):
    path = tmp_path / "quality.json"
    fitted.save(path)
    content = json.loads(path.read_text())
    DAMAGE[damage](content)
    path.write_text(json.dumps(content))
    with pytest.raises(GrataError, match="is damaged. Make it anew by python -m grata calibrate"):
        Calibration.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ('{"format": "grata quality 1", "segm', "cannot be read"),
        ("[1, 2]", "is not a file of python -m grata calibrate"),
        ("{}", "is not a file of python -m grata calibrate"),
        ('{"format": "grata quality 2"}', "is not a file of python -m grata calibrate"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_another_file_is_refused(tmp_path, text, message):
    path = tmp_path / "quality.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(GrataError, match=message):
        Calibration.read(path)
    with pytest.raises(GrataError, match="does not exist"):
        Calibration.read(tmp_path / "missing.json")
    with pytest.raises(GrataError, match="cannot be read"):
        Calibration.read(tmp_path)


class Thresholds(torch.nn.Module):
    """A network that outlines the ball and its core, by their grey values alone."""

    def __init__(self, sharpness=12.0, channels=1, outputs=2):
        super().__init__()
        self.last = torch.nn.Conv2d(channels, outputs, 1)
        with torch.no_grad():
            self.last.weight.fill_(sharpness / channels)
            self.last.bias.copy_(torch.tensor([-0.3, -0.65])[:outputs] * sharpness)

    def forward(self, x):
        return self.last(x)


def judged(network, x, path, **guard):
    (adapted,) = grata.adapt(network, x[None], "source", activation="sigmoid", guard={"calibration": path, **guard})
    return adapted.judgements[0]


@pytest.fixture(scope="module")
def path(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "quality.json"
    fitted.save(path)
    return path


def test_the_guard_goes_by_the_expected_dice(fitted, path):
    home = judged(Thresholds(), image(70), path)
    assert home.verdict == "ok" and home.reasons == () and home.quality["expected_dice"] > 0.85 * fitted.typical
    assert set(home.quality["segments"]) == set(SEGMENTS)
    # of both predictions, which are one here, and of each segment
    by_segment = [signals["expected_dice"] for signals in home.quality["segments"].values()]
    both = home.quality["expected_adapted"], home.quality["expected_source"]
    assert both == (home.quality["expected_dice"],) * 2
    assert sum(by_segment) / 2 == pytest.approx(home.quality["expected_dice"], abs=0.1)
    unsure = judged(Thresholds(1.0), image(70), path)
    assert unsure.verdict == "review" and "is usual at home" in unsure.reasons[0]
    # a network that is not disturbed, on an image as from nowhere
    wrong = judged(Thresholds(12 / 8), image(70, 8), path)
    assert wrong.verdict == "reject" and "least like the source images: its " in wrong.reasons[0]
    assert wrong.quality["expected_low"] <= wrong.quality["expected_dice"] <= wrong.quality["expected_high"]


def test_a_calibration_of_another_network_does_not_count_and_is_named(path):
    for network, x in ((Thresholds(outputs=1), image(0)), (Thresholds(channels=3), image(0).expand(3, -1, -1))):
        found = judged(network, x, path)
        assert found.verdict == "review" and "expected_dice" not in found.quality
        assert found.reasons[0].startswith("the calibration is that of another network (2D, 1 input channels, 2 segm")
    # an entrance may call the segments otherwise, or not at all
    for names in (SEGMENTS, ("one", "other"), ()):
        assert judged(Thresholds(), image(0), path, segments=list(names)).verdict == "ok"
