# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted kernels on disk: whole or not there, whatever happens to files and processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import archs
from emulator.boards import board_of
from emulator.boards.board import Board
from kernels.booted import cache
from kernels.booted.starting import Parameters, Place

MEMORY = 4 << 20
FACTS = {
    "name": "vmlinuz",
    "release": "6.1.0-test",
    "arch": "arm64",
    "memory": MEMORY,
    "command_line": "",
}
PLACE = Place(trap=0x1000, jiffies=None, idle=((0x10, 0x20),), off=(0x30,))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let kernels be kept in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "execmem" / "kernels"


def board(arch: archs.Arch) -> Board:
    """Return a computer with little memory."""
    return board_of(arch, MEMORY)


def filled(arch: archs.Arch) -> Board:
    """Return one that something has happened to."""
    found = board(arch)
    found.ram.write(found.ram.start + 0x5000, b"what was booted")
    found.wires.console += b"hello\n"
    found.clock.now = 12_345
    found.set(arch.runs.calling.arguments[0], 0x1234)
    return found


def test_what_is_stored_is_fetched(own: Path, arch: archs.Arch) -> None:
    """What is stored is fetched."""
    cache.store("key", filled(arch), PLACE, FACTS, {"names": b"\0"})
    entry = cache.look("key")
    assert entry is not None
    assert entry.facts == FACTS
    other = board(arch)
    assert cache.fetch(entry, other) == PLACE
    assert other.ram.read(other.ram.start + 0x5000, 15) == b"what was booted"
    assert bytes(other.wires.console) == b"hello\n"
    assert other.clock.now == 12_345
    assert other.get(arch.runs.calling.arguments[0]) == 0x1234
    assert entry.size < MEMORY  # holes stay holes
    assert [found.key for found in cache.entries()] == ["key"]
    assert not [path for path in own.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "memory", MEMORY // 2),
        lambda folder: os.truncate(folder / "state.json", 100),
        lambda folder: (folder / "state.json").write_text("{}"),
        lambda folder: (folder / "state.json").write_text("[]"),
        lambda folder: (folder / "memory").unlink(),
    ],
)
def test_what_is_damaged_is_not_there(own: Path, arch: archs.Arch, damage: object) -> None:
    """What is damaged is not there."""
    cache.store("key", filled(arch), PLACE, FACTS, {})
    entry = cache.look("key")
    assert entry is not None
    damage(own / "key")  # type: ignore[operator] # a function each
    again = cache.look("key")
    other = board(arch)
    assert again is None or cache.fetch(entry, other) is None
    cache.store("key", filled(arch), PLACE, FACTS, {})
    entry = cache.look("key")
    assert entry is not None
    assert cache.fetch(entry, other) == PLACE


def test_the_key_is_of_everything_that_a_boot_follows_from() -> None:
    """The key is of everything that a boot follows from."""
    given = [
        ("image", Parameters(), "1"),
        ("other", Parameters(), "1"),
        ("image", Parameters(memory=1 << 29), "1"),
        ("image", Parameters(command_line="x"), "1"),
        ("image", Parameters(cpu="x"), "1"),
        ("image", Parameters(kaslr=1), "1"),
        ("image", Parameters(kaslr=2), "1"),
        ("image", Parameters(), "2"),
    ]
    keys = [cache.key_of(*each) for each in given]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache.key_of(*given[0])


def test_what_a_dead_process_left_goes(own: Path, arch: archs.Arch) -> None:
    """What a dead process left goes."""
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    left = own / f".busy-{gone.pid}-abc"
    left.mkdir(parents=True)
    (left / "memory").write_bytes(b"half")
    cache.store("key", filled(arch), PLACE, FACTS, {})
    assert sorted(path.name for path in own.iterdir()) == ["key"]


STORE = """
import sys
sys.path.insert(0, {root!r})
from tests.kernels.booted.test_cache import PLACE, FACTS, filled
from kernels.booted import cache
import archs
board = filled(archs.arch({arch!r}))
while True:
    cache.store("key", board, PLACE, FACTS, {{}})
    import shutil
    shutil.rmtree(cache.folder() / "key", ignore_errors=True)
    print("stored", flush=True)
"""


def test_a_process_that_is_killed_leaves_nothing_half(own: Path, arch: archs.Arch) -> None:
    """A process that is killed leaves nothing half."""
    root = str(Path(__file__).parents[3])
    code = STORE.format(root=root, arch=arch.name)
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ}
        )
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        entry = cache.look("key")
        if entry is not None:
            assert cache.fetch(entry, board(arch)) == PLACE


def test_two_at_once_store_one(own: Path, arch: archs.Arch) -> None:
    """Two at once store one."""
    first, second = filled(arch), filled(arch)
    cache.store("key", first, PLACE, FACTS, {})
    cache.store("key", second, PLACE, FACTS, {})
    assert [entry.key for entry in cache.entries()] == ["key"]
    assert json.loads((own / "key" / "state.json").read_bytes())["facts"] == FACTS


def test_the_least_used_goes_where_there_is_too_much(
    own: Path, arch: archs.Arch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least used goes where there is too much."""
    monkeypatch.setattr(cache, "LIMIT", 150_000)
    for number in range(4):
        cache.store(str(number), filled(arch), PLACE, FACTS, {"types": bytes(50_000)})
        os.utime(own / str(number) / "state.json", (number, number))
    kept = [entry.key for entry in cache.entries()]
    assert kept[0] == "3"
    assert len(kept) < 4
    assert cache.clear() == len(kept)
    assert not own.exists()
