import sys
import traceback

import pytest
import torch
from monai.data import Dataset
from monai.transforms import LoadImaged
from torch.utils.data import DataLoader

from grata.bundles.configuration import check_keys, constant, start
from grata.errors import GrataError
from grata.machine import check_device
from grata.session.faults import explain, plain_errors


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


def test_text_with_an_at_sign_is_not_a_reference():
    start = [{"mail": "imaging@hospital.org", "time": "%H"}, "$'%d' % 1"]
    check_keys({"run": ["$print(1)"], "initialize": start}, {"run", "initialize"})


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


def test_only_a_command_with_an_option_for_tracebacks_names_it():
    assert explain(ValueError("bad")) == "ValueError: bad"
    assert explain(ValueError("bad"), hint="--a#traceback true") == "ValueError: bad (--a#traceback true shows where)"


@pytest.mark.parametrize(
    ("begin", "fault", "stopped"),
    [
        (start, "ValueError: bad (--traceback true shows where)", "--resume true goes on with the rest."),
        (plain_errors, "ValueError: bad", "stopped."),
        (lambda: plain_errors(hint="--x true", stopped="Done is kept."), "bad (--x true shows where)", "Done is kept."),
    ],
)
def test_what_ends_a_command_is_reported_with_the_options_that_it_has(begin, fault, stopped, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in ("os.kill", "signal.signal"):  # Ctrl-C ends the process by a signal
        monkeypatch.setattr(name, lambda *arguments: None)
    begin()
    for error in (ValueError("bad"), KeyboardInterrupt()):
        sys.excepthook(type(error), error, None)
    found = capsys.readouterr().err.splitlines()
    assert found[0].startswith("error: ") and found[0].endswith(fault)
    assert found[-1].startswith("stopped.") and found[-1].endswith(stopped)


def test_words_of_the_command_line_are_converted_at_any_depth_and_nothing_else_is():
    network = torch.nn.Identity()
    given = {"reverse": "false", "windows": {"batch_size": "null", "views": ("True", "flip", 1.0)}, "network": network}
    converted = constant(given)
    assert converted == {
        "reverse": False,
        "windows": {"batch_size": None, "views": [True, "flip", 1.0]},
        "network": network,
    }
    assert given["windows"]["batch_size"] == "null"  # the configuration itself is unchanged


def _message(dataset, num_workers):
    """Return the message of a data loader's fault."""
    with pytest.raises(Exception) as caught:
        list(DataLoader(dataset, num_workers=num_workers))
    # frees the loader's iterator, whose workers are waited for if the collector finds it first
    traceback.clear_frames(caught.tb)
    return explain(caught.value)


@pytest.mark.parametrize("reader", [None, "PILReader", "NibabelReader"])
@pytest.mark.parametrize("name", ["scan.png", "scan.nii.gz"])
def test_a_broken_file_is_reported_in_one_sentence_with_and_without_workers(name, reader, tmp_path):
    (tmp_path / name).write_bytes(b"broken")
    dataset = Dataset([{"image": str(tmp_path / name)}], LoadImaged("image", reader=reader))
    found, from_worker = (_message(dataset, workers) for workers in (0, 1))
    assert found == from_worker
    # The requested reader's message; by default each format has its own reader.
    pictures = reader == "PILReader" or (reader is None and name == "scan.png")
    assert ("UnidentifiedImageError: cannot identify" if pictures else "ImageFileError: ") in found
    assert name in found and len(found.replace(str(tmp_path), "")) < 250
    for noise in ("Traceback", "site-packages", "0x", "\n", "applying transform"):
        assert noise not in found


def _refuse(item):
    raise GrataError("file x is empty: copy it anew")


class _Refusing(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        _refuse(index)


def test_a_message_for_the_user_comes_out_of_a_worker_as_it_is():
    for dataset in (Dataset([{"image": "x"}], _refuse), _Refusing()):
        assert _message(dataset, 1) == "file x is empty: copy it anew"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"numbers": {"field_of_view": 0}}, "field_of_view: must be a finite number above 0 and at most 1000"),
        ({"numbers": {"field_of_view": "wide"}}, "field_of_view: .*'wide'"),
        ({"spacings": {"pixdim": 1.2}}, "pixdim: must be null, or a list of three sizes in mm.*got 1.2"),
        ({"spacings": {"pixdim": [1.2, 1.2]}}, "pixdim: must be null, or a list of three sizes"),
        ({"spacings": {"pixdim": [1.2, 1.2, 0]}}, "pixdim: must be null, or a list of three sizes"),
        ({"spacings": {"pixdim": "none"}}, "pixdim: .*got 'none'"),
        ({"numbers": {"field_of_view": None}}, "field_of_view"),
        ({"numbers": {"pixels_per_degree": float("nan")}}, "pixels_per_degree"),
        ({"sizes": {"image_size": 64}}, "image_size: must be a list of two sides"),
        ({"sizes": {"image_size": [64, 64, 64]}}, "image_size"),
        ({"sizes": {"image_size": [64, -64]}}, "image_size"),
    ],
)
def test_numbers_and_sizes_are_checked_at_the_start(option, message, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # start sets it
    with pytest.raises(GrataError, match=message):
        start(**option)
    start(numbers={"field_of_view": 30}, sizes={"image_size": [512, 512]})
    for pixdim in (None, "null", [1.2, 1.2, -1.0]):
        start(spacings={"pixdim": pixdim})
