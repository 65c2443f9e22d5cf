# SPDX-License-Identifier: GPL-2.0-or-later
"""What a fuzzer keeps on disk: the corpus, findings, and how far it is.

Whatever ends the process: a file is there whole or not at all, and a finding is there before the next
input runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from allocator.errors import ExecmemError
from allocator.files import read_regular, reason_of
from execmem.fuzzing.engine import Finding

STATE, CORPUS, CRASHES = "state.json", "corpus", "crashes"
INPUT, REPLAY, REPORT, SCRIPT = "input", "replay.json", "report.txt", "reproduce.py"
_LARGEST = 1 << 24  # bytes of an input


@attrs.define(auto_exc=True, str=False)
class BadFolder(ExecmemError):
    """A file of a fuzzer cannot be read or written, or is none."""

    path: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f"; hint: {self.hint}" if self.hint else ""
        return f"{self.path}: {self.reason}{hint}"


def put(path: Path, contents: bytes | str) -> None:
    """Write a file, so that it is there whole or not at all."""
    data = contents.encode() if isinstance(contents, str) else contents
    try:
        descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(name, path)  # noqa: PTH105 -- a name, not a path
        except BaseException:
            with suppress(OSError):
                os.unlink(name)  # noqa: PTH108 -- the same
            raise
    except OSError as error:
        raise BadFolder(str(path), reason_of(error)) from None


def name_of(data: bytes) -> str:
    """Return what an input of the corpus is called."""
    return hashlib.sha256(data).hexdigest()[:20]


class Folder:
    """A folder of a fuzzer.

    Parameters
    ----------
    path
        Where it is, or is to be made.
    meaning
        What is fuzzed, and how; what was found of something else is not gone on with.

    Raises
    ------
    BadFolder
        It cannot be written, holds something else, or is of another target.
    """

    def __init__(self, path: str | Path, meaning: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.meaning = json.loads(json.dumps(meaning))
        try:
            for each in (self.path, self.path / CORPUS, self.path / CRASHES):
                each.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadFolder(str(path), reason_of(error)) from None
        self.before: dict[str, Any] | None = None
        if (self.path / STATE).exists():
            self.before = self._read_state()

    def _read_state(self) -> dict[str, Any]:
        file = self.path / STATE
        state = read_json(file)
        try:
            meaning = state["meaning"]
            wanted = {"seed": int, "epoch": int, "executions": int, "corpus": list}
            good = all(isinstance(state[name], kind) for name, kind in wanted.items())
            good = good and all(
                isinstance(name, str) and name.isalnum() for name in state["corpus"]
            )
            good = good and isinstance(meaning, dict)
        except (KeyError, TypeError):
            good = False
        if not good:
            raise BadFolder(str(file), "is damaged", f"remove it: {CORPUS} and {CRASHES} are kept")
        for name, value in self.meaning.items():
            if meaning.get(name) != value:
                reason = f"is of another target ({name}: {meaning.get(name)!r:.60})"
                raise BadFolder(str(self.path), reason, "take another --out")
        return state

    def corpus(self) -> list[bytes]:
        """Return the inputs that are kept, in the order in which they were found."""
        order = [] if self.before is None else self.before["corpus"]
        folder = self.path / CORPUS
        try:
            there = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
            names = [*(n for n in order if n in set(there)), *(n for n in there if n not in order)]
            return [read_input(folder / name) for name in names]
        except OSError as error:
            raise BadFolder(str(folder), reason_of(error)) from None

    def known(self) -> dict[str, str]:
        """Return the findings that are there: key -> folder."""
        found = {}
        for each in sorted((self.path / CRASHES).iterdir()):
            if (each / REPLAY).is_file():
                found[read_replay(each)["key"]] = each.name
        return found

    def add(self, data: bytes) -> None:
        """Keep an input."""
        path = self.path / CORPUS / name_of(data)
        if not path.exists():
            put(path, data)

    def save(self, seed: int, epoch: int, executions: int, corpus: Sequence[bytes]) -> None:
        """Keep how far it is."""
        document = {
            "meaning": self.meaning,
            "seed": seed,
            "epoch": epoch,
            "executions": executions,
            "corpus": [name_of(data) for data in corpus],
        }
        put(self.path / STATE, json.dumps(document, indent=1))

    def crash(self, finding: Finding, files: Mapping[str, bytes | str]) -> Path:
        """Keep a finding; what makes it one, `replay.json`, last."""
        folder = self.path / CRASHES / finding.name
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise BadFolder(str(folder), reason_of(error)) from None
        for name in sorted(files, key=lambda name: name == REPLAY):
            put(folder / name, files[name])
        return folder


def read_input(path: Path) -> bytes:
    """Return an input out of a file; BadFolder where it is too large, or cannot be read."""
    try:
        data = read_regular(path)
    except (OSError, ValueError) as error:
        raise BadFolder(str(path), reason_of(error)) from None
    if len(data) > _LARGEST:
        raise BadFolder(str(path), f"is no input: more than {_LARGEST} bytes")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; BadFolder."""
    try:
        found = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "is damaged"
        raise BadFolder(str(path), reason) from None
    if not isinstance(found, dict):
        raise BadFolder(str(path), "is damaged")
    return found


def read_replay(crash: Path) -> dict[str, Any]:
    """Return what a finding's folder says: `setting`, `input`, `key`, `text`; BadFolder."""
    file = crash / REPLAY if crash.is_dir() else crash
    found = read_json(file)
    try:
        bytes.fromhex(found["input"])
        good = all(isinstance(found[name], str) for name in ("input", "key", "text", "kind"))
        good = good and isinstance(found["setting"], dict)
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise BadFolder(str(file), "is damaged")
    return found
