import json
from pathlib import Path

import pytest
import yaml

from grata.benchmark import load_config
from grata.benchmark.suite import load_suite
from grata.errors import GrataError
from grata.methods import METHODS


def test_yaml_json_and_overrides(settings, write, tmp_path):
    config = load_config(write(settings), {"workers": 3, "methods#grata#lr": 0.5, "limit": "null", "shuffle": "true"})
    assert (config.workers, config.limit, config.shuffle, config.seeds) == (3, None, True, (0,))
    assert {row.name: row.settings for row in config.methods}["grata"] == {"lr": 0.5}
    assert config.given["methods"]["grata"] == {"lr": 0.5}
    (tmp_path / "benchmark.json").write_text(json.dumps(settings))
    assert load_config(tmp_path / "benchmark.json").targets == config.targets


def test_a_method_may_have_several_rows(settings, write):
    settings["methods"]["fast"] = {"method": "grata", "autocast": "bfloat16"}
    row = load_config(write(settings)).methods[-1]
    assert (row.name, row.method, row.settings) == ("fast", "grata", {"autocast": "bfloat16"})


def test_a_source_is_not_tested_on_its_own_site(settings, write):
    settings["sources"] = {"north": {}, "west": {}}
    config = load_config(write(settings))
    assert (config.targets_of("north"), config.targets_of("west")) == (["south"], ["north", "south"])
    config = load_config(write({**settings, "exclude_same_site": False}))
    assert config.targets_of("north") == ["north", "south"]


def test_overrides_change_only_what_the_file_names(settings, write):
    settings["targets"] = {"rim-one": {"dataset_dir": "a"}, "south": {}}
    settings["methods"]["entropy+entropy"] = {"method": "grata"}
    settings["seeds"] = [0]
    path = write(settings)
    overrides = {"targets#rim_one#dataset_dir": "b", "sources#bundle#weights": "w.pt", "exclude-same-site": False}
    config = load_config(path, {**overrides, "methods#entropy+entropy#strong_view#output_range": "input"})
    assert config.targets == {"rim-one": {"dataset_dir": "b"}, "south": {}} and not config.exclude_same_site
    assert config.sources == {"bundle": {"weights": "w.pt"}}
    assert config.methods[-1].settings == {"strong_view": {"output_range": "input"}}
    # an override does not change the defaults of the next configuration
    assert load_config(path).sources == {"bundle": {}}
    for key, message in {
        "targets#rim_on#dataset_dir": "--targets#rim_on#dataset_dir: .*Did you mean targets#rim-one",
        "sources#drive#weights": "drive is not among the sources of the file. They are bundle",
        "methods#gratta#lr": "Did you mean methods#grata",
        "targts#south#site": "targts: there is no such key. Did you mean targets",
        "seeds#0": "seeds is not a mapping",
    }.items():
        with pytest.raises(GrataError, match=message):
            load_config(path, {key: "x"})
    settings["targets"]["rim_one"] = {}
    with pytest.raises(GrataError, match="any of rim-one, rim_one"):
        load_config(write(settings), {"targets#rim_one#dataset_dir": "b"})


def test_a_nested_override_changes_one_value_of_the_bundles_and_wins(settings, write):
    settings["sources"] = {"a": {"network_def#depth": 18, "network_def": {"depth": 34}}}
    config = load_config(write(settings), {"sources#a#network_def#depth": 50})
    assert list(config.sources["a"].items()) == [("network_def", {"depth": 34}), ("network_def#depth", 50)]


def test_segments_to_score_are_named_by_targets_and_sources(settings, write):
    settings["sources"] = {"a": {"scored": ["Disc"]}, "b": {"scored": None}}
    settings["targets"]["north"]["scored"] = "Cup"
    config = load_config(write(settings))
    assert (config.scored, config.source_scored) == ({"north": ["Cup"]}, {"a": ["Disc"]})
    assert config.sources == {"a": {}, "b": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": {}}, "Did you mean methods"),
        ({"targets": None}, "targets: is missing from the configuration"),
        ({"targets": {"north": 3}}, "targets#north: must hold settings, got 3"),
        ({"sources": 3}, "sources: must hold names with the settings of each, got 3"),
        ({"targets": {"a/b": {}}}, "file name"),
        ({"targets": {"..": {}}}, "file name"),
        (
            {"targets": {"north": {"weights": "other.pt"}}},
            "targets#north#weights: is not a setting of a site. Set it in",
        ),
        ({"targets": {"north": {"activation": "softmax"}}}, "north#activation: is not a setting of a site"),
        ({"targets": {"north": {"memory_format": "channels_last"}}}, "north#memory_format: .*Set it in sources"),
        ({"targets": {"north": {"keep_pages": False}}}, "targets#north#keep_pages: .*Set it in sources"),
        ({"targets": {"north": {"num_workers": 2}}}, "targets#north#num_workers: .*See workers"),
        ({"targets": {"north": {"compare": False}}}, "targets#north#compare: .*source"),
        ({"targets": {"north": {"output_dir": "x"}}}, "targets#north#output_dir: .*top level"),
        ({"targets": {"north": {"scored": [1]}}}, "targets#north#scored: must be a list of names"),
        ({"targets": {"north": {"stride": 0}}}, "targets#north#stride: must be a whole number"),
        ({"sources": {"a": {"stride": "2nd"}}}, "sources#a#stride: must be a whole number"),
        ({"sources": {"a": {"seed": 3}}}, "sources#a#seed: .*See seeds"),
        ({"sources": {"a": {"settings#seed": 3}}}, "sources#a#settings#seed: .*row of methods"),
        ({"sources": {"a": {"method": "tent"}}}, "sources#a#method: .*See methods"),
        ({"sources": {"a": {"resume": True}}}, "sources#a#resume: .*always resumes"),
        ({"sources": {"a": {"overwrite": True}}}, "sources#a#overwrite: .*output_dir"),
        ({"sources": {"a": {"traceback": True}}}, "sources#a#traceback: .*Leave it out"),
        ({"methods": {"gratta": {}}}, "Did you mean grata"),
        ({"methods": {"grata": {"lrr": 1}}}, "did you mean methods#grata#lr"),
        ({"methods": {"grata": {"seed": 1}}}, "See seeds"),
        ({"common": {"seed": 1}}, "common#seed: .*See seeds"),
        ({"common": {"lrr": 1}}, "common#lrr"),
        ({"common": 3}, "common: must hold settings of methods, got 3"),
        ({"reference_method": "tentt"}, "not a row of methods"),
        ({"protocol": "forever"}, "protocol: there is no protocol 'forever'; there are per-target"),
        ({"protocol": ["mixed", "mixed"]}, "protocol: 'mixed' is there twice. Give one of them another label"),
        ({"protocol": {"name": "mixed", "label": "a/b"}}, "protocol: 'a/b' becomes a file name"),
        ({"seeds": [0, 0]}, "seeds: 0 is there twice"),
        ({"seeds": ["a"]}, "seeds: must be a list of whole numbers"),
        ({"seeds": [-1]}, "seeds: must be whole numbers of at least 0"),
        ({"limit": 0}, "limit: must be a whole number of at least 1, or null, got 0"),
        ({"workers": -1}, "workers: must be a whole number of at least 0, got -1"),
        ({"threads": True}, "threads: must be a whole number of at least 1, or null, got True"),
        ({"shuffle": "perhaps"}, "shuffle: must be true or false, got 'perhaps'"),
        ({"metrics": {"spacing": 1}}, "metrics#spacing: metrics has no such setting; did you mean space"),
        ({"metrics": {"empty": "zero"}}, "metrics#empty: must be one of nan, reference, got 'zero'"),
        ({"metrics": {1: 2}}, "metrics#1: metrics has no such setting"),
        ({"metrics": 3}, "metrics: must hold the settings space and empty, got 3"),
        ({1: 2}, "1: there is no such key"),
        ({"output_dir": 20240611}, "./20240611"),
        ({"sources": {"north": {}}, "targets": {"north": {}}}, "none is left"),
    ],
)
def test_refused(settings, write, changes, message):
    with pytest.raises(GrataError, match=message):
        load_config(write({**settings, **changes}))


def test_all_methods_by_an_override_with_settings_of_some(settings, write):
    path = write(settings)
    one, whole = ("methods#tent#lr", 0.5), ("methods", "all")
    for overrides in ([whole, one], [one, whole]):
        rows = {row.name: row.settings for row in load_config(path, dict(overrides)).methods}
        assert list(rows) == list(METHODS) and rows["tent"] == {"lr": 0.5} and rows["grata"] == {}


def test_all_methods_with_common_settings(settings, write):
    settings |= {"methods": "all", "common": {"autocast": "bfloat16"}}
    config = load_config(write(settings), {"methods#tent#lr": 1, "methods#tent#autocast": None})
    rows = {row.name: row for row in config.methods}
    assert rows.keys() == METHODS.keys()
    assert rows["grata"].settings == {"autocast": "bfloat16"} and rows["source"].settings == {}
    assert rows["tent"].settings == {"autocast": None, "lr": 1}
    settings["methods"] = {"all": {}, "memo": {"augmentations": 8}, "slow": {"method": "tent", "lr": 1e-5}}
    rows = {row.name: row for row in load_config(write(settings)).methods}
    assert rows.keys() == {*METHODS, "slow"} and rows["memo"].settings == {"autocast": "bfloat16", "augmentations": 8}


@pytest.mark.parametrize(("text", "message"), [("a: [", "neither YAML nor JSON"), ("- 1", "not a mapping")])
def test_a_file_that_is_not_a_configuration(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(GrataError, match=message):
        load_config(tmp_path / "x.yaml")
    with pytest.raises(GrataError, match="cannot be read"):
        load_config(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "benchmarks").glob("*.yaml")), ids=lambda p: p.name
)
def test_the_configurations_of_this_repository_are_right(path):
    given = yaml.safe_load(path.read_text())
    configs = load_suite(given).tasks.values() if "tasks" in given else [load_config(path)]
    assert all(config.methods and config.targets for config in configs)
