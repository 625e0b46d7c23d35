import json

import pytest

from grata.benchmark import load_config
from grata.errors import GrataError


def test_yaml_json_and_overrides(settings, write, tmp_path):
    config = load_config(write(settings), {"workers": 3, "methods#grata#lr": 0.5, "limit": "null", "shuffle": "true"})
    assert (config.workers, config.limit, config.shuffle, config.seeds) == (3, None, True, (0,))
    assert {row.name: row.settings for row in config.methods}["grata"] == {"lr": 0.5}
    assert config.given["methods"]["grata"] == {"lr": 0.5}
    (tmp_path / "benchmark.json").write_text(json.dumps(settings))
    assert load_config(tmp_path / "benchmark.json").targets == config.targets


def test_the_same_method_may_be_there_twice(settings, write):
    settings["methods"]["fast"] = {"method": "grata", "autocast": "bfloat16"}
    row = load_config(write(settings)).methods[-1]
    assert (row.name, row.method, row.settings) == ("fast", "grata", {"autocast": "bfloat16"})


def test_a_source_is_not_tested_on_its_own_site(settings, write):
    settings["sources"] = {"north": {}, "west": {}}
    config = load_config(write(settings))
    assert (config.targets_of("north"), config.targets_of("west")) == (["south"], ["north", "south"])
    config = load_config(write({**settings, "exclude_same_site": False}))
    assert config.targets_of("north") == ["north", "south"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": {}}, "Did you mean methods"),
        ({"targets": None}, "targets: it is missing"),
        ({"targets": {"north": 3}}, "targets#north"),
        ({"targets": {"a/b": {}}}, "file name"),
        ({"targets": {"..": {}}}, "file name"),
        ({"targets": {"north": {"weights": "other.pt"}}}, "not a site's"),
        ({"targets": {"north": {"grata#lr": 1}}}, "not a site's"),
        ({"methods": {"gratta": {}}}, "Did you mean grata"),
        ({"methods": {"grata": {"lrr": 1}}}, "did you mean grata#lr"),
        ({"methods": {"grata": {"seed": 1}}}, "See seeds"),
        ({"reference_method": "tentt"}, "not a row of methods"),
        ({"protocol": "forever"}, "per-target"),
        ({"protocol": ["mixed", "mixed"]}, "there twice"),
        ({"seeds": [0, 0]}, "there twice"),
        ({"seeds": ["a"]}, "whole numbers"),
        ({"seeds": [-1]}, "whole numbers"),
        ({"limit": 0}, "limit"),
        ({"workers": -1}, "workers"),
        ({"threads": True}, "threads"),
        ({"shuffle": "perhaps"}, "true or false"),
        ({"metrics": {"spacing": 1}}, "metrics#spacing"),
        ({"metrics": {"empty": "zero"}}, "metrics#empty"),
        ({"output_dir": 20240611}, "./20240611"),
        ({"sources": {"north": {}}, "targets": {"north": {}}}, "none is left"),
    ],
)
def test_refused(settings, write, changes, message):
    with pytest.raises(GrataError, match=message):
        load_config(write({**settings, **changes}))


@pytest.mark.parametrize(("text", "message"), [("a: [", "neither YAML nor JSON"), ("- 1", "not a mapping")])
def test_a_file_that_is_no_configuration(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(GrataError, match=message):
        load_config(tmp_path / "x.yaml")
    with pytest.raises(GrataError, match="cannot be read"):
        load_config(tmp_path / "missing.yaml")
