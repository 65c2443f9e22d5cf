# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of a kernel that booted here beside a recorded one: who decides each differing byte.

Both were patched by the kernel itself. Its own tables, as they stand in the image, say what may
be patched, and by what.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from archs import Arch
from machine.booted.machine import BootedMachine
from tests.archs.facts import facts

Place = tuple[int, int, str]  # address, bytes, what decides them

_CALLBACK = 0x8000  # of an alternative's feature: a function writes the code (asm/alternative.h)
_JUMP = np.dtype([("at", "<i4"), ("target", "<i4"), ("key", "<i8")])  # struct jump_entry
_CALL = np.dtype([("at", "<i4"), ("key", "<i4")])  # struct static_call_site
_FLAGS = 3  # in the low bits of a key's address
_BRANCH, _CALLED = 5, 6  # bytes of a branch, or a static call, at the most
_LITERAL = 8
_SHAPED, _AROUND = "__jump_table (found by shape)", 16  # what stands around it may look alike


@attrs.frozen
class RecordedText:
    """A kernel's text as it was in a recorded boot's memory.

    Parameters
    ----------
    folder
        Of the boot.
    """

    folder: Path

    @property
    def told(self) -> dict[str, Any]:
        """What whoever recorded it wrote down: places, digests, how many entries tables have."""
        found: dict[str, Any] = json.loads((self.folder / "ktext.json").read_text())
        return found

    @property
    def start(self) -> int:
        """Where it begins."""
        return int(self.told["stext"], 16)

    @property
    def capabilities(self) -> frozenset[int]:
        """The numbers of the features that the kernel had found."""
        told = json.loads((self.folder / "caps.json").read_text())
        (words,) = (told[k] for k in ("x86_capability", "cpucaps", "riscv_isa") if k in told)
        pairs = [str(word).partition("*32+") for word in words]
        return frozenset(int(a) * 32 + int(b) if b else int(a) for a, _, b in pairs)

    def patched(self, image: bytes) -> bytes:
        """Return it, made of the image's text; both have the recorded digests."""
        told, text = self.told, bytearray(image)
        assert hashlib.sha256(text).hexdigest() == told["sha256_file"]
        data = lzma.decompress((self.folder / "ktext.diff.xz").read_bytes())
        count = told["runs"]
        gaps = np.frombuffer(data, "<u4", count).tolist()
        lengths = np.frombuffer(data, "<u2", count, 4 * count).tolist()
        at, taken = 0, 6 * count
        for gap, length in zip(gaps, lengths, strict=True):
            at += gap
            text[at : at + length] = data[taken : taken + length]
            at, taken = at + length, taken + length
        assert hashlib.sha256(text).hexdigest() == told["sha256_memory"]
        return bytes(text)


@attrs.frozen
class Differing:
    """Bytes of a kernel's text that are others than the recorded ones.

    Parameters
    ----------
    compared
        How many were compared.
    decided
        What decides them -> how many.
    unexplained
        Address and symbol of those that no table has.
    """

    compared: int
    decided: Counter[str]
    unexplained: list[tuple[int, str]]


def compare(machine: BootedMachine, recorded: RecordedText, found: frozenset[int]) -> Differing:
    """Compare a booted kernel's text with a recorded one, by what decides each byte.

    Parameters
    ----------
    found
        Numbers of the features that the kernel found here.
    """
    start, size = recorded.start, int(recorded.told["size"])
    theirs = recorded.patched(machine.image.read(start, size))
    ours = machine.read(start, size)
    wrong = np.flatnonzero(np.frombuffer(ours, "u1") != np.frombuffer(theirs, "u1"))
    tables = _Tables(machine, recorded)
    why: dict[int, str] = {}
    for at, length, reason in tables.places(found ^ recorded.capabilities):
        for each in range(at - start, at - start + length):
            why.setdefault(each, reason)
    symbols = machine.kernel.symbols
    decided: Counter[str] = Counter()
    unexplained = []
    for at in wrong.tolist():
        near = symbols.around(start + at)
        name = near[0] if near else ""
        if at in why:
            decided[why[at]] += 1
        elif name.startswith("__kvm_nvhe_"):  # the table is not named in every kernel
            decided["hypervisor's address"] += 1
        else:
            unexplained.append((start + at, name))
    return Differing(size, decided, unexplained)


@attrs.frozen
class _Tables:
    """A kernel's own tables of what it patches."""

    machine: BootedMachine
    recorded: RecordedText

    @property
    def arch(self) -> Arch:
        return self.machine.arch

    def places(self, features: frozenset[int]) -> Iterator[Place]:
        """Yield what may differ between boots whose CPUs differ in some features."""
        yield from self._alternatives(features)
        yield from self._runtime()
        yield from self._keyed("static_call_sites", _CALL, _CALLED)
        yield from self._keyed("__jump_table", _JUMP, _BRANCH)
        start, table = self._table("__hyp_reloc_begin", "__hyp_reloc_end", np.dtype("<i4"))
        for at in _targets(table, start, 4, 0):
            yield at, _LITERAL, "hypervisor's address"
        for name, at in self.machine.kernel.symbols.every():
            if name.startswith("__SCT__"):
                yield at, _BRANCH, f"key {name.removeprefix('__SCT__')}"

    def _table(self, first: str, end: str, kind: np.dtype[Any]) -> tuple[int, NDArray[Any]]:
        """Return address and entries of a table; none where the kernel does not name it."""
        symbols = self.machine.kernel.symbols
        if first not in symbols or end not in symbols:
            return 0, np.zeros(0, kind)
        start = symbols[first]
        size = (symbols[end] - start) // kind.itemsize * kind.itemsize
        return start, np.frombuffer(self.machine.image.read(start, size), kind)

    def _alternatives(self, features: frozenset[int]) -> Iterator[Place]:
        first, end, fields = facts(self.arch).patch.alternatives
        version = self.machine.image.version or (0, 0, 0)
        kind = np.dtype(list(fields[max(since for since in fields if since <= version[:2])]))
        start, table = self._table(first, end, kind)
        if not start:
            told = self.recorded.told["table_entries"]
            start, count = int(told["at"], 16), told[".altinstructions (found by shape)"]
            data = self.machine.image.read(start, count * kind.itemsize)
            table = np.frombuffer(data, kind)
        step = kind.itemsize
        code = _targets(table["at"], start, step, 0)
        new = _targets(table["new"], start, step, 4)
        numbers, sizes = table["cap"].tolist(), table["size"].tolist()
        for number, size, address in zip(numbers, sizes, code, strict=True):
            if number & ~_CALLBACK in features:
                yield address, size, "alternatives"
        for number, size, address, function in zip(numbers, sizes, code, new, strict=True):
            if number & _CALLBACK:
                near = self.machine.kernel.symbols.around(function)
                yield address, size, f"callback {near[0] if near else hex(function)}"

    def _runtime(self) -> Iterator[Place]:
        pointer, shift = facts(self.arch).patch.runtime_constants
        for name, start in self.machine.kernel.symbols.every():
            for begin, size in (("ptr", pointer), ("shift", shift)):
                if name.startswith(f"__start_runtime_{begin}_"):
                    end = name.replace("__start_", "__stop_")
                    _, words = self._table(name, end, np.dtype("<i4"))
                    for at in _targets(words, start, 4, 0):
                        yield at, size, "runtime constant"

    def _keyed(self, name: str, kind: np.dtype[Any], size: int) -> Iterator[Place]:
        """Yield code that goes by keys, and the key's name."""
        symbols, is_named = self.machine.kernel.symbols, True
        start, table = self._table(f"__start_{name}", f"__stop_{name}", kind)
        if not start and kind is _JUMP:
            start, table = self._by_shape()
            is_named = False
        at = _targets(table["at"], start, kind.itemsize, 0)
        keys = _targets(table["key"], start, kind.itemsize, kind.itemsize - table["key"].itemsize)
        named: dict[int, str] = {}
        for address, flagged in zip(at, keys, strict=True):
            key = flagged & ~_FLAGS
            if key not in named:
                # A kernel that names no data: where the key is asked first.
                near = symbols.around(key if is_named else address)
                named[key] = near[0].removeprefix("__SCK__") if near else hex(key)
            yield address, size, f"key {named[key]}"

    def _by_shape(self) -> tuple[int, NDArray[Any]]:
        """Return address and entries of a table of branches that no symbol names.

        It is a row of entries that lead from code to code, as long as whoever recorded it found.
        """
        count = self.recorded.told["table_entries"][_SHAPED]
        image = self.machine.image
        (segment,) = image.segments
        data = image.read(segment.address + 8, segment.size - 8)
        table = np.frombuffer(data, _JUMP, len(data) // _JUMP.itemsize)
        own = np.arange(len(table), dtype=np.int64) * _JUMP.itemsize + 8
        at, to, key = own + table["at"], own + 4 + table["target"], own + 8 + table["key"]
        good = (at % 4 == 0) & (to % 4 == 0) & (at != to) & (key % 8 <= _FLAGS)
        for place in (at, to, key):
            good &= (place > 0) & (place < segment.size)
        edges = np.flatnonzero(np.diff(good, prepend=False, append=False)).reshape(-1, 2)
        lengths = edges[:, 1] - edges[:, 0]
        (found,) = np.flatnonzero((lengths >= count) & (lengths < count + _AROUND)).tolist()
        first, end = edges[found].tolist()
        return segment.address + int(own[first]), table[first:end]


def _targets(words: NDArray[Any], start: int, step: int, offset: int) -> list[int]:
    """Return what words of a table lead to that are distances from themselves."""
    own = np.arange(len(words), dtype=np.int64) * step + offset
    return [(start + each) & (1 << 64) - 1 for each in (words.astype(np.int64) + own).tolist()]
