"""Cases that were begun: what ends the process twice during one case must not end every resumed run."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from ..errors import GrataError
from ..files import atomic_write

__all__ = ["Attempts"]

_MOST = 2
_STOPS = ("SIGTERM", "SIGHUP")


class Attempts:
    """How often the process ended during each case that was begun and is not finished, in a small file.

    A case is noted before it is read. The system may kill the process for its memory, or a library may crash: then the
    note is still there when the run is resumed. A fault that Python sees is not an attempt, nor is Ctrl-C.

    Args:
        path: file with a line for each case: the number of attempts, a tab, the case.

    Attributes:
        counts: number of attempts by case.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts = self._read()
        self._now: str | None = None

    def gave_up(self, case: str) -> bool:
        """Return whether the process ended twice during a case, so that it is not tried again."""
        return self.counts.get(case, 0) >= _MOST

    def check(self, case: str, again: str) -> None:
        """Check that a case may be tried.

        Args:
            case: name of the case.
            again: what lets it be tried again, such as an option.

        Raises:
            GrataError: the process ended twice during it.
        """
        if self.gave_up(case):
            raise GrataError(
                "the process ended twice while this case was done, killed for its memory or by a crash, so it is "
                f"passed over. Check the size of the scan. To try it again, {again}."
            )

    def pending(self) -> bool:
        """Return whether the process ended during a case that is tried again."""
        return any(0 < count < _MOST for count in self.counts.values())

    def begin(self, case: str) -> None:
        """Note a case that is about to be read.

        Raises:
            OutputError: the file cannot be written.
        """
        self._now = case
        self.counts[case] = self.counts.get(case, 0) + 1
        self._write()

    def end(self) -> None:
        """Forget the case that was begun, because it is finished or failed; what is written next says so."""
        if self._now is not None:
            self.forget(self._now)
            self._now = None

    def forget(self, case: str) -> None:
        """Forget a case; what is written next says so."""
        self.counts.pop(case, None)

    def close(self) -> None:
        """Write what is left at the end of a run: the cases that are passed over."""
        try:
            if self.counts:
                self._write()
                return
        except GrataError:
            # a full disk must not count as an attempt; without the file every case is tried
            pass
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Take the note of the present case back where the user or the system stops the process within this block."""
        process = os.getpid()

        def stop(number: int, frame: FrameType | None) -> None:
            if os.getpid() == process:
                self._take_back()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        before = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in _STOPS if hasattr(signal, name)]
            # what others handle or ignore is left to them
            free = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
            before = {number: signal.signal(number, stop) for number in free}
        try:
            yield
        except BaseException:
            self._take_back()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take_back(self) -> None:
        """Count the present case as begun, not as an attempt: its outputs may be there, and are removed later."""
        case, self._now = self._now, None
        if case in self.counts:
            self.counts[case] -= 1
            self.close()

    def _read(self) -> dict[str, int]:
        if not self.path.is_file():
            return {}
        counts: dict[str, int] = {}
        for line in self.path.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
            # the last release wrote the names alone
            count, case = re.fullmatch(r"(?:(\d{1,9})\t)?(.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
            if case:
                counts[case] = counts.get(case, 0) + int(count or 1)
        return counts

    def _write(self) -> None:
        with atomic_write(self.path) as temporary:
            lines = "".join(f"{count}\t{case}\n" for case, count in self.counts.items())
            temporary.write_text(lines, encoding="utf-8", errors="surrogateescape")
