"""Measure the guard on a bundle: what it says of home, of target sites and of wrong inputs, and whether that is right.

    python scripts/verdict_study.py sample bundles/<bundle> --dataset_dir <source set> --output <samples.json>
    python scripts/verdict_study.py run bundles/<bundle> --group home=<source set> --group <site>=<folder> \
        --wrong <folder of scripts/wrong_inputs.py> --output <rows.jsonl> [--methods ptbn,source] [--limit 40]
    python scripts/verdict_study.py table <rows.jsonl> --quality bundles/<bundle>/models/quality.json \
        --samples <samples.json> [--scored <segment>]

The first command measures what ``grata calibrate`` measures. The second adapts to each image by itself (per case) and
writes a line for each; lines that are there already are not computed again. Images of home are those held out of the
network's training. The third judges the lines and prints the tables; images of home are judged by calibrations that
were fitted without them.
"""

import argparse
import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from monai.networks import eval_mode
from sklearn.metrics import roc_auc_score
from tabulate import tabulate
from tqdm import tqdm

from grata.bundles.bundle import Bundle
from grata.methods import create
from grata.preparation.calibration import Sample, _Probe, fit
from grata.quality import (
    Calibration,
    Decision,
    Measures,
    Segmentation,
    Thresholds,
    decide,
    overlap,
    segmentation,
)
from grata.session import QualityGuard, Session

HOME, HARMED, FOLDS = "home", 0.05, 4
SIGNALS = ("expected_dice", "self_dice", "source_self_dice", "agreement_views", "agreement_source", "class_compactness")


def dice(prediction: torch.Tensor, activation: str, label: torch.Tensor) -> list[float]:
    """Return the Dice of logits ``(1, C, ...)`` by segment, for a label ``(K, ...)``."""
    truth = Segmentation(label[None], label[None] > 0.5)
    return overlap(segmentation(prediction, activation), truth)[0].tolist()


def groups(arguments: argparse.Namespace) -> Iterator[tuple[str, dict]]:
    """Yield the name of each group of images, and the keys of the bundle that it needs."""
    for given in arguments.group:
        name, _, rest = given.partition("=")
        folder, *others = rest.split(",")
        yield name, {"dataset_dir": folder, **{key: float(value) for key, value in (o.split("=") for o in others)}}
    for folder in sorted(arguments.wrong.iterdir()) if arguments.wrong else ():
        if folder.is_dir():
            yield f"wrong/{folder.name}", {"dataset_dir": str(folder)}


def run(arguments: argparse.Namespace) -> None:
    """Measure each image of each group, and write its line."""
    torch.set_num_threads(arguments.threads)
    for group, keys in groups(arguments):
        bundle = Bundle(arguments.bundle, keys, "study")
        cases = bundle.cases(None, labelled=False)
        cases = cases[:: arguments.val_stride if group == HOME else max(1, len(cases) // arguments.limit)]
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

    def _decide(self, measures: Measures, adapts: bool) -> Decision:
        self.found = {"measures": dataclasses.asdict(measures), "adapts": adapts}
        return super()._decide(measures, adapts)


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
        values = bundle.read_label(case, image, "network")
        label = torch.as_tensor(np.stack([np.isin(values, region.values) for region in bundle.regions]).astype("f4"))
        row["adapted"] = dice(adapted, bundle.activation, label)
        row["source"] = dice(source, bundle.activation, label)
    return row


def sample(arguments: argparse.Namespace) -> None:
    """Measure what ``grata calibrate`` measures, and write it, so that home can be judged by what does not know it."""
    torch.set_num_threads(arguments.threads)
    bundle = Bundle(arguments.bundle, {"dataset_dir": str(arguments.dataset_dir)}, "study")
    samples, faults = _Probe(bundle).all_samples(bundle.cases(None)[:: arguments.val_stride], seed=0)
    print("\n".join(faults))
    arguments.output.write_text(json.dumps([dataclasses.asdict(found) for found in samples]))


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of a file that :func:`sample` wrote."""
    made = [(values.pop("measures"), values) for values in json.loads(path.read_text())]
    return [Sample(**values, measures=Measures(**measures)) for measures, values in made]


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
        row["quality"] = measures.as_dict() | decision.expected.as_dict()
        row["quality"] |= {"expected_adapted": decision.of_adapted.dice, "expected_source": decision.of_source.dice}
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
    for method in dict.fromkeys(row["method"] for row in rows):
        home = [row for row in by_group.get((method, HOME), []) if "quality" in row]
        alarm = float(np.quantile([row["quality"].get("expected_dice", 1.0) for row in home], 0.05)) if home else 0.0
        print(f"\n## {method}: verdicts (5 % of the home images lie below an expected Dice of {alarm:.3f})\n")
        lines = []
        for (of, group), found in by_group.items():
            if of != method:
                continue
            judged_rows = [row for row in found if "quality" in row]
            verdicts = [row.get("verdict", "refused") for row in found]
            below = [row["quality"].get("expected_dice", 1.0) < alarm for row in judged_rows]
            share = [np.mean([v == kind for v in verdicts]) for kind in ("ok", "review", "reject", "refused")]
            recognized = (sum(below) + len(found) - len(judged_rows)) / len(found)
            lines.append([group, len(found), *(f"{value:.2f}" for value in share), f"{recognized:.2f}"])
        print(
            tabulate(
                lines,
                ["group", "images", "ok", "review", "reject", "refused", "below the 5 % bound"],
                "github",
                disable_numparse=True,
            )
        )
        wrong = [line for line in lines if line[0].startswith("wrong/")]
        if wrong:
            total = sum(line[1] for line in wrong)
            noticed = sum(line[1] * (1 - float(line[2])) for line in wrong) / total
            bound = sum(line[1] * float(line[6]) for line in wrong) / total
            print(f"\nWrong inputs: {noticed:.3f} are not ok, {bound:.3f} lie below the 5 % bound, of {total}.")
        print(f"\n## {method}: quality\n")
        print(tabulate(list(_quality(by_group, method, arguments)), _QUALITY, "github", disable_numparse=True))


_QUALITY = ["group", "images", "source", "adapted", "guarded", "expected", "MAE", "in 90 %", "Spearman", "AUROC harm"]


def _quality(by_group: dict, method: str, arguments: argparse.Namespace) -> Iterator[list]:
    for (of, group), found in by_group.items():
        scored = [row for row in found if "adapted" in row and "quality" in row]
        if of != method or not scored:
            continue
        index = [arguments.segments.index(arguments.scored)] if arguments.scored and group in arguments.partly else None
        adapted = np.array([_mean(row["adapted"], index) for row in scored])
        source = np.array([_mean(row["source"], index) for row in scored])
        used = np.array([row["guarded"] == "source" for row in scored])
        guarded = np.where(used, source, adapted)
        whole = _signal(scored, "expected_dice")
        expected = whole if index is None else np.array([_mean(row["expected"], index) for row in scored])
        low, high = (expected + _signal(scored, f"expected_{end}") - whole for end in ("low", "high"))
        rank = {name: _spearman(_signal(scored, name), guarded) for name in SIGNALS}
        rank["expected_dice"] = _spearman(expected, guarded)
        harmed = adapted < source - HARMED
        area = {name: _area(harmed, -_signal(scored, name)) for name in SIGNALS if name != "source_self_dice"}
        area["less sure"] = _area(harmed, _signal(scored, "source_self_dice") - _signal(scored, "self_dice"))
        lower = _signal(scored, "expected_source") - _signal(scored, "expected_adapted")
        area["expected lower"] = _area(harmed, lower)
        # what the guard decides, and among equal decisions what it expects
        area["guard"] = _area(harmed, used + lower / 2)
        yield [
            group,
            len(scored),
            f"{source.mean():.3f}",
            f"{adapted.mean():.3f}",
            f"{guarded.mean():.3f}",
            f"{expected.mean():.3f}",
            f"{np.abs(expected - guarded).mean():.3f}",
            f"{np.mean((guarded >= low) & (guarded <= high)):.2f}",
            ", ".join(f"{name} {value:+.2f}" for name, value in rank.items() if math.isfinite(value)),
            f"{harmed.sum()} harmed: "
            + ", ".join(f"{name} {value:.2f}" for name, value in area.items() if math.isfinite(value)),
        ]


def _mean(values: list[float], index: list[int] | None) -> float:
    return float(np.mean([values[i] for i in index] if index is not None else values))


def _signal(rows: list[dict], name: str) -> np.ndarray:
    return np.array([_number(row["quality"].get(name)) for row in rows])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    from scipy.stats import spearmanr

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
    known.set_defaults(do=sample)
    for command in (first, known):
        command.add_argument("--val_stride", type=int, default=5, help="step between the images held out of training")
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
