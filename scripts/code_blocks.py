"""List the code blocks of all pages: which of them the tests run or read, and which not, and why.

    python scripts/code_blocks.py

`tests/docs` runs blocks of Python and bash, and reads YAML, JSON and TOML. A block that cannot be run has a comment on
the line before it:

    <!-- not run: needs public data -->
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "bundles/*/docs/README.md")
LANGUAGES = {"python": "run", "bash": "run", "yaml": "read", "json": "read", "toml": "read", "text": "shown"}
FENCE = re.compile(r"^ *```(.*)$")
MARKER = re.compile(r"^ *<!-- *not run\b:?(.*?)-->$")


@dataclass(frozen=True)
class Block:
    """One code block: where it begins, its language and text, and why it is not run (None: nothing says so)."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def name(self) -> str:
        """Page and line, as editors take them."""
        return f"{self.page}:{self.line}"

    @property
    def fate(self) -> str:
        """What tests do with the block."""
        return "not run" if self.reason is not None else LANGUAGES.get(self.language, "unknown")

    @property
    def fault(self) -> str | None:
        """What is wrong with the block's own line or its marker."""
        if self.language not in LANGUAGES:
            return f"{self.name}: language {self.language or 'missing'}. Choose from {', '.join(LANGUAGES)}."
        if self.reason == "":
            return f"{self.name}: not run, without a reason. Give one: <!-- not run: reason -->"
        return None


def read(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if not (fence := FENCE.match(line)):
            continue
        if start is None:
            start, language = number, fence[1].strip()
        else:
            marker = MARKER.match(lines[start - 1]) if start else None
            text = dedent("\n".join(lines[start + 1 : number])) + "\n"
            reason = marker[1].strip() if marker else None
            yield Block(page.relative_to(ROOT).as_posix(), start + 1, language, text, reason)
            start = None


def blocks() -> list[Block]:
    """Return the code blocks of all pages."""
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    return [block for page in pages for block in read(page)]


def main() -> int:
    """Print how many blocks meet which fate, and those not run; return the exit status."""
    found = blocks()
    counts = Counter(block.fate for block in found)
    print(f"{len(found)} code blocks: " + ", ".join(f"{n} {fate}" for fate, n in counts.most_common()))
    for block in found:
        if block.reason:
            print(f"  {block.name}: {block.reason}")
    faults = [block.fault for block in found if block.fault]
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
