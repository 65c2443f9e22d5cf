# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted kernel's heap with guard pages, for what modules allocate.

The kernel's allocators are met at their first instruction. Where a module called them, or a function
of the kernel that allocates for its caller (kmemdup, kvmalloc ...), the object is put into a pool of
pages of the direct map (`kernels.guarding`), so that `virt_to_page` and the like find what they would;
everybody else gets what the kernel gives. Who frees an object of the pool, kernel code too, is met in
the same way. Which functions allocate, and which argument is what, the kernel's types say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from struct import unpack

from emulator.boards.guards import Guards
from emulator.faults import BadCall, Fault
from kernels.booted.guest import GFP_KERNEL, GFP_ZERO, Guest
from kernels.findings import Finding, FindingKind, Site
from kernels.guarding import WORD, Pool, PoolState, Wrong
from kernels.prototypes import Prototype
from machine.booted.functions import Functions
from machine.booted.locks import member
from machine.sanitizing import Sanitizer

ORDER = 3  # of breakpoints: behind stubs, which stand in for the kernel
ZERO_SIZE_PTR = 16  # what kmalloc(0) returns (include/linux/slab.h)
PAGE = 4096  # bytes that the emulator closes memory by; a guest's pages are as many or more
_OFFSETS = 4096  # less than this, kvfree_call_rcu() is given an offset (until 6.3)
_STACK = 24  # words of the stack in which a caller's caller is looked for
_DEEP = 128  # and in which a backtrace is
_FRAMES = 16
_ALLOCATES = r"_*(?:kmalloc|kmem_cache_alloc)(?:_[a-z_]*)?"
_NOT = re.compile(r"bulk|sheaf|nolock|fix_flags|roundup|slab|array|reserve|index")
_SIZES, _FLAGS = ("orig_size", "size"), ("flags", "gfpflags", "gfp")
_PAGES = ("alloc_pages_exact_noprof", "alloc_pages_exact")
_REALLOC = ("krealloc_node_align_noprof", "krealloc_noprof", "krealloc")
_TYPESAFE = 0x80000  # SLAB_TYPESAFE_BY_RCU: freed objects may be looked at


class GuardedHeap:
    """The guarded objects of one machine.

    Parameters
    ----------
    guest
        Its kernel.
    functions
        The kernel's functions.
    name
        Returns what lies at an address, or None.
    owner
        Returns the name of the module whose text lies at an address, or "".
    disassemble
        Returns the instruction at an address.
    sanitizer
        Who is told.
    """

    def __init__(
        self,
        guest: Guest,
        functions: Functions,
        name: Callable[[int], str | None],
        owner: Callable[[int], str],
        disassemble: Callable[[int], str],
        sanitizer: Sanitizer,
    ) -> None:
        self._guest, self._board = guest, guest.board
        self._functions, self._name, self._owner = functions, name, owner
        self._disassemble, self._sanitizer = disassemble, sanitizer
        self._kernel = functions.text
        calling = guest.arch.runs.calling
        self._arguments = [self._board.number(each) for each in calling.arguments]
        self._link = None if calling.link is None else self._board.number(calling.link)
        self._size = Pool.size_of(PAGE)
        with guest.unwatched():
            self._start = guest.call_by_name(_PAGES, self._size, GFP_KERNEL)
        physical = self._board.translate(self._start) if self._start else None
        if physical is None:
            raise BadCall("sanitize", f"the kernel has no {self._size:#x} bytes in a row")
        self._offset = self._start - physical
        self._guards = Guards(self._board, physical, self._size, self._touched)
        self._put_off: list[tuple[int, Site]] = []  # frees that wait for RCU
        self._stacks: dict[int, int] = {}  # pages of the process' stack -> physical
        self._caches: dict[int, tuple[int, int] | None] = {}
        for slot in (pool := Pool(self, self._start, PAGE)).slots:
            self._guards.divide(slot.start - self._offset, slot.end - slot.start)
            self._guards.guard(slot.end - self._offset, slot.guard)
        self.pool = pool
        self._look_away = self._board.breaks.add_inside(self._handlers(), ORDER)
        guest.on_return.append(self._returned)
        guest.on_given_up.append(self._given_up)

    def end(self) -> None:
        """Guard nothing more; objects that are not freed stay where they are."""
        self._look_away()
        self._guest.on_return.remove(self._returned)
        self._guest.on_given_up.remove(self._given_up)
        self._guards.end()

    # Pages ------------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of the pool."""
        return self._board.ram.read(address - self._offset, size)

    def write(self, address: int, data: bytes) -> None:
        """Store bytes in the pool."""
        self._board.ram.write(address - self._offset, data)

    def close(self, address: int, size: int) -> None:
        """Let nobody touch pages of the pool."""
        self._guards.close(address - self._offset, size)

    def open(self, address: int, size: int) -> None:
        """Let them be touched again."""
        del size
        self._guards.open(address - self._offset)

    # Who is met -------------------------------------------------------------------------------------

    def _handlers(self) -> Iterator[tuple[int, Callable[[], int | None]]]:
        symbols = self._guest.symbols
        met: set[int] = set()
        for name, prototype in self._allocators():
            address = symbols[name]
            if address not in met:
                met.add(address)
                yield address, self._allocator(prototype)
        if not met:
            reason = "the kernel has no types that say what its allocators take"
            self._sanitizer.lacks.append(f"guard: {reason}")
        plain = {
            "kfree": self._kfree,
            "kfree_sensitive": self._kfree,
            "kzfree": self._kfree,
            "kfree_nolock": self._kfree,
            "kmem_cache_free": self._cache_free,
            "kmem_cache_free_bulk": self._bulk_free,
            "ksize": self._ksize,
            "__ksize": self._ksize,
            "kvfree_call_rcu": self._rcu_free,
            **dict.fromkeys(_REALLOC, self._krealloc),
        }
        for name, handler in plain.items():
            if name in symbols and symbols[name] not in met:
                met.add(symbols[name])
                yield symbols[name], self._unless_apart(handler)

    def _allocators(self) -> Iterator[tuple[str, Prototype]]:
        for name, _ in self._functions.own(_ALLOCATES):
            if not _NOT.search(name):
                function = self._functions.entry("sanitize", name).function
                prototype = self._functions.prototype(function)
                if prototype is None or not prototype.result.pointer:
                    continue
                named = {param.name: param.type for param in prototype.params}
                sized = [n for n in _SIZES if n in named and not named[n].pointer]
                if any(n in named for n in _FLAGS) and (sized or "s" in named):
                    yield name, prototype

    def _unless_apart(self, handler: Callable[[], int | None]) -> Callable[[], int | None]:
        def reached() -> int | None:
            return None if self._guest.apart else handler()

        return reached

    def _allocator(self, prototype: Prototype) -> Callable[[], int | None]:
        """Return what stands before an allocator."""
        names = [param.name for param in prototype.params]
        flags = names.index(next(name for name in _FLAGS if name in names))
        sized = [names.index(name) for name in _SIZES if name in names]
        cache = names.index("s") if "s" in names and not sized else None

        def reached() -> int | None:
            guest = self._guest
            if guest.apart:
                return None
            returns = self._return_address()
            whose = self._asks(returns)
            if not whose:
                return None
            align = WORD
            if cache is None:
                size = self._argument(sized[0])
            else:
                kind = self._cache(self._argument(cache))
                if kind is None:
                    return None
                size, align = kind[0], max(kind[1], WORD)
            if not size:
                return None
            site = self._site(returns)
            zero = bool(self._argument(flags) & GFP_ZERO)
            address = self.pool.alloc(size, whose, site, align=align, zero=zero)
            return None if address is None else guest.return_from(returns, address)

        return reached

    def _return_address(self) -> int:
        """Return where the function returns to that has just been entered."""
        if self._link is not None:
            return self._board.get_number(self._link)
        found = _words(self._top(1))
        return found[0] if found else self._guest.return_address()

    def _argument(self, number: int) -> int:
        return self._board.get_number(self._arguments[number])

    def _asks(self, returns: int) -> str:
        """Return the module for which an allocation is made; empty for none."""
        if returns not in self._kernel:
            return self._owner(returns) or "?"
        for word in _words(self._top(_STACK)):
            if word not in self._kernel and (whose := self._owner(word)):
                return whose
        return ""

    def _cache(self, address: int) -> tuple[int, int] | None:
        """Return size and alignment of a cache's objects; None where they are left to it."""
        if address not in self._caches:
            self._caches[address] = self._read_cache(address)
        return self._caches[address]

    def _read_cache(self, address: int) -> tuple[int, int] | None:
        types = self._functions.types_of(None)
        if types is None:
            return None
        try:
            values = [
                self._guest.word(address + offset, size)
                for offset, size in (
                    member(types, "kmem_cache", name)
                    for name in ("object_size", "align", "flags", "ctor")
                )
            ]
        except LookupError:
            return None
        size, align, flags, constructor = values
        return None if constructor or flags & _TYPESAFE else (size, align)

    # Freeing ----------------------------------------------------------------------------------------

    def _kfree(self) -> int | None:
        return self._freed(self._argument(0))

    def _cache_free(self) -> int | None:
        return self._freed(self._argument(1))

    def _freed(self, address: int) -> int | None:
        if address not in self.pool:
            return None
        returns = self._return_address()
        self._free(address, self._site(returns))
        return self._guest.return_from(returns, 0)

    def _free(self, address: int, site: Site) -> None:
        wrong = self.pool.free(address, site)
        if wrong is not None:
            raise self._fault(wrong, address, site(), self._board.pc)

    def _bulk_free(self) -> int | None:
        """Free what is ours of an array, and leave the rest to the kernel."""
        count, array = self._argument(1), self._argument(2)
        guest = self._guest
        objects = [guest.word(array + 8 * at) for at in range(count)]
        others = [each for each in objects if each not in self.pool]
        if len(others) == count:
            return None
        returns = self._return_address()
        site = self._site(returns)
        for each in objects:
            if each in self.pool:
                self._free(each, site)
        if not others:
            return guest.return_from(returns, 0)
        self._board.write(array, b"".join(each.to_bytes(8, "little") for each in others))
        self._board.set_number(self._arguments[1], len(others))
        return None

    def _rcu_free(self) -> int | None:
        head, what = self._argument(0), self._argument(1)
        address = head - what if head and what < _OFFSETS else what
        if address not in self.pool:
            return None
        returns = self._return_address()
        self._put_off.append((address, self._site(returns)))
        return self._guest.return_from(returns, 0)

    def _returned(self) -> None:
        """Free what waited for RCU, once nobody is in a call."""
        if self._put_off and self._guest.depth == 1 and not self._guest.apart:
            waiting, self._put_off = self._put_off, []
            for address, site in waiting:
                wrong = self.pool.free(address, site)
                if wrong is not None:
                    self._sanitizer.found(self._finding(wrong, address, site()))

    def _given_up(self, _stack: int) -> None:
        self._board.forget_addresses()  # of the access that was refused

    def alloc_outside(self, size: int) -> int | None:
        """Return the address of a zeroed object that nobody in the guest asked for, or None."""
        return self.pool.alloc(size, "", _outside, align=1, zero=True)

    def free_outside(self, address: int) -> bool:
        """Free it; False where it is none of ours. What the guest has freed is left alone."""
        if address not in self.pool:
            return False
        held = self.pool.at(address)
        if held is not None and held.freed is None:
            wrong = self.pool.free(address, _outside)
            if wrong is not None:
                self._sanitizer.found(self._finding(wrong, address, ()))
        return True

    def _ksize(self) -> int | None:
        address = self._argument(0)
        if address not in self.pool:
            return None
        return self._guest.return_from(self._return_address(), self.pool.size(address))

    def _krealloc(self) -> int | None:
        address, size = self._argument(0), self._argument(1)
        if address not in self.pool:
            return None
        guest, returns = self._guest, self._return_address()
        site, found = self._site(returns), self.pool.at(address)
        if not size or found is None or found.freed is not None:
            self._free(address, site)
            return guest.return_from(returns, ZERO_SIZE_PTR)
        made = self.pool.alloc(size, found.whose, site, zero=True)
        if made is None:
            return guest.return_from(returns, 0)
        self.write(made, self.read(address, min(found.size, size)))
        self._free(address, site)
        return guest.return_from(returns, made)

    # What is wrong ----------------------------------------------------------------------------------

    def _touched(self, physical: int, size: int, write: bool, exact: bool) -> None:
        address = physical + self._offset
        wrong = self.pool.blame(address, size, write=write)
        if wrong is None:  # between the last guard and the end of the pages
            wrong = Wrong(FindingKind.OUT_OF_BOUNDS, f"access of {size} bytes to a guard page")
        pc = self._board.pc
        if not exact:
            wrong = Wrong(wrong.kind, f"{wrong.reason} (there or soon behind)", wrong.object)
        raise self._fault(wrong, address, (self._named(pc), *self._frames()), pc)

    def _finding(self, wrong: Wrong, address: int, places: tuple[str, ...]) -> Finding:
        where = places[0] if places else ""
        return Finding(wrong.kind, where, wrong.reason, address, wrong.object, places[1:])

    def _fault(self, wrong: Wrong, address: int, places: tuple[str, ...], pc: int) -> Fault:
        finding = self._finding(wrong, address, places)
        return self._sanitizer.fault(finding, pc, self._disassemble(pc))

    def look(self) -> None:
        """Look at the red zones of all objects that are not freed."""
        for held in self.pool.live():
            wrong = self.pool.overwritten(held)
            if wrong is not None:
                self._sanitizer.found(self._finding(wrong, held.address, ()))

    # Places -----------------------------------------------------------------------------------------

    def _top(self, count: int) -> bytes:
        """Return words on top of the stack, up to where the call under way began, or a page ends."""
        board, guest = self._board, self._guest
        sp = board.sp & -8
        size = min(8 * count, -sp % PAGE or PAGE)
        if not guest.on_own_stack():
            try:
                return board.read(sp, size)
            except LookupError:
                return b""
        page = sp & -PAGE
        physical = self._stacks.get(page)
        if physical is None:  # the process keeps its stack
            physical = board.translate(page)
            if physical is None:
                return b""
            self._stacks[page] = physical
        size = min(size, max(guest.base - sp, 0))
        return board.ram.read(physical + sp - page, size)

    def _site(self, returns: int) -> Site:
        """Return a place whose callers are looked up when somebody asks."""
        stack = self._top(_DEEP)

        def names() -> tuple[str, ...]:
            frames = [at for at in _words(stack) if self._is_return(at)]
            first = [returns] if frames[:1] != [returns] else []
            return tuple(map(self._named, [*first, *frames][:_FRAMES]))

        return names

    def _frames(self) -> tuple[str, ...]:
        link = self._guest.arch.runs.calling.link
        first = [] if link is None else [self._board.get(link)]
        here = self._named(self._board.pc).partition("+")[0]
        if first and self._named(first[0]).partition("+")[0] == here:
            first = []  # of a function that it called before
        frames = [at for at in (*first, *_words(self._top(_DEEP))) if self._is_return(at)]
        return tuple(map(self._named, frames[:_FRAMES]))

    def _is_return(self, address: int) -> bool:
        """Return whether an address may be one that a call returns to."""
        return address != self._guest.trap and (
            address in self._kernel or bool(self._owner(address))
        )

    def _named(self, address: int) -> str:
        return self._name(address) or f"{address:#x}"

    # Going back -------------------------------------------------------------------------------------

    def state(self) -> PoolState:
        """Return what is allocated, for `set_state`."""
        return self.pool.state()

    def set_state(self, state: PoolState) -> None:
        """Have allocated what was then."""
        self.pool.set_state(state)
        self._put_off.clear()
        self._caches.clear()


def _words(data: bytes) -> tuple[int, ...]:
    count = len(data) // 8
    return unpack(f"<{count}Q", data[: 8 * count])


def _outside() -> tuple[str, ...]:
    return ("a place outside the guest",)
