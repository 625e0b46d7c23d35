"""``grata prepare``: what methods need of the source set, in one file of the bundle."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import PATH, SWITCH, VALUE, Groups, LabelsDir, Work, argument, check_bundle, count, given, option

__all__ = ["prepare"]


def prepare(
    context: typer.Context,
    bundle: Annotated[str, argument("Folder of the bundle.", PATH)],
    dataset_dir: Annotated[str, argument("Images of the source set; not those of a target site.", PATH)],
    labels_dir: LabelsDir = None,
    output: Annotated[
        str | None,
        option(
            "output",
            PATH,
            "File to write, relative to the bundle.",
            default="that of the key prepared, or models/prepared.safetensors",
        ),
    ] = None,
    images: Annotated[
        int | None,
        option("images", count(1), "Greatest number of images, evenly spaced over the sorted cases.", default="all"),
    ] = None,
    val_stride: Annotated[
        int | None,
        option(
            "val_stride",
            count(0),
            "Every so-many-th of the sorted cases was held out of the network's training, and is left out.",
            default="0: none was",
        ),
    ] = None,
    groups: Groups = None,
    heads: Annotated[
        Any,
        option(
            "heads",
            VALUE,
            "Auxiliary heads to train, separated by commas; none; or keep: those of the file that is replaced.",
            default="rotation,denoising",
        ),
    ] = None,
    epochs: Annotated[int | None, option("epochs", count(1), "Epochs of the heads' training.", default="20")] = None,
    seed: Annotated[int | None, option("seed", count(0), "Seed of the heads' training.", default="0")] = None,
    overwrite: Annotated[
        Any,
        option(
            "overwrite",
            SWITCH,
            "Replace a file that is there already.",
            default="true, with a warning; false from the next release on",
        ),
    ] = None,
) -> Work:
    """Take from the source set what methods need beyond images: class sizes, moments, statistics, heads.

    Any key of the bundle's configs/adapt.yaml can be given too, such as --device cuda or --affine attach.
    """

    def run() -> int:
        check_bundle(bundle)
        from ..preparation import prepare as run_preparation

        return run_preparation(bundle, dataset_dir, **given(context, "bundle", "dataset_dir"))

    return run
