# SPDX-License-Identifier: GPL-2.0-or-later
"""What one CPU has looked up in page tables and translated, until it is told to drop it.

Unicorn can only drop a whole TLB, and does so after cache maintenance; what a CPU looked up
is therefore kept here too and looked up again, until a flush that is meant for this CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import unicorn
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import uclib

from allocator import KernelMemory, PageTable, Prot, Translation
from allocator.types import KIB

PAGE = 4 * KIB  # of the emulator: what it looks up at once, whatever a page of the guest has
PAGE_MASK = -PAGE
# Unicorn drops translated code by virtual address and ignores what is not mapped executable
# at that moment. Caches of real CPUs are maintained by physical address, so while that is
# done, physical memory answers at this window, where no architecture has anything.
PHYSICAL_WINDOW = 0x0070_0000_0000_0000
WATCHED = 1 << 20  # bytes behind physical memory where watched pages answer
LOWER_HALF = 1 << 63  # addresses below belong to the address space that a CPU has loaded
TLB_ENTRIES = 1536
FEW = 4  # pages that are dropped one by one
STALE_RANGES = 512  # of more, all translated code is dropped
_TRANSLATE = uclib.uc_vmem_translate
_TRANSLATE.argtypes = (
    ctypes.c_void_p,
    ctypes.c_uint64,
    ctypes.c_uint32,
    ctypes.POINTER(ctypes.c_uint64),
)
_PERMS = tuple(
    sum(
        bit
        for prot, bit in (
            (Prot.R, uc_const.UC_PROT_READ),
            (Prot.W, uc_const.UC_PROT_WRITE),
            (Prot.X, uc_const.UC_PROT_EXEC),
        )
        if Prot(value) & prot
    )
    for value in range(8)
)
_RIGHTS = {
    uc_const.UC_MEM_READ: Prot.R,
    uc_const.UC_MEM_WRITE: Prot.W,
    uc_const.UC_MEM_FETCH: Prot.X,
}


class Tlb:
    """The TLB and the translated code of one CPU.

    Parameters
    ----------
    uc
        The CPU's engine.
    memory
        The page table that answers misses, and the buffer behind it.
    number
        Which CPU it is; a flush that is meant for one CPU means `memory.this_cpu`.
    refuse
        Ends the run under way, from a hook.
    on_code
        Told of a page and its frame before something is fetched from it.
    view
        Returns by what the emulator keeps apart what it looked up for loads and stores; None: it does not.
    """

    def __init__(
        self,
        uc: unicorn.Uc,
        memory: KernelMemory,
        number: int,
        refuse: Callable[[BaseException], object],
        on_code: Callable[[int, int], object] | None,
        view: Callable[[], int] | None = None,
    ) -> None:
        self._uc = uc
        self._memory = memory
        self._number = number
        self._refuse = refuse
        self._on_code = on_code
        self.running = False  # whether the CPU executes, so that nothing can be put off
        self.missed: tuple[int, int] | None = None  # the page and access that were refused last
        self.dropped = False  # whether there is something for `maintain`
        self.locating: tuple[int, int] | None = None
        self.careful = False  # whether what a load or store looks up is put off, and then
        self.put_off: tuple[int, int] | None = None  # which page and access that was
        self._looking_up = False
        self._mm: PageTable | None = None
        self._guest_mask = -memory.page_size
        # Pages of the guest, by address space: the kernel's upper half, and the lower half of `_mm`.
        self._looked_up: dict[int, Translation] = {}
        self._tagged: dict[int, Translation] = {}
        # Code to be dropped before the next instruction, by physical address.
        self._stale: dict[tuple[int, int], None] = {}
        self._maintaining = False
        self._watched: dict[int, int] = {}
        self._unwanted = -1  # a page that is answered as none that anybody reads, once
        self._left: set[int] = set()  # pages that were
        self._view = view
        self._views: set[int] = set()  # by which something was looked up
        uc.hook_add(uc_const.UC_HOOK_TLB_FILL, self._fill)
        self._unsubscribe = (
            memory.on_tlb_flush(self._flush),
            memory.on_icache_sync(self.sync_icache),
        )

    def close(self) -> None:
        """Stop listening to flushes."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()

    def _fill(
        self,
        _uc: unicorn.Uc,
        address: int,
        access: int,
        entry: unicorn.unicorn.uc_tlb_entry,
        _data: object,
    ) -> bool:
        """Answer a TLB miss from the page table; a refusal is remembered for the fault."""
        if self._maintaining:
            entry.paddr = (address & PAGE_MASK) - PHYSICAL_WINDOW
            entry.perms = uc_const.UC_PROT_EXEC
            return True
        page = address & PAGE_MASK
        if page == self._unwanted:
            self._unwanted = -1
            entry.paddr, entry.perms = self._memory.physical.size, uc_const.UC_PROT_EXEC
            return True
        if self.locating is not None:
            wanted = self.locating == (page, access)
            if wanted or access == uc_const.UC_MEM_WRITE:
                entry.paddr = self._memory.physical.size + PAGE * (not wanted)
                entry.perms = uc_const.UC_PROT_READ | uc_const.UC_PROT_WRITE
                return True
        table, looked_up = self._memory.page_table, self._looked_up
        if self._mm is not None and page < LOWER_HALF:
            table, looked_up = self._mm, self._tagged
        right = _RIGHTS[access]
        whole = page & self._guest_mask
        found = looked_up.get(whole)
        if found is None or not found.prot & right:
            found = table.translate(whole)
            if found is None or not found.prot & right:
                self.missed = (page, access)
                return False
            if len(looked_up) >= TLB_ENTRIES:
                looked_up.clear()
            looked_up[whole] = found
        frame = found.address + page - whole
        if access == uc_const.UC_MEM_FETCH:
            if self._on_code is not None:
                self._on_code(page, frame)
        elif self.careful and self.locating is None and not self._looking_up:
            self.put_off = (page, access)
            return False
        if self._view is not None and access != uc_const.UC_MEM_FETCH:
            self._views.add(self._view())
        entry.paddr = frame
        entry.perms = _PERMS[found.prot.value]
        watched = self._watched.get(page)
        if watched is not None and access != uc_const.UC_MEM_FETCH:
            entry.paddr = watched
        return True

    def look_up(self, page: int, access: int) -> None:
        """Let the emulator look up a page that was put off, while it executes nothing."""
        self.put_off, self._looking_up = None, True
        right = uc_const.UC_PROT_WRITE if access == uc_const.UC_MEM_WRITE else uc_const.UC_PROT_READ
        try:
            _TRANSLATE(self._uc._uch, page, right, ctypes.byref(ctypes.c_uint64()))  # noqa: SLF001 -- the binding has no such method
        finally:
            self._looking_up = False

    def locate(self, page: int, access: int, execute: Callable[[], object]) -> int:
        """Return the address in `page` that an instruction could not access.

        The TLB asks for pages. So the instruction is executed once more, while its page lies
        where physical memory has nothing; that error has an address. Every other page that
        it stores to lies behind that one, so that what it could store has no effect.

        Parameters
        ----------
        execute
            Executes the instruction, and leaves the CPU as it is.
        """
        found: list[int] = []
        nothing = self._memory.physical.size

        def hook(_uc: unicorn.Uc, _access: int, address: int, *_: object) -> bool:
            if address < nothing + PAGE:
                found.append(address - nothing)
            return False

        kinds = uc_const.UC_HOOK_MEM_READ_UNMAPPED | uc_const.UC_HOOK_MEM_WRITE_UNMAPPED
        handle = self._uc.hook_add(kinds, hook)
        self.locating = page, access
        self.drop()
        try:
            execute()
        finally:
            self.locating = None
            self._uc.hook_del(handle)
            self.drop()
        return page + found[0] if found else page

    def watch(self, page: int, on_read: Callable[[], object]) -> None:
        """Call `on_read` before each time that the guest reads of the page at an address.

        It is one of the emulator's (PAGE). The page becomes a device to the emulator; what stands in memory is read and written.
        """
        base = self._memory.physical.size + WATCHED + len(self._watched) * PAGE

        def place(offset: int) -> int:
            found = self._memory.translate(page)
            assert found is not None
            return found.address + offset

        def read(_uc: unicorn.Uc, offset: int, size: int, _data: object) -> int:
            if offset % 8 == 0:  # a doubleword comes in two halves, the low one first
                try:
                    on_read()
                except BaseException as refusal:  # noqa: BLE001 -- who gives no value is complained of
                    self._refuse(refusal)
            return int.from_bytes(self._memory.physical.read(place(offset), size), "little")

        def write(_uc: unicorn.Uc, offset: int, size: int, value: int, _data: object) -> None:
            contents = (value % (1 << 8 * size)).to_bytes(size, "little")
            self._memory.physical.write(place(offset), contents)

        self._uc.mmio_map(base, PAGE, read, None, write, None)
        self._watched[page] = base
        self.drop()

    def switch_mm(self, mm: PageTable | None) -> None:
        """Load another address space for the lower half; None: the kernel's own.

        Entries of the TLB are tagged (PCID): those of an address space are out of sight while
        another one is loaded, and stay until they are flushed.
        """
        self._mm = mm
        self.drop()

    def forget(self) -> None:
        """Drop what was looked up in page tables."""
        self._looked_up.clear()
        self._tagged.clear()
        self.drop()

    def _flush(self, start: int, end: int, all_cpus: bool) -> None:
        if not all_cpus and self._memory.this_cpu != self._number:
            return
        pages = range(start & PAGE_MASK, end, PAGE)
        if len(pages) > FEW or not all(map(self._drop_page, pages)):
            self.forget()  # never less than what was asked for

    def _drop_page(self, page: int) -> bool:
        """Drop what was looked up of a page; False: only all can be, as code may be fetched from it.

        The emulator has no such thing. But what it is told of a page takes the place of what it knew.
        So it is asked to execute data, has to ask, and is told that this may be done and nothing else,
        where no memory is (`fetched`).
        """
        whole = page & self._guest_mask
        self._looked_up.pop(whole, None)
        self._tagged.pop(whole, None)
        if self.dropped or self.locating is not None:
            return self.dropped
        if self._view is not None and not self._views <= {self._view()}:
            return False  # it would be dropped of one of them
        self._unwanted = page
        asked = ctypes.byref(ctypes.c_uint64())
        _TRANSLATE(self._uc._uch, page, uc_const.UC_PROT_EXEC, asked)  # noqa: SLF001 -- as above
        done, self._unwanted = self._unwanted != page, -1
        if done:
            self._left.add(page)
        return done

    def fetched(self, at: int) -> bool:
        """Return whether nothing was fetched at an address as its page was dropped; look it up again."""
        if at & PAGE_MASK not in self._left:
            return False
        self.drop()
        return True

    def sync_icache(self, start: int, end: int) -> None:
        """Make what this CPU fetches from [start, end) be what stands there."""
        table = self._memory.page_table
        found = table.translate(start)
        if found is not None and start % found.leaf + end - start <= found.leaf:
            self._stale[found.address, end - start] = None
        else:
            for span in table.spans(start, end - start):
                if span.pa is not None:
                    self._stale[span.pa, span.size] = None
        self.drop()

    def drop(self) -> None:
        """Drop what Unicorn looked up: now, or before this CPU executes anything again."""
        self.dropped = True
        if self.running:
            self.maintain()

    def maintain(self) -> None:
        """Drop what the guest may not use any more: translated code, then the TLB."""
        if len(self._stale) > STALE_RANGES:
            self._stale.clear()
            self._uc.ctl_flush_tb()
        self._maintaining = True
        try:
            for pa, size in self._stale:
                at = PHYSICAL_WINDOW + pa
                self._uc.ctl_remove_cache(at, at + size)
        finally:
            self._maintaining = self.dropped = False
            self._stale.clear()
            self._left.clear()
            self._views.clear()
            # What was looked up at the window must not stay executable there.
            self._uc.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)
