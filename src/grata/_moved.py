"""Names that moved to another module, and are found under their old one for one more release."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["NAMES", "PLACES", "moved", "names_of"]

PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "grata.adapters": {
        "grata.bank": (
            *("SCANNER", "UNKNOWN", "Adaptation", "AdapterBank", "apply", "check_tags", "export_checkpoint"),
            *("load", "run_bank", "save", "scanner_tags"),
        ),
        "grata.session.keeper": ("Keeper",),
    },
    "grata.alignment": {
        "grata.optimization": (
            *("LAWS", "RATES", "CosineRate", "DiscrepancyRate", "Rate", "StepSignals", "cosine_similarity"),
            *("gradient_norm", "learning_rate_factor", "make_rate"),
        )
    },
    "grata.benchmark": {"grata.doctor.fit": ("fitting_methods",)},
    "grata.catalogue": {
        "grata.doctor.catalogue": ("MethodEntry", "PATH", "SettingEntry", "build", "digest", "load", "written")
    },
    "grata.handlers": {
        "grata.engines": ("AdaptationHandler", "AutocastInferer", "GraTaHandler", "JointInferer"),
        "grata.session": ("Journal", "WindowSelection", "merged_record", "window_selection"),
    },
    "grata.objectives": {"grata.predictions": ("ACTIVATIONS", "activate", "view_agreement")},
    "grata.prepared": {
        "grata.methods": ("Prepared",),
        "grata.methods.prepared": ("require",),
        "grata.networks": ("SavedHeads", "network_digest", "weights_digest"),
    },
    "grata.resets": {
        "grata.session.resets": (
            *("RESETS", "Drift", "EntropyCollapse", "EveryN", "Never", "PerCase", "ResetPolicy", "SiteChange"),
            "make_reset",
        )
    },
    "grata.streaming": {"grata.session": ("Adapted", "AdaptedStream", "adapt")},
    "grata.styles": {
        "grata.views": ("StrongView", "brightness", "contrast", "gamma_inverted", "gaussian_blur", "min_max")
    },
    "grata.workflows": {
        "grata.bundles": ("effective_settings", "start"),
        "grata.engines": ("AdaptationRun", "OutputHandler"),
        "grata.machine": ("check_device", "keep_pages"),
    },
    "grata.zoo": {
        "grata.bundles": ("Head", "ZooAdaptation", "begin", "find_head", "is_unit_range", "overlay"),
        "grata.engines": ("EvaluatorRun",),
    },
}
"""Names by the module where they are now, by the module that they moved away from."""

NAMES: dict[str, str] = {
    f"{old}.{name}": f"{new}.{name}"
    for old, places in PLACES.items()
    for new, names in places.items()
    for name in names
}
"""Every new name by its old one."""


def names_of(old: str) -> list[str]:
    """Return the names that moved away from a module, so that ``import *`` finds them."""
    return sorted(name for names in PLACES[old].values() for name in names)


def moved(old: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module that names moved away from.

    Args:
        old: name of the module, a key of :data:`PLACES`.
    """

    def get(name: str) -> Any:
        now = NAMES.get(f"{old}.{name}")
        if now is None:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        warnings.warn(
            f"{old}.{name} is now {now}, and its old name goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(now.rpartition(".")[0]), name)

    return get
