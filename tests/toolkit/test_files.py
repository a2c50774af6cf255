from pathlib import Path

import pytest
from offload.errors import InputError
from offload.files import staged_file, staged_folder, temporary_folder, write_text


def write_half(path: Path) -> None:
    with staged_file(path) as staged:
        staged.write_text("half")
        raise OSError(28, "full")


def write_half_a_folder(path: Path) -> None:
    with staged_folder(path) as staged:
        (staged / "a").write_text("half")
        raise OSError(28, "full")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    for write in (write_half, write_half_a_folder):
        with pytest.raises(OSError, match="full") as caught:
            write(tmp_path / "a")
        assert caught.value.filename == str(tmp_path)
    with pytest.raises(InputError, match="folder for temporary files"), temporary_folder():
        raise OSError(28, "full")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="full"):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for text in ("old", "new"):
        with staged_folder(path) as staged:
            (staged / "a").write_text(text)
        assert (path / "a").read_text() == text
    with pytest.raises(OSError, match="full"):
        write_half_a_folder(path)
    assert (path / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_parent_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist: create it first"):
        write_text(tmp_path / "no" / "a.txt", "")
    with pytest.raises(InputError, match="does not exist"), staged_folder(tmp_path / "no" / "b"):
        pass


def test_files_are_readable_like_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
