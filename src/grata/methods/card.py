"""Descriptions of methods as data: the records of the registry, used to make tables."""

from __future__ import annotations

import dataclasses

__all__ = ["NEEDS", "Card"]

NEEDS: dict[str, str] = {
    "running statistics": "batch normalization layers that keep running statistics",
    "affine parameters": "normalization layers with weight and bias",
    "class sizes": "the class sizes of the source labels",
    "shape moments": "the shape moments of the source labels",
    "fisher": "the Fisher information of the source images",
    "rotation head": "a rotation head trained on the source images",
    "denoising head": "a denoising head trained on the source images",
}
"""Possible requirements of a method beyond images and a network with its weights."""

_PREPARED = ("class sizes", "shape moments", "fisher", "rotation head", "denoising head")


@dataclasses.dataclass(frozen=True)
class Card:
    """Description of a method in the registry.

    Args:
        title: name of the method in its paper.
        reference: authors, venue and, where there is one, arXiv number.
        year: year of its publication.
        rule: summary of the method in one line.
        changes: parts of the network that the method changes; ``nothing`` when there are none.
        needs: requirements of the method, keys of :data:`NEEDS`.
        spatial_dims: numbers of spatial dimensions of the images that the method accepts.
        episodic: whether the method returns to the source network for every case, as in its paper; otherwise it is
            online.
        forwards: number of network calls for one batch at the default settings, in :meth:`Method.adapt` and the
            prediction after it; each call counts once, whether its input is a view, a set of crops or the batch.
        backwards: number of gradient computations, counted in the same way.
    """

    title: str
    reference: str
    year: int
    rule: str
    changes: str
    needs: tuple[str, ...] = ()
    spatial_dims: tuple[int, ...] = (2, 3)
    episodic: bool = False
    forwards: int = 1
    backwards: int = 0

    def __post_init__(self) -> None:
        for need in self.needs:
            if need not in NEEDS:
                raise ValueError(f"{self.title}: {need!r} is not one of {', '.join(NEEDS)}")

    @property
    def prepared(self) -> tuple[str, ...]:
        """The needs that ``python -m grata prepare`` prepares from the source set."""
        return tuple(need for need in self.needs if need in _PREPARED)
