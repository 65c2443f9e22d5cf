# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of live text that can be taken back, and who made them.

Every byte goes through text_poke with the bytes that must stand there before, several
changes all or none. Tracers claim what they change: two of them never hold the same bytes,
and what was there before is known as long as the change lasts. Memory may go away under a
change (init text is freed, a module unloaded); such a change is over by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import attrs
from sortedcontainers import SortedDict

from allocator import Allocation, Execmem
from allocator.types import Consumer, MemType
from emulator.cpu import Cpu
from kernels.tracing import PatchRefused

PatchPiece: TypeAlias = tuple[int, bytes]
Running: TypeAlias = Callable[[], Iterable[tuple[Cpu, int | None]]]


@attrs.frozen(eq=False)
class Claim:
    """One claimed change: what stood at `address`, and what stands there now."""

    owner: str
    address: int
    old: bytes
    new: bytes
    allocation: Allocation


class Patches:
    """The claimed changes of one machine's text.

    Parameters
    ----------
    execmem
        Where text lies, and how it is poked.
    where
        Address -> name, for messages.
    running
        Yields the CPUs that are in a call, and the address at which those that wait do.
    """

    def __init__(self, execmem: Execmem, where: Callable[[int], str], running: Running) -> None:
        self._execmem = execmem
        self.where = where
        self.running = running
        self._live = SortedDict()  # address -> Claim

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes of text as they stand."""
        return self._execmem.memory.read(address, size)

    def original(self, address: int, size: int) -> bytes:
        """Return `size` bytes of text as they stood before any claimed change."""
        code = bytearray(self.read(address, size))
        for patch in self._within(address, size):
            for offset, byte in enumerate(patch.old, patch.address - address):
                if 0 <= offset < size:
                    code[offset] = byte
        return bytes(code)

    def owner(self, address: int, size: int) -> str:
        """Return who holds a change in [address, address + size), or an empty string."""
        return next((patch.owner for patch in self._within(address, size)), "")

    def holds(self, patch: Claim) -> bool:
        """Return whether the memory that a change was made in is still there."""
        return self._execmem.find(patch.address) is patch.allocation

    def poke(self, what: str, changes: Iterable[tuple[int, bytes, bytes]]) -> None:
        """Write (address, new, old), all of them or none, and synchronise all CPUs.

        Raises
        ------
        PatchRefused
            A CPU waits in the middle of what would be written.
        PokeError
            Other bytes than the old ones stand there, or text is not poked at all.
        """
        changes = list(changes)
        for address, new, _ in changes:
            for cpu, pc in self.running():
                if pc is not None and address < pc < address + len(new):
                    reason = f"CPU {cpu.number} waits at {pc:#x}, inside what would be written"
                    raise PatchRefused(what, address, self.where(address), reason)
        self._execmem.poke_many(changes)

    def claim(self, what: str, owner: str, changes: Iterable[tuple[int, bytes]]) -> list[Claim]:
        """Change (address, new) for `owner`, until `release`.

        Raises
        ------
        PatchRefused
            Somebody else holds a change there, or it is no text that can be changed.
        PokeError
            This architecture, or this machine, does not poke.
        """
        patches = []
        for address, new in changes:
            allocation = self._execmem.find(address)
            if allocation is None or address + len(new) > allocation.interval.end:
                raise PatchRefused(what, address, self.where(address), "no finished text there")
            holder = self.owner(address, len(new))
            if holder:
                raise PatchRefused(what, address, self.where(address), f"{holder} is there")
            old = self.read(address, len(new))
            patches.append(Claim(owner, address, old, new, allocation))
        self.poke(what, ((p.address, p.new, p.old) for p in patches))
        self._live.update((patch.address, patch) for patch in patches)
        return patches

    def release(self, patches: Iterable[Claim]) -> None:
        """Take changes back, where their memory is still there; PokeError, nothing taken back."""
        patches = list(patches)
        self.poke("restore", ((p.address, p.old, p.new) for p in patches if self.holds(p)))
        for patch in patches:
            if self._live.get(patch.address) is patch:
                del self._live[patch.address]

    def make(
        self,
        consumer: Consumer,
        size: int,
        align: int,
        parts: Callable[[int], Iterable[PatchPiece]],
    ) -> Allocation:
        """Return `size` bytes of new text for a consumer.

        Parameters
        ----------
        parts
            Returns what stands in it, by offset, given its address.
        """
        with self._execmem.alloc(MemType.TEXT, size, consumer=consumer, align=align) as pending:
            for offset, code in parts(pending.address):
                pending.write(offset, code)
            return pending.finish()

    def drop(self, made: Allocation) -> None:
        """Free what `make` returned."""
        self._execmem.free(made.address)

    def _within(self, address: int, size: int) -> list[Claim]:
        # No change is longer than 16 bytes.
        near = self._live.irange(address - 16, address + size, inclusive=(True, False))
        found = [self._live[at] for at in near]
        return [p for p in found if p.address + len(p.new) > address and self.holds(p)]
