"""The command ``python -m grata doctor``: report before a run what can be adapted and what will be refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.inferers import Inferer, SimpleInferer, SliceInferer, SlidingWindowInferer
from tabulate import tabulate
from torch import nn

from ..bank.saved import class_name
from ..bundles.adaptation import check_common, describe_changes, make_method, prepared_of
from ..bundles.checks import check_collisions, check_overrides, overlay
from ..bundles.configuration import check_method_settings
from ..bundles.head import Head, find_head, is_unit_range
from ..bundles.paths import leaves
from ..bundles.reader import Configuration, components, evaluators
from ..checks import constant
from ..config_files import read_config
from ..console import say
from ..errors import GrataError
from ..files import absence, expanded, undownloaded
from ..methods import METHODS, Method
from ..methods.prepared import without_command
from ..methods.registry import method_class
from ..networks.scripts import open_script
from ..networks.weights import check_fit, read_state
from ..normalization import normalization_layers
from ..session.faults import quiet
from ..session.learner import Learner

__all__ = ["Report", "doctor", "examine"]

_CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
_OF_OTHERS = {"folds": "an nnU-Net folder", "checkpoint_name": "an nnU-Net folder", "output": "a TorchScript file"}
"""What other kinds of models take, by option."""
_CLASSES = ("out_channels", "out_classes", "num_classes")


@dataclass
class Report:
    """Result of an examination.

    Attributes:
        name: name of the bundle's folder, or of the file.
        facts: findings by their subject, such as ``network``, in the order of display.
        methods: reason why a method does not fit, by the method's name; empty where it fits.
        problems: reasons for which a run is refused whatever the method.
    """

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def adapts(self) -> bool:
        """Whether any method but ``source``, which changes nothing, will run."""
        return not self.problems and any(not lack for name, lack in self.methods.items() if name != "source")

    def __str__(self) -> str:
        facts = tabulate(self.facts.items(), tablefmt="plain", maxcolwidths=[None, 100])
        lines = [self.name, facts, *(f"refused: {problem}" for problem in self.problems)]
        if self.methods:
            lacks: dict[str, list[str]] = {}
            for name, lack in self.methods.items():
                lacks.setdefault(lack.removeprefix(f"method {name} "), []).append(name)
            rows = [[", ".join(names), f"no: {lack}" if lack else "yes"] for lack, names in lacks.items()]
            lines += [
                "",
                tabulate(sorted(rows, key=lambda row: row[1] != "yes"), ["methods", "fit"], maxcolwidths=[44, 70]),
            ]
        return "\n".join(lines)


def doctor(path: str | Path, config_file: str | None = None, **overrides: Any) -> int:
    """Print the report of :func:`examine`, which describes the arguments.

    Returns:
        Exit status: 0 if a method can adapt the network, else 1.
    """
    quiet()
    report = examine(path, config_file, **overrides)
    say(report)
    return 0 if report.adapts else 1


def examine(path: str | Path, config_file: str | None = None, **overrides: Any) -> Report:
    """Examine a bundle in Model Zoo layout, a trained nnU-Net folder or a TorchScript file. No image is read.

    Args:
        path: folder or file.
        config_file: configuration of a bundle, relative to its folder; None: ``configs/inference.json`` or ``.yaml``.
        overrides: for a bundle, keys of its configuration and of the overlay, nested ones with ``#``, such as
            ``adaptation#activation``; with ``method`` or ``settings`` only that method is examined. For an
            nnU-Net folder ``folds`` and ``checkpoint_name``, for a TorchScript file ``activation`` and ``output``.

    Returns:
        What was found.

    Raises:
        GrataError: ``path`` is none of these, or its configuration or network cannot be built.
    """
    path = expanded(path)
    if not path.exists():
        raise GrataError(f"{path} {absence(path)}. Name a folder or a file.")
    if path.is_file():
        given = {key.removeprefix("adaptation#"): value for key, value in overrides.items()}
        return _of_script(path, **_only(given, "activation", "output"))
    if (path / "plans.json").is_file():
        return _of_nnunet(path, **_only(overrides, "folds", "checkpoint_name"))
    return _of_bundle(path, config_file, overrides)


def _only(overrides: Mapping[str, Any], *known: str) -> Mapping[str, Any]:
    for key in overrides:
        if key not in known:
            raise GrataError(f"there is no such option here. The options are {', '.join(known)}.", key=f"--{key}")
    return overrides


def _of_bundle(root: Path, config_file: str | None, overrides: Mapping[str, Any]) -> Report:
    file = _configuration(root, config_file)
    report = Report(root.resolve().name)
    _check_overrides(root, file, overrides)
    config = Configuration.read(root, [file, overlay()], {"device": "$torch.device('cpu')", **overrides})
    check_method_settings(config.raw())
    network = config.network()
    report.facts["configuration"] = str(file.relative_to(root))
    report.facts["weights"] = _weights(config, root, network)
    try:
        check_collisions([file])
    except GrataError as error:
        report.problems.append(str(error))
    given = constant(config.raw("adaptation"))
    evaluator = _evaluator(config, given, report)
    head = find_head(config.postprocessing(evaluator))
    inferer = config.value(f"{evaluator}#inferer") or config.value("inferer") or SimpleInferer()
    unit = is_unit_range(config.value("preprocessing"))
    _report_network(report, network, _classes(config, root))
    _report_window(report, inferer)
    given["prepared"] = given.get("prepared") or prepared_of(root)
    _report_methods(report, network, head, unit, given, *_examined(config, overrides))
    report.facts["images"] = "in 0..1" if unit else "not in 0..1; the strong view keeps their range"
    _report_commands(report, root, file)
    return report


def _check_overrides(root: Path, file: Path, overrides: Mapping[str, Any]) -> None:
    try:
        check_overrides([file, overlay()], overrides)
    except GrataError as error:
        name = str(error.key).removeprefix("--")
        if name in _OF_OTHERS:
            raise GrataError(f"is for {_OF_OTHERS[name]}, and {root.name} is a bundle.", f"--{name}") from error
        raise


def _configuration(root: Path, config_file: str | None) -> Path:
    files = [root / config_file] if config_file else [root / "configs" / name for name in _CONFIGS]
    for file in files:
        if file.is_file():
            return file
    raise GrataError(
        f"{root}: there is no {' or '.join(str(f.relative_to(root)) for f in files)}. Give the folder of a bundle, a "
        "trained nnU-Net folder (with plans.json) or a TorchScript file."
    )


def _evaluator(config: Configuration, given: Mapping[str, Any], report: Report) -> str:
    """Return the id of the evaluator that predicts; report a problem where there is none of that id."""
    evaluator = str(given.get("evaluator", "@evaluator")).removeprefix("@")
    if evaluator not in config:
        found = ", ".join(evaluators(config.raw())) or "none"
        report.problems.append(
            f"adaptation#evaluator: the configuration has no {evaluator}; its evaluators: {found}. Name the one that "
            "predicts, for example --adaptation#evaluator @validate#evaluator."
        )
    return evaluator


def _report_commands(report: Report, root: Path, file: Path) -> None:
    own, files = Path("configs", "adapt.yaml"), f"\"['{file.relative_to(root)}', '{overlay()}']\""
    if (root / own).is_file():
        files = str(own)
    else:
        _advise_no_preparation(report)
    if report.adapts:
        report.facts["run"] = (
            f"python -m monai.bundle run adapt --bundle_root . --config_file {files} --method <method> "
            "--dataset_dir <images>"
        )


def _advise_no_preparation(report: Report) -> None:
    """Leave out advice to run a command that cannot read a model of this kind."""
    report.methods = {name: without_command(lack) for name, lack in report.methods.items()}


def _examined(config: Configuration, overrides: Mapping[str, Any]) -> tuple[Sequence[str], Mapping[str, Any]]:
    """Return the names of the methods to examine, and the settings of the one that was chosen."""
    if not any(re.split("#|::", key)[0] in ("method", "settings") for key in overrides):
        return list(METHODS), {}
    chosen = config.raw()
    return [method_class(chosen["method"]).name], chosen["settings"]


def _of_script(path: Path, **settings: Any) -> Report:
    report = Report(path.name)
    try:
        network = open_script(path)
    except (RuntimeError, ValueError) as error:
        raise GrataError(
            f"{path} is not a TorchScript file. Weights alone (a state dict) do not describe the network: give the "
            "folder of their bundle."
        ) from error
    _report_network(report, network, None)
    _report_methods(report, network, Head(), True, settings)
    _advise_no_preparation(report)
    return report


def _of_nnunet(folder: Path, **options: Any) -> Report:
    from ..nnunet import describe, load_model

    found = describe(folder, **options)
    report = Report(folder.resolve().name, problems=found["refused"])
    if "configuration" in found:
        report.facts["configuration"] = f"nnU-Net v2 {found['configuration']}, folds {_listed(found['folds'])}"
        report.facts["channels"] = _listed(found["channels"])
        report.facts["labels"] = _listed(found["labels"])
        report.facts["window"] = f"{' x '.join(map(str, found['patch_size']))} at {_listed(found['spacing'])} mm"
    if not report.problems:
        network = load_model(folder, **options).network(found["folds"][0])
        _report_network(report, network, found["classes"])
        _report_methods(report, network, Head(found["activation"], None, "nnU-Net's labels"), False, {})
        _advise_no_preparation(report)
        report.facts["run"] = f"python -m grata nnunet {folder} <images> <output> --method <method>"
    return report


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _weights(config: Configuration, root: Path, network: nn.Module) -> str:
    keys = [key for key, item in components(config.raw()) if item.get("_target_") == "CheckpointLoader"]
    path = config.value(f"{keys[0]}#load_path") if keys else None
    if not isinstance(path, str | Path):
        return "not named by a CheckpointLoader"
    shown = Path(path).name
    if reason := undownloaded(path):
        return reason
    if not Path(path).is_file():
        return f"{shown} is missing"
    try:
        check_fit(read_state(Path(path)), network, shown)
    except GrataError as error:
        return error.message
    network.load_state_dict(read_state(Path(path)))
    return f"{shown} fits the network"


def _report_network(report: Report, network: nn.Module, classes: int | None) -> None:
    total = sum(parameter.numel() for parameter in network.parameters())
    dims = _spatial_dims(network)
    out = f", {classes} output channels" if classes else ""
    report.facts["network"] = f"{class_name(network)}, {dims}D{out}, {total:,} parameters"
    layers = Counter(_kind(kind, layer) for _, kind, layer in normalization_layers(network))
    report.facts["normalization"] = ", ".join(f"{count} {kind}" for kind, count in layers.items()) or "none"


def _report_window(report: Report, inferer: Inferer) -> None:
    name = type(inferer).__name__
    if isinstance(inferer, SlidingWindowInferer):
        size = inferer.orig_roi_size if isinstance(inferer, SliceInferer) else inferer.roi_size
        shown = " x ".join(map(str, size)) if isinstance(size, Sequence) else str(size)
        report.facts["window"] = f"{shown}, {inferer.sw_batch_size} at once, overlap {inferer.overlap} ({name})"
    elif isinstance(inferer, SimpleInferer):
        report.facts["window"] = f"none: the whole image ({name})"
    else:
        report.facts["window"] = name
        report.problems.append(
            f"inferer: adaptation does not know {name}. Give a SimpleInferer, SlidingWindowInferer or SliceInferer by "
            "--inferer#_target_, or use method source."
        )


def _report_methods(
    report: Report,
    network: nn.Module,
    head: Head,
    unit: bool,
    given: Mapping[str, Any],
    names: Sequence[str] = tuple(METHODS),
    settings: Mapping[str, Any] | None = None,
) -> None:
    common = {key: given.get(key) for key in ("activation", "output", "prepared")}
    activation = common["activation"] or head.activation
    output = common["output"] or head.output
    said = "" if common["activation"] or not head.source else f" (by {head.source})"
    affine = given.get("affine") or "auto"
    check_common(affine, common["activation"], settings)
    report.facts["head"] = f"{activation or 'unknown: give activation'}{said}{f', output {output}' if output else ''}"
    for name in names:
        try:
            method = make_method(network, name, settings, head, unit, affine, **common)
            _check_reset(method, given.get("reset"))
        except GrataError as error:
            report.methods[name] = str(error)
            continue
        report.methods[name] = ""
        if name in ("grata", *([] if len(names) > 1 else names)):
            report.facts["adapts"] = f"{describe_changes(method)} ({len(method.parameters)} tensors)"


def _check_reset(method: Method, reset: Any) -> None:
    try:
        Learner(method, reset)
    except GrataError as error:
        raise error.under("adaptation") from error


def _classes(config: Configuration, root: Path) -> int | None:
    definition = config.raw().get("network_def")
    if isinstance(definition, Mapping):
        for key in _CLASSES:
            value = config.value(f"network_def#{key}")
            if isinstance(value, int):
                return value
    return _channels(root / "configs" / "metadata.json")


def _channels(metadata: Path) -> int | None:
    """Return the number of output channels that a bundle's metadata names; None: it names none."""
    outputs: Any = read_config(metadata) if metadata.is_file() else None
    for key in ("network_data_format", "outputs"):
        outputs = outputs.get(key) if isinstance(outputs, Mapping) else None
    counts = [count for key, count in leaves(outputs) if key.endswith("num_channels") and isinstance(count, int)]
    return counts[0] if counts else None


def _kind(kind: str, layer: nn.Module) -> str:
    parts = [] if getattr(layer, "weight", None) is not None else ["without affine parameters"]
    if kind.startswith("Instance") and getattr(layer, "running_mean", None) is not None:
        parts.append("with running statistics")
    return " ".join((kind, *parts))


def _spatial_dims(network: nn.Module) -> int | str:
    names = {class_name(module) for module in network.modules()}
    return 3 if "Conv3d" in names else 2 if "Conv2d" in names else "?"
