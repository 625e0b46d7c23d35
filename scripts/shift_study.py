"""Choose settings without a target site: methods on held-out source images, as they are and under simulated shifts.

    python scripts/shift_study.py run <bundle> --dataset_dir <source set> --rows scripts/shift_study.yaml \
        --output <rows.csv> [--limit 8] [--groups <expression>] [--key source_training=strong]
    python scripts/shift_study.py table <rows.csv> [<rows.csv> ...]

The first command writes the Dice of each image by each row, for the shifts of `grata calibrate`: one stream of images a
shift, without the guard unless a row has `guard: true`. Rows are methods with settings, as in a benchmark. Lines that
are there already are not computed again. The second command prints, for each file and over all, what each row gains
over `source`: the mean over shifts and images, the gain on images as they are, the share of images that lose more than
0.05 of Dice, and the number of times that the network was called for an image.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from monai.networks import eval_mode
from tabulate import tabulate
from tqdm import tqdm

from grata.bundles.bundle import Bundle
from grata.bundles.groups import optional_groups
from grata.methods import create
from grata.methods.predictive import logits_in
from grata.preparation.calibration import dice_of
from grata.preparation.simulated import SHIFTS, Simulation
from grata.quality import segmentation
from grata.session import Session, make_guard

HARMED = 0.05


def held_out(bundle: Bundle, arguments: argparse.Namespace) -> list[dict]:
    """Return evenly spaced cases of the source set that were held out of the network's training."""
    cases = bundle.cases(None, True, arguments.val_stride, optional_groups(arguments.groups))
    places = np.linspace(0, len(cases) - 1, min(arguments.limit, len(cases))).round().astype(int)
    return [cases[place] for place in places]


def stream(bundle: Bundle, cases: list[dict], row: dict, shift: Simulation) -> Iterator[dict]:
    """Yield the line of each case under a shift, in one stream of a method."""
    settings = dict(row)
    method, guarded = settings.pop("method"), settings.pop("guard", False)
    known = {"activation": bundle.activation, "prepared": bundle.value("prepared")}
    network = bundle.make_network()
    guard = make_guard(guarded, calibration=bundle.value("quality"), segments=bundle.value("segments"))
    session = Session(create(method, network, settings, seed=0, **known), bundle.windows, guard=guard)
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    for number, case in enumerate(cases):
        image = bundle.read_image(case)
        label, written = bundle.read_masks(case, image), bundle.written(image)
        plain = image["image"].as_tensor().float()
        if len(plain) < shift.channels:
            return
        label = label if shift.label is None else shift.label(label)
        calls.clear()
        x = shift(plain, number)[None]
        with session.case(x, case["case"]) as adapting, eval_mode(session.network), torch.no_grad():
            adapting.adapt(bundle.inferer)
            logits = logits_in(adapting.judge(bundle.inferer(x, session.network)), bundle.output)
        found = dice_of(segmentation(logits, bundle.activation), label, written)
        yield {"shift": shift.name, "case": case["case"], "dice": float(np.nanmean(found)), "calls": len(calls)}


def run(arguments: argparse.Namespace) -> None:
    """Write the lines of all rows."""
    torch.set_num_threads(arguments.threads)
    overrides = dict(pair.partition("=")[::2] for pair in arguments.key)
    given = {key: yaml.safe_load(value) for key, value in overrides.items()}
    bundle = Bundle(arguments.bundle, {"dataset_dir": str(arguments.dataset_dir), **given}, "study")
    cases = held_out(bundle, arguments)
    rows = yaml.safe_load(arguments.rows.read_text())
    output = arguments.output
    known = pd.read_csv(output) if output.is_file() else pd.DataFrame(columns=["row", "shift"])
    done = set(known[["row", "shift"]].itertuples(index=False, name=None))
    todo = [(name, row, shift) for name, row in rows.items() for shift in SHIFTS if (name, shift.name) not in done]
    for name, row, shift in tqdm(todo, desc=output.stem, unit="stream"):
        lines = pd.DataFrame([{"row": name, **line} for line in stream(bundle, cases, dict(row), shift)])
        lines.to_csv(output, mode="a", header=not output.is_file(), index=False)


def table(arguments: argparse.Namespace) -> None:
    """Print what each row gains over the source network."""
    gains = {}
    for path in arguments.files:
        lines = pd.read_csv(path)
        source = lines[lines.row == "source"].set_index(["shift", "case"]).dice
        for name, part in lines.groupby("row", sort=False):
            gains[path.stem, name] = part.set_index(["shift", "case"]).dice - source
        print(f"\n{path.stem}: source {source.mean():.3f}, as they are {source['none'].mean():.3f}\n")
        shown = [line(name, gains[path.stem, name], part) for name, part in lines.groupby("row", sort=False)]
        print(
            tabulate(shown, ["row", "gain", "as they are", "harmed", "worst", "calls"], "github", disable_numparse=True)
        )
    names = dict.fromkeys(name for _, name in gains)
    means = {name: [gain.mean() for (_, row), gain in gains.items() if row == name] for name in names}
    print("\nMean of the gains over the files\n")
    whole = [[name, f"{np.mean(found):+.4f}", len(found)] for name, found in means.items()]
    print(tabulate(whole, ["row", "gain", "files"], "github", disable_numparse=True))


def line(name: str, gain: pd.Series, part: pd.DataFrame) -> list:
    """Return the table's line of a row."""
    home, harmed, calls = gain["none"].mean(), (gain < -HARMED).mean(), part.calls.mean()
    return [name, f"{gain.mean():+.4f}", f"{home:+.4f}", f"{harmed:.1%}", f"{gain.min():+.2f}", f"{calls:.1f}"]


def main() -> None:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("bundle", type=Path)
    runs.add_argument("--dataset_dir", type=Path, required=True, help="folder of the source set")
    runs.add_argument("--rows", type=Path, required=True, help="YAML file of methods with settings, by name")
    runs.add_argument("--output", type=Path, required=True, help="CSV file that lines are added to")
    runs.add_argument("--limit", type=int, default=8, help="number of images")
    runs.add_argument("--val_stride", type=int, default=5, help="as in the bundle's train.yaml")
    runs.add_argument("--groups", help="what tells which cases belong together, as in the bundle's train.yaml")
    runs.add_argument("--key", action="append", default=[], metavar="KEY=VALUE", help="key of the bundle's adapt.yaml")
    runs.add_argument("--threads", type=int, default=1)
    runs.set_defaults(command=run)
    tables = commands.add_parser("table")
    tables.add_argument("files", type=Path, nargs="+")
    tables.set_defaults(command=table)
    arguments = parser.parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
