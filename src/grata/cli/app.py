"""The commands, and how each ends: with a status, and one line where something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from .._version import __version__
from ..checks import did_you_mean
from ..console import CLOSED_PIPE, fit_console, is_abandoned, say
from ..errors import GrataError
from .bank import bank
from .benchmark import benchmark
from .calibrate import calibrate
from .doctor import doctor
from .methods import methods
from .nnunet import nnunet
from .options import PATH, SWITCH, TEXT, Kind, Work
from .prepare import prepare
from .spelling import Grammar, spelled

__all__ = ["main"]

_STATUS = (
    "Exit status: 0 when all went well, 1 when something is wrong or refused, 3 when nothing is and the guard rejected "
    "something, 130 after Ctrl-C."
)
_SPELLING = "Option names take - for _, values follow a space or =, and true, false and null mean what they say."


@dataclass(frozen=True)
class _Command:
    """A command.

    Attributes:
        declared: function whose parameters are the options.
        summary: one line for the list of commands.
        stopped: what to say on Ctrl-C.
        by_position, nested, others: see :class:`Grammar`.
        stated: switches that do nothing without a value, because what they do cannot be undone.
    """

    declared: Callable[..., Work]
    summary: str
    stopped: str = "stopped."
    by_position: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    others: bool = False
    stated: tuple[str, ...] = ()


_COMMANDS = {
    "methods": _Command(
        methods,
        "Which methods there are, what each does, and which fit a bundle.",
        by_position=("bundle", "changes", "mode", "spatial_dims", "backwards", "prepared", "form"),
    ),
    "doctor": _Command(
        doctor,
        "What can be adapted in a model, and what will be refused.",
        by_position=("config_file",),
        nested=("settings",),
        others=True,
    ),
    "nnunet": _Command(
        nnunet,
        "Adapt a trained nnU-Net to each image and predict it.",
        "stopped. What is finished is kept; the same command with --overwrite false does the rest.",
        by_position=("method",),
        nested=("settings", "windows", "reset"),
    ),
    "bank": _Command(
        bank,
        "List, inspect, export or reset what was learned by site.",
        "stopped. Entries are whole, as they were or as they were to be.",
        by_position=("checkpoint", "output", "all"),
        stated=("all",),
    ),
    "calibrate": _Command(
        calibrate, "Learn what Dice to expect of a network.", "stopped. Nothing was written.", others=True
    ),
    "prepare": _Command(
        prepare, "Compute what methods need of the source set.", "stopped. Nothing was written.", others=True
    ),
    "benchmark": _Command(
        benchmark,
        "Compare methods over sites.",
        "stopped. What is finished is kept; the same command goes on with the rest.",
        nested=("tasks", "sources", "targets", "methods", "common", "protocol", "metrics"),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after ``grata``; None: those of this process.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    fit_console()
    try:
        return _run(words)
    except BrokenPipeError:
        if not is_abandoned():
            raise
        return CLOSED_PIPE


def _run(words: list[str]) -> int:
    command = _COMMANDS.get(words[0]) if words else None
    try:
        group = typer.main.get_command(_application())
        spelling, others = _spelled(words, group)
        work = group.main(spelling, prog_name="grata", standalone_mode=False, obj=others)
        status = int(work() if callable(work) else work or 0)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        say(f"\n{command.stopped if command else 'stopped.'}", sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    # What a bundle's configuration calls can raise anything.
    except Exception as error:  # noqa: BLE001
        say(f"error: {_in_words(error)}", sys.stderr)
        return 1


def _application() -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

    def grata(
        version: Annotated[
            bool,
            typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
        ] = False,
    ) -> None:
        """Adapt a trained segmentation network to each image, just before it predicts that image."""

    app.callback(epilog=f"{_SPELLING} {_STATUS}")(grata)
    for name, command in _COMMANDS.items():
        app.command(name, short_help=command.summary, epilog=_STATUS)(command.declared)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        say(__version__)
        raise typer.Exit


def _spelled(words: list[str], group: Any) -> tuple[list[str], dict[str, Any]]:
    """Return the whole command line in typer's spelling, and the options that the command does not declare."""
    if not words or words[0] in ("--help", "-h"):
        return ["--help"], {}
    if words[0] == "--version":
        return words[:1], {}
    if words[0].startswith("-"):
        hint = did_you_mean(words[0], ("--help", "--version"), "Name a command, or give --help or --version.")
        raise GrataError(f"there is no such option. {hint}", words[0])
    name = words[0].replace("-", "_")
    if name not in _COMMANDS:
        hint = did_you_mean(name, _COMMANDS, f"The commands are {', '.join(_COMMANDS)}.")
        raise GrataError(f"there is no command {words[0]!r}. {hint}")
    spelling, others = spelled(words[1:], _grammar(name, group.commands[name].params))
    return [name, *spelling], others


def _grammar(name: str, parameters: Sequence[Any]) -> Grammar:
    command = _COMMANDS[name]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    return Grammar(
        name,
        _names(arguments),
        _names(options),
        required=_names(parameter for parameter in arguments if parameter.required),
        switches=_of_kind(SWITCH, options),
        texts=(*_of_kind(TEXT, options), *_of_kind(PATH, options), *command.stated),
        by_position=command.by_position,
        nested=command.nested,
        others=command.others,
    )


def _of_kind(kind: Kind, options: Iterable[Any]) -> tuple[str, ...]:
    return _names(option for option in options if option.metavar == kind.placeholder)


def _names(parameters: Iterable[Any]) -> tuple[str, ...]:
    return tuple(parameter.name for parameter in parameters)


def _in_words(error: Exception) -> str:
    if isinstance(error, GrataError) and "Traceback" not in str(error):
        return str(error)
    from ..session.faults import explain

    return explain(error)
