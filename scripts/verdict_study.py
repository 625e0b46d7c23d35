"""Measure the guard on a bundle: what it says of home, of target sites and of wrong inputs, and whether that is right.

    python scripts/verdict_study.py sample bundles/<bundle> --dataset_dir <source set> --output <samples.json>
    python scripts/verdict_study.py run bundles/<bundle> --group home=<source set> --group <site>=<folder> \
        --wrong <folder of scripts/wrong_inputs.py> --output <rows.jsonl> [--methods ptbn,source] [--limit 40]
    python scripts/verdict_study.py table <rows.jsonl> --quality bundles/<bundle>/models/quality.json \
        --samples <samples.json> [--scored <segment>]
    python scripts/verdict_study.py bounds <samples.json>
    python scripts/verdict_study.py poison bundles/<bundle> --dataset_dir <site> --methods dua,tent [--limit 8]

The first command measures what ``grata calibrate`` measures. The second adapts to each image by itself (per case) and
writes a line for each; lines that are there already are not computed again. Images of home are those held out of the
network's training. The third judges the lines and prints the tables; images of home are judged by calibrations that
were fitted without them. The fourth shows what adaptation gains and harms on source images and their simulated shifts,
by the expected gain from which on it is used. The last command puts an image a hundred times as bright first in a
stream, and prints the Dice of the images after it, by the source network, and by each method without and with the
guard.
"""

import argparse
import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.networks import eval_mode
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from tabulate import tabulate
from tqdm import tqdm

from grata.bundles.bundle import Bundle
from grata.bundles.groups import optional_groups
from grata.methods import create
from grata.preparation.calibration import Sample, _Probe, dice_of, fit, held_out_gains, least_gain
from grata.quality import (
    Calibration,
    Decision,
    Measures,
    Thresholds,
    decide,
    segmentation,
)
from grata.session import QualityGuard, Session

HOME, HARMED, LEAST_GAIN, FOLDS = "home", 0.05, 0.002, 4
VERDICTS = ("ok", "review", "reject", "refused")
SIGNALS = ("expected_dice", "self_dice", "source_self_dice", "agreement_views", "agreement_source", "class_compactness")


def dice(bundle: Bundle, case: dict, image: dict, *predictions: torch.Tensor) -> list[list[float]]:
    """Return the Dice of each prediction, logits ``(1, C, ...)``, by segment."""
    label, written = bundle.read_masks(case, image), bundle.written(image)
    return [dice_of(segmentation(prediction, bundle.activation), label, written) for prediction in predictions]


def keys(given: Iterable[str]) -> dict[str, Any]:
    """Return the keys of a bundle that are written as ``<key>=<value>``, the value in YAML."""
    pairs = (text.partition("=") for text in given)
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def image_groups(arguments: argparse.Namespace) -> Iterator[tuple[str, dict]]:
    """Yield the name of each group of images, and the keys of the bundle that it needs."""
    common = keys(arguments.key)
    for given in arguments.group:
        name, _, rest = given.partition("=")
        folder, *others = rest.split(",")
        yield name, {"dataset_dir": folder, **common, **keys(others)}
    for folder in sorted(arguments.wrong.iterdir()) if arguments.wrong else ():
        if folder.is_dir():
            yield f"wrong/{folder.name}", {"dataset_dir": str(folder), **common}


def held_out(bundle: Bundle, arguments: argparse.Namespace, labelled: bool = True) -> list[dict]:
    """Return the cases of the source set that were held out of the network's training."""
    return bundle.cases(None, labelled, arguments.val_stride, optional_groups(arguments.groups))


def run(arguments: argparse.Namespace) -> None:
    """Measure each image of each group, and write its line."""
    torch.set_num_threads(arguments.threads)
    for group, needed in image_groups(arguments):
        bundle = Bundle(arguments.bundle, needed, "study")
        if group == HOME:
            cases = held_out(bundle, arguments, labelled=False)
        else:
            cases = bundle.cases(None, labelled=False)
            cases = cases[:: max(1, len(cases) // arguments.limit)]
        for method in arguments.methods.split(","):
            write(arguments.output, group, bundle, cases[: arguments.limit], method)


def write(output: Path, group: str, bundle: Bundle, cases: list[dict], method: str) -> None:
    """Adapt to the images of a group, each by itself, and write a line for each that has none."""
    done = {(line["group"], line["case"], line["method"]) for line in read_lines(output)} if output.is_file() else set()
    cases = [case for case in cases if (group, case["case"], method) not in done]
    if not cases:
        return
    prepared, activation = bundle.value("prepared"), bundle.activation
    made = create(method, bundle.make_network(), {}, activation=activation, prepared=prepared, seed=0)
    for case in tqdm(cases, desc=f"{group}, {method}"):
        # each image is the first of a stream, of which the guard knows nothing else
        guard = Measuring(calibration=bundle.value("quality"), segments=bundle.value("segments"))
        session = Session(made, bundle.windows, guard=guard)
        row = {"group": group, "case": case["case"], "method": method}
        try:
            row |= measured(session, bundle, case)
        except Exception as error:  # noqa: BLE001 (what the reader refuses is recognized too)
            row |= {"refused": f"{type(error).__name__}: {str(error)[:200]}"}
        session.restore()
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")


class Measuring(QualityGuard):
    """A guard that keeps what it measured, so that any calibration can judge it later."""

    def _decide(self, measures: Measures, adapts: bool, *known: Any) -> Decision:
        self.found = {"measures": dataclasses.asdict(measures), "adapts": adapts}
        return super()._decide(measures, adapts, *known)


def measured(session: Session, bundle: Bundle, case: dict) -> dict:
    """Return the line of an image: its signals, and the Dice of both predictions where there is a label."""
    if "fault" in case:
        return {"refused": case["fault"]}
    image = bundle.read_image(case)
    x = image["image"].as_tensor().float()[None]
    with session.case(x, case["case"]) as adapting, eval_mode(session.network):
        adapting.adapt(bundle.inferer)
        adapted = bundle.inferer(x, session.network)
        adapting.judge(adapted)
    source = adapted if adapting.source is None else adapting.source
    row = dict(session.guard.found)
    if "label" in case:
        row["adapted"], row["source"] = dice(bundle, case, image, adapted, source)
    return row


def source_set(arguments: argparse.Namespace) -> Bundle:
    """Return the bundle with its source set."""
    return Bundle(arguments.bundle, {"dataset_dir": str(arguments.dataset_dir), **keys(arguments.key)}, "study")


def poison(arguments: argparse.Namespace) -> None:
    """Print what is left of a stream after an image that is far too bright."""
    torch.set_num_threads(arguments.threads)
    bundle = source_set(arguments)
    cases = held_out(bundle, arguments)[: arguments.limit]
    known = {"calibration": bundle.value("quality"), "segments": bundle.value("segments")}
    source, lines = after_poison(bundle, cases, "source", False, 1.0), []
    for method in arguments.methods.split(","):
        off, on = (after_poison(bundle, cases, method, guard, arguments.factor) for guard in (False, known))
        lines.append([method, len(cases), *(f"{value:.3f}" for value in (source, off, on))])
    print_table("Dice after one image", lines, ["method", "images", "source", "without the guard", "with the guard"])


def after_poison(bundle: Bundle, cases: list[dict], method: str, guard: bool | dict, factor: float) -> float:
    """Return the mean Dice of the images of a stream of which the first was also put before them, far too bright."""
    known = {"activation": bundle.activation, "prepared": bundle.value("prepared")}
    session = Session(create(method, bundle.make_network(), {}, seed=0, **known), bundle.windows, guard=guard)
    found = []
    for number, case in enumerate(tqdm([cases[0], *cases], desc=method)):
        image = bundle.read_image(case)
        x = image["image"].as_tensor().float()[None] * (1.0 if number else factor)
        with session.case(x, f"{number}") as adapting, eval_mode(session.network):
            adapting.adapt(bundle.inferer)
            used = adapting.judge(bundle.inferer(x, session.network))
        if number:
            found.append(np.mean(dice(bundle, case, image, used)))
    return float(np.mean(found))


def sample(arguments: argparse.Namespace) -> None:
    """Measure what ``grata calibrate`` measures, and write it, so that home can be judged by what does not know it."""
    torch.set_num_threads(arguments.threads)
    bundle = source_set(arguments)
    cases = held_out(bundle, arguments)
    samples, faults = _Probe(bundle).all_samples(cases[:: -(-len(cases) // arguments.limit)], seed=0)
    print("\n".join(faults))
    arguments.output.write_text(json.dumps([dataclasses.asdict(found) for found in samples]))


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of a file that :func:`sample` wrote."""
    made = [(values.pop("measures"), values) for values in json.loads(path.read_text())]
    return [Sample(**values, measures=Measures(**measures)) for measures, values in made]


def bounds(arguments: argparse.Namespace) -> None:
    """Print what adaptation gains and harms, by the bound of the expected gain: -1 uses it always."""
    gains = held_out_gains(read_samples(arguments.samples))
    learned = least_gain(gains)
    lines = []
    for bound in sorted({-1.0, Calibration.least_gain, 0.0, 0.01, 0.02, 0.05, learned}):
        line: list = [f"{bound:.3f}{' (learned)' if bound == learned else ''}"]
        for where in (gains.home, ~gains.home):
            used, true = gains.expected[where] >= bound, gains.true[where]
            kept = np.where(used, true, 0.0)
            line += [f"{used.mean():.0%}", f"{kept.mean():+.4f}", f"{(kept < -HARMED).mean():.1%}", f"{kept.min():.2f}"]
        lines.append(line)
    columns = [f"{name}, {place}" for place in ("home", "shifts") for name in ("used", "gain", "harmed", "worst")]
    print_table("Bounds of the expected gain", lines, ["bound", *columns])


def read_lines(path: Path) -> list[dict]:
    """Return the lines of a file that :func:`write` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def judged(rows: list[dict], arguments: argparse.Namespace) -> list[dict]:
    """Return the lines with their judgement: that of the bundle's calibration, of home that of one that is blind."""
    samples = read_samples(arguments.samples) if arguments.samples else []
    home = sorted({row["case"] for row in rows if row["group"] == HOME})
    blind = {}
    for fold in range(FOLDS if samples else 0):
        out = set(home[fold::FOLDS])
        blind |= dict.fromkeys(out, fit([found for found in samples if found.case not in out]))
    usual = Calibration.read(arguments.quality)
    for row in rows:
        if "measures" not in row:
            continue
        calibration = blind.get(row["case"], usual) if row["group"] == HOME else usual
        measures = Measures(**row["measures"])
        decision = decide(measures, Thresholds(), calibration, row["adapts"])
        row |= {"verdict": decision.verdict, "used": decision.used, "reasons": decision.reasons}
        row["quality"] = decision.described(measures.as_dict())
        row["expected"] = list(decision.expected.segments)
        # of a rejected image the source prediction is what is written
        row["guarded"] = "adapted" if decision.used == "adapted" else "source"
    return rows


def table(arguments: argparse.Namespace) -> None:
    """Print what the lines say."""
    rows = judged(read_lines(arguments.rows), arguments)
    by_group: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in rows:
        by_group[row["method"], row["group"]].append(row)
    scored = {key: score(found, key[1], arguments) for key, found in by_group.items()}
    scored = {key: found for key, found in scored.items() if found}
    print_table("Verdicts", list(_verdicts(by_group)), ["method", "group", "images", *VERDICTS, "below the 5 % bound"])
    print_table("Dice", [[*key, *_dice(found)] for key, found in scored.items()], ["method", "group", *_DICE])
    ranks = [[*key, *_cells(_ranks(found))] for key, found in scored.items()]
    print_table("Spearman correlation with the Dice of what is used", ranks, ["method", "group", *SIGNALS])
    harms = [[*key, *_cells(_harms([found]))] for key, found in scored.items() if any(found["harmed"])]
    harms += [["all", "all but home", *_cells(_harms([f for (_, group), f in scored.items() if group != HOME]))]]
    print_table(f"AUROC for a Dice {HARMED} below the source prediction's", harms, ["method", "group", *_HARMS])


def print_table(title: str, lines: list[list], columns: list[str]) -> None:
    """Print a table under its title."""
    print(f"\n### {title}\n\n{tabulate(lines, columns, 'github', disable_numparse=True)}")


def _verdicts(by_group: dict) -> Iterator[list]:
    for (method, group), found in by_group.items():
        home = [row["quality"]["expected_dice"] for row in by_group.get((method, HOME), []) if "quality" in row]
        alarm = float(np.quantile(home, 0.05)) if home else math.nan
        verdicts = [row.get("verdict", "refused") for row in found]
        # what cannot be read is recognized, too
        below = sum("quality" not in row or row["quality"]["expected_dice"] < alarm for row in found)
        share = f"{below / len(found):.2f} (0 to {alarm:.3f})" if home else ""
        yield [method, group, len(found), *(verdicts.count(kind) for kind in VERDICTS), share]


def score(rows: list[dict], group: str, arguments: argparse.Namespace) -> dict:
    """Return the Dice of each image of a group by each prediction, what was expected, and the signals."""
    rows = [row for row in rows if "adapted" in row and "quality" in row]
    if not rows:
        return {}
    partly = arguments.scored and group in arguments.partly
    index = [arguments.segments.index(arguments.scored)] if partly else None
    adapted = np.array([_mean(row["adapted"], index) for row in rows])
    source = np.array([_mean(row["source"], index) for row in rows])
    kept = np.array([row["guarded"] == "source" for row in rows])
    signals = {name: np.array([_number(row["quality"].get(name)) for row in rows]) for name in (*SIGNALS, *_EXPECTED)}
    offset = signals["expected_dice"]
    if partly:
        signals["expected_dice"] = np.array([_mean(row["expected"], index) for row in rows])
    return {
        "source": source,
        "adapted": adapted,
        "guarded": np.where(kept, source, adapted),
        "kept": kept,
        "low": signals["expected_dice"] + signals["expected_low"] - offset,
        "high": signals["expected_dice"] + signals["expected_high"] - offset,
        "signals": signals,
        "harmed": adapted < source - HARMED,
    }


_EXPECTED = ("expected_low", "expected_high", "expected_adapted", "expected_source")
_DICE = ["images", "source", "adapted", "guarded", "share of the gain", "expected", "mean error", "in 90 % interval"]


def _dice(found: dict) -> list:
    source, adapted, guarded = (found[name].mean() for name in ("source", "adapted", "guarded"))
    expected, inside = found["signals"]["expected_dice"], (found["guarded"] >= found["low"])
    inside &= found["guarded"] <= found["high"]
    gain = f"{(guarded - source) / (adapted - source):.0%}" if adapted - source > LEAST_GAIN else "no gain"
    error = np.abs(expected - found["guarded"]).mean()
    numbers = [f"{value:.3f}" for value in (expected.mean(), error)]
    return [
        len(inside),
        *(f"{value:.3f}" for value in (source, adapted, guarded)),
        gain,
        *numbers,
        f"{inside.mean():.2f}",
    ]


def _ranks(found: dict) -> list[float]:
    return [_spearman(found["signals"][name], found["guarded"]) for name in SIGNALS]


_HARMS = ["images", "harmed", *SIGNALS, "less sure", "expected lower", "guard"]


def _harms(groups: list[dict]) -> list[float]:
    harmed = np.concatenate([found["harmed"] for found in groups])
    signals = {name: np.concatenate([found["signals"][name] for found in groups]) for name in groups[0]["signals"]}
    lower = signals["expected_source"] - signals["expected_adapted"]
    # what the guard decides, and among equal decisions what it expects
    decided = np.concatenate([found["kept"] for found in groups]) + lower / 2
    areas = [_area(harmed, -signals[name]) for name in SIGNALS]
    areas += [_area(harmed, signals["source_self_dice"] - signals["self_dice"])]
    return [len(harmed), int(harmed.sum()), *areas, _area(harmed, lower), _area(harmed, decided)]


def _cells(values: list[float]) -> list:
    return [value if isinstance(value, int) else f"{value:.2f}" if math.isfinite(value) else "" for value in values]


def _mean(values: list[float], index: list[int] | None) -> float:
    return float(np.mean([values[i] for i in index] if index is not None else values))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    known = np.isfinite(one) & np.isfinite(other)
    if known.sum() < 4 or np.ptp(one[known]) == 0 or np.ptp(other[known]) == 0:
        return math.nan
    return float(spearmanr(one[known], other[known])[0])


def _area(harmed: np.ndarray, score: np.ndarray) -> float:
    known = np.isfinite(score)
    if harmed[known].all() or not harmed[known].any():
        return math.nan
    return float(roc_auc_score(harmed[known], score[known]))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("run")
    first.add_argument("bundle", type=Path)
    first.add_argument(
        "--group",
        action="append",
        default=[],
        help="<name>=<folder>, and other keys of the bundle as in ,field_of_view=30; the source set is called home",
    )
    first.add_argument("--wrong", type=Path, help="folder with a folder for each kind of wrong input")
    first.add_argument("--output", type=Path, required=True)
    first.add_argument("--methods", default="grata")
    first.add_argument("--limit", type=int, default=40, help="most images of a group, evenly spaced")
    first.set_defaults(do=run)
    known = commands.add_parser("sample")
    known.add_argument("bundle", type=Path)
    known.add_argument("--dataset_dir", type=Path, required=True)
    known.add_argument("--output", type=Path, required=True)
    known.add_argument("--limit", type=int, default=60, help="most images, evenly spaced")
    known.set_defaults(do=sample)
    gained = commands.add_parser("bounds")
    gained.add_argument("samples", type=Path, help="what the command sample wrote")
    gained.set_defaults(do=bounds)
    bright = commands.add_parser("poison")
    bright.add_argument("bundle", type=Path)
    bright.add_argument("--dataset_dir", type=Path, required=True)
    bright.add_argument("--methods", default="dua")
    bright.add_argument("--factor", type=float, default=100.0)
    bright.add_argument("--limit", type=int, default=8, help="number of images")
    bright.set_defaults(do=poison)
    for command in (first, known, bright):
        command.add_argument("--val_stride", type=int, default=5, help="step between the images held out of training")
        command.add_argument("--groups", help="images that were held out together, as in grata calibrate")
        command.add_argument("--key", action="append", default=[], help="key of the bundle, as in pixdim=null")
        command.add_argument("--threads", type=int, default=1)
    second = commands.add_parser("table")
    second.add_argument("rows", type=Path)
    second.add_argument("--quality", type=Path, required=True, help="the bundle's calibration")
    second.add_argument("--samples", type=Path, help="what the first command wrote")
    second.add_argument("--segments", nargs="*", default=[])
    second.add_argument("--scored", help="only this segment is labelled in the groups of --partly")
    second.add_argument("--partly", nargs="*", default=[])
    second.set_defaults(do=table)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
