import sys

import pytest
import torch

from grata.errors import GrataError
from grata.workflows import check_device
from grata.workflows.configuration import check_keys, explain, start


def test_a_key_that_nothing_refers_to_is_refused_with_the_one_that_was_meant():
    config = {"method": "grata", "run": ["$@method"], "bundle_root": "."}
    check_keys(config, {"run"})
    with pytest.raises(GrataError, match="--metod.*Did you mean method"):
        check_keys({**config, "metod": "ptbn"}, {"run"})


def test_references_inside_expressions_lists_and_components_count_as_use():
    config = {"a": 1, "b": 2, "c": 3, "run": [{"_target_": "dict", "x": ["@a"], "y": "$len(@b) + 1"}, "%c"]}
    check_keys(config, {"run"})


def test_a_reference_to_a_missing_key_is_refused_with_its_place():
    config = {"inferer": 1, "evaluator": {"_target_": "dict", "inferer": "@infererr"}, "run": ["$@evaluator"]}
    with pytest.raises(GrataError, match="evaluator#inferer: it refers to @infererr.*Did you mean @inferer"):
        check_keys(config, {"run"})
    with pytest.raises(GrataError, match="run#0: it refers to @evaluater"):
        check_keys({"evaluator": 1, "run": ["$@evaluater + 1"]}, {"run"})


def test_text_with_an_at_sign_is_no_reference():
    check_keys({"run": ["$print(1)"], "initialize": [{"mail": "imaging@hospital.org", "time": "%H"}, "$'%d' % 1"]}, {"run", "initialize"})


def test_devices_that_are_not_there_are_refused():
    assert check_device("cpu") == torch.device("cpu")
    with pytest.raises(GrataError, match="device: 'gpu'"):
        check_device("gpu")
    with pytest.raises(GrataError, match="--device cpu"):
        check_device(f"cuda:{torch.cuda.device_count()}")


def test_the_message_for_the_user_is_found_wherever_it_is_in_the_chain():
    try:
        try:
            raise GrataError("file x is empty: copy it anew")
        except GrataError as error:
            raise RuntimeError("applying transform LoadImaged") from error
    except RuntimeError as error:
        assert explain(error) == "file x is empty: copy it anew"
    assert "ValueError: bad" in explain(ValueError("bad"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"numbers": {"field_of_view": 0}}, "field_of_view: it is a number above 0"),
        ({"numbers": {"field_of_view": "wide"}}, "field_of_view: .*'wide'"),
        ({"numbers": {"field_of_view": None}}, "field_of_view"),
        ({"numbers": {"pixels_per_degree": float("nan")}}, "pixels_per_degree"),
        ({"sizes": {"image_size": 64}}, "image_size: it is a list of two sides"),
        ({"sizes": {"image_size": [64, 64, 64]}}, "image_size"),
        ({"sizes": {"image_size": [64, -64]}}, "image_size"),
    ],
)
def test_numbers_and_sizes_are_checked_at_the_start(option, message, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # start sets it
    with pytest.raises(GrataError, match=message):
        start(**option)
    start(numbers={"field_of_view": 30}, sizes={"image_size": [512, 512]})
