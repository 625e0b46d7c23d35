"""Settings, declared once on the class that has them.

One line on a class is the setting's default, range and meaning:

    >>> class Blur(Settings):
    ...     name = "blur"
    ...     sigma: float = number(default=1.0, above=0, help="standard deviation in voxels")
    ...     times: int = count(default=1, help="number of passes")
    >>> Blur(sigma=2)
    Blur(sigma=2.0, times=1)

From these lines follow the constructor, which editors and type checkers see (PEP 681), its checks with key and remedy,
``repr``, the help section of the class's docstring, and the tables and overlays that are generated from them:

    >>> Blur(sgima=2)
    Traceback (most recent call last):
    grata.errors.GrataError: sgima: blur has no such setting; did you mean sigma?

Nothing here imports torch, so that a command line can check what it was given before it loads anything.
"""

from __future__ import annotations

import copy
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform

from .checks import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    did_you_mean,
    range_in_words,
)
from .errors import GrataError

__all__ = [
    "MISSING",
    "KeywordSettings",
    "Setting",
    "Settings",
    "choice",
    "chosen",
    "count",
    "excluded",
    "flag",
    "number",
    "numbers",
    "override",
    "setting",
]

Check = Callable[[Any], Any]
T = TypeVar("T")


class _Missing:
    """The type of :data:`MISSING`."""

    def __repr__(self) -> str:
        return "required"


MISSING = _Missing()
"""Default of a setting that has none: it must be given."""


class Setting:
    """A setting of a class, as its declaring line says.

    Args:
        default: value where none is given; :data:`MISSING`: one must be given.
        help: meaning in one line.
        check: function that returns the value to keep, or raises :class:`GrataError` without a key.
        range: allowed values in words, for tables.
        why_not: remedy where a class does not take the setting of its base; None: it takes it.
        positional: whether the constructor takes it by position, whatever the class's other settings.
        alias: its name in the constructor; None: the attribute's name.
        in_state: whether a saved state holds for this value alone.
        missing: what to say where a setting without a default is not given.

    Attributes:
        name: name of the attribute.
        key: its name in the constructor.
    """

    name: str

    def __init__(
        self,
        default: Any,
        help: str,
        check: Check | None = None,
        range: str = "",
        *,
        why_not: str | None = None,
        positional: bool = False,
        alias: str | None = None,
        in_state: bool = True,
        missing: str = "must be given.",
    ) -> None:
        self.default = default
        self.help = help
        self.check = check
        self.range = range
        self.why_not = why_not
        self.positional = positional
        self.alias = alias
        self.in_state = in_state
        self.missing = missing

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def key(self) -> str:
        return self.alias or self.name

    @property
    def taken(self) -> bool:
        """Whether the constructor takes it."""
        return self.why_not is None

    def value(self, given: Any) -> Any:
        """Return ``given`` checked and converted.

        Raises:
            GrataError: the value is out of range or of another kind; its key is the setting's.
        """
        if self.check is None:
            return given
        try:
            return self.check(given)
        except GrataError as error:
            if error.head == self.key:
                raise
            raise error.under(self.key) from error

    def default_value(self) -> Any:
        """Return the default, a copy where it could be changed in place."""
        return copy.copy(self.default) if isinstance(self.default, dict | list) else self.default


# The specifiers below return what the annotation says, which type checkers cannot derive: hence Any.


def number(
    *,
    default: float | None | _Missing = MISSING,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    optional: bool = False,
    why: str = "",
    convert: bool = True,
    help: str,
    in_state: bool = True,
) -> Any:
    """Declare a finite number.

    Args:
        default: value where none is given.
        at_least: least value.
        above: value that it must exceed.
        at_most: greatest value.
        below: value that it must stay below.
        optional: whether None is allowed.
        why: reason why the edge of an open range is refused, for the message.
        convert: whether it is kept as a float; else as it was given, where its ``repr`` is in files on disk.
        help: meaning in one line.
        in_state: see :class:`Setting`.
    """

    def check(value: Any) -> float | None:
        if optional and value is None:
            return None
        checked = check_number(value, at_least, above, at_most, below, why)
        return checked if convert else value

    return Setting(default, help, check, _or_null(range_in_words(at_least, above, at_most, below), optional),
                   in_state=in_state)  # fmt: skip


def count(
    *,
    default: int | None | _Missing = MISSING,
    at_least: int = 1,
    optional: bool = False,
    help: str,
    in_state: bool = True,
) -> Any:
    """Declare a whole number of at least ``at_least``; None too where it is ``optional``."""

    def check(value: Any) -> int | None:
        return None if optional and value is None else check_count(value, at_least, or_null=optional)

    words = _or_null(f"whole number, at least {at_least}", optional)
    return Setting(default, help, check, words, in_state=in_state)


def flag(*, default: bool | _Missing = MISSING, help: str, in_state: bool = True) -> Any:
    """Declare a switch: true or false."""
    return Setting(default, help, check_flag, "true or false", in_state=in_state)


def choice(
    *,
    default: Any = MISSING,
    of: Sequence[str],
    optional: bool = False,
    help: str,
    in_state: bool = True,
    missing: str = "must be given.",
) -> Any:
    """Declare one of several names.

    Args:
        default: name where none is given.
        of: names to choose from.
        optional: whether None is allowed.
        help: meaning in one line.
        in_state: see :class:`Setting`.
        missing: see :class:`Setting`.
    """

    def check(value: Any) -> str | None:
        if optional and value is None:
            return None
        return check_choice(value, of, or_null=optional)

    names = [*of, "null"] if optional else list(of)
    words = " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
    return Setting(default, help, check, words, in_state=in_state, missing=missing)


def numbers(
    *,
    default: Sequence[float] | _Missing = MISSING,
    length: int | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    increasing: bool = False,
    kept_as: Callable[[Iterable[Any]], Any] = tuple,
    convert: bool = True,
    help: str,
    in_state: bool = True,
) -> Any:
    """Declare a list of finite numbers.

    Args:
        default: numbers where none are given.
        length: how many there must be; None: one or more.
        at_least: least value of each.
        at_most: greatest value of each.
        below: value that each must stay below.
        increasing: whether none may be smaller than the one before it.
        kept_as: what the value is kept as, a tuple or a list.
        convert: whether the numbers are kept as floats; else as they were given.
        help: meaning in one line.
        in_state: see :class:`Setting`.
    """
    bounds = range_in_words(at_least, None, at_most, below)
    words = f"list of {length or 'one or more'} numbers{bounds and ', each ' + bounds}{', increasing' * increasing}"

    def check(value: Any) -> Any:
        if isinstance(value, str) or not isinstance(value, Sequence) or not value or length not in (None, len(value)):
            raise GrataError(f"must be a {words}, got {value!r}.")
        try:
            checked = [check_number(item, at_least, None, at_most, below) for item in value]
        except GrataError:
            raise GrataError(f"must be a {words}, got {value!r}.") from None
        if increasing and checked != sorted(checked):
            raise GrataError(f"must be a {words}, got {value!r}.")
        return kept_as(checked if convert else value)

    return Setting(default, help, check, words, in_state=in_state)


def setting(
    *,
    default: Any = MISSING,
    check: Check | None = None,
    range: str = "",
    help: str,
    in_state: bool = True,
    alias: str | None = None,
) -> Any:
    """Declare a setting of any other kind.

    Args:
        default: value where none is given.
        check: function that returns the value to keep, or raises :class:`GrataError`.
        range: allowed values in words, for tables.
        help: meaning in one line.
        in_state: see :class:`Setting`.
        alias: its name in the constructor, where the attribute has another.
    """
    return Setting(default, help, check, range, in_state=in_state, alias=alias)


class _Override:
    """Another default for a setting of a base class."""

    def __init__(self, default: Any, check: Check | None, help: str | None) -> None:
        self.default = default
        self.check = check
        self.help = help

    def over(self, base: Setting) -> Setting:
        made = copy.copy(base)
        made.default = self.default
        made.check = self.check or base.check
        made.help = self.help or base.help
        return made


def override(*, default: Any, check: Check | None = None, help: str | None = None, alias: str | None = None) -> Any:
    """Declare another default for a setting of a base class.

    Args:
        default: the class's own default.
        check: check in place of the base's.
        help: meaning in place of the base's.
        alias: the base's alias, for type checkers, which do not look it up.
    """
    return _Override(default, check, help)


def excluded(*, why: str, init: Literal[False] = False) -> Any:
    """Declare that a class does not take a setting of its base.

    Args:
        why: what to do instead, for the message.
        init: False, for type checkers: the constructor does not take it.
    """
    return Setting(None, "", why_not=why)


def argument(*, alias: str, kw_only: Literal[False] = False, help: str) -> Any:
    """Declare what a constructor takes first, by position or by the name ``alias``."""
    return Setting(MISSING, help, positional=True, alias=alias, in_state=False)


class _Declared:
    """Collects the settings that a class and its bases declare, and gives an instance its values."""

    _settings: ClassVar[dict[str, Setting]] = {}
    _by_position: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inherited: dict[str, Setting] = {}
        for base in reversed(cls.__mro__[1:]):
            inherited |= vars(base).get("_own_settings", {})
        for name, item in list(vars(cls).items()):
            if isinstance(item, _Override):
                if name not in inherited:
                    raise TypeError(f"{cls.__name__}.{name}: no base class declares this setting. Declare it anew.")
                setattr(cls, name, item.over(inherited[name]))
        own = {name: item for name, item in vars(cls).items() if isinstance(item, Setting)}
        cls._own_settings = own  # type: ignore[attr-defined]
        cls._settings = inherited | own
        cls.__signature__ = cls._signature_of_constructor()  # type: ignore[attr-defined]
        cls._document()

    @classmethod
    def settings(cls) -> dict[str, Setting]:
        """Return the settings that the constructor takes, its own first, then those of its bases, by their keys."""
        found: dict[str, Setting] = {}
        for base in cls.__mro__:
            for name in vars(base).get("_own_settings", {}):
                item = cls._settings[name]
                if item.taken and not item.positional:
                    found.setdefault(item.key, item)
        return found

    @classmethod
    def _declared_below(cls, base: type) -> set[str]:
        """Return the keys of settings that the class and its bases down to ``base`` declare, without its own."""
        classes = cls.__mro__[: cls.__mro__.index(base)]
        return {item.key for below in classes for item in vars(below).get("_own_settings", {}).values()}

    @classmethod
    def _parameters(cls) -> list[Setting]:
        """Return the settings in the order of the constructor: as declared, those of bases first."""
        return [item for item in cls._settings.values() if item.taken]

    @classmethod
    def _signature_of_constructor(cls) -> inspect.Signature:
        parameters = []
        for item in sorted(cls._parameters(), key=lambda item: not item.positional):
            by_position = item.positional or cls._by_position
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if by_position else inspect.Parameter.KEYWORD_ONLY
            default = inspect.Parameter.empty if item.default is MISSING else item.default
            annotation = _annotation(cls, item.name)
            parameters.append(inspect.Parameter(item.key, kind, default=default, annotation=annotation))
        return inspect.Signature(parameters)

    @classmethod
    def _document(cls) -> None:
        """Add the declared settings to the docstring, where ``help()`` shows them."""
        declared = list(cls.settings().values())
        if not declared or cls.__doc__ is None:
            return
        lines = [f"    {item.key}: {item.help}{item.range and f' ({item.range})'}." for item in declared]
        wrapped = "\n".join(textwrap.fill(line, 116, subsequent_indent="        ") for line in lines)
        text = inspect.cleandoc(cls.__doc__)
        cls.__doc__ = f"{text}\n\nSettings:\n{wrapped}\n"

    @classmethod
    def _words(cls) -> str:
        """Return how a message begins that something is missing here."""
        name = getattr(cls, "name", None)
        return f"{name} has" if name else "there is"

    def _assign(self, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        """Give each declared setting its value, in the order of declaration.

        Raises:
            GrataError: a setting is not known, missing, not taken, or out of range.
        """
        values = self._by_key(args, given)
        self.check_names(values)
        items = {item.key: item for item in self._parameters()}
        checked = {key: items[key].value(value) for key, value in values.items()}
        for key, item in items.items():
            if key not in checked and item.default is MISSING:
                self._refuse_missing(item)
        for key, item in items.items():
            value = checked[key] if key in checked else item.value(item.default_value())
            object.__setattr__(self, item.name, value)

    def _by_key(self, args: tuple[Any, ...], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the constructor by their keys, as Python itself would assign them."""
        places = [item.key for item in self._parameters() if item.positional or self._by_position]
        if len(args) > len(places):
            raise TypeError(f"{type(self).__name__} takes {len(places)} positional arguments, {len(args)} were given")
        values = dict(zip(places, args, strict=False))
        if twice := values.keys() & given.keys():
            raise TypeError(f"{type(self).__name__} got several values for {min(twice)}")
        return values | dict(given)

    @classmethod
    def _refuse_missing(cls, item: Setting) -> None:
        if item.positional:
            raise TypeError(f"{cls.__name__} needs {item.key}")
        raise GrataError(item.missing, item.key)

    @classmethod
    def check_names(cls, given: Iterable[str], key: str = "") -> None:
        """Raise :class:`GrataError` for a setting that the class does not take, naming the one that may be meant.

        Args:
            given: names of settings.
            key: key that they stand under, for the message.
        """
        taken = [item.key for item in cls._parameters()]
        refused = {item.key: item.why_not for item in cls._settings.values() if not item.taken}
        prefix = f"{key}#" if key else ""
        for name in given:
            if name in taken:
                continue
            if refused.get(name) is not None:
                raise GrataError(f"{cls._words()} no such setting: {refused[name]}", f"{prefix}{name}")
            known = list(cls.settings())
            hint = did_you_mean(name, known, f"Its settings are {', '.join(known) or 'none'}.", prefix)
            raise GrataError(f"{cls._words()} no such setting; {hint[0].lower()}{hint[1:]}", f"{prefix}{name}")

    def __repr__(self) -> str:
        first = [type(getattr(self, item.name)).__name__ for item in self._parameters() if item.positional]
        named = [f"{item.key}={getattr(self, item.name)!r}" for item in self._parameters() if not item.positional]
        return f"{type(self).__qualname__}({', '.join(first + named)})"


@dataclass_transform(field_specifiers=(number, count, flag, choice, numbers, setting, override, excluded, argument))
class Settings(_Declared):
    """Base of small objects that are known by their settings, such as a reset policy or a strong view.

    Two of the same class are equal when their settings are. A subclass does what else its construction needs in
    ``_setup``, which is called when all values are checked and in place.

    Raises:
        GrataError: a setting is not known or out of range.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._assign(args, settings)
        self._setup()

    def _setup(self) -> None:
        """Finish the construction; all settings have their values."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, item.name) == getattr(other, item.name) for item in self._parameters())

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))


@dataclass_transform(
    kw_only_default=True,
    field_specifiers=(number, count, flag, choice, numbers, setting, override, excluded, argument),
)
class KeywordSettings(_Declared):
    """Base of classes whose settings are given by name alone, after what is declared as an :func:`argument`."""

    _by_position: ClassVar[bool] = False

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._assign(args, settings)


def chosen(given: Any, table: Mapping[str, Callable[..., T]], kind: type[T], key: str, what: str = "setting") -> T:
    """Return an object from what a configuration says: the object, a name, or a mapping of ``name`` and settings.

    Args:
        given: what the configuration says.
        table: classes or factories by the names that configurations use.
        kind: class of the object.
        key: key that ``given`` stands under, for messages.
        what: what the names are names of, for messages.

    Raises:
        GrataError: the name or a setting is not known, or a value is out of range.

    Example:
        >>> class Blur(Settings):
        ...     name = "blur"
        ...     sigma: float = number(default=1.0, above=0, help="standard deviation in voxels")
        >>> chosen({"name": "blur", "sigma": 0}, {"blur": Blur}, Blur, "filter")
        Traceback (most recent call last):
        grata.errors.GrataError: filter#sigma: must be a finite number above 0, got 0.
    """
    if isinstance(given, kind):
        return given
    name, options = _name_and_options(given)
    if name not in table:
        hint = did_you_mean(name, table) if name else ""
        raise GrataError(f"there is no {what} {given!r}; there are {', '.join(table)}.{hint and ' ' + hint}", key)
    made = table[name]
    if isinstance(made, type) and issubclass(made, _Declared):
        made.check_names(options, key)
    try:
        return made(**options)
    except GrataError as error:
        raise error.under(key) from error


def _name_and_options(given: Any) -> tuple[str, dict[str, Any]]:
    """Return the name and settings in what a configuration says; an empty name where it says none."""
    if isinstance(given, str):
        return given, {}
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        return "", {}
    return given["name"], {option: value for option, value in given.items() if option != "name"}


def _or_null(words: str, optional: bool) -> str:
    return f"{words}{', ' if words else ''}or null" if optional else words


def _annotation(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        annotations = vars(base).get("__annotations__", {})
        if name in annotations:
            return annotations[name]
    return inspect.Parameter.empty
