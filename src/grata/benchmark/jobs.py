"""What has to be done: one job a method row, source network, stream and seed, each independent of the others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import GrataError
from .bundle import Bundle, is_random
from .config import BenchmarkConfig, MethodRow, MetricSettings
from .protocols import Item, Stream

__all__ = ["Job", "plan", "threads_each"]


@dataclass(frozen=True)
class Job:
    """One stream through one method, from the source network on.

    Attributes:
        protocol, source, stream, row, seed: which one it is.
        items: the images in order.
        cases: by site and id.
        bundle: folder of the bundle.
        source_overrides: of the bundle's configuration.
        site_overrides: further ones, by site.
        scored: labels of the segments to score, by site.
        metrics: how predictions are scored.
        keep_label_maps: whether predictions are kept, for the figures.
        threads: of torch.
        fingerprint: what its results depend on, as text by name.
        begins: name of another job that begins with all of this one's images, from the same state: its results are
            taken from there. Empty: it is computed.
    """

    protocol: str
    source: str
    stream: str
    row: MethodRow
    seed: int
    items: tuple[Item, ...]
    cases: Mapping[str, Mapping[str, Mapping[str, Any]]]
    bundle: Path
    source_overrides: Mapping[str, Any]
    site_overrides: Mapping[str, Mapping[str, Any]]
    scored: Mapping[str, list[str]]
    metrics: MetricSettings
    keep_label_maps: bool
    threads: int
    fingerprint: Mapping[str, str]
    begins: str = ""

    @property
    def name(self) -> str:
        """Where its files lie, relative to the folder of parts."""
        return f"{self.protocol}/{self.source}/{self.stream}/{self.row.name}/seed-{self.seed}"


def threads_each(config: BenchmarkConfig) -> int:
    """Threads of torch in each process."""
    return config.threads or max(1, cores() // max(1, config.workers))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(config: BenchmarkConfig) -> list[Job]:
    """All jobs in the order of the results, everything that can be checked beforehand checked.

    Raises:
        GrataError: whatever a bundle, a site or a method refuses.
    """
    jobs = []
    threads = threads_each(config)
    with_maps = {config.reference_method, *(row.name for row in config.methods if row.method == "source")}
    site_cases: dict[str, list[dict[str, Any]]] = {}
    for source, source_overrides in config.sources.items():
        bundle = Bundle(config.bundle, source_overrides, f"sources#{source}")
        device = bundle.device.type
        bundle.refuse_idle(source_overrides, of_a_site=False)
        _check_methods(config, source, source_overrides)
        sites, scored_of = {}, {}
        for target in config.targets_of(source):
            overrides = {**source_overrides, **config.targets[target]}
            site = Bundle(config.bundle, overrides, f"targets#{target}")
            site.refuse_idle(config.targets[target], of_a_site=True)
            if (labels := _scored(config, source, target, site)) is not None:
                scored_of[target] = labels
            if target not in site_cases:
                site_cases[target] = site.cases(config.limit, stride=config.strides[target])
            sites[target] = site
        ids = {target: [case["case"] for case in site_cases[target]] for target in sites}
        prints = {target: site.fingerprint() for target, site in sites.items()}
        source_print = bundle.fingerprint()
        for protocol in config.protocols:
            for name, row, seed, stream in _streams(config, protocol, ids):
                used = list(dict.fromkeys(item.site for item in stream.items))
                cases = {site: {case["case"]: case for case in site_cases[site]} for site in used}
                scored = {site: scored_of[site] for site in used if site in scored_of}
                fingerprint = {
                    "sources": source_print,
                    "targets": {site: prints[site] for site in used},
                    "images": {site: _sizes(site_cases[site]) for site in used},
                    "stream": [(item.site, item.case, item.reset, item.round) for item in stream.items],
                    "methods": bundle.method_fingerprint(row),
                    "metrics": (vars(config.metrics), scored),
                    "device": device,
                    "threads": threads,
                    "versions": (__version__, version("torch"), version("monai")),
                }
                jobs.append(
                    Job(
                        protocol=protocol.label,
                        source=source,
                        stream=name,
                        row=row,
                        seed=seed,
                        items=stream.items,
                        cases=cases,
                        bundle=config.bundle,
                        source_overrides=source_overrides,
                        site_overrides={site: config.targets[site] for site in used},
                        scored=scored,
                        metrics=config.metrics,
                        # figures show those of the first protocol alone
                        keep_label_maps=(
                            protocol is config.protocols[0] and row.name in with_maps and seed == config.seeds[0]
                        ),
                        threads=threads,
                        fingerprint={key: _digest(value) for key, value in fingerprint.items()},
                    )
                )
    return _shared(jobs)


def _shared(jobs: Sequence[Job]) -> list[Job]:
    """Streams that are the beginning of longer ones need not be computed: the first round of a recurring stream is the
    continual one, whose first site is that of ``per-target``.
    """
    beginnings = {job.name: _beginnings(job) for job in jobs}
    longest: dict[str, Job] = {}
    for job in sorted(jobs, key=lambda job: -len(job.items)):
        for beginning in beginnings[job.name]:
            longest.setdefault(beginning, job)
    parents = {job.name: longest[beginnings[job.name][-1]].name for job in jobs}
    kept = {parents[job.name] for job in jobs if job.keep_label_maps}
    return [
        replace(
            job,
            begins="" if parents[job.name] == job.name else parents[job.name],
            keep_label_maps=job.keep_label_maps or job.name in kept,
        )
        for job in jobs
    ]


def _beginnings(job: Job) -> list[str]:
    """One digest for each number of first images, of all that leads to the result of the last of them."""
    digest = hashlib.sha256(json.dumps([job.source, job.row.name, job.seed]).encode())
    found = []
    for item in job.items:
        digest.update(json.dumps([item.site, item.case, item.reset]).encode())
        found.append(digest.hexdigest())
    return found


def _streams(config: BenchmarkConfig, protocol: Any, ids: Mapping[str, list[str]]) -> Any:
    streams = {seed: protocol.streams(ids, seed, config.shuffle) for seed in config.seeds}
    for index, first in enumerate(streams[config.seeds[0]]):
        for row in config.methods:
            for seed in config.seeds:
                stream: Stream = streams[seed][index]
                # Without a generator and without a draw every seed would give the same rows again.
                if seed == config.seeds[0] or stream.drawn or is_random(row):
                    yield first.name, row, seed, stream


def _check_methods(config: BenchmarkConfig, source: str, overrides: Mapping[str, Any]) -> None:
    # on the CPU: the processes that compute need the other device's memory
    bundle = Bundle(config.bundle, {**overrides, "device": "cpu"}, f"sources#{source}")
    network = bundle.make_network()
    for row in config.methods:
        bundle.make_method(row, network, config.seeds[0])


def _scored(config: BenchmarkConfig, source: str, target: str, site: Bundle) -> list[str] | None:
    """Labels of the segments to score: as the target says, else the source, else the bundle; None: all."""
    given = (
        (f"targets#{target}#scored", config.scored.get(target)),
        (f"sources#{source}#scored", config.source_scored.get(source)),
        ("bundle: scored", site.scored),
    )
    where, chosen = next(((where, labels) for where, labels in given if labels is not None), ("", None))
    labels = [region.label for region in site.regions]
    for label in chosen or ():
        if label not in labels:
            raise GrataError(f"{where}: there is no segment {label!r}; they are {', '.join(labels)}.")
    return chosen


def _sizes(cases: list[dict[str, Any]]) -> list[Any]:
    """Ids and sizes of the files: enough to notice another data set, at no cost."""

    def size(files: Any) -> list[int]:
        paths = [] if files is None else files if isinstance(files, list | tuple) else [files]
        return [os.stat(path).st_size for path in paths]

    return [(case["case"], size(case.get("image")), size(case.get("label"))) for case in cases]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
