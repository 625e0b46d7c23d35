"""One GraTa step on the paper's network, compared with the same step written plainly, alternating in one run.

    python benchmarks/step_speed.py                                          # ResUNet-34, 512×512, random weights
    python benchmarks/step_speed.py --weights <file> --depth 18 --picture <file> --keep_pages true

The plain step stands for the reference implementation: default memory format, float32, one view at a time, as one would
write it from the paper. A step is the adaptation (eight forwards, two backwards) and the prediction after it. Seconds
vary between machines, the ratios of one run much less. Memory is the peak of all tensors during a step.
"""

import copy
import json
import platform
import statistics
import time
from collections.abc import Callable

import fire
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from grata.machine import keep_pages as hold_pages
from grata.methods import GraTa
from grata.networks import ResUNet, load_source
from grata.views import StrongView

VIEWS = (
    (lambda x: x, lambda y: y),
    (lambda x: x.flip(-1), lambda y: y.flip(-1)),
    (lambda x: x.flip(-2), lambda y: y.flip(-2)),
    *((lambda x, k=k: x.rot90(k, (-2, -1)), lambda y, k=k: y.rot90(-k, (-2, -1))) for k in (1, 2, 3)),
)


class PlainStep:
    """GraTa written from the paper, without any optimization and without this package.

    Args:
        network: network; a copy of it is adapted.
        lr: base learning rate.
    """

    def __init__(self, network: nn.Module, lr: float = 1e-4) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).train()
        self.parameters = []
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
                self.parameters += [module.weight.requires_grad_(), module.bias.requires_grad_()]
        self.lr = lr
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, betas=(0.9, 0.999))

    def __call__(self, x: torch.Tensor, strong: torch.Tensor) -> torch.Tensor:
        """Adapt to ``x`` and return its probabilities ``(B, C, H, W)``."""
        theta = [p.detach().clone() for p in self.parameters]
        p = self.network(x).sigmoid()
        entropy = -(p * torch.log(p + 1e-6)).sum(1).mean()
        auxiliary = torch.autograd.grad(entropy, self.parameters)
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters, auxiliary):
                parameter -= gradient
            label = torch.stack([back(self.network(view(x)).sigmoid()) for view, back in VIEWS]).mean(0)
        consistency = F.binary_cross_entropy_with_logits(self.network(strong), label)
        pseudo = torch.autograd.grad(consistency, self.parameters)
        a, b = (torch.cat([g.flatten() for g in gradients]) for gradients in (auxiliary, pseudo))
        self.cosine = float(a @ b / (a.norm() * b.norm() + 1e-12))
        with torch.no_grad():
            for parameter, value in zip(self.parameters, theta):
                parameter.copy_(value)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * (1 + self.cosine) ** 2 / 4
        for parameter, gradient in zip(self.parameters, pseudo):
            parameter.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            return self.network(x).sigmoid()


class GrataStep:
    """The same step with this package.

    Args:
        network: network; a copy of it is adapted.
        memory_format: memory format of the network.
        predict_autocast: precision of the prediction after the step.
        compiled: whether torch.compile compiles the network.
        plain_decoder: whether the faster decoder for forwards without gradients is not used.
        settings: settings of :class:`grata.methods.GraTa`.
    """

    def __init__(
        self,
        network: nn.Module,
        memory_format: torch.memory_format = torch.channels_last,
        predict_autocast: torch.dtype | None = None,
        compiled: bool = False,
        plain_decoder: bool = False,
        **settings,
    ) -> None:
        network = copy.deepcopy(network).to(memory_format=memory_format)
        if plain_decoder:
            network.up.register_forward_hook(lambda *_: None)  # The faster decoder is not used when hooks are set.
        self.method = GraTa(network, activation="sigmoid", **settings)
        self.predict_autocast = predict_autocast
        if compiled:
            self.method._network = torch.compile(network)

    def __call__(self, x: torch.Tensor, strong: torch.Tensor) -> torch.Tensor:
        """Adapt to ``x`` and return its probabilities ``(B, C, H, W)``."""
        record = self.method.adapt(x, strong_view=strong)
        self.cosine = record.cosine
        dtype = self.predict_autocast
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return self.method.network(x).float().sigmoid()

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Adapted parameters."""
        return list(self.method.parameters.values())


def peak_memory(step: Callable, *arguments: torch.Tensor) -> float:
    """Return the peak memory of all tensors during a step, in MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(*arguments)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest / 2**20


def read_picture(path: str, size: int) -> torch.Tensor:
    """Return a picture as input of the network, ``(1, 3, size, size)`` from 0 to 1."""
    pixels = np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    return (x - x.min()) / (x.max() - x.min())


def variants(network: nn.Module, compiled: bool) -> dict[str, Callable[[], PlainStep | GrataStep]]:
    """Return one function per variant that makes its step from the source network; the plain step comes first."""
    bf16 = torch.bfloat16
    makers: dict[str, Callable[[], PlainStep | GrataStep]] = {
        "plain": lambda: PlainStep(network),
        "grata, contiguous": lambda: GrataStep(network, torch.contiguous_format),
        "grata, plain decoder": lambda: GrataStep(network, plain_decoder=True),
        "grata": lambda: GrataStep(network),
        "grata, views in bf16": lambda: GrataStep(network, views_autocast="bfloat16"),
        "grata, all in bf16": lambda: GrataStep(network, autocast="bfloat16", predict_autocast=bf16),
    }
    if compiled:
        makers["grata, compiled"] = lambda: GrataStep(network, compiled=True)
    return makers


def compare_numbers(makers: dict[str, Callable], x: torch.Tensor, strong: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return the largest differences to the plain step after one step, its cosine and its memory, by variant."""
    rows = {}
    plain = None
    for name, make in makers.items():
        step = make()
        probabilities = step(x, strong)
        parameters = [p.detach().clone() for p in step.parameters]
        if plain is None:
            plain = probabilities, parameters
        rows[name] = {
            "probabilities": (probabilities - plain[0]).abs().max().item(),
            "parameters": max((a - b).abs().max().item() for a, b in zip(parameters, plain[1])),
            "cosine": step.cosine,
            "peak MiB": peak_memory(make(), x, strong),
        }
    return rows


def compare_seconds(
    makers: dict[str, Callable], x: torch.Tensor, strong: torch.Tensor, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of each round by variant; a first round is not counted."""
    steps = {name: make() for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for counted in tqdm([False] + [True] * rounds, desc="rounds", leave=False):
        for name, step in steps.items():
            started = time.perf_counter()
            step(x, strong)
            if counted:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main(
    depth: int = 34,
    size: int = 512,
    weights: str | None = None,
    picture: str | None = None,
    keep_pages: bool = False,
    compiled: bool = False,
    threads: int = 2,
    rounds: int = 5,
    seed: int = 0,
    output: str | None = None,
) -> None:
    """Print the table.

    Args:
        depth: depth of the ResUNet.
        size: side of the square image in pixels, a multiple of 32.
        weights: file of the network's weights; without it, the weights are random.
        picture: file of the image; without it, the image is random noise.
        keep_pages: whether the allocator keeps freed memory, for all variants.
        compiled: whether the network compiled by torch.compile is measured too, which needs a C++ compiler.
        threads: number of torch threads.
        rounds: number of rounds, after a first one that is not counted.
        seed: seed of the weights, the image and the strong view.
        output: JSON file to write the figures to.
    """
    torch.set_num_threads(threads)
    if keep_pages and not hold_pages():
        raise SystemExit("keep_pages: the allocator of this platform does not support it.")
    torch.manual_seed(seed)
    network = ResUNet(out_channels=2, depth=depth).eval()
    if weights:
        network = load_source(network, weights, "cpu")
    x = read_picture(picture, size) if picture else torch.rand(1, 3, size, size)
    strong = StrongView()(x.clone(), torch.Generator().manual_seed(seed))
    makers = variants(network, compiled)
    rows = compare_numbers(makers, x, strong)
    seconds = compare_seconds(makers, x, strong, rounds)
    ratios = {n: [s / p for s, p in zip(seconds[n], seconds["plain"])] for n in seconds}
    print(
        f"ResUNet-{depth}, {size}×{size}, {threads} threads, keep_pages {keep_pages}, torch {torch.__version__}, "
        f"{platform.machine()}, median of {rounds} rounds"
    )
    heads = f"{'seconds':>9}{'ratio':>8}{'(range)':>15}{'peak MiB':>10}{'|Δ prob|':>10}{'|Δ param|':>11}{'cosine':>9}"
    print(f"{'':22}{heads}")
    for name, row in rows.items():
        row |= {"seconds": statistics.median(seconds[name]), "ratio": statistics.median(ratios[name])}
        spread = f"({min(ratios[name]):.2f}–{max(ratios[name]):.2f})"
        print(
            f"{name:22}{row['seconds']:9.3f}{row['ratio']:8.3f}{spread:>15}{row['peak MiB']:10.0f}"
            f"{row['probabilities']:10.1e}{row['parameters']:11.1e}{row['cosine']:9.4f}"
        )
    if output:
        found = {"depth": depth, "size": size, "threads": threads, "keep_pages": keep_pages, "rows": rows}
        with open(output, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    fire.Fire(main)
