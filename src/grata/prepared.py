"""Former place of what is prepared from the source set, which is in :mod:`grata.methods.prepared`."""

from ._moved import moved

_PLACES = {
    "Prepared": "grata.methods",
    "SavedHeads": "grata.networks",
    "network_digest": "grata.networks",
    "require": "grata.methods.prepared",
    "weights_digest": "grata.networks",
}

__getattr__ = moved(__name__, _PLACES)
