"""Measure the guard on a bundle: what it says of home, of target sites and of wrong inputs, and whether that is right.

    python scripts/verdict_study.py home bundles/<bundle> --dataset_dir <source set> --samples <samples.json> \
        --output <rows.jsonl> [--methods ptbn]
    python scripts/verdict_study.py run bundles/<bundle> --group <site>=<folder> \
        --wrong <folder of scripts/wrong_inputs.py> --output <rows.jsonl> [--methods ptbn,source] [--limit 40]
    python scripts/verdict_study.py table <rows.jsonl> [--scored <segment>]

The first two commands adapt to each image by itself (per case) and write a line for each; lines that are there already
are not computed again. Images of home are those held out of the network's training, and each is judged by a calibration
that was fitted without it. The third prints the tables.
"""

import argparse
import dataclasses
import json
import math
import tempfile
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
from grata.quality import Measures, Segmentation, overlap, segmentation
from grata.session import Session, make_guard

HARMED, FOLDS = 0.05, 4
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
    """Judge each image of each group, and write its line."""
    torch.set_num_threads(arguments.threads)
    for group, keys in groups(arguments):
        bundle = Bundle(arguments.bundle, keys, "study")
        cases = bundle.cases(None, labelled=False)
        cases = cases[:: max(1, len(cases) // arguments.limit)][: arguments.limit]
        for method in arguments.methods.split(","):
            write(arguments.output, group, bundle, cases, method, bundle.value("quality"))


def home(arguments: argparse.Namespace) -> None:
    """Judge held-out source images, each by a calibration that does not know it, and write their lines."""
    torch.set_num_threads(arguments.threads)
    bundle = Bundle(arguments.bundle, {"dataset_dir": str(arguments.dataset_dir)}, "study")
    cases = bundle.cases(None)[:: arguments.val_stride]
    samples = read_samples(arguments.samples) if arguments.samples.is_file() else []
    if not samples:
        samples, _ = _Probe(bundle).all_samples(cases, seed=0)
        arguments.samples.write_text(json.dumps([dataclasses.asdict(sample) for sample in samples]))
    for fold in range(FOLDS):
        out = cases[fold::FOLDS]
        unknown = {case["case"] for case in out}
        with tempfile.TemporaryDirectory() as folder:
            quality = Path(folder) / "quality.json"
            fit([sample for sample in samples if sample.case not in unknown]).save(quality)
            for method in arguments.methods.split(","):
                write(arguments.output, "home", bundle, out, method, quality)


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of a file that :func:`home` wrote."""
    made = [(values.pop("measures"), values) for values in json.loads(path.read_text())]
    return [Sample(**values, measures=Measures(**measures)) for measures, values in made]


def write(output: Path, group: str, bundle: Bundle, cases: list[dict], method: str, quality: str | Path | None) -> None:
    """Judge the images of a group by a method, each by itself, and write a line for each that has none."""
    done = set()
    if output.is_file():
        lines = map(json.loads, output.read_text().splitlines())
        done = {(line["group"], line["case"], line["method"]) for line in lines}
    cases = [case for case in cases if (group, case["case"], method) not in done]
    if not cases:
        return
    prepared, activation = bundle.value("prepared"), bundle.activation
    made = create(method, bundle.make_network(), {}, activation=activation, prepared=prepared, seed=0)
    for case in tqdm(cases, desc=f"{group}, {method}"):
        # of the stream that a guard watches, nothing is known of an image by itself
        guard = make_guard(True, calibration=quality, segments=bundle.value("segments"))
        session = Session(made, bundle.windows, guard=guard)
        row = {"group": group, "case": case["case"], "method": method}
        try:
            row |= judged(session, bundle, case)
        except Exception as error:  # noqa: BLE001 (what the reader refuses is recognized too)
            row |= {"refused": f"{type(error).__name__}: {str(error)[:200]}"}
        session.restore()
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")


def judged(session: Session, bundle: Bundle, case: dict) -> dict:
    """Return the line of an image: the judgement, and the Dice of both predictions where there is a label."""
    if "fault" in case:
        return {"refused": case["fault"]}
    image = bundle.read_image(case)
    x = image["image"].as_tensor().float()[None]
    with session.case(x, case["case"]) as adapting, eval_mode(session.network):
        adapting.adapt(bundle.inferer)
        adapted = bundle.inferer(x, session.network)
        adapting.judge(adapted)
    source = adapted if adapting.source is None else adapting.source
    (judgement,) = adapting.judgements
    row = judgement.as_dict()
    if "label" in case:
        values = bundle.read_label(case, image, "network")
        label = torch.as_tensor(np.stack([np.isin(values, region.values) for region in bundle.regions]).astype("f4"))
        row["adapted"] = dice(adapted, bundle.activation, label)
        row["source"] = dice(source, bundle.activation, label)
    return row


def table(arguments: argparse.Namespace) -> None:
    """Print what the lines say."""
    rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()]
    by_group: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in rows:
        by_group[row["method"], row["group"]].append(row)
    for method in dict.fromkeys(row["method"] for row in rows):
        home = [row for row in by_group.get((method, arguments.home), []) if "quality" in row]
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
        used = np.array([row["used"] != "adapted" for row in scored])
        guarded = np.where(used, source, adapted)
        expected = np.array([row["quality"].get("expected_dice", math.nan) for row in scored])
        low = np.array([row["quality"].get("expected_low", math.nan) for row in scored])
        high = np.array([row["quality"].get("expected_high", math.nan) for row in scored])
        rank = {name: _spearman(_signal(scored, name), guarded) for name in SIGNALS}
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
        help="<name>=<folder>, and other keys of the bundle as in ,field_of_view=30",
    )
    first.add_argument("--wrong", type=Path, help="folder with a folder for each kind of wrong input")
    first.add_argument("--output", type=Path, required=True)
    first.add_argument("--methods", default="grata")
    first.add_argument("--limit", type=int, default=40, help="most images of a group, evenly spaced")
    first.add_argument("--threads", type=int, default=1)
    first.set_defaults(do=run)
    known = commands.add_parser("home")
    known.add_argument("bundle", type=Path)
    known.add_argument("--dataset_dir", type=Path, required=True)
    known.add_argument("--samples", type=Path, required=True, help="file of what was measured, read or written")
    known.add_argument("--val_stride", type=int, default=5, help="step between the images held out of training")
    known.add_argument("--output", type=Path, required=True)
    known.add_argument("--methods", default="grata")
    known.add_argument("--threads", type=int, default=1)
    known.set_defaults(do=home)
    second = commands.add_parser("table")
    second.add_argument("rows", type=Path)
    second.add_argument("--home", default="home")
    second.add_argument("--segments", nargs="*", default=[])
    second.add_argument("--scored", help="only this segment is labelled in the groups of --partly")
    second.add_argument("--partly", nargs="*", default=[])
    second.set_defaults(do=table)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
