# SPDX-License-Identifier: GPL-2.0-or-later
"""What is executed while somebody looks on: `Machine.coverage`.

The emulator's blocks are noted as they are executed (`emulator.blocks`); whose they are is decided
before memory changes hands: when a module has been loaded, before one goes, and when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from archs import Arch
from emulator.blocks import Begun, Blocks, Executed
from emulator.disassembly import Disassembler
from kernels.tracing import UntilStopped
from loader.elfview import ElfView
from loader.loaded import LoadedSection
from machine.covered import Covered, Findings, Lined, Place
from machine.memorytrace import Tracing

KERNEL = "vmlinux"


class Loaded(Protocol):
    """A module that a kernel has loaded."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def sections(self) -> Mapping[int, LoadedSection]:
        """Where its sections are."""
        ...


class Executing(Tracing, Protocol):
    """What a machine knows of its memory, and of what is executed."""

    arch: Arch

    def note_blocks(self, without: range) -> Sequence[Blocks]:
        """Note what is executed from now on but in a range, on each engine."""
        ...

    def text(self) -> range:
        """Return the addresses of the kernel's own code; empty where it has none."""
        ...

    def modules(self) -> Mapping[str, tuple[ElfView, Mapping[int, LoadedSection]]]:
        """Return file and sections of the modules that are loaded, by name."""
        ...


class _Owners:
    """Whose an address is now.

    Parameters
    ----------
    settled
        Modules whose init memory is theirs no more, and the kernel.
    fresh
        Modules whose init memory may be, too.
    """

    def __init__(self, settled: Sequence[Covered], fresh: Sequence[Covered]) -> None:
        spans: dict[int, tuple[int, Covered, int]] = {}
        for covered in (*settled, *fresh):
            init = covered in fresh
            for index, section in covered.code:
                kind = section.type
                if section.size and (init or kind is None or not kind.is_init):
                    spans[section.address] = section.address + section.size, covered, index
        self._starts = sorted(spans)
        self._spans = [spans[start] for start in self._starts]

    def of(self, address: int) -> tuple[Covered, Place] | None:
        """Return whose an address is, and where in it; None: nobody's."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._spans[at][0]:
            return None
        _, covered, index = self._spans[at]
        return covered, (index, address - self._starts[at])


class Coverage(UntilStopped):
    """What is executed until `stop`; a context manager. Made by `Machine.coverage`.

    `found` has what was executed so far, by module, and `covered`, `drcov`, `lcov`, `json` and
    `merge` are those of `machine.covered.Findings`.
    """

    def __init__(self, ground: Executing, watchers: list[Coverage], *, kernel: bool) -> None:
        self._ground = ground
        self._watchers = watchers
        self._kernel = kernel
        self._disassembler = Disassembler(ground.arch)
        self._delays = ground.arch.runs.emulation.delay_slots is not None
        self._pending = Executed()
        self._code: dict[Begun, bytes] = {}
        self._decoded: dict[Begun, tuple[list[tuple[int, int]], bool]] = {}
        self._found = Findings()
        self._blocks: Sequence[Blocks] = ground.note_blocks(range(0) if kernel else ground.text())
        watchers.append(self)

    @property
    def found(self) -> Findings:
        """What was executed so far."""
        if self._blocks:
            self.settle()
        return self._found

    @property
    def covered(self) -> Mapping[str, Covered]:
        """What was executed of each module, and of the kernel (`vmlinux`)."""
        return self.found.covered

    def merge(self, other: Coverage | Findings) -> None:
        """Add what was executed in another run; NotCovered where a file is another."""
        self.found.merge(other.found if isinstance(other, Coverage) else other)

    def drcov(
        self, path: str | Path, *, like: str | Path | None = None, kernel: bool = True
    ) -> int:
        """Write a drcov file; see `machine.covered.Findings.drcov`."""
        return self.found.drcov(path, like=like, kernel=kernel)

    def lcov(self, path: str | Path, **where: Any) -> Lined:
        """Write lcov's `.info`; see `machine.covered.Findings.lcov`."""
        return self.found.lcov(path, **where)

    def json(self, path: str | Path) -> None:
        """Write everything as JSON."""
        self.found.json(path)

    def stop(self) -> None:
        """Look on no more; a second time does nothing."""
        if not self._blocks:
            return
        self.settle()
        for blocks in self._blocks:
            blocks.stop()
        self._blocks = ()
        self._watchers.remove(self)
        self._forget()

    # Whose it is --------------------------------------------------------------------------------

    def settle(self, name: str = "", view: ElfView | None = None, sections: Any = None) -> None:
        """Decide whose is what was executed, as memory is now.

        Parameters
        ----------
        name, view, sections
            A module whose init is over, and whose init memory may be freed by now.
        """
        for blocks in self._blocks:
            taken = blocks.take()
            self._code.update(taken.code)
            taken.code.clear()
            self._pending.add(taken)
        fresh = [] if view is None else [self._of(name, view, sections)]
        owners = _Owners(self._owners(), fresh)
        pending, mine = self._pending, Executed()
        for begun in [each for each in pending.counts if owners.of(each[0])]:
            mine.counts[begun] = pending.counts.pop(begun)
        for key in [each for each in pending.partly if owners.of(each[0][0])]:
            mine.partly[key] = pending.partly.pop(key)
        for edge in [e for e in pending.edges if owners.of(e[0][0]) and owners.of(e[1][0])]:
            mine.edges[edge] = pending.edges.pop(edge)
        self._count(mine, owners)
        self._decoded.clear()
        for begun in (*mine.counts, *(key[0] for key in mine.partly)):
            if begun not in self._pending.counts:
                self._code.pop(begun, None)

    def gone(self) -> None:
        """Forget whose nobody knows: memory is about to change hands."""
        self.settle()
        self._forget()

    def _forget(self) -> None:
        for begun, times in self._pending.counts.items():
            self._found.elsewhere += times * len(self._decode(begun)[0])
        self._pending = Executed()

    def _of(self, name: str, view: ElfView, sections: Mapping[int, LoadedSection]) -> Covered:
        found = self._found.covered.get(name)
        made = Covered.of_module(name, view, sections)
        if found is None or found.digest != made.digest:
            title = name if found is None else f"{name} ({made.digest[:8]})"
            found = self._found.covered.setdefault(title, made)
        if found.sections != made.sections:  # it was loaded again, elsewhere
            found.sections = made.sections
        return found

    def _owners(self) -> list[Covered]:
        """Return what code belongs to."""
        text = self._ground.text() if self._kernel else range(0)
        loaded = self._ground.modules().items()
        owners = [self._of(name, view, sections) for name, (view, sections) in loaded]
        if text:
            kernel = self._found.covered.get(KERNEL)
            if kernel is None:
                section = LoadedSection(".text", None, text.start, len(text))
                kernel = Covered(KERNEL, KERNEL, "", {0: section})
                self._found.covered[KERNEL] = kernel
            owners.append(kernel)
        return owners

    # Instructions -------------------------------------------------------------------------------

    def _count(self, executed: Executed, owners: _Owners) -> None:
        for begun, times in executed.counts.items():
            self._add(begun, begun[1], times, owners)
        for (begun, offset), times in executed.partly.items():
            self._add(begun, offset, times, owners)
        for (before, after), times in executed.edges.items():
            source, target = owners.of(before[0]), owners.of(after[0])
            assert source is not None
            assert target is not None
            covered, (index, offset) = source
            instructions, transfers = self._decode(before)
            if not instructions:
                continue
            if after[0] == before[0] + before[1] and not transfers:
                continue  # it ended for the emulator only
            last = index, offset + instructions[-1 - self._delayed(instructions)][0]
            covered.ends.add((index, offset + instructions[-1][0]))
            target[0].begins.add(target[1])
            edge = covered.name, last, target[0].name, target[1]
            self._found.edges[edge] = self._found.edges.get(edge, 0) + times

    def _delayed(self, instructions: Sequence[tuple[int, int]]) -> int:
        return 1 if self._delays and len(instructions) > 1 else 0

    def _add(
        self,
        begun: Begun,
        size: int,
        times: int,
        owners: _Owners,
    ) -> None:
        found = owners.of(begun[0])
        assert found is not None
        covered, (index, offset) = found
        instructions, transfers = self._decode(begun)
        for at, length in instructions:
            if at < size:
                covered.count((index, offset + at), length, times)
        if transfers and size == begun[1]:
            covered.ends.add((index, offset + instructions[-1][0]))

    def _decode(self, begun: Begun) -> tuple[list[tuple[int, int]], bool]:
        """Return offset and size of a block's instructions, and whether it ends with a transfer."""
        known = self._decoded.get(begun)
        if known is not None:
            return known
        address, size = begun
        code = self._code.get(begun, b"")
        found: list[tuple[int, int]] = []
        at = 0
        for place, length, _ in self._disassembler.all(code, address):
            found.append((place - address, length))
            at = place - address + length
        if at < size:  # what the disassembler does not know counts as one
            found.append((at, size - at))
        last = found[-1 - self._delayed(found)] if found else (0, 0)
        transfers = bool(found) and self._disassembler.transfers(
            code[last[0] : last[0] + last[1]], address + last[0]
        )
        self._decoded[begun] = found, transfers
        return found, transfers
