"""What a method is, as data: the registry's record, from which tables are made."""

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
"""What a method can need beyond images and a network with its weights."""

_PREPARED = ("class sizes", "shape moments", "fisher", "rotation head", "denoising head")


@dataclasses.dataclass(frozen=True)
class Card:
    """A method in the registry.

    Args:
        title: name of the method in its paper.
        reference: authors, venue and, where there is one, arXiv number.
        year: year of its publication.
        rule: one line on what it does.
        changes: what it changes in the network; ``nothing`` when it does not.
        needs: keys of :data:`NEEDS`.
        spatial_dims: numbers of spatial dimensions of the images that it takes.
        episodic: whether it starts from the source network again for every case, as its paper has it; else it is
            online.
        forwards: calls of the network for one batch in :meth:`Method.adapt` and the prediction after it, at the default
            settings, whatever the size of what a call is given: views, crops, or the batch.
        backwards: the same of gradients.
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
        """What of its needs is prepared from the source set, by ``python -m grata prepare``."""
        return tuple(need for need in self.needs if need in _PREPARED)
