"""Inputs that nobody would make on purpose, for every entrance that reads a file: see ``scripts/fuzz.py``."""

from .configs import CONFIGS
from .results import WRITTEN
from .scans import SCANS
from .watch import FAILURES, RESULTS, Outcome, Target, run

__all__ = ["FAILURES", "RESULTS", "TARGETS", "Outcome", "Target", "run"]

TARGETS: dict[str, Target] = {target.name: target for target in (*SCANS, *WRITTEN, *CONFIGS)}
"""All targets by the kind of their inputs."""
