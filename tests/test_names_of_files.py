"""Names of files that the locale cannot write, or that are not text at all, are names like others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grata.files import atomic_write, is_file_name, on_disk, plainly_named

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have Unicode names alone")

NAMES = ("Größe_é", "患者", "plain")
ODD = b"odd_\xff\xe9"

IN_ANOTHER_LOCALE = """
import os
import sys
from pathlib import Path
from grata.files import append_line, atomic_write, check_output_dir, expanded, is_file_name, on_disk

assert sys.getfilesystemencoding() == "ascii"
folder = Path(sys.argv[1])
for name in (os.fsencode(name).decode() for name in sys.argv[2:]):
    assert is_file_name(name)
    assert check_output_dir(folder / name) == expanded(f"{folder}/{name}")
    with atomic_write(on_disk(folder / name) / f"{name}.nii.gz") as temporary:
        temporary.write_bytes(b"x")
    append_line(on_disk(folder / name / "journal"), name)
    assert on_disk(folder / name / f"{name}.nii.gz").is_file()
"""


def test_a_locale_without_letters_for_names(tmp_path):
    environment = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", IN_ANOTHER_LOCALE, tmp_path, *NAMES]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert sorted(os.listdir(tmp_path / name)) == sorted([f"{name}.nii.gz", "journal"])
        assert (tmp_path / name / "journal").read_text("utf-8") == f"{name}\n"


def test_links_stand_for_what_a_library_cannot_name(tmp_path):
    files = [tmp_path / name for name in ("a_0000.nii.gz", os.fsdecode(ODD + b"_0001.nii.gz"), "é_0002.nii.gz")]
    for number, file in enumerate(files):
        file.write_text(str(number))
    with plainly_named(files) as named:
        assert [file.read_text() for file in named] == ["0", "1", "2"]
        assert all(str(file).encode() and file.name.endswith(f"_{n:04d}.nii.gz") for n, file in enumerate(named))
    assert not any(file.exists() for file in named) and all(file.exists() for file in files)
    with plainly_named(files[::2]) as named:
        assert named == files[::2]


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(ODD)])
def test_a_temporary_file_has_letters_that_every_library_writes(name, tmp_path):
    with atomic_write(tmp_path / f"{name}.nii.gz") as temporary:
        assert temporary.name.isascii() and temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"x")
    assert os.listdir(tmp_path) == [f"{name}.nii.gz"]
    assert on_disk(tmp_path / name) == tmp_path / name and is_file_name(name)


def test_what_is_no_name_on_any_disk(tmp_path):
    assert not is_file_name("\ud800")
    assert Path(on_disk("a")) == Path("a")
