# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own names for what Execmem does, so that the thread's examples can be run.

The old sequence. Memory is written first and executable last; the four calls are one
`alloc`, `write`, `finish` in disguise, so they work under every design:

    my_text = module_alloc(size);             execmem.alloc(MemType.TEXT, size)
    set_vm_flush_reset_perms(my_text);
    update_my_text(my_text);                  pending.write(...)
    set_memory_ro(my_text, pages);
    set_memory_x(my_text, pages);             pending.finish()

The new one. Text is executable when it is handed out; it is built in a temporary buffer,
its relative branches are adjusted to the address where it will run, and it is poked over:

    my_text = module_alloc_type(size, MemType.TEXT);
    my_tmp_buf = vmalloc(size);
    update_my_text(my_tmp_buf);
    adjust_rela_calls(my_tmp_buf, my_text);   the caller's, who knows the instruction set
    text_poke_copy(my_text, my_tmp_buf, size);
    vfree(my_tmp_buf);

It needs text_poke. `Execmem` itself covers both worlds with one sequence; these are for
reading and comparing.
"""

from __future__ import annotations

from allocator.designs.base import Allocation
from allocator.errors import LifecycleError
from allocator.execmem import Execmem, Pending
from allocator.types import Address, Consumer, MemType, align_up


class ModuleAlloc:
    """module_alloc() and the calls around it, over one Execmem.

    Parameters
    ----------
    execmem
        Where memory comes from; any design.
    """

    def __init__(self, execmem: Execmem) -> None:
        self.execmem = execmem
        self._pending: dict[Address, Pending] = {}
        self._read_only: set[Address] = set()

    # The old sequence ----------------------------------------------------------------------

    def module_alloc(self, size: int, *, consumer: Consumer = Consumer.MODULE) -> Address:
        """Return memory for text that is not yet final (kernel/module/main.c before 6.10).

        Raises AllocationError when there is no room.
        """
        pending = self.execmem.alloc(MemType.TEXT, size, consumer=consumer)
        self._pending[pending.address] = pending
        return pending.address

    def set_vm_flush_reset_perms(self, address: Address) -> None:
        """Ask that freeing flush the TLB and reset the direct map (include/linux/vmalloc.h).

        Every design does so unasked: this only checks that there is such memory.
        """
        self._of("set_vm_flush_reset_perms", address)

    def write(self, address: Address, data: bytes, *, offset: int = 0) -> None:
        """Store `data` (the thread's update_my_text); refused once it is read-only."""
        pending = self._of("write", address)
        if address in self._read_only:
            raise LifecycleError("write", address, "read-only since set_memory_ro()")
        pending.write(offset, data)

    def set_memory_ro(self, address: Address, pages: int) -> None:
        """Take the right to write; LifecycleError unless `pages` is all of the memory."""
        self._require_all("set_memory_ro", address, pages)
        self._read_only.add(address)

    def set_memory_x(self, address: Address, pages: int) -> None:
        """Give the right to execute: the text is final; refused while it is writable."""
        pending = self._require_all("set_memory_x", address, pages)
        if address not in self._read_only:
            raise LifecycleError("set_memory_x", address, "writable: set_memory_ro() comes first")
        pending.finish()
        del self._pending[address]
        self._read_only.discard(address)

    def module_memfree(self, address: Address) -> None:
        """Free memory at any point of the sequence; LifecycleError when there is none."""
        pending = self._pending.get(address)
        if pending is None:
            self.execmem.free(address)
            return
        pending.abandon()
        del self._pending[address]
        self._read_only.discard(address)

    # The new sequence ----------------------------------------------------------------------

    def module_alloc_type(
        self, length: int, mem_type: MemType, *, consumer: Consumer = Consumer.MODULE
    ) -> Address:
        """Return memory that has its final protection from birth (the thread's proposal)."""
        return self.execmem.alloc(mem_type, length, consumer=consumer).finish().address

    def module_free_type(self, address: Address) -> None:
        """Free it; the type is found by lookup. LifecycleError when there is none."""
        self.execmem.free(address)

    def text_poke_copy(self, destination: Address, source: Address, length: int) -> Allocation:
        """Copy a buffer over finished text (arch/x86/kernel/alternative.c); return what holds it.

        Raises
        ------
        PokeError
            No text_poke here, or not inside one finished allocation. Nothing was written.
        AccessError
            The source is not readable.
        """
        self.execmem.poke(destination, self.execmem.memory.read(source, length))
        found = self.execmem.find(destination)
        assert found is not None, "a poke that succeeded lies in an allocation"
        return found

    def vmalloc(self, size: int) -> Address:
        """Return zeroed writable memory in the vmalloc range."""
        return self.execmem.memory.vmalloc(size)

    def vfree(self, address: Address) -> None:
        """Free what `vmalloc` returned."""
        self.execmem.memory.vfree(address)

    def _of(self, operation: str, address: Address) -> Pending:
        pending = self._pending.get(address)
        if pending is None:
            raise LifecycleError(operation, address, "not the address of unfinished memory")
        return pending

    def _require_all(self, operation: str, address: Address, pages: int) -> Pending:
        pending = self._of(operation, address)
        page = self.execmem.memory.page_size
        whole = align_up(pending.size, page) // page
        if pages != whole:
            raise LifecycleError(operation, address, f"{pages} pages given, there are {whole}")
        return pending
