"""``grata calibrate``: what Dice to expect of a network, from a few labelled source images."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from grata.benchmark.bundle import Bundle
from grata.cli.app import main
from grata.errors import GrataError
from grata.methods import create
from grata.preparation import calibrate, prepare
from grata.preparation.calibration import _Probe, dice_of, fit
from grata.preparation.simulated import SHIFTS, WRONG
from grata.quality import Calibration, Segmentation
from grata.session import Session

SHAPE = (32, 32)
# of images of one channel none can be exchanged
SIMULATIONS = [simulation.name for simulation in (*SHIFTS, *WRONG) if simulation.name != "channels_exchanged"]


@pytest.fixture
def source(make_source):
    """Five labelled images."""
    return make_source(5, SHAPE)[0]


@pytest.fixture
def samples(config, write_bundle, source):
    """What is measured of five source images, their shifts and wrong inputs."""
    bundle = Bundle(write_bundle(config), {"dataset_dir": str(source)}, "test")
    found, faults = _Probe(bundle).all_samples(bundle.cases(None), seed=0)
    assert faults == []
    return found


def test_a_small_source_set_gives_a_file_of_plain_numbers(config, write_bundle, source, capsys):
    bundle, state = write_bundle(config), torch.get_rng_state()
    assert calibrate(bundle, source, val_stride=1) == 0
    assert torch.equal(torch.get_rng_state(), state)
    path = bundle / "models" / "quality.json"
    out = capsys.readouterr().out
    assert f"Calibrated on 5 of 5 images: {path}" in out and "Dice at home 0." in out
    made = Calibration.read(path)
    assert (made.segments, made.cases) == (("Disc", "Cup"), 5)
    assert len(made.weights) == len(made.names) and min(made.weights) >= 0
    assert 0 <= made.typical <= 1 and all(low <= 0 <= high for low, high in made.errors)
    assert all(0 <= least <= greatest <= 1 for least, greatest in made.ranges)
    # nothing but numbers and the names of features and segments: no path, no image
    text = path.read_text()
    assert str(source) not in text and "case0" not in text
    assert set(json.loads(text)) == {"format", "sha256", *(field.name for field in dataclasses.fields(Calibration))}


@pytest.mark.parametrize("changed", [False, True])
def test_a_calibration_counts_for_its_weights_alone(config, write_bundle, source, changed):
    root = write_bundle(config)
    assert calibrate(root, source, val_stride=1) == 0
    bundle = Bundle(root, {"dataset_dir": str(source)}, "test")
    network = bundle.make_network()
    with torch.no_grad():
        next(network.parameters()).flatten()[0] += 0.01 * changed
    guard = {"calibration": root / "models" / "quality.json"}
    session = Session(create("ptbn", network, {}, activation=bundle.activation), guard=guard)
    image = bundle.read_image(bundle.cases(None)[0])["image"].as_tensor()[None]
    with session.case(image) as case, torch.no_grad():
        case.adapt()
        case.judge(session.network(image))
    (judgement,) = case.judgements
    told = any("made for other weights" in reason for reason in judgement.reasons)
    assert (told, judgement.quality.get("expected_dice") is not None) == (changed, not changed)


@pytest.mark.parametrize("padded", [True, False])
def test_what_a_bundle_takes_away_again_does_not_count(config, write_bundle, source, padded):
    """Nobody reads what a network says of it."""
    pad = {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [40, 32]}
    config["preprocessing"]["transforms"].append(pad)
    invert = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
    config["to_probabilities"]["transforms"] = [invert | {"nearest_interp": False}] * padded
    bundle = Bundle(write_bundle(config), {"dataset_dir": str(source)}, "test")
    case = bundle.cases(None)[0]
    image = bundle.read_image(case)
    expected = torch.ones(1, 40, 32, dtype=torch.bool)
    if padded:
        expected[:, :4] = expected[:, 36:] = False
    assert torch.equal(bundle.written(image), expected)
    label = bundle.read_masks(case, image)
    everywhere = torch.ones(1, 2, 40, 32, dtype=torch.bool)
    found = dice_of(Segmentation(everywhere.float(), everywhere), label, bundle.written(image))
    truth = label.flatten(1).sum(1)
    assert found == pytest.approx((2 * truth / (truth + expected.sum())).tolist())


def test_a_calibration_that_is_there_is_not_replaced_by_the_way(config, write_bundle, source):
    path = write_bundle(config) / "models" / "quality.json"
    path.write_text("made from many images")
    with pytest.raises(GrataError, match=r"output: .*quality\.json exists.*--overwrite true"):
        calibrate(path.parents[1], source, val_stride=1)
    assert path.read_text() == "made from many images"
    assert calibrate(path.parents[1], source, val_stride=1, overwrite=True) == 0
    assert Calibration.read(path).cases == 5


@pytest.mark.parametrize("folder", ["", "@bundle_root + '/' + "])
@pytest.mark.parametrize("relative", [True, False])
def test_the_file_is_the_one_that_the_bundle_reads_with_these_settings(
    config, write_bundle, source, folder, relative, monkeypatch
):
    """So that a second network of a bundle does not take the place of the first one's."""
    config |= {"kind": "plain", "quality": f"${folder}'models/quality-' + @kind + '.json'"}
    config |= {"prepared": f"${folder}'models/prepared-' + @kind + '.safetensors'"}
    bundle = write_bundle(config)
    if relative:
        monkeypatch.chdir(bundle.parent)
        bundle = bundle.relative_to(bundle.parent)
    assert calibrate(bundle, source, images=4, val_stride=1, kind="strong") == 0
    assert prepare(bundle, source, images=4, heads=None, kind="strong") == 0
    written = {path.name for path in (bundle / "models").iterdir() if path.suffix in (".json", ".safetensors")}
    assert written == {"quality-strong.json", "prepared-strong.safetensors"}


def test_the_same_images_and_seed_give_the_same_file(config, write_bundle, source):
    bundle = write_bundle(config)
    for name in ("one", "two"):
        assert calibrate(bundle, source, output=f"{name}.json", val_stride=1) == 0
    assert calibrate(bundle, source, output="other.json", val_stride=1, seed=1) == 0
    one, two, other = ((bundle / f"{name}.json").read_text() for name in ("one", "two", "other"))
    assert one == two != other


def test_each_image_is_measured_unchanged_shifted_and_wrong(samples):
    assert {sample.case for sample in samples} == {f"case{n}" for n in range(5)}
    # by the running statistics, by the image's own, and by a tenth of these mixed in
    assert len(samples) == 5 * len(SIMULATIONS) * 3
    adapted = [sample.simulation for sample in samples if sample.case == "case2" and sample.adapted]
    assert adapted[::2] == adapted[1::2] == SIMULATIONS
    for sample in samples:
        assert len(sample.dice) == 2 and all(0 <= dice <= 1 for dice in sample.dice)
        # no segmentation of noise is right
        assert sample.simulation != "only_noise" or sample.dice == [0.0, 0.0]


def test_what_is_expected_follows_the_dice(samples):
    """Samples whose Dice is known: what the image looks like is what tells wrong inputs from images of the source."""
    wrong = {simulation.name for simulation in WRONG}
    told = [dataclasses.replace(sample, dice=[0.1 if sample.simulation in wrong else 0.9] * 2) for sample in samples]
    made = fit(told)
    assert made.typical == pytest.approx(0.9)
    expected = {
        kind: np.mean([made.expected(s.measures).dice for s in told if s.adapted and (s.simulation in wrong) == kind])
        for kind in (False, True)
    }
    assert expected[False] > expected[True] + 0.2


@pytest.mark.parametrize(("of_adapted", "used"), [(0.8, False), (0.9, True), (0.95, True)])
def test_adaptation_is_used_as_far_as_it_was_a_gain_on_source_images(samples, of_adapted, used):
    """Samples of which adaptation changes the Dice by as much for every image, and something of the prediction."""
    told = [dataclasses.replace(sample, dice=[of_adapted if sample.adapted else 0.9] * 2) for sample in samples]
    made = fit(told)
    right = [s for s in told if s.adapted and s.simulation in {simulation.name for simulation in SHIFTS}]
    gains = [made.expected(s.measures).dice - made.expected(s.measures, source=True).dice for s in right]
    assert np.mean([gain >= made.least_gain for gain in gains]) == pytest.approx(float(used), abs=0.1)


def test_a_network_of_which_always_the_same_is_expected_is_calibrated(samples):
    same = [dataclasses.replace(sample, measures=samples[0].measures, dice=[0.5, 0.5]) for sample in samples]
    made = fit(same)
    assert made.expected(samples[0].measures).dice == pytest.approx(0.5, abs=0.1)


def test_an_unreadable_image_is_reported_and_left_out(config, write_bundle, source, capsys):
    scan = source / "images" / "case1.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-40])
    bundle = write_bundle(config)
    assert calibrate(bundle, source, val_stride=1) == 1
    out = capsys.readouterr().out
    assert "Calibrated on 4 of 5 images" in out
    (line,) = [line for line in out.splitlines() if line.startswith("  case1: ")]
    assert str(source) not in line
    assert Calibration.read(bundle / "models" / "quality.json").cases == 4


def test_fewer_than_four_images_are_refused_and_nothing_is_written(config, write_bundle, make_source):
    bundle = write_bundle(config)
    few = make_source(3, SHAPE, name="few")[0]
    with pytest.raises(GrataError, match="dataset_dir: --val_stride 1 and --images 20 leave 3 labelled images of 3"):
        calibrate(bundle, few, val_stride=1)
    many = make_source(5, SHAPE, name="many")[0]
    for index in (0, 4):
        (many / "images" / f"case{index}.nii.gz").write_bytes(b"no image")
    with pytest.raises(GrataError, match="3 of 5 images .*The first fault: case0: "):
        calibrate(bundle, many, val_stride=1)
    # every fifth image alone was held out of training
    with pytest.raises(GrataError, match="--val_stride 5 and --images 20 leave 1 labelled images of 5"):
        calibrate(bundle, make_source(5, SHAPE, name="strided")[0])
    with pytest.raises(GrataError, match="no image has a label"):
        calibrate(bundle, make_source(4, SHAPE, labelled=False, name="without")[0], val_stride=1)
    assert not (bundle / "models" / "quality.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images: must be a whole number of at least 1"),
        ({"val_stride": 0}, "val_stride: must be a whole number of at least 1"),
        ({"seed": -1}, "seed: must be a whole number of at least 0"),
        ({"wieghts": "x.pt"}, "wieghts: .*weights"),
    ],
)
def test_arguments_are_checked_before_anything_is_read(config, write_bundle, source, options, message):
    with pytest.raises(GrataError, match=message):
        calibrate(write_bundle(config), source, **options)


def test_a_softmax_network_over_volumes_without_batch_norm_has_one_prediction(config, write_bundle, make_source):
    config["activation"] = "softmax"
    config["segments"] = [{"value": 1, "label": "Disc"}, {"value": 2, "label": "Cup"}]
    config["network_def"] |= {"spatial_dims": 3, "out_channels": 3, "norm": "instance"}
    config["discovery"]["spatial_dims"] = 3
    source = make_source(4, (16, 16, 12))[0]
    bundle = Bundle(write_bundle(config), {"dataset_dir": str(source)}, "test")
    samples, faults = _Probe(bundle).all_samples(bundle.cases(None)[:1], seed=0)
    assert faults == [] and [sample.simulation for sample in samples] == SIMULATIONS
    assert not any(sample.adapted for sample in samples)


def test_segments_go_by_their_order_and_another_network_is_told(samples):
    made, measures = fit(samples), samples[0].measures
    assert made.expected(dataclasses.replace(measures, segments=("a", "b"))) == made.expected(measures)
    assert not made.misfit(2, 1, 2)
    for shape in ((3, 1, 2), (2, 3, 2), (2, 1, 3)):
        assert made.misfit(*shape).startswith("the calibration is that of another network (2D, 1 input channels, 2 seg")


@pytest.mark.parametrize("shape", [(1, 24, 20), (3, 24, 20), (2, 12, 10, 8)], ids=str)
def test_simulations_keep_shape_and_values_and_follow_their_seed(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 40 - 10
    for simulation in (*SHIFTS, *WRONG):
        changed = simulation(image, 1)
        assert changed.shape == image.shape and changed.dtype == torch.float32
        assert changed.min() >= image.min() - 1e-3 and changed.max() <= image.max() + 1e-3
        assert torch.equal(changed, simulation(image, 1)), simulation.name
        same = simulation.name == "none" or (simulation.name == "channels_exchanged" and len(image) == 1)
        assert torch.allclose(changed, image, atol=1e-4) is same, simulation.name


def test_errors_are_those_of_changes_that_the_fit_never_saw(samples):
    """Where one kind of change ruins a prediction and nothing else shows it, the interval has to say so."""
    told = [dataclasses.replace(s, dice=[0.9 if s.simulation != "blur" else 0.2] * 2) for s in samples]
    plain = [dataclasses.replace(s, dice=[0.9, 0.9]) for s in samples]
    lowest = {name: min(low for low, _ in fit(given).errors) for name, given in (("told", told), ("plain", plain))}
    assert lowest["told"] < lowest["plain"] - 0.1


def test_the_command_replaces_a_file_that_is_there_as_its_message_says(tmp_path, capsys):
    for spelling in (["--overwrite", "true"], ["--overwrite=true"], ["--overwrite"]):
        assert main(["calibrate", str(tmp_path / "absent"), "--dataset_dir", str(tmp_path), *spelling]) == 1
        assert "absent" in capsys.readouterr().err


def test_cases_of_one_patient_are_held_out_together(config, write_bundle, source, capsys):
    bundle = write_bundle(config)
    assert calibrate(bundle, source, val_stride=2, groups="case", output="together.json") == 0
    assert "Calibrated on 5 of 5 images" in capsys.readouterr().out
    with pytest.raises(GrataError, match="val_stride: 2 leaves no image"):
        prepare(bundle, source, val_stride=2, groups="case")
    with pytest.raises(GrataError, match="groups: '\\(' is not a regular expression"):
        calibrate(bundle, source, groups="(", output="wrong.json")
