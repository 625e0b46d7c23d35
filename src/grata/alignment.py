"""Former place of gradients and laws, which are in :mod:`grata.optimization`."""

from ._moved import moved, names_of

__all__ = names_of(__name__)  # noqa: PLE0605 (made from the table)

__getattr__ = moved(__name__)
