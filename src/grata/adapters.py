"""Former place of saved adaptations and banks, which are in :mod:`grata.bank`."""

from ._moved import moved, names_of

__all__ = names_of(__name__)  # noqa: PLE0605 (made from the table)

__getattr__ = moved(__name__)
