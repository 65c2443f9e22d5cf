# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that is watched: who touched it, where, with what, to the byte.

`Machine.watch` makes a `Watch`; what each kind of machine knows of its memory is its `Ground`.
A range is watched as physical memory, as it was mapped at the beginning: accesses by any other
address of the same memory are seen, too, and told of by the address that was given. Memory
management units and whoever writes from outside make no accesses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs

from allocator.types import ADDRESS_MASK
from emulator.faults import BadCall
from emulator.watching import Access, Range
from kernels.tracing import UntilStopped
from machine.types import Pointer, View

MOST = 1 << 20  # bytes that are watched at once
_KINDS = {"r": (True, False), "w": (False, True), "rw": (True, True), "wr": (True, True)}


class Ground(Protocol):
    """What a machine knows of its memory."""

    @property
    def order(self) -> str:
        """Which byte of a word comes first."""
        ...

    def frame(self, address: int) -> int | None:
        """Return the physical address of a virtual one; None where nothing is mapped."""
        ...

    def read(self, physical: int, size: int) -> bytes:
        """Return bytes of physical memory."""
        ...

    def attach(self, watched: Range) -> Callable[[], None]:
        """Let a range be told of accesses; returns what ends that. BadCall in the middle of code."""
        ...

    def function(self) -> str:
        """Return the function of a kernel in Python that makes the access; empty: guest code."""
        ...


class Named(Protocol):
    """A machine, as far as names of places go."""

    @property
    def modules(self) -> Mapping[str, Any]:
        """Modules by name."""
        ...

    @property
    def functions(self) -> Mapping[str, Any]:
        """Symbols of the kernel."""
        ...

    def symbolize(self, address: int) -> str | None:
        """Return what lies at an address."""
        ...


@attrs.frozen
class Touch:
    """One access to watched memory.

    Parameters
    ----------
    pc
        The instruction that made it; where a kernel in Python did, the instruction behind the
        call; None: nobody saw it, only what it left.
    where
        Its place: `name+0xoff/0xsize [module]`, with the function of a kernel in Python in front.
    kind
        `read`, `write`, or `changed`: bytes are others, and no instruction was seen to store them
        (from outside of the guest, or by one that the emulator tells of no hook).
    address, size
        What was accessed; it may begin before the range, and end behind it.
    old, new
        What stood and stands in the part of it that lies in the range.
    order
        Which byte of a word comes first.
    """

    pc: int | None
    where: str
    kind: str
    address: int
    size: int
    old: bytes
    new: bytes
    order: Any = attrs.field(default="little", repr=False)

    @property
    def old_value(self) -> int:
        """What stood there, as a number."""
        return int.from_bytes(self.old, self.order)

    @property
    def new_value(self) -> int:
        """What stands there, as a number."""
        return int.from_bytes(self.new, self.order)

    def __str__(self) -> str:
        what = f"{self.kind} of {self.size} at {self.address:#x}"
        values = f"{self.old_value:#x}"
        if self.kind != "read":
            values += f" -> {self.new_value:#x}"
        return f"{what}: {values}, by {self.where}"


class Watch(UntilStopped):
    """Memory that is watched until `stop`; a context manager. Made by `Machine.watch`.

    `address` and `size` are what is watched, `count` the accesses, `dropped` those beyond the limit.
    """

    def __init__(
        self,
        machine: Named,
        ground: Ground,
        address: int,
        size: int,
        kinds: str,
        limit: int,
        callback: Callable[[Touch], object] | None,
    ) -> None:
        if kinds not in _KINDS:
            raise BadCall("watch", f"{kinds!r}: expected r, w or rw")
        if not 0 < size <= MOST:
            raise BadCall("watch", f"{size} bytes: 1 to {MOST:#x} can be watched at once")
        self._machine, self._ground = machine, ground
        self.address, self.size = address & ADDRESS_MASK, size
        self.limit, self.callback = limit, callback
        self._hits: list[Touch] = []
        self.count = self.dropped = 0
        self._names: dict[int, str] = {}
        reads, writes = _KINDS[kinds]
        self._range = Range(
            self._pieces(),
            ground.read,
            self._accessed,
            reads=reads,
            writes=writes,
            before=ground.frame(self.address - 1),
            order=ground.order,
        )
        self._detach: Callable[[], None] | None = ground.attach(self._range)

    def _pieces(self) -> list[tuple[int, int]]:
        """Return the pieces of physical memory that it is; BadCall where nothing is mapped."""
        pieces: list[tuple[int, int]] = []
        at, end = self.address, self.address + self.size
        while at < end:
            length = min(end - at, 4096 - at % 4096)
            physical = self._ground.frame(at)
            if physical is None:
                raise BadCall("watch", f"nothing is mapped at {at:#x}")
            if pieces and sum(pieces[-1]) == physical:
                pieces[-1] = pieces[-1][0], pieces[-1][1] + length
            else:
                pieces.append((physical, length))
            at += length
        return pieces

    @property
    def hits(self) -> list[Touch]:
        """The accesses so far, the first ones of them where they are more than the limit."""
        if self._detach is not None:
            self._range.check()
        return self._hits

    def _accessed(self, access: Access) -> None:
        self.count += 1
        if self.callback is None and len(self._hits) >= self.limit:
            self.dropped += 1
            return
        kind = "changed" if access.pc is None else "write" if access.write else "read"
        touch = Touch(
            access.pc,
            self._where(access.pc),
            kind,
            self.address + access.offset & ADDRESS_MASK,
            access.size,
            access.old,
            access.new,
            self._ground.order,
        )
        if len(self._hits) < self.limit:
            self._hits.append(touch)
        else:
            self.dropped += 1
        if self.callback is not None:
            self.callback(touch)

    def _where(self, pc: int | None) -> str:
        if pc is None:
            return "nobody that was seen"
        name = self._names.get(pc)
        if name is None:
            name = self._names[pc] = self._machine.symbolize(pc) or f"{pc:#x}"
        function = self._ground.function()
        return f"{function}() for {name}" if function else name

    def stop(self) -> None:
        """Watch no more; a second time does nothing."""
        detach, self._detach = self._detach, None
        if detach is not None:
            self._range.check()
            detach()


def place_of(machine: Named, what: int | str | View, size: int | None) -> tuple[int, int]:
    """Return address and size of what is to be watched.

    Parameters
    ----------
    what
        An address; `[MODULE:]NAME[+OFFSET]`; a view, or a pointer, for what it points at.
    size
        Bytes; None: as the type says.

    Raises
    ------
    BadCall
        There is no such place, or its size is not known.
    """
    if isinstance(what, Pointer):
        what = what.target_ if size is None else int(what)
    if isinstance(what, View):
        return what.address_, what.type_.size if size is None else size
    address = _named(machine, what) if isinstance(what, str) else int(what)
    if size is None:
        raise BadCall("watch", f"{what if isinstance(what, str) else hex(what)}: how many bytes?")
    return address, size


def _named(machine: Named, text: str) -> int:
    title, colon, rest = text.rpartition(":")
    name, plus, offset = rest.partition("+")
    try:
        further = int(offset, 0) if plus else 0
    except ValueError:
        raise BadCall(text, f"{offset!r} is no offset") from None
    if colon and title != "vmlinux":
        module = machine.modules.get(title.replace("-", "_"))
        if module is None:
            raise BadCall(text, "no such module is loaded", ", ".join(sorted(machine.modules)))
        return int(module.address_of(name)) + further
    kernel = machine.functions.get(name)
    if kernel is not None:
        return int(kernel.address) + further
    having = [each for each in machine.modules.values() if name in each.symbols]
    if len(having) == 1:
        return int(having[0].address_of(name)) + further
    if having:
        names = ", ".join(sorted(each.name for each in having))
        raise BadCall(text, f"several modules have it: {names}", f"write {having[0].name}:{name}")
    raise BadCall(text, "neither the kernel nor a module has such a symbol")
