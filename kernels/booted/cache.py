# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted kernels on disk: what took seconds once takes none the next time.

An entry is a folder: `memory`, a file with holes that is mapped as it is, and `state.json`. It
is written beside its place and renamed, so it is whole or not there, whoever dies meanwhile and
however many do the same; one that is in use may be deleted, as files may.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from allocator.types import GIB
from emulator.boards.board import EMULATOR, Board
from emulator.boards.state import State
from emulator.ram import Frozen
from kernels.booted.starting import Parameters, Place

LIMIT = 4 * GIB  # bytes on disk of all entries
_FORMAT = 4
_MEMORY, _STATE = "memory", "state.json"
_FACTS = ("name", "release", "arch", "command_line")  # that every entry tells
_BUSY = ".busy-"
_BLOCK = 512  # what st_blocks counts


@attrs.frozen(kw_only=True)
class Entry:
    """One booted kernel.

    Parameters
    ----------
    key
        What it is found by.
    folder
        Where it lies.
    facts
        What is told of it: kernel, architecture, parameters.
    size
        Bytes on disk.
    """

    key: str
    folder: Path
    facts: Mapping[str, Any]
    size: int


def folder() -> Path:
    """Return where entries lie: `execmem/kernels` under XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "execmem" / "kernels"


def key_of(image: str, parameters: Parameters, version: str) -> str:
    """Return the key of a kernel's file, what it was booted with, and who booted it.

    Parameters
    ----------
    image
        SHA-256 of the file.
    parameters
        What else the boot followed from.
    version
        The product's.
    """
    what = [_FORMAT, version, EMULATOR, attrs.asdict(parameters), image]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def entries() -> Iterator[Entry]:
    """Yield what there is, what was used last first."""
    found = []
    try:
        folders = [path for path in folder().iterdir() if not path.name.startswith(".")]
    except OSError:
        return
    for path in folders:
        try:
            state = json.loads((path / _STATE).read_bytes())
            used = (path / _STATE).stat().st_mtime_ns
            entry = _entry(path, state["facts"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append((used, entry))
    for _, entry in sorted(found, key=lambda pair: -pair[0]):
        yield entry


def clear() -> int:
    """Delete every entry; return how many there were."""
    count = sum(1 for _ in entries())
    shutil.rmtree(folder(), ignore_errors=True)
    return count


def store(
    key: str,
    board: Board,
    place: Place,
    facts: Mapping[str, Any],
    files: Mapping[str, bytes],
) -> None:
    """Keep a booted kernel. What cannot be written is not kept.

    Parameters
    ----------
    key
        What it is to be found by.
    board
        The computer that it stands in.
    place
        What watching it takes.
    facts
        What to tell of it.
    files
        What else to keep beside it: name -> contents.
    """
    try:
        folder().mkdir(parents=True, exist_ok=True)
        _sweep()
        busy = Path(tempfile.mkdtemp(prefix=f"{_BUSY}{os.getpid()}-", dir=folder()))
        try:
            fd = os.open(busy / _MEMORY, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                board.ram.save(fd)
            finally:
                os.close(fd)
            for name, data in files.items():
                (busy / name).write_bytes(data)
            document = {
                "facts": dict(facts),
                "size": board.ram.size,
                "place": attrs.asdict(place),
                "state": _plain(board.save()),
                "console": _text(bytes(board.wires.console)),
            }
            (busy / _STATE).write_text(json.dumps(document))
            # What is there was not whole, or another process was as quick; who uses it keeps it.
            shutil.rmtree(folder() / key, ignore_errors=True)
            busy.rename(folder() / key)
        except OSError:
            shutil.rmtree(busy, ignore_errors=True)  # another has stored it, or the disk is full
        _bound()
    except OSError:
        return


def look(key: str) -> Entry | None:
    """Return a kept kernel; None where it is not there."""
    path = folder() / key
    try:
        return _entry(path, json.loads((path / _STATE).read_bytes())["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entry(path: Path, facts: Mapping[str, Any]) -> Entry:
    for name in _FACTS:
        if not isinstance(facts[name], str):
            raise TypeError(name)
    blocks = sum(member.stat().st_blocks for member in path.iterdir())
    return Entry(key=path.name, folder=path, facts=facts, size=blocks * _BLOCK)


def fetch(entry: Entry, board: Board) -> Place | None:
    """Let a computer become a kept kernel; None, and it is deleted, where it is not whole."""
    path = entry.folder
    try:
        document = json.loads((path / _STATE).read_bytes())
        fd = os.open(path / _MEMORY, os.O_RDONLY)
    except (OSError, ValueError):
        return None
    frozen = Frozen(fd)
    try:
        stored = document["place"]
        place = Place(
            trap=stored["trap"],
            jiffies=stored["jiffies"],
            idle=tuple((start, end) for start, end in stored["idle"]),
            off=tuple(stored["off"]),
        )
        state = _state(document["state"])
        console = base64.b64decode(document["console"])
        whole = os.fstat(fd).st_size == document["size"] == board.ram.size
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        frozen.close()
        shutil.rmtree(path, ignore_errors=True)
        return None
    board.wires.console[:] = console
    board.thaw(frozen, state)
    place.watch(board)
    with suppress(OSError):
        os.utime(path / _STATE)
    return place


def _plain(state: State) -> dict[str, Any]:
    plain = attrs.asdict(state)
    plain["context"] = _text(state.context)
    return plain


def _state(plain: Mapping[str, Any]) -> State:
    return State(
        context=base64.b64decode(plain["context"]),
        registers=dict(plain["registers"]),
        clock=(plain["clock"][0], plain["clock"][1]),
        devices=tuple(plain["devices"]),
        pending=tuple(plain["pending"]),
        console=plain["console"],
        sites=tuple(plain["sites"]),
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _sweep() -> None:
    """Delete what processes left that died while they wrote."""
    for path in folder().glob(f"{_BUSY}*"):
        owner = path.name[len(_BUSY) :].partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _bound() -> None:
    """Delete what was not used for longest, where there is too much."""
    total = 0
    for number, entry in enumerate(list(entries())):
        total += entry.size
        if total > LIMIT and number:
            shutil.rmtree(entry.folder, ignore_errors=True)
