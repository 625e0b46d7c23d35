"""Former place of the parts of a bundle's run, which are in :mod:`grata.engines` and :mod:`grata.bundles`."""

from ._moved import moved, names_of

__all__ = names_of(__name__)  # noqa: PLE0605 (made from the table)

__getattr__ = moved(__name__)
