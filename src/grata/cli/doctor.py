"""``grata doctor``: what can be adapted in a bundle, an nnU-Net folder or a TorchScript file."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import PATH, VALUE, Work, argument, check_exists, given, option

__all__ = ["doctor"]


def doctor(
    context: typer.Context,
    path: Annotated[
        str, argument("Folder of a bundle in Model Zoo layout, a trained nnU-Net folder, or a TorchScript file.", PATH)
    ],
    config_file: Annotated[
        str | None,
        option(
            "config_file",
            PATH,
            "For a bundle: configuration, relative to its folder.",
            default="configs/inference.json or .yaml",
        ),
    ] = None,
    method: Annotated[Any, option("method", VALUE, "For a bundle: report on this method alone.")] = None,
    settings: Annotated[
        Any, option("settings", VALUE, "For a bundle: settings of that method, one by one as --settings#lr 0.001.")
    ] = None,
    activation: Annotated[
        Any,
        option(
            "activation",
            VALUE,
            "For a TorchScript file: sigmoid or softmax, as it was trained. A bundle takes --adaptation#activation.",
        ),
    ] = None,
    output: Annotated[
        Any,
        option(
            "output", VALUE, "For a TorchScript file: which of the network's outputs are the logits, by name or number."
        ),
    ] = None,
    folds: Annotated[Any, option("folds", VALUE, "For an nnU-Net folder: folds to examine, such as 0 or 0,1.")] = None,
    checkpoint_name: Annotated[
        Any, option("checkpoint_name", VALUE, "For an nnU-Net folder: file in the folder of a fold.")
    ] = None,
) -> Work:
    """Show what can be adapted in a model, and what will be refused and why, before it is run.

    For a bundle, any key of its configuration and of the overlay can be given too, such as --network_def#channels
    "[16, 32]" or --adaptation#affine attach.
    """

    def run() -> int:
        check_exists(path, "Name a folder or a file.")
        from ..doctor.doctor import doctor as run_doctor

        return run_doctor(path, config_file, **given(context, "path", "config_file"))

    return run
