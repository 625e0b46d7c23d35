"""Each check keeps what it should, and refuses the rest with one sentence that says what must be."""

import subprocess
import sys

import pytest

from grata.checks import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    checked,
    constant,
    did_you_mean,
    option_constant,
    range_in_words,
)
from grata.errors import GrataError

NOT_NUMBERS = [float("nan"), float("inf"), float("-inf"), True, False, None, "1", [1.0], 1j]


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_only_finite_numbers_are_numbers(value):
    with pytest.raises(GrataError, match="^must be a finite number, got"):
        check_number(value)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        ({"at_least": 0}, [0, 1e9], [-1e-12], "of at least 0"),
        ({"above": 0}, [1e-300], [0, -1], "above 0"),
        ({"at_most": 1}, [1, -5], [1.0000001], "of at most 1"),
        ({"below": 1}, [0.999], [1], "below 1"),
        ({"at_least": 0, "below": 1}, [0, 0.5], [1, -0.1], "of at least 0 and below 1"),
        ({"above": 0, "at_most": 2}, [2, 0.1], [0, 2.1], "above 0 and at most 2"),
    ],
)
def test_bounds_of_a_number(bounds, inside, outside, words):
    for value in inside:
        assert check_number(value, **bounds) == value and isinstance(check_number(value, **bounds), float)
    for value in outside:
        with pytest.raises(GrataError) as caught:
            check_number(value, **bounds)
        assert str(caught.value) == f"must be a finite number {words}, got {value!r}."


def test_the_edge_of_an_open_range_gives_its_reason():
    with pytest.raises(GrataError, match="must be above 0, because a step of 0 changes nothing, got 0"):
        check_number(0, above=0, why="because a step of 0 changes nothing")
    with pytest.raises(GrataError, match="must be a finite number above 0, got -1"):
        check_number(-1, above=0, why="because a step of 0 changes nothing")


@pytest.mark.parametrize(("value", "at_least"), [(1, 1), (0, 0), (10**12, 5)])
def test_whole_numbers(value, at_least):
    assert check_count(value, at_least) is value


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "2", None, float("nan")])
def test_what_is_not_a_whole_number_of_at_least_1(value):
    with pytest.raises(GrataError, match="must be a whole number of at least 1, got"):
        check_count(value)
    with pytest.raises(GrataError, match="must be a whole number of at least 1, or null, got"):
        check_count(value, or_null=True)


@pytest.mark.parametrize("value", [0, 1, "true", "False", None, [True]])
def test_only_true_and_false_are_switches(value):
    assert check_flag(True) is True and check_flag(False) is False
    with pytest.raises(GrataError, match="must be true or false, got"):
        check_flag(value)


@pytest.mark.parametrize("value", ["Adam", "", None, 1, ["adam"]])
def test_a_choice_is_one_of_the_names_to_the_letter(value):
    assert check_choice("adam", ["adam", "sgd"]) == "adam"
    with pytest.raises(GrataError, match="must be one of adam, sgd, got"):
        check_choice(value, ["adam", "sgd"])


def test_an_error_gets_the_key_of_its_value():
    assert checked(check_flag, True, "resume") is True
    with pytest.raises(GrataError) as caught:
        checked(check_count, 0, "workers")
    assert caught.value.key == "workers" and str(caught.value).startswith("workers: must be a whole number")


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("TRUE", True), ("False", False), ("null", None), ("none", "none"), ("yes", "yes"), ("", "")],
)
def test_the_three_constants_in_any_case_and_at_any_depth(text, value):
    assert constant(text) is value or constant(text) == value
    assert constant({"a": [text, {"b": text}]}) == {"a": [value, {"b": value}]}


@pytest.mark.parametrize("value", [0, 1, 1.5, True, None, b"true"])
def test_what_is_not_text_stays_as_it_is(value):
    assert constant(value) is value


def test_constants_do_not_change_what_was_given():
    given = {"a": ["true"]}
    assert constant(given) == {"a": [True]} and given == {"a": ["true"]}


def test_none_is_null_for_one_more_release_with_a_note_that_names_the_option(capsys):
    assert option_constant("None", "limit") is None
    assert capsys.readouterr().err == "note: limit: the next release will not take None for null. Write null.\n"
    assert option_constant("null", "limit") is None and option_constant("nonesuch", "limit") == "nonesuch"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "hint"),
    [("lrr", "Did you mean --lr?"), ("zzz", "See the list."), (7, "See the list."), (None, "See the list.")],
)
def test_a_hint_names_what_is_near_and_nothing_else(given, hint):
    assert did_you_mean(given, ["lr", "steps"], "See the list.", "--") == hint


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((None, None, None, None), ""),
        ((0, None, 1, None), "at least 0 and at most 1"),
        ((None, 1e-05, None, 2.5), "above 1e-05 and below 2.5"),
    ],
)
def test_a_range_in_words(bounds, words):
    assert range_in_words(*bounds) == words


def test_checking_does_not_need_torch():
    code = "import sys, grata.checks, grata.settings, grata.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
