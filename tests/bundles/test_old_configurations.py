"""A bundle's configuration as the last release had it still runs, and its stopped runs are resumed by the new one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from grata._moved import NAMES

OF_YAML = {new: old for old, new in NAMES.items() if old.split(".")[1] in ("handlers", "workflows")}


def as_before(text: str) -> str:
    """The configuration with the names and the places of arguments that the last release had."""
    for new, old in OF_YAML.items():
        text = text.replace(new, old)
    text = (
        text.replace("affine=@affine, ", "reset=@reset, ")
        .replace("  reset: '@reset'\n", "")
        .replace("'quality', ", "")
        .replace("'max_voxels', ", "")
    )
    before, guard, after = text.partition('  guard: "$grata.session.make_guard(')
    text = before + after.partition(')"\n')[2] if guard else text
    later = ("affine:", "guard:", "on_reject:", "quality:", "max_voxels:")
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith(later)]
    return "".join(line for line in lines if "grata.data.CheckVoxelsd" not in line)


@pytest.fixture(scope="module")
def old_bundle(bundle, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old") / "bundle"
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("output", "eval", "training"))
    path = folder / "configs" / "adapt.yaml"
    path.write_text(as_before(path.read_text()))
    config = yaml.safe_load(path.read_text())
    assert config["adaptation"]["_target_"] == "grata.handlers.AdaptationHandler" and "affine" not in config
    assert "guard" not in {*config, *config["adaptation"]} and "quality" not in str(config)
    return folder


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "journal.jsonl").read_text().splitlines()]


def plain(line: dict) -> dict:
    measured = ("seconds", "seconds_predict", "seconds_judge", "peak_memory_mib")
    return {key: value for key, value in line.items() if key not in measured}


def test_an_old_configuration_runs_as_the_new_one_and_says_what_is_old(adapt, bundle, old_bundle, tmp_path):
    options = ("--method", "tent", "--settings#lr", 0.01, "--reset", "per-case", "--compare", "false")
    # the last release has no key guard
    old = adapt(old_bundle, tmp_path / "old", *options, "--adaptation#guard", "false", cwd=tmp_path, guard=None)
    new = adapt(bundle, tmp_path / "new", *options, cwd=tmp_path)
    assert [plain(line) for line in lines(tmp_path / "old")] == [plain(line) for line in lines(tmp_path / "new")]
    assert [line["reset"] for line in lines(tmp_path / "new")] == [False, True, True]
    assert "grata.handlers.AdaptationHandler is now grata.engines.AdaptationHandler" in old.stderr
    assert "reset is no setting of a method any more" in old.stderr
    assert "DeprecationWarning: grata" not in new.stderr and "no setting of a method" not in new.stderr


def test_a_run_that_the_last_release_stopped_is_resumed_with_its_new_configuration(adapt, bundle, old_bundle, tmp_path):
    options = ("--method", "tent", "--settings#lr", 0.01, "--compare", "false")
    adapt(old_bundle, tmp_path / "old", *options, cwd=tmp_path, guard=None)
    state = torch.load(tmp_path / "old" / "state.pt", weights_only=True)
    assert "grata.handlers.AdaptationHandler" in state["settings"] and "guard" not in state["settings"]
    # the last release judged nothing
    del state["judgements"], state["method"]["guard"]
    torch.save(state, tmp_path / "old" / "state.pt")
    before = lines(tmp_path / "old")
    # as if it had been killed at its end
    for name in ("summary.json", "cases.csv"):
        (tmp_path / "old" / name).unlink()
    done = adapt(bundle, tmp_path / "old", *options, "--resume", "true", cwd=tmp_path, guard=None)
    assert "3 of 3 cases finished" in done.stdout and lines(tmp_path / "old") == before
    assert not (tmp_path / "old" / "cases.csv").exists()
    adapt(bundle, tmp_path / "old", *options, "--guard", "false", "--resume", "true", cwd=tmp_path, guard=None)
    # what matters still matters
    for other in (("--affine", "own"), ("--reset", "per-case")):
        refused = adapt(
            bundle, tmp_path / "old", *options, *other, "--resume", "true", cwd=tmp_path, guard=None, check=False
        )
        assert refused.returncode == 1
        assert f"had other settings ({other[0].removeprefix('--')})" in refused.stderr
