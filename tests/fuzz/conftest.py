"""The inputs of scripts/fuzz.py, which test files import from ``fuzzing``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
