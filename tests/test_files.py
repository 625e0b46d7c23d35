import errno
import os

import pytest

from grata.errors import GrataError
from grata.files import atomic_write, check_output_dir


def test_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.nii.gz"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists() and temporary.name.endswith(".nii.gz") and temporary.parent == tmp_path
    assert path.read_bytes() == b"new"
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.nii.gz"]


def test_full_disk_is_reported(tmp_path):
    with pytest.raises(GrataError, match=f"{tmp_path}.*No space left"), atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not os.listdir(tmp_path)


def test_missing_folder_is_reported(tmp_path):
    with pytest.raises(GrataError, match="gone"), atomic_write(tmp_path / "gone" / "a") as temporary:
        temporary.write_bytes(b"x")


def test_output_folder_is_made_and_left_empty(tmp_path):
    folder = check_output_dir(tmp_path / "a" / "b")
    assert folder.is_dir() and not os.listdir(folder)


def test_output_folder_that_is_a_file_or_read_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(GrataError, match="file"):
        check_output_dir(tmp_path / "file")

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(GrataError, match="Read-only file system"):
        check_output_dir(tmp_path)
