"""Paths that people give: home folders, links to nothing, names as long as they may be, disks that refuse."""

import errno
import os

import pytest

from grata.bank import AdapterBank
from grata.cli import main
from grata.errors import GrataError, OutputError
from grata.files import absence, append_line, atomic_write, check_output_dir, expanded, undownloaded
from grata.session import Journal, explain

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("given, read", [("~", ""), ("~/a b", "a b"), ("~/#1/x", "#1/x"), ("~/", "")])
def test_the_home_folder(given, read, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded(given) == tmp_path / read
    assert check_output_dir(given) == tmp_path / read
    assert Journal(f"{given}/j").path == tmp_path / read / "j"
    assert AdapterBank(given).path == tmp_path / read


@pytest.mark.parametrize("given", ["a~b", "./~", "~nobody-of-that-name/x", "#", "$HOME", "@x", "(x)", "it's"])
def test_other_names_are_as_they_are(given):
    assert str(expanded(given)) == os.path.normpath(given) or given == "./~"


@pytest.fixture
def link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    return tmp_path / "link"


def test_a_link_to_nothing_is_named_as_one(link, capsys):
    assert absence(link) == "is a link whose target does not exist" and absence(link / "x") == "does not exist"
    for folder in (link, link / "inside"):
        with pytest.raises(OutputError, match="link whose target does not exist"):
            check_output_dir(folder)
    with pytest.raises(GrataError, match="link whose target does not exist"):
        AdapterBank(link)
    for words in (
        ["doctor", link],
        ["benchmark", link],
        ["nnunet", link, "i", "o"],
        ["methods", "--bundle", link],
        ["prepare", link, "d"],
        ["calibrate", link, "d"],
        ["bank", "list", link],
    ):
        assert main(list(map(str, words))) == 1
        assert "is a link whose target does not exist" in capsys.readouterr().err, words


@pytest.mark.parametrize(
    "code, remedy",
    [
        ("ENOSPC", "Free some space"),
        ("EDQUOT", "Free some space"),
        ("EROFS", "a disk that can only be read"),
        ("EACCES", "you may write to"),
        ("ENOENT", "make it again"),
        ("ENOTDIR", "A file is in its place"),
        ("EIO", "you may write to"),
    ],
)
def test_the_remedy_is_that_of_the_fault(code, remedy, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    with pytest.raises(OutputError) as raised, atomic_write(tmp_path / "a"):
        refuse()
    assert remedy in str(raised.value) and ("Free" in str(raised.value)) == (remedy == "Free some space")
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OutputError) as raised:
        append_line(tmp_path / "a", "x")
    assert remedy in str(raised.value) and str(raised.value).startswith("output_dir: ")


@pytest.mark.parametrize("name", ["a" * 248 + ".nii.gz", "ü" * 124 + ".nii", "患" * 82 + ".nii.gz", "x" * 255])
def test_a_name_of_the_greatest_length_can_be_written(name, tmp_path):
    assert len(os.fsencode(name)) <= 255
    with atomic_write(tmp_path / name) as temporary:
        assert temporary.name.endswith(name.lstrip("aü患x"))
        temporary.write_bytes(b"x")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a" * 256, "ü" * 128, "患" * 90])
def test_a_longer_one_is_a_fault_of_its_case(name, tmp_path):
    with (
        pytest.raises(GrataError, match="too long.*shorter file name") as raised,
        atomic_write(tmp_path / name) as file,
    ):
        file.write_bytes(b"x")
    assert not isinstance(raised.value, OutputError) and not os.listdir(tmp_path)


def test_weights_that_were_never_downloaded(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for name, content in (("model.pt", POINTER), ("model.ts", POINTER)):
        (models / name).write_text(content)
        assert "Git LFS" in undownloaded(models / name) and "git lfs pull" in undownloaded(models / name)
    (models / "whole.pt").write_bytes(b"PK\x03\x04")
    assert undownloaded(models / "whole.pt") == "" and undownloaded(models / "other.pt") == ""
    (tmp_path / "large_files.yml").touch()
    command = f"python -m monai.bundle download_large_files --bundle_path {tmp_path}"
    assert command in undownloaded(models / "other.pt") and command in undownloaded(models / "model.pt")
    assert undownloaded(models / "whole.pt") == ""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "/out/aaaa"),
        RuntimeError("SaveImage cannot find a suitable writer. OSError: [Errno 36] File name too long: '/out/aaaa'"),
        OSError("[Errno 36] File name too long"),
    ],
)
def test_a_name_that_a_bundles_own_writer_finds_too_long_is_said_in_words(error):
    assert explain(error) == "A name would be too long for the disk. Give the scan a shorter file name."
