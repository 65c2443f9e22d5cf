# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call into a booted kernel leaves: locks that are held, preemption, interrupts.

Counters of the process are compared with what they were when the call began, by the kernel's types.
Locks are noted when a module asks a function of the kernel for one, and looked at when the call has
returned; those that the compiler has built in show only in the counter of preemption, if the kernel
has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kernels.booted.guest import Guest
from kernels.findings import Finding, FindingKind
from loader.btf import Btf
from loader.btf_records import Kind
from machine.booted.functions import Functions
from machine.sanitizing import Sanitizer

ORDER = 1  # of breakpoints: who only looks on
_MUTEX = r"mutex_(?:lock|trylock)(?:_interruptible|_killable|_io)?(?:_nested)?"
_SPIN = r"_raw_(?:spin|read|write)_(?:try)?lock(?:_bh|_irq|_irqsave)?(?:_nested)?"
_OWNER_FLAGS = 7  # low bits of a mutex' owner that are none of the pointer (kernel/locking/mutex.c)
_COUNTERS = {
    "thread_info.preempt_count": "preemption is disabled",
    "rcu_read_lock_nesting": "rcu_read_lock() is held",
    "migration_disabled": "migration is disabled",
    "lockdep_depth": "locks are held (lockdep)",
}
# Per-cpu variables with the counter of preemption, and the member where it is a structure's.
_PER_CPU = (("pcpu_hot", "preempt_count"), ("__preempt_count", ""))
_COUNTED = 0x7FFFFFFF  # the highest bit says, inverted, that somebody else is to run


def member(types: Btf, structure: str, path: str) -> tuple[int, int]:
    """Return offset and bytes of a member; LookupError where types do not tell them."""
    outer = types.find(structure, Kind.STRUCT)
    place = None if outer is None else types.place(outer.number, path)
    if place is None or place.bits:
        raise LookupError(f"{structure}.{path}")
    return place.bytes, types.size_of(place.type)


class Locks:
    """What calls leave, of one machine.

    Parameters
    ----------
    guest
        Its kernel.
    functions
        The kernel's functions.
    name
        Returns what lies at an address, or None.
    sanitizer
        Who is told.
    """

    def __init__(
        self,
        guest: Guest,
        functions: Functions,
        name: Callable[[int], str | None],
        sanitizer: Sanitizer,
    ) -> None:
        self._guest, self._board, self._name = guest, guest.board, name
        self._functions, self._sanitizer = functions, sanitizer
        self._first = self._board.number(guest.arch.runs.calling.arguments[0])
        with guest.unwatched():
            self._task = guest.call_by_name(("find_task_by_vpid",), 1)
        self._counters = dict(self._find(functions.types_of(None)))
        if not any("preempt" in what for what in self._counters):
            said = "the kernel counts no preemption: spinlocks that are built in are not seen"
            sanitizer.lacks.append(f"locks: {said}")
        self._asked: dict[int, tuple[str, int]] = {}  # lock -> kind, who asked
        self._called = 0
        self._before = self._values()
        self._look_away = self._board.breaks.add_inside(self._handlers(), ORDER)
        guest.on_enter.append(self._entered)
        guest.on_return.append(self._returned)

    def end(self) -> None:
        """Look at nothing more."""
        self._look_away()
        self._guest.on_enter.remove(self._entered)
        self._guest.on_return.remove(self._returned)

    def _find(self, types: Btf | None) -> Iterator[tuple[str, tuple[int, int, str]]]:
        """Yield what counts: name -> address, bytes, what it means."""
        if types is None:
            return
        for path, meaning in _COUNTERS.items():
            try:
                offset, size = member(types, "task_struct", path)
            except LookupError:
                continue
            yield path, (self._task + offset, size, meaning)
        symbols = self._guest.symbols
        offsets = symbols.get("__per_cpu_offset")
        for name, path in _PER_CPU:
            if name not in symbols or offsets is None:
                continue
            try:
                offset, size = member(types, name, path) if path else (0, 4)
            except LookupError:
                continue
            at = symbols[name] + self._guest.word(offsets) & (1 << 64) - 1
            yield "preempt_count", (at + offset, size, _COUNTERS["thread_info.preempt_count"])
            return

    def _values(self) -> dict[str, int]:
        found = {
            name: int.from_bytes(self._board.read(at, size), "little") & _COUNTED
            for name, (at, size, _) in self._counters.items()
        }
        found["interrupts"] = int(self._board.interruptible())
        return found

    def _handlers(self) -> Iterator[tuple[int, Callable[[], int | None]]]:
        for kind, pattern in (("mutex", _MUTEX), ("spinlock", _SPIN)):
            for _, address in self._functions.own(pattern):
                yield address, self._noter(kind)

    def _noter(self, kind: str) -> Callable[[], int | None]:
        guest, text = self._guest, self._functions.text

        def reached() -> None:
            if not guest.apart and (returns := guest.return_address()) not in text:
                self._asked[self._board.get_number(self._first)] = kind, returns

        return reached

    def _entered(self, address: int) -> None:
        self._called = address
        self._asked.clear()
        self._before = self._values()

    def _returned(self) -> None:
        if self._guest.depth != 1 or self._guest.apart:
            return
        where = self._name(self._called) or f"{self._called:#x}"
        for lock, (kind, asked) in self._asked.items():
            if self._is_held(kind, lock):
                by = self._name(asked) or f"{asked:#x}"
                reason = f"the {kind} at {lock:#x} that {by} took is held after the call"
                self._sanitizer.found(Finding(FindingKind.LOCK, where, reason, lock))
        self._asked.clear()
        for name, now in self._values().items():
            before = self._before[name]
            if name == "interrupts":
                if now < before:
                    reason = "interrupts are masked after the call"
                    self._sanitizer.found(Finding(FindingKind.LOCK, where, reason))
            elif now != before:
                meaning = self._counters[name][2]
                reason = f"{meaning} {now - before:+d} times after the call ({name})"
                self._sanitizer.found(Finding(FindingKind.LOCK, where, reason))

    def _is_held(self, kind: str, lock: int) -> bool:
        try:
            if kind == "mutex":
                return self._guest.word(lock) & ~_OWNER_FLAGS == self._task
            word = self._guest.word(lock, 4)
        except LookupError:  # its memory is gone
            return False
        # Free is 0 of a queued lock, and two equal halves of a ticket lock.
        return word & 0xFFFF != word >> 16
