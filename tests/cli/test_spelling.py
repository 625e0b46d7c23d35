"""Every spelling of a command line means the same as the one that typer reads."""

import pytest

from grata.cli.spelling import Grammar, literal, spelled
from grata.errors import GrataError

GRAMMAR = Grammar(
    "nnunet",
    arguments=("model", "input"),
    options=("method", "save_all", "site", "settings"),
    required=("model", "input"),
    switches=("save_all",),
    by_position=("method",),
    nested=("settings",),
)
OPEN = Grammar("doctor", arguments=("path",), options=("config_file",), others=True)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("M I", "-- M I"),
        ("M I tent", "--method=tent -- M I"),
        ("--model M --input=I --method tent", "--method=tent -- M I"),
        ("--input I M", "-- M I"),
        ("--site A M --save_all I", None),
        ("M I --save_all", "--save_all=true -- M I"),
        ("M --save-all false I", "--save_all=false -- M I"),
        ("M I --save-all=false --site A", "--save_all=false --site=A -- M I"),
        ("--save_all --site A M I", "--save_all=true --site=A -- M I"),
        ("M I --nosave_all", "--save_all=false -- M I"),
        ("M I --no-save-all", "--save_all=false -- M I"),
        ("M I --site A --site B", "--site=B -- M I"),
        ("M I --site -1", "--site=-1 -- M I"),
        ("M I --site=a=b", "--site=a=b -- M I"),
        ("M I -site A", "--site=A -- M I"),
        ("-i I -m=tent M", None),
        ("M I --settings {lr:0.1}", "--settings={lr:0.1} -- M I"),
        ("M --help", "--help"),
        ("-h", "--help"),
    ],
)
def test_spellings(given, read):
    if read is None:
        with pytest.raises(GrataError):
            spelled(given.split(), GRAMMAR)
    else:
        assert spelled(given.split(), GRAMMAR) == (read.split(), {})


def test_options_that_are_not_declared_keep_their_values():
    words = (
        "M I --settings#lr 0.001 --settings#views=null --settings#options {a:[1,null]} --settings#a-b 1,2 --settings#c"
    )
    _, others = spelled(words.split(), GRAMMAR)
    values = {"lr": 0.001, "views": None, "options": {"a": [1, None]}, "a_b": (1, 2), "c": True}
    assert others == {f"settings#{key}": value for key, value in values.items()}
    assert spelled(["B", "--network_def#depth", "34", "--nothing"], OPEN)[1] == {
        "network_def#depth": 34,
        "nothing": True,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("M I --sight A", "--sight: there is no such option. Did you mean --site?"),
        ("M I --site#x A", "--site#x: there is no such option. Did you mean --site?"),
        ("M I --zzz A", "--zzz: there is no such option. grata nnunet --help lists all."),
        ("M", "input: is missing. grata nnunet --help shows what it takes."),
        ("M I tent more", "there is no place for 'more'; the arguments of grata nnunet are model input method."),
    ],
)
def test_what_is_wrong_is_one_sentence(given, message):
    with pytest.raises(GrataError) as error:
        spelled(given.split(), GRAMMAR)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("true", True),
        ("FALSE", False),
        ("None", None),
        ("null", None),
        ("none", "none"),
        ("0,1", (0, 1)),
        ("[0, true]", [0, True]),
        ("1e-3", 1e-3),
        ("{'lr': 0.1, 'law': null}", {"lr": 0.1, "law": None}),
        ("rotation,denoising", ("rotation", "denoising")),
        ("a b", "a b"),
        ("", ""),
    ],
)
def test_values(text, value):
    assert literal(text) == value and type(literal(text)) is type(value)
