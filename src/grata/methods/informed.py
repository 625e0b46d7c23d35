"""Base of methods that can use what was prepared from the source set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import GrataError
from ..settings import setting
from .predictive import PredictiveMethod
from .prepared import Prepared

__all__ = ["InformedMethod"]


def _check_prepared(value: Any) -> Prepared | str | Path | None:
    if not isinstance(value, Prepared | str | Path | None):
        raise GrataError(f"must be a file of grata prepare or null, got {value!r}.")
    return value


class InformedMethod(PredictiveMethod):
    """Base of methods that can use what was prepared from the source set.

    Raises:
        GrataError: a setting is not known or out of range.
    """

    source_data: Prepared | str | Path | None = setting(
        default=None,
        check=_check_prepared,
        range="file or null",
        help="file that grata prepare wrote from the source set; it is read when something in it is needed",
        in_state=False,
        alias="prepared",
    )

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._to_check: Prepared | None = None
        super().__init__(*args, **settings)

    def prepared(self) -> Prepared | None:
        """Return the data that were prepared from the source set; None where no file was given.

        Their weights are compared with the network's at the first batch, because weights may be loaded until then.

        Raises:
            GrataError: the file is missing or damaged.
        """
        if isinstance(self.source_data, str | Path):
            self.source_data = Prepared.load(self.source_data)
        self._to_check = self.source_data
        return self.source_data

    def _activate(self) -> None:
        if not self._active and self._to_check is not None:
            self._to_check.check_network(self.given)
            self._to_check = None
        super()._activate()
