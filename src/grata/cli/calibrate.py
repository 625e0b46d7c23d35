"""``grata calibrate``: what Dice to expect of a bundle's network, in one file of the bundle."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import PATH, SWITCH, Groups, LabelsDir, Work, argument, check_bundle, count, given, option

__all__ = ["calibrate"]


def calibrate(
    context: typer.Context,
    bundle: Annotated[str, argument("Folder of the bundle.", PATH)],
    dataset_dir: Annotated[str, argument("Labelled images of the source set; not those of a target site.", PATH)],
    labels_dir: LabelsDir = None,
    output: Annotated[
        str | None,
        option(
            "output",
            PATH,
            "File to write, relative to the bundle.",
            default="that of the key quality, or models/quality.json",
        ),
    ] = None,
    images: Annotated[
        int | None,
        option("images", count(1), "Greatest number of images, evenly spaced over the sorted cases.", default="20"),
    ] = None,
    val_stride: Annotated[
        int | None,
        option(
            "val_stride",
            count(1),
            "Every so-many-th of the sorted cases was held out of the network's training, and is used; 1: all are.",
            default="5",
        ),
    ] = None,
    groups: Groups = None,
    seed: Annotated[int | None, option("seed", count(0), "Seed of the simulations.", default="0")] = None,
    overwrite: Annotated[
        Any, option("overwrite", SWITCH, "Replace a file that is there already.", default="false")
    ] = None,
) -> Work:
    """Learn from held-out source images, simulated shifts and wrong inputs what Dice to expect of the network.

    Any key of the bundle's configs/adapt.yaml can be given too, such as --device cuda.
    """

    def run() -> int:
        check_bundle(bundle)
        from ..preparation import calibrate as run_calibration

        return run_calibration(bundle, dataset_dir, **given(context, "bundle", "dataset_dir"))

    return run
