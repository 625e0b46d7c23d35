"""The configuration of a bundle: the one place where its files are read, overridden and resolved."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import ID_SEP_KEY
from torch import nn

from ..config_files import read_config
from ..errors import GrataError
from ..private import running_workflow
from ..session.faults import explain
from .paths import keep_texts

__all__ = ["Configuration", "components", "evaluators", "parser_of", "read_files"]


class Configuration:
    """Configuration files of a bundle with overrides, and the objects that their keys stand for.

    Args:
        parser: MONAI's parser, which has read the files.
        root: folder of the bundle, from which its own modules are imported; None: from where Python finds them.
        name: key that the configuration stands under, for messages; empty: the file is named instead.
        file: the file, for messages.
    """

    def __init__(
        self, parser: ConfigParser, root: Path | None = None, name: str = "", file: Path | None = None
    ) -> None:
        self.parser = parser
        self.root = root
        self.name = name
        self.file = file

    @classmethod
    def read(cls, root: Path, files: Sequence[Path], overrides: Mapping[str, Any]) -> Configuration:
        """Read files of a bundle, the later ones over the earlier.

        Args:
            root: folder of the bundle.
            files: the files; messages name the first.
            overrides: values by key, nested keys joined by ``#``.

        Raises:
            GrataError: a file is wrong.
        """
        parser = parser_of(files)
        parser["bundle_root"] = str(root)
        for key, value in overrides.items():
            parser[key] = value
        keep_texts(parser)
        return cls(parser, root, file=files[0])

    @classmethod
    def running(cls) -> Configuration | None:
        """Return the configuration of the workflow that evaluates the calling expression; None: there is none."""
        workflow = running_workflow()
        return None if workflow is None else cls(workflow.parser)

    def __contains__(self, key: str) -> bool:
        return key.replace("#", ID_SEP_KEY) in self.parser

    def raw(self, key: str = "") -> Any:
        """Return the value of a key as it is written, or the whole configuration."""
        return self.parser.get(key) if key else self.parser.get()

    def resolve(self, key: str) -> Any:
        """Return the object that a key stands for.

        Raises:
            GrataError: it cannot be built.
        """
        try:
            with _modules_of(self.root):
                return self.parser.get_parsed_content(key.replace("#", ID_SEP_KEY))
        # A configuration can call anything, which can raise anything.
        except Exception as error:
            if self.name or self.file is None:
                raise GrataError(explain(error), key=self.name or None) from error
            raise GrataError(f"{self.file}: its {key} cannot be built. {explain(error)}") from error

    def value(self, key: str, default: Any = None) -> Any:
        """Return the object that a key stands for, or ``default`` where there is no such key."""
        return self.resolve(key) if key in self else default

    def network(self) -> nn.Module:
        """Return the network that ``network_def`` or ``network`` stands for.

        Raises:
            GrataError: neither is a network.
        """
        for key in ("network_def", "network"):
            if isinstance(network := self.value(key), nn.Module):
                return network
        raise GrataError(f"{self.file} has neither network_def nor network. Name the bundle's inference configuration.")

    def postprocessing(self, evaluator: str) -> Any:
        """Return the postprocessing of an evaluator, or else the key ``postprocessing``, or None.

        A handler of the evaluator may apply the latter.

        Args:
            evaluator: key of the evaluator.
        """
        return self.value(f"{evaluator}#postprocessing") or self.value("postprocessing")


def parser_of(files: Sequence[Path], key: str | None = None) -> ConfigParser:
    """Return MONAI's parser, which has read files, the later ones over the earlier.

    Args:
        files: the files.
        key: key of the files, for messages.

    Raises:
        GrataError: a file is wrong, or does not fit those before it.
    """
    for file in files:
        _content(file, key)
    parser = ConfigParser()
    try:
        parser.read_config(list(files))
    # MONAI merges keys, and may be told to refuse what is there twice
    except Exception as error:
        names = ", ".join(map(str, files))
        raise GrataError(f"{names} cannot be read by MONAI. {explain(error)}", key=key) from error
    return parser


def read_files(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the content of each configuration file, without the marks by which MONAI merges keys.

    Raises:
        GrataError: a file is wrong.
    """
    return [{key.lstrip("+"): value for key, value in _content(file).items()} for file in files]


def _content(file: Path, key: str | None = None) -> dict[str, Any]:
    content = read_config(file, key)
    for name in content:
        if not isinstance(name, str):
            raise GrataError(f"{file} has the key {name!r}, which is not a text. Put it in quotes.", key=key)
    return content


def components(config: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield key and content of each item with a ``_target_``; nested keys are joined by ``#``."""
    if isinstance(config, Mapping) and "_target_" in config:
        yield key, config
    items = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for name, value in items:
        yield from components(value, f"{key}#{name}" if key else str(name))


def evaluators(config: Any) -> list[str]:
    """Return the keys of all components that are evaluators, nested ones with ``#``."""
    return [key for key, item in components(config) if "Evaluator" in str(item["_target_"])]


@contextlib.contextmanager
def _modules_of(root: Path | None) -> Iterator[None]:
    """Let a bundle import its own modules, and forget them: those of the next one may have the same names.

    A package ``scripts`` that something else has imported is set aside meanwhile: bundles of the Zoo all have one.
    """
    if root is None:
        yield
        return
    aside = {name: module for name, module in sys.modules.items() if name == "scripts" or name.startswith("scripts.")}
    for name in aside:
        del sys.modules[name]
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    # A folder that was written a moment ago may stand in the caches of the import system as it was before.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(root))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            own = file is not None and Path(file).resolve().is_relative_to(root.resolve())
            if own or name.partition(".")[0] == "scripts":
                del sys.modules[name]
        sys.modules.update(aside)
