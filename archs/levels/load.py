# SPDX-License-Identifier: GPL-2.0-or-later
"""The level *loads*: where modules may lie, and what their kernel expects of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import PAGE_SIZE, AddressMap, Paging, TlbRules
from archs.extable import ENTRY, Forms
from archs.layouts import Layouts
from archs.op import Op
from archs.reloc import Reach
from archs.versions import Since


@attrs.frozen(kw_only=True)
class Plt:
    """A PLT entry: a stub within branch reach that jumps anywhere within its own.

    Parameters
    ----------
    section, init_section
        Sections that hold the entries of core and of init text.
    size
        Bytes per entry.
    encode
        Returns the bytes of an entry, given its address and where it leads: the target, or
        the slot that holds the target where there is a `got_section`.
    got_section
        Section of slots, each an address, that entries load their target from, or None.
    sorts
        Whether the loader visits the branches of a section sorted by type, symbol and
        addend, leaving out those within the section, and compares an entry with the one
        before only; else it visits them in file order and finds any earlier entry.
    align
        Alignment of the sections, in bytes.
    op, reach
        What the instructions of an entry hold of where it leads, as relocations do (S leads there,
        P is the entry), and what they can hold; None: anything.
    branches
        Relocation numbers of the branches that may go through an entry.
    placeholders
        Sections that must be executable although the file does not say so, with the
        bytes that they hold once a module is loaded.
    required
        Whether the loader refuses a module without the sections.
    """

    section: str
    init_section: str
    size: int
    encode: Callable[[int, int], bytes]
    got_section: str | None
    sorts: bool
    align: int
    branches: tuple[int, ...]
    placeholders: Mapping[str, Since[int]]
    required: bool = False
    op: Op = Op.PC
    reach: Reach | None = None

    def leads(self, address: int, to: int) -> bool:
        """Return whether an entry at an address can lead to the target, or to its slot."""
        x = self.op.evaluate({"S": to, "A": 0, "P": address})
        return self.reach is None or (x is not None and x in self.reach)


@attrs.frozen(kw_only=True)
class Erratum:
    """An instruction that some CPUs must not find at some places, and the way around it.

    Parameters
    ----------
    rows
        Relocations of the instruction.
    mask
        The places with all these address bits set are forbidden.
    safe_align
        Returns the section alignment that keeps each of the given offsets off them.
    near
        Returns an equivalent instruction (word, place, target) or None out of its reach.
    veneer
        Returns a veneer (word, veneer's address, place, target) that goes back behind place.
    detour
        Returns the branch (place, veneer's address) that takes the instruction's place, or
        None out of its reach.
    """

    rows: tuple[int, ...]
    mask: int
    safe_align: Callable[[NDArray[np.uint64]], NDArray[np.uint64]]
    near: Callable[[int, int, int], bytes | None]
    veneer: Callable[[int, int, int, int], bytes]
    detour: Callable[[int, int], bytes | None]


NAME_AND_ADDRESS = 64  # bytes of a module's name and of an address (MODULE_NAME_LEN)


@attrs.frozen(kw_only=True)
class Load:
    """What loading needs: where modules may lie, and what their kernel expects of them.

    Parameters
    ----------
    address_map
        Returns the address map of one boot, given the seed of KASLR (None: off), the size of
        the kernel image in bytes, the address that it is linked to (`start`), how many of
        its bytes are text (`text_size`), its `config` (None: as Debian 6.12's), the bytes of a
        page (`page`) and its `version`.
    image_size
        Size of Debian 6.12's kernel image in bytes.
    trap
        Instruction that fills unused text.
    tlb
        How translations are dropped from the TLBs of all CPUs.
    plt
        Stubs for branches that do not reach, or None: such a branch is an error.
    got_section
        Section of the global offset table, where a module may have one.
    errata
        CPU errata that the loader can work around, by number.
    prel32
        Whether tables such as `__ksymtab` hold 32-bit self-relative words
        (CONFIG_HAVE_ARCH_PREL32_RELOCATIONS) instead of pointers.
    extable
        Forms of the entries of exception tables, today's first.
    pagings
        What pages a kernel may have, and what of its leaves and runs of them a CPU may have.
    function_alignment
        Alignment of function entries in the kernel's configuration.
    vermagic
        What the kernel that is modelled calls itself and its build (VERMAGIC_STRING).
    livepatching
        Whether it is built with CONFIG_LIVEPATCH.
    layouts
        Where members of structures lie in the kernel that is modelled.
    execmem
        The design of `allocator.designs` that its kernels have.
    """

    address_map: Callable[..., AddressMap]
    image_size: int
    trap: bytes
    tlb: TlbRules
    plt: Plt | None = None
    got_section: str | None = None
    errata: Mapping[str, Erratum] = attrs.field(factory=dict)
    prel32: bool
    extable: Forms = (ENTRY,)
    pagings: tuple[Paging, ...] = (Paging(),)
    function_alignment: int
    vermagic: str
    livepatching: bool
    layouts: Layouts
    execmem: Since[str] = attrs.field(factory=lambda: Since(((0, 0), "vmalloc")))

    @property
    def page_sizes(self) -> tuple[int, ...]:
        """Bytes that a kernel's pages may have."""
        return tuple(paging.page for paging in self.pagings)

    def paging(self, page: int = PAGE_SIZE) -> Paging:
        """Return what leaves and runs there are with pages of so many bytes; of others, no runs."""
        return next((paging for paging in self.pagings if paging.page == page), Paging(page))
