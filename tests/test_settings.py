"""One declaration gives constructor, checks, defaults, signature, documentation and text of an object."""

import inspect

import pytest

from grata.errors import GrataError
from grata.settings import (
    MISSING,
    KeywordSettings,
    Settings,
    argument,
    choice,
    chosen,
    count,
    excluded,
    flag,
    number,
    numbers,
    override,
    setting,
)


def even(value):
    if value % 2:
        raise GrataError(f"must be even, got {value}.")
    return value


class Blur(Settings):
    """A blur."""

    name = "blur"
    sigma: float = number(default=1.0, above=0, help="standard deviation in voxels")
    times: int = count(default=1, help="number of passes")
    edges: bool = flag(default=False, help="whether edges are kept")
    mode: str | None = choice(default=None, of=("reflect", "zero"), optional=True, help="padding")
    weights: tuple[float, ...] = numbers(default=(0.0, 1.0), at_least=0, increasing=True, help="weights")
    size: int = setting(default=2, check=even, range="an even number", help="size in voxels")
    table: dict[str, int] = setting(default={}, help="anything")


class Strong(Blur):
    """A strong blur."""

    name = "strong"
    sigma: float = override(default=9.0)
    times: int = excluded(why="a strong blur has one pass.")


class Filter(KeywordSettings):
    """A filter of an image."""

    name = "filter"
    image: object = argument(alias="picture", help="picture to filter")
    lr: float | None = number(default=None, above=0, optional=True, help="learning rate")
    steps: int = count(default=3, at_least=0, help="number of steps")
    power: float = number(at_least=1, help="exponent")


DEFAULTS = {"sigma": 1.0, "times": 1, "edges": False, "mode": None, "weights": (0.0, 1.0), "size": 2, "table": {}}
LIST = "list of one or more numbers, each at least 0, increasing"


def test_defaults_and_values():
    assert {key: getattr(Blur(), key) for key in DEFAULTS} == DEFAULTS
    given = {"sigma": 2, "times": 4, "edges": True, "mode": "zero", "weights": [0, 1, 1], "size": 4, "table": {"a": 1}}
    made = Blur(**given)
    assert {key: getattr(made, key) for key in given} == {**given, "weights": (0.0, 1.0, 1.0)}
    assert isinstance(made.sigma, float)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"sigma": 0}, "sigma: must be a finite number above 0, got 0."),
        ({"sigma": None}, "sigma: must be a finite number above 0, got None."),
        ({"times": 1.0}, "times: must be a whole number of at least 1, got 1.0."),
        ({"edges": "true"}, "edges: must be true or false, got 'true'."),
        ({"mode": "wrap"}, "mode: must be one of reflect, zero, or null, got 'wrap'."),
        (
            {"weights": [1, 0]},
            f"weights: must be a {LIST}, got [1, 0].",
        ),
        ({"weights": []}, f"weights: must be a {LIST}, got []."),
        ({"weights": "01"}, f"weights: must be a {LIST}, got '01'."),
        ({"weights": [0, "1"]}, f"weights: must be a {LIST}, got"),
        ({"size": 3}, "size: must be even, got 3."),
        ({"sgima": 1}, "sgima: blur has no such setting; did you mean sigma?"),
        (
            {"zzz": 1},
            f"zzz: blur has no such setting; its settings are {', '.join(DEFAULTS)}.",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(given, text):
    with pytest.raises(GrataError) as caught:
        Blur(**given)
    assert str(caught.value).startswith(text) and caught.value.key == next(iter(given))


def test_a_name_is_checked_before_values():
    with pytest.raises(GrataError, match="^sgima"):
        Blur(sigma=-1, sgima=1)


def test_a_subclass_has_another_default_with_the_same_check_and_can_refuse_a_setting():
    assert Strong().sigma == 9.0 and Blur().sigma == 1.0
    with pytest.raises(GrataError, match="sigma: must be a finite number above 0"):
        Strong(sigma=0)
    with pytest.raises(GrataError, match="^times: strong has no such setting: a strong blur has one pass.$"):
        Strong(times=1)
    assert list(Strong.settings()) == ["sigma", "edges", "mode", "weights", "size", "table"]
    assert list(Blur.settings()) == list(DEFAULTS)


def test_only_a_setting_of_a_base_can_be_overridden():
    with pytest.raises(TypeError, match="Stronger.sgima: no base class declares this setting"):

        class Stronger(Blur):
            sgima: float = override(default=9.0)


def test_a_setting_without_a_default_must_be_given():
    assert Filter.settings()["power"].default is MISSING
    with pytest.raises(GrataError, match="^power: must be given.$"):
        Filter("a picture")


def test_a_default_that_can_be_changed_is_not_shared():
    first, second = Blur(), Blur()
    first.table["a"] = 1
    assert second.table == {} and Blur.settings()["table"].default == {}


def test_the_signature_is_what_editors_show():
    parameters = inspect.signature(Blur).parameters
    assert {key: item.default for key, item in parameters.items()} == DEFAULTS
    assert {item.kind for item in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert "times" not in inspect.signature(Strong).parameters
    first, *others = inspect.signature(Filter).parameters.values()
    assert (first.name, first.kind) == ("picture", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert {item.kind for item in others} == {inspect.Parameter.KEYWORD_ONLY}
    assert {item.name: item.default for item in others}["power"] is inspect.Parameter.empty


def test_arguments_are_taken_as_python_takes_them():
    picture = object()
    assert Filter(picture, power=1).image is picture and Filter(picture=picture, power=1, steps=0).steps == 0
    assert Blur(3.0, 2) == Blur(sigma=3, times=2)
    with pytest.raises(TypeError, match="Filter needs picture"):
        Filter()
    with pytest.raises(TypeError, match="takes 1 positional arguments, 2 were given"):
        Filter(picture, 3)
    with pytest.raises(TypeError, match="several values for sigma"):
        Blur(3.0, sigma=3.0)


def test_the_text_can_be_read_as_the_call_that_makes_it():
    blur = Blur(sigma=0.1 + 0.2, weights=[1, 2], mode="zero")
    assert eval(repr(blur)) == blur
    assert repr(Filter("a picture", power=2, lr=1)) == "Filter(str, lr=1.0, steps=3, power=2.0)"


def test_two_objects_are_equal_when_class_and_settings_are():
    assert Blur(sigma=2) == Blur(2.0) and hash(Blur(sigma=2)) == hash(Blur(2.0))
    assert Blur(sigma=2) != Blur() and Strong(sigma=1) != Blur(sigma=1)


def test_the_docstring_ends_with_each_setting_its_meaning_and_its_range():
    assert inspect.getdoc(Blur).startswith("A blur.\n\nSettings:\n    sigma: standard deviation in voxels (above 0).")
    for words in (
        "number of passes (whole number, at least 1)",
        "padding (reflect, zero or null)",
        "in voxels (an even number)",
    ):
        assert words in inspect.getdoc(Blur)
    assert "times:" not in inspect.getdoc(Strong)


TABLE = {"blur": Blur, "strong": Strong}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("blur", Blur()),
        ({"name": "blur", "sigma": 2}, Blur(sigma=2)),
        ({"name": "strong", "size": 4}, Strong(size=4)),
        (Blur(sigma=3), Blur(sigma=3)),
    ],
)
def test_a_name_a_mapping_or_an_object(given, expected):
    assert chosen(given, TABLE, Blur, "filter") == expected


@pytest.mark.parametrize(
    ("given", "key", "text"),
    [
        ("blurr", "filter", "there is no setting 'blurr'; there are blur, strong. Did you mean blur?"),
        (7, "filter", "there is no setting 7; there are blur, strong."),
        (None, "filter", "there is no setting None"),
        ({"sigma": 1}, "filter", "there is no setting {'sigma': 1}"),
        ({"name": "blur", "sigma": 0}, "filter#sigma", "must be a finite number above 0, got 0."),
        ({"name": "blur", "sgima": 1}, "filter#sgima", "blur has no such setting; did you mean filter#sigma?"),
        ({"name": "strong", "times": 2}, "filter#times", "strong has no such setting: a strong blur has one pass."),
    ],
)
def test_what_a_configuration_says_wrongly_is_refused_below_its_key(given, key, text):
    with pytest.raises(GrataError) as caught:
        chosen(given, TABLE, Blur, "filter")
    assert caught.value.key == key and caught.value.message.startswith(text)
