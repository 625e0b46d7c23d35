"""``python -m grata methods``: the methods there are, and which of them a bundle can take.

``python -m grata doctor <bundle>``: what can be adapted in a bundle, an nnU-Net folder or a TorchScript file.

``python -m grata benchmark <config.yaml>``: methods by sites, with tables and figures.

``python -m grata prepare <bundle>``: what methods need of the source set, in one file of the bundle.

``python -m grata bank list <folder>``: what was learnt for each site or scanner.

``python -m grata nnunet <model folder> <input> <output>``: adapt a trained nnU-Net and predict with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import fire


def methods(
    name: str | None = None,
    bundle: str | None = None,
    changes: str | None = None,
    mode: str | None = None,
    spatial_dims: int | None = None,
    backwards: bool | None = None,
    prepared: bool | None = None,
    form: str = "simple",
) -> None:
    """List the methods, or tell all about one.

    Args:
        name: of a method, whose rule, settings and defaults are told.
        bundle: folder of a bundle: tells which methods it can take, and what the others lack; with a name, of that one.
        changes: only those that change this, e.g. statistics or affine.
        mode: only those that are online or episodic.
        spatial_dims: only those for 2D or 3D images: 2 or 3.
        backwards: only those that compute gradients (true) or none (false).
        prepared: only those that need something prepared from the source set (true) or nothing (false).
        form: simple, markdown, readme or json; passes are forwards + backwards of the network an image, prediction
            included.
    """

    def run() -> int:
        from .errors import GrataError
        from .report.listing import describe, methods_table, select

        given = (changes, mode, spatial_dims, backwards, prepared)
        filters = dict(zip(("changes", "mode", "spatial_dims", "backwards", "prepared"), given, strict=True))
        if name is None:
            names = select(**filters)
        else:
            names, description = [name], describe(name)
            if key := next((key for key, value in filters.items() if value is not None), None):
                raise GrataError(f"it chooses among all methods. Leave out {name}, or {key}.", key=key)
            if form != "simple":
                raise GrataError(f"it is that of the list of methods. Leave out {name}, or form.", key="form")
        if bundle is None:
            print(methods_table(names, form) if name is None else description)
            return 0
        if form != "simple":
            raise GrataError("what a bundle can take is told as simple alone. Leave out bundle, or form.", key="form")
        from .benchmark import fitting_methods

        print(fitting_methods(bundle, names))
        return 0

    _report(run, "stopped.")


def doctor(path: str, config_file: str | None = None, **overrides: Any) -> None:
    """Tell what can be adapted in a bundle, and what will be refused and why, before it is run.

    Args:
        path: folder of a bundle in Model Zoo layout, a trained nnU-Net folder, or a TorchScript file.
        config_file: of a bundle, relative to it; by default configs/inference.json or .yaml.
        overrides: keys of the bundle's configuration or of the overlay, e.g. --adaptation#activation sigmoid; of a
            file activation and output.
    """

    def run() -> int:
        from .zoo.doctor import doctor as run_doctor

        return run_doctor(path, config_file, **overrides)

    _report(run, "stopped.")


def benchmark(config_file: str, **overrides: Any) -> None:
    """Compare methods over sites; started again, it goes on where it was stopped.

    Args:
        config_file: YAML or JSON: bundle, output_dir, sources, targets, methods, protocol, seeds, ...
        overrides: any of its keys, e.g. --output_dir results --workers 4 --limit 10 --methods#grata#lr 0.001
    """

    def run() -> int:
        from .benchmark import run_benchmark

        return run_benchmark(config_file, **overrides)

    _report(run, "stopped. What is finished is kept; the same command goes on with the rest.")


def prepare(bundle: str, dataset_dir: str, **options: Any) -> None:
    """Take from the source set what methods need beyond images: class sizes, moments, Fisher information, heads.

    Args:
        bundle: folder of the bundle.
        dataset_dir: images of the source set.
        options: labels_dir, output (models/prepared.safetensors in the bundle), images (at most so many), val_stride
            (every so-many-th was held out of training), heads (rotation,denoising or none), epochs, seed; and keys of
            the bundle's configs/adapt.yaml, e.g. --device cuda --network_def#depth 34
    """

    def run() -> int:
        from .preparation import prepare as run_preparation

        return run_preparation(bundle, dataset_dir, **options)

    _report(run, "stopped. Nothing was written.")


def nnunet(model_folder: str, input: str, output: str, method: str = "grata", **options: Any) -> None:
    """Adapt a trained nnU-Net v2 to each image of a folder, and predict it with nnU-Net's own predictor.

    Args:
        model_folder: trained-model folder, which holds plans.json, dataset.json and fold_0, ...
        input: folder of images, named as for nnU-Net: <case>_0000.nii.gz, one file a channel.
        output: folder for the segmentations, the journal and the summary.
        method: see python -m grata methods; with source nnU-Net's own predictions.
        options: folds (0 or 0,1 or all), checkpoint_name, device, seed, site, bank, save_probabilities, overwrite,
            use_mirroring, tile_step_size, affine, traceback; and of the method and its windows e.g. --settings#lr 0.001
            --windows#uncertain 4
    """

    def run() -> int:
        from .nnunet.command import run_command

        return run_command(model_folder, input, output, method, **options)

    _report(run, "stopped. What is finished is kept; the same command with --overwrite false does the rest.")


def bank(
    action: str,
    folder: str,
    name: str | None = None,
    checkpoint: str | None = None,
    output: str | None = None,
    all: bool = False,
) -> None:
    """Look after a bank of adaptations, one for each site or scanner.

    Args:
        action: list, inspect, export or reset.
        folder: of the bank.
        name: of an entry, as list shows it, or how it begins.
        checkpoint: file with the source weights (.pt, .pth or .ts): export writes a copy of it with the adapted values
            in place; without it, a copy of the saved adaptation.
        output: file that export writes.
        all: reset all entries (true).
    """

    def run() -> int:
        from .adapters import run_bank
        from .workflows.configuration import constant

        return run_bank(action, folder, name, checkpoint, output, constant(all))

    _report(run, "stopped. Entries are whole, as they were or as they were to be.")


def _report(run: Callable[[], int], stopped: str) -> None:
    """End the process with the status of ``run``; errors and Ctrl-C are told in plain words."""
    from .workflows.configuration import explain

    try:
        status = run()
    # What a bundle's configuration calls can raise anything.
    except Exception as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    fire.Fire(
        {
            "methods": methods,
            "doctor": doctor,
            "benchmark": benchmark,
            "prepare": prepare,
            "bank": bank,
            "nnunet": nnunet,
        },
        name="grata",
    )
