# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that is looked at: every load and store of the guest that touches it, to the byte.

Hooks are bounded to physical addresses, so a page is watched by whatever address it is reached.
While there is one, all loads and stores that are translated take the emulator's slow path (some
nanoseconds each); code is translated anew before the first one and after the last, so nothing
is left of it. What no hook tells of (an arm64 `dc zva`, and whoever stores from outside) is
found by what stands there: `Range.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import attrs
import unicorn
from unicorn import unicorn_const as uc_const

from archs.levels.run import BlockClear

_NOWHERE = (1 << 64) - 1  # where there is no physical memory
_NOWHERE = (1 << 64) - 2  # a physical address that nothing has
WIDEST = 16  # bytes that an access may begin before what it touches


@attrs.frozen
class Access:
    """An access that touches watched memory.

    Parameters
    ----------
    pc
        The instruction; None: nobody saw it, only what it left.
    offset, size
        What is accessed, in bytes from the start of the watched range (less than 0: it begins
        before it).
    write
        Whether it is a store.
    old, new
        What stood and will stand in the part of the range that is touched.
    """

    pc: int | None
    offset: int
    size: int
    write: bool
    old: bytes
    new: bytes


class Range:
    """A watched range, which one piece of physical memory or several make up.

    Parameters
    ----------
    pieces
        Physical start and size of each, in the order of the addresses that it is known by.
    read
        Returns bytes at a physical address.
    tell
        Called with each access; of a store before it is done. It runs no guest code.
    reads, writes
        Which accesses it is told of.
    before
        Physical address of the byte before the range, where that lies in another page: accesses
        that begin there may reach into it.
    order
        Which byte of a word comes first, `little` or `big`.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[int, int]],
        read: Callable[[int, int], bytes],
        tell: Callable[[Access], object],
        *,
        reads: bool = True,
        writes: bool = True,
        before: int | None = None,
        order: Any = "little",
    ) -> None:
        self._read, self._tell = read, tell
        self._reads, self._writes = reads, writes
        self._order = order
        self.size = sum(size for _, size in pieces)
        # Physical bounds of hooks, and what an address there is as an offset in the range.
        self.spans: list[tuple[int, int, int]] = []
        offset = 0
        for start, size in pieces:
            reach = WIDEST - 1
            if offset == 0 and before is not None and before + 1 != start:
                self.spans.append((before + 2 - WIDEST, before + 1, 1 - WIDEST))
                reach = 0
            elif offset:
                reach = 0  # accesses that begin in the piece before are told of there
            self.spans.append((start - reach, start + size, offset - reach))
            offset += size
        self._pieces = tuple(pieces)
        self._telling = False
        self._expected = self.contents()

    def contents(self) -> bytes:
        """Return what stands there."""
        return b"".join(self._read(start, size) for start, size in self._pieces)

    def refresh(self) -> None:
        """Take what stands there as it is: somebody who need not be told of changed it."""
        self._expected = self.contents()

    def check(self) -> None:
        """Tell of what has changed there and no hook told of."""
        now = self.contents()
        if now == self._expected:
            return
        differing = [at for at, byte in enumerate(now) if byte != self._expected[at]]
        first, end = differing[0], differing[-1] + 1
        old, self._expected = self._expected[first:end], now
        self._told(Access(None, first, end - first, True, old, now[first:end]), self._writes)

    def accessed(self, pc: int | None, offset: int, size: int, data: bytes | None) -> None:
        """Tell of an access that may touch it, before it is done; of a store with its bytes."""
        first, end = max(offset, 0), min(offset + size, self.size)
        if first >= end or self._telling:
            return
        self.check()
        old = self._expected[first:end]
        if data is None:
            self._told(Access(pc, offset, size, False, old, old), self._reads)
            return
        new = data[first - offset : end - offset]
        self._expected = self._expected[:first] + new + self._expected[end:]
        self._told(Access(pc, offset, size, True, old, new), self._writes)

    def word(self, value: int, size: int) -> bytes:
        """Return the bytes of a word that is stored."""
        return (value & (1 << 8 * size) - 1).to_bytes(size, self._order)

    def touched(self, pc: int | None, physical: int, size: int, data: bytes | None) -> None:
        """Tell of an access to a piece of physical memory, which may reach over all of it."""
        for start, end, offset in self.spans:
            if physical < end and start < physical + size:
                self.accessed(pc, offset + physical - start, size, data)

    def stored(self, physical: int, data: bytes) -> None:
        """Take note of bytes that are about to be stored by somebody who need not be told of."""
        for start, end, base in self.spans:
            offset = base + physical - start
            first, last = max(offset, 0), min(offset + len(data), self.size)
            if physical < end and start < physical + len(data) and first < last:
                self.check()
                part = data[first - offset : last - offset]
                self._expected = self._expected[:first] + part + self._expected[last:]

    def _told(self, access: Access, wanted: bool) -> None:
        if not wanted:
            return
        self._telling = True
        try:
            self._tell(access)
        finally:
            self._telling = False


class Watching:
    """What is watched by one engine.

    Parameters
    ----------
    uc
        The engine.
    pc
        Returns the address of the instruction under way, in a hook.
    translate
        Returns the physical address of a virtual one; None where nothing is mapped.
    anew
        Lets all code be translated again; it is called while the engine does not run.
    runs
        Returns whether the engine runs.
    fail
        Ends the run under way, and lets an exception come out of it.
    quiet
        Returns whether the run under way is none of the guest's.
    clears
        The instruction that clears a block of memory without a hook being told; None: there is
        none.
    constants
        Unicorn's of the architecture.
    """

    def __init__(
        self,
        uc: unicorn.Uc,
        *,
        pc: Callable[[], int],
        translate: Callable[[int], int | None],
        anew: Callable[[], object],
        runs: Callable[[], bool],
        fail: Callable[[BaseException], object],
        quiet: Callable[[], bool],
        clears: BlockClear | None,
        constants: ModuleType,
    ) -> None:
        self._uc, self._pc, self._translate = uc, pc, translate
        self._anew, self._runs, self._fail, self._quiet = anew, runs, fail, quiet
        self._clears, self._constants = clears, constants
        self._ranges: dict[Range, list[Any]] = {}
        self._clearing: Any = None
        self._slow = False  # whether code that is translated tells of accesses
        self._held: Any = None  # a hook that is never called

    @property
    def ranges(self) -> tuple[Range, ...]:
        """What is watched."""
        return tuple(self._ranges)

    @property
    def ready(self) -> bool:
        """Whether a range that is added now is told of all accesses from here on."""
        return self._slow or not self._runs()

    def add(self, watched: Range) -> None:
        """Watch a range; RuntimeError where code under way would not tell of it (`ready`)."""
        if not self.ready:
            raise RuntimeError("code that runs would not tell of accesses")
        kinds = uc_const.UC_HOOK_MEM_READ | uc_const.UC_HOOK_MEM_WRITE
        self._ranges[watched] = [
            self._uc.hook_add(kinds, self._hook(watched, start, offset), None, start, end - 1)
            for start, end, offset in watched.spans or ((_NOWHERE, _NOWHERE + 1, 0),)
        ]
        if self._clears is not None and self._clearing is None:
            number = getattr(self._constants, self._clears.hook)
            self._clearing = self._uc.hook_add(
                uc_const.UC_HOOK_INSN, self._cleared, None, 1, 0, number
            )
        if not self._slow:
            self._slow = True
            self._anew()

    def hold(self) -> None:
        """Let code tell of accesses, so that ranges can be added while some is under way."""
        if self._held is None:
            kinds = uc_const.UC_HOOK_MEM_READ | uc_const.UC_HOOK_MEM_WRITE
            self._held = self._uc.hook_add(kinds, _never, None, _NOWHERE, _NOWHERE)
            if not self._slow:
                self._slow = True
                self._anew()

    def let_go(self) -> None:
        """Do so only where something is watched; while no code is under way."""
        if self._held is not None:
            self._uc.hook_del(self._held)
            self._held = None
            if not self._ranges:
                self._slow = False
                self._anew()

    def remove(self, watched: Range) -> None:
        """Watch a range no more; nothing where it is not watched."""
        for handle in self._ranges.pop(watched, ()):
            self._uc.hook_del(handle)
        if not self._ranges and not self._runs():
            if self._clearing is not None:
                self._uc.hook_del(self._clearing)
                self._clearing = None
            if self._slow and self._held is None:
                self._slow = False
                self._anew()

    def each(
        self, callback: Callable[[int, int, int, bytes | None], object], order: Any
    ) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        """Return what begins, pauses and ends telling of every access.

        Begun and paused at any time; RuntimeError where code under way would not tell (`ready`).
        A hook that never fires lets code that is translated meanwhile tell of accesses.

        Parameters
        ----------
        callback
            Called as `callback(pc, physical, size, data)`, with the bytes of a store.
        """
        nothing = Range((), lambda _start, _size: b"", lambda _access: None, order=order)
        self.add(nothing)
        hooks: list[Any] = []

        def hook(
            _uc: unicorn.Uc, access: int, address: int, size: int, value: int, _data: object
        ) -> None:
            if self._quiet():
                return
            data = nothing.word(value, size) if access == uc_const.UC_MEM_WRITE else None
            try:
                callback(self._pc(), address, size, data)
            except BaseException as error:  # noqa: BLE001 -- comes out of the run
                self._fail(error)

        def begin() -> None:
            if not hooks:
                kinds = uc_const.UC_HOOK_MEM_READ | uc_const.UC_HOOK_MEM_WRITE
                hooks.append(self._uc.hook_add(kinds, hook))

        def pause() -> None:
            while hooks:
                self._uc.hook_del(hooks.pop())

        return begin, pause, lambda: self.remove(nothing)

    def refresh(self) -> None:
        """Take what stands there as it is; see `Range.refresh`."""
        for watched in self._ranges:
            watched.refresh()

    def check(self) -> None:
        """Tell of what has changed and no hook told of."""
        for watched in tuple(self._ranges):
            watched.check()

    def touch(self, address: int, size: int, data: bytes | None) -> None:
        """Tell of an access that an instruction makes which is carried out outside of the engine."""
        physical = self._translate(address) if self._ranges else None
        if physical is not None:
            for watched in tuple(self._ranges):
                watched.touched(self._pc(), physical, size, data)

    def _hook(self, watched: Range, start: int, base: int) -> Callable[..., None]:
        def hook(
            _uc: unicorn.Uc, access: int, address: int, size: int, value: int, _data: object
        ) -> None:
            if self._quiet():
                return
            data = watched.word(value, size) if access == uc_const.UC_MEM_WRITE else None
            try:
                watched.accessed(self._pc(), base + address - start, size, data)
            except BaseException as error:  # noqa: BLE001 -- comes out of the run
                self._fail(error)

        return hook

    def _cleared(self, _uc: unicorn.Uc, _register: int, cp: Any, _data: object) -> bool:
        """Tell of a block that is cleared; False: the emulator does it."""
        clears = self._clears
        assert clears is not None
        if (cp.op0, cp.op1, cp.crn, cp.crm, cp.op2) != clears.code or self._quiet():
            return False
        physical = self._translate(cp.val & -clears.size)
        if physical is not None:
            try:
                for watched in tuple(self._ranges):
                    watched.touched(self._pc(), physical, clears.size, bytes(clears.size))
            except BaseException as error:  # noqa: BLE001 -- comes out of the run
                self._fail(error)
        return False


def _never(*_args: object) -> None:
    """Stand there."""
