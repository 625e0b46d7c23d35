"""The jobs of a benchmark: one per row of methods, source network, stream and seed, independent of each other."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .._version import __version__
from ..bundles.bundle import Case
from ..errors import GrataError
from .bundle import BenchmarkBundle, is_random
from .config import BenchmarkConfig, MethodRow, MetricSettings
from .protocols import Item, Protocol, Stream

__all__ = ["Job", "plan", "threads_each"]


@dataclass(frozen=True)
class Job:
    """One stream through one method, starting from the source network.

    Attributes:
        protocol: label of the protocol.
        source: name of the source network.
        stream: name of the stream.
        row: row of the tables.
        seed: seed of the method and of the stream.
        items: images in order.
        cases: cases by site and id.
        bundle: folder of the bundle.
        source_overrides: overrides of the bundle's configuration for the source network.
        site_overrides: further overrides, by site.
        scored: labels of the segments to score, by site; all segments of a site without an entry.
        metrics: how predictions are scored.
        keep_label_maps: whether predictions are kept, for the figures.
        threads: number of torch threads.
        fingerprint: digests of everything that the results depend on, by name.
        begins: name of another job that begins with all images of this one, from the same state, so that its results
            are reused; empty: this job is computed.
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
        """Path of the job's files, relative to the folder of parts."""
        return f"{self.protocol}/{self.source}/{self.stream}/{self.row.name}/seed-{self.seed}"


def threads_each(config: BenchmarkConfig) -> int:
    """Return the number of torch threads in each process."""
    return config.threads or max(1, _cores() // max(1, config.workers))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_Found = dict[tuple[str, int], list[dict[str, Any]]]
"""Cases of a site by its name and by the step between them."""


@dataclass(frozen=True)
class _Site:
    """A site as one source network meets it."""

    cases: Sequence[Case]
    scored: list[str] | None
    fingerprint: Mapping[str, Any]


def plan(config: BenchmarkConfig) -> list[Job]:
    """Return all jobs in the order of the results, after checking everything that can be checked beforehand.

    Raises:
        GrataError: a bundle, a site or a method is refused.
    """
    jobs: list[Job] = []
    cases: _Found = {}
    for source in config.sources:
        jobs += _jobs_of(config, source, cases)
    return _shared(jobs)


def _jobs_of(config: BenchmarkConfig, source: str, cases: _Found) -> Iterator[Job]:
    """Yield the jobs of one source network; ``cases`` keeps what the sites hold for the next one."""
    overrides = config.sources[source]
    bundle = BenchmarkBundle(config.bundle, overrides, f"sources#{source}")
    bundle.refuse_idle(overrides, of_a_site=False)
    _check_methods(config, source)
    sites = {target: _site(config, source, target, cases) for target in config.targets_of(source)}
    source_print = bundle.fingerprint()
    threads = threads_each(config)
    machine = {
        "device": bundle.device.type,
        "threads": threads,
        "versions": (__version__, version("torch"), version("monai")),
    }
    with_maps = {config.reference_method, *(row.name for row in config.methods if row.method == "source")}
    for protocol in config.protocols_of(source):
        for row, seed, stream in _streams(config, protocol, sites):
            used = {item.site: sites[item.site] for item in stream.items}
            scored = {name: site.scored for name, site in used.items() if site.scored is not None}
            fingerprint = {
                "sources": source_print,
                **_fingerprint(stream, used),
                "methods": bundle.method_fingerprint(row),
                "metrics": (vars(config.metrics), scored),
                **machine,
            }
            yield Job(
                protocol=protocol.label,
                source=source,
                stream=stream.name,
                row=row,
                seed=seed,
                items=stream.items,
                cases={name: {case["case"]: case for case in site.cases} for name, site in used.items()},
                bundle=config.bundle,
                source_overrides=overrides,
                site_overrides={name: config.targets[name] for name in used},
                scored=scored,
                metrics=config.metrics,
                # Figures show label maps of the first protocol and seed only.
                keep_label_maps=(protocol is config.protocols[0] and row.name in with_maps and seed == config.seeds[0]),
                threads=threads,
                fingerprint={key: _digest(value) for key, value in fingerprint.items()},
            )


def _fingerprint(stream: Stream, sites: Mapping[str, _Site]) -> dict[str, Any]:
    """Return what tells one stream from another: its order, and the images and settings of its sites."""
    return {
        "targets": {name: site.fingerprint for name, site in sites.items()},
        "images": {name: _sizes(site.cases) for name, site in sites.items()},
        "stream": [(item.site, item.case, item.reset, item.round) for item in stream.items],
    }


def _site(config: BenchmarkConfig, source: str, target: str, cases: _Found) -> _Site:
    bundle = BenchmarkBundle(config.bundle, {**config.sources[source], **config.targets[target]}, f"targets#{target}")
    bundle.refuse_idle(config.targets[target], of_a_site=True)
    scored = _scored(config, source, target, bundle)
    stride = config.strides[target] * config.source_strides[source]
    if (target, stride) not in cases:
        cases[target, stride] = bundle.cases(config.limit, stride=stride, groups=config.groups.get(target))
    return _Site(cases[target, stride], scored, bundle.fingerprint())


def _shared(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with a reference to a longer one wherever a stream is the beginning of a longer stream.

    The first round of a recurring stream is the continual stream, which begins with the first site of ``per-target``.
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
    """Return one digest for each number of first images, of everything that their last result depends on."""
    digest = hashlib.sha256(json.dumps([job.source, job.row.name, job.seed]).encode())
    found = []
    for item in job.items:
        digest.update(json.dumps([item.site, item.case, item.reset]).encode())
        found.append(digest.hexdigest())
    return found


def _streams(
    config: BenchmarkConfig, protocol: Protocol, sites: Mapping[str, _Site]
) -> Iterator[tuple[MethodRow, int, Stream]]:
    """Yield each stream for each row and each seed that makes a difference."""
    ids = {target: [case["case"] for case in site.cases] for target, site in sites.items()}
    rows = config.rows_of(protocol)
    streams = {
        (row.stride, seed): protocol.streams(_every(ids, row.stride), seed, config.shuffle)
        for row in rows
        for seed in config.seeds
    }
    count = len(next(iter(streams.values()), ()))
    for index, row, seed in itertools.product(range(count), rows, config.seeds):
        stream = streams[row.stride, seed][index]
        # Without a random generator and a random order every seed would give the same rows again.
        if seed == config.seeds[0] or stream.drawn or is_random(row):
            yield row, seed, stream


def _every(ids: Mapping[str, Sequence[str]], stride: int) -> dict[str, Sequence[str]]:
    """Return every ``stride``-th id of each site."""
    return {site: found[::stride] for site, found in ids.items()}


def _check_methods(config: BenchmarkConfig, source: str) -> None:
    # On the CPU: the processes that compute need the other device's memory.
    bundle = BenchmarkBundle(config.bundle, {**config.sources[source], "device": "cpu"}, f"sources#{source}")
    network = bundle.make_network()
    for row in config.methods:
        bundle.make_session(row, network, config.seeds[0])


def _scored(config: BenchmarkConfig, source: str, target: str, site: BenchmarkBundle) -> list[str] | None:
    """Return the labels to score from the target, else the source, else the bundle; None: all."""
    given = (
        (f"targets#{target}#scored", config.scored.get(target)),
        (f"sources#{source}#scored", config.source_scored.get(source)),
        ("bundle#scored", site.scored),
    )
    where, chosen = next(((where, labels) for where, labels in given if labels is not None), ("", None))
    labels = [region.label for region in site.regions]
    for label in chosen or ():
        if label not in labels:
            raise GrataError(f"there is no segment {label!r}; there are {', '.join(labels)}.", key=where)
    return chosen


def _sizes(cases: Sequence[Case]) -> list[tuple[str, list[int], list[int]]]:
    """Return ids and file sizes, which are enough to notice another data set and cost nothing."""

    def size(files: Any) -> list[int]:
        paths = [] if files is None else files if isinstance(files, list | tuple) else [files]
        return [os.stat(path).st_size for path in paths]

    return [(case["case"], size(case.get("image")), size(case.get("label"))) for case in cases]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
