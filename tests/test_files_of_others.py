"""What several processes, or damaged files, could do to files: locks, leftovers, names, lines."""

import os

import pytest
from filelock import FileLock, UnixFileLock

from grata.errors import GrataError, OutputError
from grata.files import append_line, is_file_name, is_inside, locked, remove_leftovers


@pytest.mark.parametrize("key, what", [("output_dir", "folder"), ("save_to", "a.safetensors"), ("output", "q.json")])
def test_a_second_process_is_told_who_is_writing(tmp_path, key, what):
    path = tmp_path / what
    if key == "output_dir":
        path.mkdir()
    message = f"{key}: another run is writing to {path}. Wait"
    with locked(path, key=key), pytest.raises(OutputError, match=message), locked(path, key=key):
        pass
    with locked(path, key=key):
        pass


@pytest.mark.parametrize(
    "error", [NotImplementedError("flock"), OSError(37, "No locks available"), PermissionError(13)]
)
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, error):
    def refuse(self):
        raise error

    monkeypatch.setattr(UnixFileLock if os.name == "posix" else FileLock, "_acquire", refuse)
    message = f"{tmp_path} cannot be locked .*on a file system that has locks"
    with pytest.raises(OutputError, match=message), locked(tmp_path):
        pass


def test_only_own_temporary_files_are_removed(tmp_path):
    (tmp_path / "below").mkdir()
    own, *others = (".0123456789ab-a.json", ".0123456789ab-b.json", ".hidden", "a.json", "below/.0123456789ab-a.json")
    for name in (own, *others):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path, "a.json".__eq__)
    assert not (tmp_path / own).exists() and all((tmp_path / name).exists() for name in others)
    remove_leftovers(tmp_path)
    assert not (tmp_path / others[0]).exists() and (tmp_path / others[3]).exists()
    remove_leftovers(tmp_path / "missing")


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "/etc/passwd", "../a", "a/", "a\0b", None, 7, ["a"], "x" * 256])
def test_what_is_no_name_of_a_file(name):
    assert not is_file_name(name)


@pytest.mark.parametrize("name", ["a", "...", "a..b", ".hidden", "..a", "a b\n", "\u00e4"])
def test_what_is_a_name_of_a_file(name):
    assert is_file_name(name)


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
def test_what_lies_inside_a_folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (folder / "in").symlink_to("sub")
    (folder / "round").symlink_to("round")
    assert all(is_inside(folder, folder / name) for name in ("a", "sub/a", "in/a", "sub/../a", "missing/a"))
    assert not any(is_inside(folder, folder / name) for name in ("out/a", "../a", "sub/../../a", "/etc/a"))
    (tmp_path / "link").symlink_to(folder)
    assert is_inside(tmp_path / "link", tmp_path / "link" / "sub" / "a")


@pytest.mark.parametrize("before", [b"", b"first\n", b"first", b"\xff"])
def test_a_line_that_was_cut_short_does_not_swallow_the_next(tmp_path, before):
    path = tmp_path / "lines"
    if before:
        path.write_bytes(before)
    append_line(path, "next")
    append_line(path, "\u00e4")
    kept = [before.rstrip(b"\n")] if before else []
    assert path.read_bytes().split(b"\n") == [*kept, b"next", "\u00e4".encode(), b""]


def test_what_cannot_be_removed_is_named(tmp_path):
    from grata.files import remove_file

    (tmp_path / "folder").mkdir()
    with pytest.raises(GrataError, match="folder cannot be removed"):
        remove_file(tmp_path / "folder")
