"""``grata benchmark``: methods by sites, with tables and figures."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import typer

from .options import PATH, VALUE, Work, argument, check_exists, given, option

__all__ = ["benchmark"]

# The next release takes null alone.
_option = functools.partial(option, none=True)


def benchmark(
    context: typer.Context,
    config_file: Annotated[str, argument("YAML or JSON file with the keys below.", PATH)],
    bundle: Annotated[Any, _option("bundle", PATH, "Folder of the bundle.")] = None,
    output_dir: Annotated[Any, _option("output_dir", PATH, "Folder for the results.")] = None,
    tasks: Annotated[
        Any, _option("tasks", VALUE, "Several benchmarks by name, each with keys like these: --tasks#polyps#limit 10.")
    ] = None,
    data: Annotated[Any, _option("data", PATH, "With tasks: folder that the targets' folders are in.")] = None,
    sources: Annotated[
        Any, _option("sources", VALUE, "Source networks by name, each with keys of the bundle's configuration.")
    ] = None,
    targets: Annotated[
        Any, _option("targets", VALUE, "Sites by name, one by one as --targets#rim_one#dataset_dir <folder>.")
    ] = None,
    exclude_same_site: Annotated[
        Any,
        _option("exclude_same_site", VALUE, "Leave out the site of a source's own name.", default="true"),
    ] = None,
    home: Annotated[Any, _option("home", VALUE, "Target that holds images of the source's own site.")] = None,
    methods: Annotated[
        Any, _option("methods", VALUE, "Rows by name, or all; one by one as --methods#grata#lr 0.001.")
    ] = None,
    common: Annotated[Any, _option("common", VALUE, "Settings of all methods that have them.")] = None,
    reference_method: Annotated[
        Any, _option("reference_method", VALUE, "Row that the others are compared with.", default="grata")
    ] = None,
    protocol: Annotated[
        Any, _option("protocol", VALUE, "Order of the images and resets, or a list of such.", default="per-target")
    ] = None,
    seeds: Annotated[Any, _option("seeds", VALUE, "Seeds, such as 0,1,2.", default="0")] = None,
    shuffle: Annotated[Any, _option("shuffle", VALUE, "Draw the order of a site's images.", default="false")] = None,
    limit: Annotated[Any, _option("limit", VALUE, "Number of images taken from each site.", default="all")] = None,
    metrics: Annotated[Any, _option("metrics", VALUE, "How predictions are scored: space and empty.")] = None,
    workers: Annotated[
        Any, _option("workers", VALUE, "Number of processes; 0: everything in this one.", default="1")
    ] = None,
    threads: Annotated[
        Any, _option("threads", VALUE, "Threads of each process.", default="the cores, shared out")
    ] = None,
) -> Work:
    """Compare methods over sites; started again, it goes on where it was stopped.

    An option overrides the key of the same name in the file.
    """

    def run() -> int:
        check_exists(config_file, "Name the benchmark's configuration file.")
        from ..benchmark import run_benchmark

        return run_benchmark(config_file, **given(context, "config_file"))

    return run
