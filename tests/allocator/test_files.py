# SPDX-License-Identifier: GPL-2.0-or-later
"""Files: what is read is a file, what is written is whole or not there."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from allocator.errors import ExecmemError
from allocator.files import open_regular, read_regular, replacing, write_file


def listed(folder):
    """Return what is in a folder."""
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("contents", [b"", b"bytes\x00\xff", "text \u00e9\n", "a\udc80b"])
def test_what_is_written_is_there(tmp_path, contents):
    """Bytes as they are, text as UTF-8, and what UTF-8 lacks escaped."""
    file = tmp_path / "file"
    write_file(file, contents)
    wanted = (
        contents if isinstance(contents, bytes) else contents.encode("utf-8", "backslashreplace")
    )
    assert read_regular(file) == wanted
    assert listed(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")]
)
@pytest.mark.parametrize("there", [True, False])
def test_what_fails_leaves_everything_as_it_was(tmp_path, error, there):
    """Whatever ends the writing, the file is as before, and nothing lies beside it."""
    file = tmp_path / "file"
    if there:
        file.write_text("before")
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ExecmemError

    def fail(out):
        out.write(b"half")
        raise error

    with pytest.raises(kind), replacing(file) as out:
        fail(out)
    assert listed(tmp_path) == ["file"] * there
    assert not there or file.read_text() == "before"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_as_for_any_new_file(tmp_path, mask):
    """A new file's permissions follow the umask; one that exists keeps its own."""
    before = os.umask(mask)
    try:
        write_file(tmp_path / "new", b"")
        (tmp_path / "old").touch(0o604)
        (tmp_path / "old").chmod(0o604)
        write_file(tmp_path / "old", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o604


def test_a_link_stays_a_link(tmp_path):
    """What a link leads to is replaced, be it there yet or not."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("to-be")
    write_file(tmp_path / "link", "new")
    write_file(tmp_path / "dangling", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "real").read_text() == (tmp_path / "to-be").read_text() == "new"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ExecmemError, match="loop: Too many levels"):
        write_file(tmp_path / "loop", "x")


def test_devices_and_pipes_are_written_to(tmp_path):
    """They stay what they are; a pipe that nobody reads is refused at once."""
    write_file("/dev/null", b"x")
    assert Path("/dev/null").is_char_device()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ExecmemError, match="fifo: is a pipe that nobody reads"):
        write_file(fifo, b"x")
    got = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    while not got and reader.is_alive():
        try:
            write_file(fifo, b"y" * 200_000)  # more than a pipe holds
            break
        except ExecmemError:  # not opened yet
            continue
    reader.join(10)
    assert got == [b"y" * 200_000]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/file", "No such file or directory"),
        (".", "Is a directory"),
        ("a\0b", "null byte"),
        ("n" * 300, "File name too long"),
    ],
)
def test_names_that_cannot_be_written(tmp_path, name, reason):
    """The error names the file and the reason in one line."""
    with pytest.raises(ExecmemError, match=reason) as refused:
        write_file(tmp_path / name, b"")
    assert str(refused.value).isprintable()


def test_the_longest_name_can_be_written(tmp_path):
    """What lies beside a file has a short name of its own."""
    write_file(tmp_path / ("n" * 255), b"x")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_is_read_only_is_kept(tmp_path):
    """That its folder may be written to does not matter."""
    file = tmp_path / "file"
    file.write_text("kept")
    file.chmod(0o444)
    with pytest.raises(ExecmemError, match="Permission denied"):
        write_file(file, b"x")
    assert file.read_text() == "kept"


def test_only_files_are_opened(tmp_path):
    """A pipe is refused without its writer noticing; so are folders, devices, and nothing at all."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="is a pipe"):
        open_regular(tmp_path / "fifo")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="is a device"):
        open_regular("/dev/null")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
    with pytest.raises(ValueError, match="null byte"):
        open_regular("a\0b")
