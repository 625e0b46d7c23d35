"""A value of a kind that nobody expects is refused in words where it is used."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from monai.networks.nets import UNet
from monai.transforms import Compose, ScaleIntensityd

from grata.bundles.adaptation import _existing, prepared_of
from grata.bundles.bundle import Bundle
from grata.bundles.head import is_unit_range
from grata.bundles.regions import make_regions
from grata.checks import check_number
from grata.errors import GrataError
from grata.files import check_output_dir, expanded
from grata.machine import check_device
from grata.methods import METHODS, create
from grata.quality import Calibration

CALIBRATIONS = sorted(Path(__file__).parents[1].glob("bundles/*/models/quality.json"))
FAR = 10**400


@pytest.mark.parametrize(
    "segments, key",
    [
        (None, "segments"),
        ("Structure", "segments"),
        ([], "segments"),
        ({"value": 1, "label": "a"}, "segments"),
        ([[[0]]], "segments#0"),
        ([{"value": 1, "label": "a"}, {"value": 2}], "segments#1"),
        ([{"label": "a"}], "segments#0"),
        ([{"value": "one", "label": "a"}], "segments#0#value"),
        ([{"value": [1], "label": "a"}], "segments#0#value"),
        ([{"value": 1.5, "label": "a"}], "segments#0#value"),
        ([{"value": float("nan"), "label": "a"}], "segments#0#value"),
        ([{"value": -1, "label": "a"}], "segments#0#value"),
        ([{"value": 1, "label": "a", "includes": 2}], "segments#0#includes"),
        ([{"value": 1, "label": "a", "includes": [None]}], "segments#0#includes"),
    ],
)
def test_segments_of_another_kind_are_named(segments, key):
    with pytest.raises(GrataError, match="must") as error:
        make_regions(segments)
    assert error.value.key == key


@pytest.mark.parametrize("device", [10**20, -5, [], {}, "tpu", "cuda:99999999999999999999", 0.5])
def test_a_device_of_another_kind_is_refused(device):
    with pytest.raises(GrataError, match="is not a device|was asked for"):
        check_device(device)


@pytest.mark.parametrize("value", [FAR, -FAR, float("nan"), True, None, [1], "1"])
def test_a_number_is_one_that_a_float_can_hold(value):
    with pytest.raises(GrataError, match="must be a finite number"):
        check_number(value)


@pytest.mark.parametrize("method", [["tent"], {}, {"name": "tent"}, None, 3, [[[]]]])
def test_a_method_that_is_no_name_is_refused(method):
    assert method not in METHODS
    with pytest.raises(GrataError, match="^method: there is no"):
        create(method, UNet(2, 1, 2, [4, 8], [2], norm="batch"))


@pytest.mark.parametrize("path", [False, True, 3, [], {}, b"x", "a\0b", "\ud800", "x" * 300, "x/" * 5000])
def test_what_no_file_can_be_called_is_refused(path):
    for use in (expanded, _existing, prepared_of, check_output_dir):
        with pytest.raises(GrataError, match="must be the path|cannot be the name|too long for the name") as error:
            use(path)
        assert len(str(error.value)) < 200
    with pytest.raises(GrataError, match="^adaptation#bundle_root: "):
        prepared_of(path)
    with pytest.raises(GrataError, match="^adaptation#prepared: "):
        _existing(path)


def test_a_path_that_may_be_is_returned(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/x") == tmp_path / "x"
    assert expanded("x" * 255) == Path("x" * 255)
    assert expanded(tmp_path) == tmp_path


@pytest.mark.parametrize("odd", [{"keys": ["image"]}, {}, dict, "text", 3, object()])
def test_what_is_no_transform_changes_no_range(odd):
    scale = ScaleIntensityd("image")
    assert is_unit_range(Compose([scale])) and is_unit_range([scale, odd]) and not is_unit_range(odd)


@pytest.mark.parametrize("discovery", [{"dataset_dir": "x"}, [], "text", None, "$dict(cases=[])"])
def test_a_discovery_that_is_none_is_named(discovery, tmp_path):
    (tmp_path / "configs").mkdir()
    keys = ("network", "preprocessing", "inferer", "segments", "to_probabilities", "to_label_map", "weights")
    (tmp_path / "configs" / "adapt.yaml").write_text(yaml.safe_dump({**dict.fromkeys(keys), "discovery": discovery}))
    with pytest.raises(GrataError, match=r"^bundle#discovery: must be what grata\.data\.discover returns"):
        Bundle(tmp_path, {}, "bundle").cases(None)


def changed(path, key, value):
    content = json.loads(CALIBRATIONS[0].read_text())
    del content["sha256"]
    place = content
    *parents, last = key
    for parent in parents:
        place = place[parent]
    place[last] = value(place[last]) if callable(value) else value
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "key, value",
    [
        (("names", 0), 3),
        (("names", 0), None),
        (("names", 0), lambda name: f"{name}::1"),
        (("names", 0), "image/mean_77"),
        (("segments", 0), 1),
        (("segments",), [[]]),
        (("centre", 0), FAR),
        (("weights", 1), FAR),
        (("margin",), FAR),
        (("cases",), FAR),
        (("spread", 0), True),
        (("typical",), None),
        (("steps", 0), [[[0]]]),
        (("steps", 0), [0]),
        (("errors", 0, 0), {}),
    ],
)
def test_a_calibration_with_a_value_of_another_kind_is_damaged(key, value, tmp_path):
    with pytest.raises(GrataError, match="is damaged. Make it anew by python -m grata calibrate"):
        Calibration.read(changed(tmp_path / "quality.json", key, value))


@pytest.mark.parametrize("key", ["centre", "spread", "weights"])
def test_large_integers_of_a_calibration_are_numbers(key, tmp_path):
    read = Calibration.read(changed(tmp_path / "quality.json", (key, 0), 10**30))
    assert getattr(read, key)[0] == 1e30 and np.array(getattr(read, key)).dtype == float
    assert isinstance(read.cases, int)


@pytest.mark.parametrize("path", CALIBRATIONS, ids=lambda path: path.parts[-3])
def test_the_calibrations_of_the_bundles_are_read(path):
    assert Calibration.read(path).names
