"""``python -m grata benchmark <config.yaml>``: methods by sites, with tables and figures.

``python -m grata prepare <bundle>``: what methods need of the source set, in one file of the bundle.
"""

from __future__ import annotations

import sys
from typing import Any

import fire


def benchmark(config_file: str, **overrides: Any) -> None:
    """Compare methods over sites; started again, it goes on where it was stopped.

    Args:
        config_file: YAML or JSON: bundle, output_dir, sources, targets, methods, protocol, seeds, ...
        overrides: any of its keys, e.g. --output_dir results --workers 4 --limit 10 --methods#grata#lr 0.001
    """
    try:
        from .benchmark import run_benchmark
        from .workflows.configuration import explain

        status = run_benchmark(config_file, **overrides)
    # What a bundle's configuration calls can raise anything.
    except Exception as error:
        # the remark is on an option of the command `adapt`
        print(f"error: {explain(error).removesuffix(' (--traceback true shows where)')}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("\nstopped. What is finished is kept; the same command goes on with the rest.", file=sys.stderr)
        status = 130
    sys.exit(status)


def prepare(bundle: str, dataset_dir: str, **options: Any) -> None:
    """Take from the source set what methods need beyond images: class sizes, moments, Fisher information, heads.

    Args:
        bundle: folder of the bundle.
        dataset_dir: images of the source set.
        options: labels_dir, output (models/prepared.safetensors in the bundle), images (at most so many), val_stride
            (every so-many-th was held out of training), heads (rotation,denoising or none), epochs, seed; and keys of
            the bundle's configs/adapt.yaml, e.g. --device cuda --network_def#depth 34
    """
    try:
        from .preparation import prepare as run
        from .workflows.configuration import explain

        status = run(bundle, dataset_dir, **options)
    # What a bundle's configuration calls can raise anything.
    except Exception as error:
        # the remark is on an option of the command `adapt`
        print(f"error: {explain(error).removesuffix(' (--traceback true shows where)')}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("\nstopped. Nothing was written.", file=sys.stderr)
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    fire.Fire({"benchmark": benchmark, "prepare": prepare}, name="grata")
