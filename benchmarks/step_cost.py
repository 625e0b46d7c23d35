"""Cost of one GraTa step, stage by stage, relative to one plain forward of the same network.

    python benchmarks/step_cost.py --config_file bundles/hippocampus_mri_segmentation/configs/adapt.yaml --size 48,64,48
    python benchmarks/step_cost.py --net_id network --config_file my_network.yaml --size 512,512 --channels 3 \
        --activation sigmoid

Forward and step alternate in every round, and the median over rounds is reported: seconds vary between machines, the
ratios of one run much less. Memory is the peak allocation during a stage, beyond what was allocated before it.
"""

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import fire
import torch
from monai.bundle import ConfigParser
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm

from grata.methods import GraTa

STAGES = (
    "auxiliary forward and backward",
    "weak views (pseudo-label)",
    "strong view",
    "strong forward and backward",
    "optimizer step",
)
_ALL = ("plain forward", *STAGES)


class Meter:
    """Meter of seconds and peak bytes of named stages. What a stage within a stage takes counts for the inner one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}
        self.peak: dict[str, int] = {}
        self._within: list[float] = []
        self._clock = True

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if not self._clock:
            with record_function(name):
                yield
            return
        self._synchronize()
        started = time.perf_counter()
        self._within.append(0.0)
        yield
        self._synchronize()
        taken = time.perf_counter() - started
        self.seconds.setdefault(name, []).append(taken - self._within.pop())
        if self._within:
            self._within[-1] += taken

    def wrap(self, name: str, function: Callable) -> Callable:
        def measured(*args, **kwargs):
            with self.stage(name):
                return function(*args, **kwargs)

        return measured

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    @contextlib.contextmanager
    def memory(self) -> Iterator[None]:
        """Measure the peak of each stage of the block, beyond what was allocated when the stage began."""
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._clock = False
        with profile(activities=activities, profile_memory=True) as profiler:
            yield
            self._synchronize()
        self._clock = True
        events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
        stages = {e.name(): (e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() in _ALL}
        kind = DeviceType.CUDA if self.device.type == "cuda" else DeviceType.CPU
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]" and e.device_type() == kind]
        for name in stages:
            self.peak[name] = _peak(name, stages, changes)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _peak(name: str, stages: dict[str, tuple[int, int]], changes: list[tuple[int, int]]) -> int:
    start, end = stages[name]
    inner = [(s, e) for other, (s, e) in stages.items() if other != name and start <= s and e <= end]
    level = highest = 0
    for when, size in changes:
        if start <= when <= end:
            level += size
            if not any(s <= when <= e for s, e in inner):
                highest = max(highest, level)
    return highest


def main(
    config_file: str,
    size: tuple[int, ...],
    net_id: str = "network_def",
    channels: int = 1,
    batch: int = 1,
    activation: str = "softmax",
    views: tuple[str, ...] | None = None,
    autocast: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    rounds: int = 7,
) -> None:
    """Print the table.

    Args:
        config_file: JSON or YAML with the network's definition, for example a bundle's.
        size: spatial size of the image, e.g. 48,64,48.
        net_id: key of the network in config_file.
        channels: number of channels of the image.
        batch: number of images in a batch.
        activation: softmax or sigmoid.
        views: names of the weak views; without them, the default views for this size.
        autocast: bfloat16 or float16, for the forwards of the step and the plain forward.
        device: cpu or cuda.
        threads: number of torch threads on a CPU.
        rounds: number of rounds, after a first one that is not counted.
    """
    if threads:
        torch.set_num_threads(threads)
    where = torch.device(device)
    parser = ConfigParser()
    parser.read_config(config_file)
    network = parser.get_parsed_content(net_id).to(where).eval()
    x = torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(0)).to(where)
    meter = Meter(where)

    method = GraTa(network, activation=activation, views=views, autocast=autocast)
    gradients = iter(())

    def loss_and_gradient(*args, _original=method._loss_and_gradient):
        with meter.stage(next(gradients)):
            return _original(*args)

    method._loss_and_gradient = loss_and_gradient
    method._pseudo_label = meter.wrap("weak views (pseudo-label)", method._pseudo_label)
    method.strong_view = meter.wrap("strong view", method.strong_view)
    method._optimizer_step = meter.wrap("optimizer step", method._optimizer_step)

    def forward():
        with torch.no_grad(), meter.stage("plain forward"):
            method._logits(x)

    def step():
        nonlocal gradients
        gradients = iter(("auxiliary forward and backward", "strong forward and backward"))
        started = time.perf_counter()
        record = method.adapt(x)
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        meter.seconds.setdefault("whole step", []).append(time.perf_counter() - started)
        assert record.flags == (), record.flags

    for counted in tqdm([False] + [True] * rounds, desc="rounds", leave=False):
        forward()
        step()
        if not counted:
            meter.seconds.clear()
    median = {name: meter.median(name) for name in ("whole step", *_ALL)}
    with meter.memory():
        forward()
        step()

    plain, plain_peak = median["plain forward"], max(1, meter.peak["plain forward"])
    print(
        f"{type(network).__name__}, {sum(p.numel() for p in network.parameters()):,} parameters, "
        f"{len(method.parameters)} adapted tensors, image {tuple(x.shape)}, {where}, "
        f"{torch.get_num_threads()} threads, autocast {autocast}, torch {torch.__version__}, {platform.machine()}"
    )
    print(f"{'stage':34}{'seconds':>10}{'forwards':>10}{'peak MiB':>10}{'forwards':>10}")
    peaks = {**meter.peak, "whole step": max(meter.peak[name] for name in STAGES)}
    for name in (*_ALL, "whole step"):
        seconds, peak = median[name], peaks[name]
        print(f"{name:34}{seconds:10.4f}{seconds / plain:10.2f}{peak / 2**20:10.1f}{peak / plain_peak:10.2f}")


if __name__ == "__main__":
    fire.Fire(main)
