"""``grata nnunet``: adapt a trained nnU-Net and predict with it."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import typer

from .options import NUMBER, PATH, SITE, SWITCH, TEXT, VALUE, Work, argument, check_exists, count, given, option

__all__ = ["nnunet"]

# The next release takes null alone.
_option = functools.partial(option, none=True)


def nnunet(
    context: typer.Context,
    model_folder: Annotated[
        str, argument("Trained-model folder, which holds plans.json, dataset.json and fold_0, ...", PATH)
    ],
    input: Annotated[
        str, argument("Folder of images, named as for nnU-Net: <case>_0000.nii.gz, one file a channel.", PATH)
    ],
    output: Annotated[str, argument("Folder for the segmentations, the journal and the summary.", PATH)],
    method: Annotated[
        str, option("method", TEXT, "Method, see grata methods; source: nnU-Net's own predictions.", default="grata")
    ] = "grata",
    settings: Annotated[
        Any, _option("settings", VALUE, "Settings of the method, one by one as --settings#lr 0.001.")
    ] = None,
    windows: Annotated[
        Any, _option("windows", VALUE, "Windows of an image to adapt to, one by one as --windows#uncertain 4.")
    ] = None,
    affine: Annotated[
        str | None,
        _option(
            "affine",
            TEXT,
            "What is adapted where normalization layers have no affine parameters: own, attach or auto.",
            default="auto",
        ),
    ] = None,
    seed: Annotated[int | None, _option("seed", count(0), "Seed of the method's generator.", default="0")] = None,
    site: Annotated[
        Any,
        _option("site", SITE, "Where the images come from, or a mapping of cases to sites, such as '{case-1: north}'."),
    ] = None,
    bank: Annotated[
        str | None, _option("bank", PATH, "Folder that keeps what is learned for each site; it needs a site.")
    ] = None,
    start_from: Annotated[
        str | None,
        _option("start_from", PATH, "Saved adaptations to start from: a folder with fold_0.safetensors and so on."),
    ] = None,
    save_to: Annotated[
        str | None, _option("save_to", PATH, "Without a bank: folder for the saved adaptation of each fold.")
    ] = None,
    reset: Annotated[
        Any,
        _option(
            "reset",
            VALUE,
            "When to start from the source networks again: never, per-case, every-n, ...",
            default="as in the method's paper",
        ),
    ] = None,
    prepared: Annotated[
        str | None,
        _option("prepared", PATH, "What some methods need: a folder with fold_0.safetensors and so on, or a file."),
    ] = None,
    guard: Annotated[
        Any,
        _option(
            "guard",
            VALUE,
            "Judge each prediction, and use the plain network's where adaptation harms; false: as in the papers.",
            default="true",
        ),
    ] = None,
    on_reject: Annotated[
        str | None,
        _option("on_reject", TEXT, "What is written of a rejected image: source, withhold or keep.", default="source"),
    ] = None,
    quality: Annotated[
        str | None, _option("quality", PATH, "File of grata calibrate: what Dice to expect of the networks.")
    ] = None,
    folds: Annotated[
        Any, _option("folds", VALUE, "Folds to use: 0, or 0,1, or all.", default="each numbered one")
    ] = None,
    checkpoint_name: Annotated[
        str | None,
        _option("checkpoint_name", TEXT, "File in the folder of a fold.", default="checkpoint_final.pth"),
    ] = None,
    device: Annotated[
        str | None, _option("device", TEXT, "Device to compute on.", default="cuda where there is one, else cpu")
    ] = None,
    tile_step_size: Annotated[
        float | None,
        _option("tile_step_size", NUMBER, "Step of nnU-Net's windows, as a part of their size.", default="0.5"),
    ] = None,
    use_mirroring: Annotated[
        Any,
        _option("use_mirroring", SWITCH, "Predict mirrored images too, as nnU-Net does.", default="true"),
    ] = None,
    save_probabilities: Annotated[
        Any,
        _option("save_probabilities", SWITCH, "Write <case>.npz and <case>.pkl too, as nnU-Net does.", default="false"),
    ] = None,
    max_voxels: Annotated[
        Any,
        _option(
            "max_voxels",
            count(1),
            "Greatest number of voxels at the spacing of the plans; null: no bound.",
            default="134217728",
        ),
    ] = None,
    overwrite: Annotated[
        Any,
        _option("overwrite", SWITCH, "Predict every case again; false: only those that lack outputs.", default="true"),
    ] = None,
    traceback: Annotated[
        Any, _option("traceback", SWITCH, "Show the Python traceback of each fault.", default="false")
    ] = None,
) -> Work:
    """Adapt a trained nnU-Net v2 to each image of a folder, and predict it with nnU-Net's own predictor."""

    def run() -> int:
        remedy = "Give a trained-model folder of nnU-Net v2, which holds plans.json, dataset.json and fold_0, ..."
        check_exists(model_folder, remedy, "model_folder")
        from ..nnunet.command import run_command

        options = given(context, "model_folder", "input", "output", "method")
        return run_command(model_folder, input, output, method, **options)

    return run
