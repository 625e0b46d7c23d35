"""What is wrong in a configuration file is said with its line, at every door that reads one."""

import json

import pytest
import yaml

from grata.benchmark import load_config
from grata.bundles.bundle import Bundle
from grata.bundles.reader import Configuration, read_files
from grata.config_files import read_config
from grata.doctor.doctor import _channels
from grata.errors import GrataError

NINE = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
CHAIN = "".join(f"k{n + 1}: &k{n + 1} {{in: *k{n}}}\n" for n in range(200))
WRONG = {
    "text": ("a: 1\nb: [1,\nc: }", "is not YAML: line 3, column"),
    "tab": ("a: 1\n\tb: 2", "is not YAML: line 2, column 1"),
    "zero byte": ("a: 1\nb: \0", "is not YAML: unacceptable character"),
    "code": ("a: 1\nb: !!python/object/apply:os.system ['true']", "is not YAML: line 2, column 4"),
    "month": ("a: 1\nb: 2026-13-45", "is not YAML: line 2, column 4: month must be"),
    "day": ("a:\n- 1\n- 2025-02-29", "is not YAML: line 3, column 3: day is out of range"),
    "hour": ("a: 2026-01-01 25:00:00", "is not YAML: line 1, column 4: hour must be"),
    "whole number": ("a: 1\nb: !!int ''", "is not YAML: line 2, column 4"),
    "too many digits": (f"a: 1\nb: {'9' * 5000}", "is not YAML: line 2, column 4: Exceeds the limit"),
    "too many hexadecimal digits": (f"a: 0x{'f' * 5000}", "is not YAML: line 1, column 4: Exceeds the limit"),
    "a list for a key": ("a: 1\n? [b]\n: 2", "is not YAML: line 2, column 3"),
    "a name that is not known": ("a: 1\nb: *c", "is not YAML: line 2, column 4: found undefined alias"),
    "brackets": ("[" * 20_000, "is not YAML: line 1, column 65: more than 64 values inside each other"),
    "blocks": ("".join(f"{' ' * n}a:\n" for n in range(100)), "more than 64 values inside each other"),
    "a chain of aliases": (f"k0: &k0 1\n{CHAIN}", "more than 64 values inside each other"),
    "billions of values": (f"a: &a [x, x, x, x, x, x, x, x, x]\n{NINE}", "is not YAML: line 5, .* repeat more than"),
    "millions in one list": (
        f"a: &a [{'x, ' * 9000}]\nb: [{'*a, ' * 200}]",
        "is not YAML: line 2, .* repeat more than",
    ),
    "a merge of millions": (f"a: &a {{{'x: 1, ' * 4000}}}\nb: {{<<: [{'*a, ' * 20}]}}", "line 2, .* repeat more than"),
    "a list in itself": ("a: 1\nb: &b [*b]", r"is not YAML: line 2, column 8: \*b stands inside &b itself"),
    "a mapping in itself": ("a: &a\n  b:\n    c: *a", r"line 3, column 8: \*a stands inside &a itself"),
    "nothing": ("", "holds nothing, not a mapping"),
    "a list": ("- a", "holds a list, not a mapping"),
    "a number": ("3", "holds a int, not a mapping"),
    "a date": ("2026-01-01", "holds a date, not a mapping"),
}
WRONG_JSON = {
    "comma": ('{"a": 1,\n"b": 2,}', "is not JSON: line 2, column 8"),
    "two contents": ('{"a": 1}\n{"b": 2}', "is not JSON: line 2, column 1: Extra data"),
    "YAML": ("a: 1", "is not JSON: line 1, column 1"),
    "brackets": ("[" * 100_000, "is not JSON: more than 64 values inside each other"),
    "deep": ('{"a":' * 200 + "1" + "}" * 200, "has more than 64 values inside each other"),
    "digits": (f'{{"a": {"9" * 5000}}}', "is not JSON: Exceeds the limit"),
    "a list": ("[1]", "holds a list, not a mapping"),
}
ENCODED = ["utf-16", "utf-32", "latin-1", "cp1252"]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_yaml_file_is_named_with_its_line(name, tmp_path):
    text, message = WRONG[name]
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(GrataError, match=rf"x\.yaml .*{message}.*\. Correct it\."):
        read_config(tmp_path / "x.yaml")


@pytest.mark.parametrize("name", WRONG_JSON)
def test_a_wrong_json_file_is_named_with_its_line(name, tmp_path):
    text, message = WRONG_JSON[name]
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(GrataError, match=rf"x\.json .*{message}.*\. Copy it again\."):
        read_config(tmp_path / "x.json", remedy="Copy it again.")


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_another_encoding_is_named_with_its_line(encoding, ending, tmp_path):
    (tmp_path / f"x.{ending}").write_bytes('{"a": "b",\n"c": "Größe"}'.encode(encoding))
    with pytest.raises(GrataError, match="is not text in UTF-8: line [12] has the byte 0x|is not JSON|is not YAML"):
        read_config(tmp_path / f"x.{ending}")


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "large.yaml").touch()
    with (tmp_path / "large.yaml").open("r+b") as file:
        file.truncate(1 << 40)
    for name, message in {"folder": "is not a file", "missing": "No such file", "large": "more than 32 MB"}.items():
        with pytest.raises(GrataError, match=rf"^bundle: .*{name}\.yaml .*{message}"):
            read_config(tmp_path / f"{name}.yaml", "bundle")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {lr: 0.1, at: 2026-12-31}\nb: *a\nc: [*a, *a]\n",
        "defaults: &d {x: [1, 2]}\na: {<<: *d, y: 2}\nb: {<<: *d, x: 3}\n",
        "a: " + "[" * 60 + "]" * 60,
        "a: &a [" + "x, " * 3000 + "]\nb: [*a, *a]\nc: 0x1f\nd: .inf\n1: 2\n",
        '{"a": "Größe", "b": [null, true, 1e3]}',
    ],
)
def test_a_file_of_usual_size_is_read_as_it_is(text, tmp_path):
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    assert read_config(tmp_path / "x.yaml") == yaml.safe_load(text)


DOORS = ["month", "brackets", "billions of values", "a list in itself", "a number", "zero byte"]


@pytest.mark.parametrize("name", DOORS)
def test_a_wrong_file_is_refused_at_every_door(name, tmp_path):
    configs = tmp_path / "configs"
    configs.mkdir()
    (file := configs / "adapt.yaml").write_text(WRONG[name][0])
    (configs / "metadata.json").write_text(WRONG[name][0])
    with pytest.raises(GrataError, match=r"^bundle: .*adapt\.yaml .*Correct it\."):
        Bundle(tmp_path, {}, "sources#bundle")
    for read in (
        lambda: read_files([file]),
        lambda: Configuration.read(tmp_path, [file], {}),
        lambda: load_config(file),
    ):
        with pytest.raises(GrataError, match=r"adapt\.yaml .*Correct it\."):
            read()
    with pytest.raises(GrataError, match=r"metadata\.json .*Correct it\."):
        _channels(configs / "metadata.json")


@pytest.mark.parametrize("text", ["1: 2\na: 3", "null: 3", "2026-01-01: 1", "true: 1", "a: 1\na: 2", "a: {<<: {b: 1}}"])
def test_what_monai_cannot_read_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(GrataError, match=r"x\.yaml (has the key .*, which is not a text|cannot be read by MONAI)"):
        Configuration.read(tmp_path, [tmp_path / "x.yaml"], {})


def test_files_that_do_not_fit_each_other_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [1]")
    (tmp_path / "b.yaml").write_text("+a: {b: 1}")
    with pytest.raises(GrataError, match=r"a\.yaml, .*b\.yaml cannot be read by MONAI"):
        Configuration.read(tmp_path, [tmp_path / "a.yaml", tmp_path / "b.yaml"], {})


@pytest.mark.parametrize("outputs", [3, [], "text", {"pred": 0.5}, {"pred": {"num_channels": "two"}}, None])
def test_metadata_of_another_kind_names_no_channels(outputs, tmp_path):
    for content in ({"network_data_format": {"outputs": outputs}}, {"network_data_format": outputs}, {}):
        (tmp_path / "metadata.json").write_text(json.dumps(content))
        assert _channels(tmp_path / "metadata.json") is None
    (tmp_path / "metadata.json").write_text('{"network_data_format": {"outputs": {"pred": {"num_channels": 4}}}}')
    assert _channels(tmp_path / "metadata.json") == 4
