"""An error names its key, which is a field and not a word of the sentence."""

import copy
import pickle

import pytest

from grata.errors import GrataError, OutputError, RunError


@pytest.mark.parametrize(
    ("key", "text", "head"),
    [
        ("lr", "lr: is wrong.", "lr"),
        ("settings#lr", "settings#lr: is wrong.", "settings"),
        (None, "is wrong.", ""),
        ("", "is wrong.", ""),
    ],
)
def test_text_and_key(key, text, head):
    error = GrataError("is wrong.", key)
    assert str(error) == text and error.head == head and error.message == "is wrong." and error.key == key


def test_a_colon_in_the_message_is_not_taken_for_a_key():
    error = GrataError("C:/scans/a: b.nii.gz cannot be read.")
    assert error.key is None and error.head == "" and str(error) == error.message
    assert error.under("images").key == "images"


@pytest.mark.parametrize("kind", [GrataError, RunError, OutputError])
def test_an_error_below_a_key_is_of_the_same_kind_and_leaves_the_first_as_it_was(kind):
    error = kind("is wrong.", "lr")
    below = error.under("settings").under("methods#tent")
    assert type(below) is kind and below.key == "methods#tent#settings#lr" and below.message == error.message
    assert error.key == "lr"


@pytest.mark.parametrize("kind", [GrataError, RunError, OutputError])
@pytest.mark.parametrize("key", ["settings#lr", None])
def test_an_error_crosses_processes_whole(kind, key):
    error = kind("is wrong.", key)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind and (other.message, other.key, str(other)) == (error.message, key, str(error))


def test_faults_of_the_run_can_be_told_from_faults_of_an_image():
    assert issubclass(OutputError, RunError) and issubclass(RunError, GrataError)
    assert not isinstance(GrataError("x"), RunError)
