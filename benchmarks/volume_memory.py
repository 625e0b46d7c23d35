"""Peak memory of adaptation to large volumes, which must not grow with the volume.

    python benchmarks/volume_memory.py
    python benchmarks/volume_memory.py --sizes 128,256 --window 96 --overlap 0.5 --methods source,grata

A UNet of the Model Zoo's spleen bundle predicts one volume of every size in a ``SupervisedEvaluator`` with a
``SlidingWindowInferer``; ``source`` is plain inference. Every run is a process of its own, and its peak is the kernel's
figure for resident memory (``VmHWM`` in ``/proc/self/status``, so on Linux only). Two things are subtracted: the memory
after all imports and the construction of the network, and the volume itself, that is the image, the inferer's output
buffer and its count map, which every sliding-window inference holds. The rest is the memory of windows, gradients and
views.
"""

import json
import subprocess
import sys
from pathlib import Path

import fire

CLASSES = 2
MIB = 2**20


def one(size: int, method: str, window: int = 96, overlap: float = 0.5, sw_batch_size: int = 1) -> str:
    """Predict one volume in this process.

    Returns:
        JSON: ``start``, ``peak`` and ``volume`` in MiB, and the number of ``windows``.
    """
    import torch
    from monai.data.utils import dense_patch_slices
    from monai.engines import SupervisedEvaluator
    from monai.inferers import SlidingWindowInferer
    from monai.networks.nets import UNet

    from grata.engines import AdaptationHandler
    from grata.methods import create

    torch.manual_seed(0)
    network = UNet(3, 1, CLASSES, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch")
    handler = AdaptationHandler(create(method, network, activation="softmax"))
    start = _resident("VmRSS")
    image = torch.rand(1, 1, size, size, size)
    SupervisedEvaluator(
        torch.device("cpu"),
        [{"image": image}],
        network,
        inferer=SlidingWindowInferer([window] * 3, sw_batch_size, overlap),
        val_handlers=[handler],
    ).run()
    step = int(window * (1 - overlap))
    held = (1 + CLASSES + 1) * image.numel() * image.element_size() / MIB
    return json.dumps(
        {
            "start": start,
            "peak": _resident("VmHWM"),
            "volume": held,
            "windows": len(dense_patch_slices([size] * 3, [window] * 3, [step] * 3)),
        }
    )


def main(
    sizes: tuple[int, ...] = (128, 256),
    methods: tuple[str, ...] = ("source", "grata"),
    window: int = 96,
    overlap: float = 0.5,
    sw_batch_size: int = 1,
) -> None:
    """Print a table: every method at every size, and the ratio of the largest size to the smallest."""
    sizes, methods = _listed(sizes), _listed(methods)
    print("| method | volume | windows | start | peak | the volume itself | left |\n|---|---|---|---|---|---|---|")
    for method in methods:
        left = []
        for size in sizes:
            command = [
                sys.executable,
                __file__,
                "one",
                str(size),
                method,
                str(window),
                str(overlap),
                str(sw_batch_size),
            ]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            run = json.loads(output.splitlines()[-1])
            left.append(run["peak"] - run["start"] - run["volume"])
            figures = " | ".join(f"{value:.0f}" for value in (run["start"], run["peak"], run["volume"], left[-1]))
            print(f"| {method} | {size}³ | {run['windows']} | {figures} |", flush=True)
        print(f"{method}: ratio {left[-1] / left[0]:.3f}", flush=True)


def _listed(values: object) -> tuple:
    return tuple(values) if isinstance(values, list | tuple) else (values,)


def _resident(key: str) -> float:
    """Return one value of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024 / MIB


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        fire.Fire(one, sys.argv[2:])
    else:
        fire.Fire(main)
