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
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from grata.methods import GraTa

STAGES = (
    "auxiliary forward and backward",
    "weak views (pseudo-label)",
    "strong view",
    "strong forward and backward",
    "optimizer step",
)


class Meter:
    """Meter of seconds and peak bytes of named stages."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}
        self.peak: dict[str, int] = {}
        self.with_memory = False

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.with_memory:
            with self._peak(name):
                yield
            return
        self._synchronize()
        started = time.perf_counter()
        yield
        self._synchronize()
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)

    def wrap(self, name: str, function: Callable) -> Callable:
        def measured(*args, **kwargs):
            with self.stage(name):
                return function(*args, **kwargs)

        return measured

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextlib.contextmanager
    def _peak(self, name: str) -> Iterator[None]:
        if self.device.type == "cuda":
            self._synchronize()
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            yield
            self.peak[name] = torch.cuda.max_memory_allocated(self.device) - before
            return
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            yield
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        level = highest = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            level += event.nbytes()
            highest = max(highest, level)
        self.peak[name] = highest


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
        if not meter.with_memory:
            meter.seconds.setdefault("whole step", []).append(time.perf_counter() - started)
        assert record.flags == (), record.flags

    for counted in tqdm([False] + [True] * rounds, desc="rounds", leave=False):
        forward()
        step()
        if not counted:
            meter.seconds.clear()
    meter.with_memory = True
    forward()
    step()

    plain, plain_peak = meter.median("plain forward"), max(1, meter.peak["plain forward"])
    print(
        f"{type(network).__name__}, {sum(p.numel() for p in network.parameters()):,} parameters, "
        f"{len(method.parameters)} adapted tensors, image {tuple(x.shape)}, {where}, "
        f"{torch.get_num_threads()} threads, autocast {autocast}, torch {torch.__version__}, {platform.machine()}"
    )
    print(f"{'stage':34}{'seconds':>10}{'forwards':>10}{'peak MiB':>10}{'forwards':>10}")
    for name in ["plain forward", *STAGES]:
        seconds, peak = meter.median(name), meter.peak[name]
        print(f"{name:34}{seconds:10.4f}{seconds / plain:10.2f}{peak / 2**20:10.1f}{peak / plain_peak:10.2f}")
    whole, peak = meter.median("whole step"), max(meter.peak[name] for name in STAGES)
    print(f"{'whole step':34}{whole:10.4f}{whole / plain:10.2f}{peak / 2**20:10.1f}{peak / plain_peak:10.2f}")


if __name__ == "__main__":
    fire.Fire(main)
