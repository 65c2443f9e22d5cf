# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines whose kernel has pages of 16 or 64 KiB: its page services, its CPU's TLB, its modules."""

from __future__ import annotations

import numpy as np
import pytest

from allocator.types import KIB, MIB, Interval, Prot
from emulator.faults import Fault, FaultKind
from kernels.modelled.api.scatterlist import page_address, page_of
from loader.kernel.find import read_kernel
from machine.face import Machine
from tests.machine.snippets import snippet
from tests.support.checked import Offer, debian, made, version_table
from tests.support.kernels import kernel_image


@pytest.fixture(params=[16 * KIB, 64 * KIB], ids=["16KiB", "64KiB"])
def page(request, arch):
    """Return the bytes of a page that the architecture may have."""
    if request.param not in arch.loads.page_sizes:
        pytest.skip(f"{arch.name} has pages of one size")
    return request.param


@pytest.fixture
def machine(arch, page):
    """Return a machine with a kernel of such pages."""
    magic = "6.9.1-mine " + debian(arch.machine).partition(" ")[2]
    config = f"CONFIG_SMP=y\nCONFIG_PAGE_SHIFT={page.bit_length() - 1}\n"
    offers = (Offer("module_layout", crc=1), Offer("_printk", crc=5))
    kernel = kernel_image(arch, magic, offers, page=page, config=config)
    return Machine(kernel=kernel, modelled=True)


def test_the_kernel_decides_how_large_pages_are(machine, page):
    """Page table, frames, stacks and designs go by it; everything that is mapped is whole pages."""
    memory = machine.memory
    assert machine.build.page_size.value == memory.page_size == page
    assert memory.large_size == page * page // 8
    for leaf in memory.page_table.leaves():
        assert leaf.size in memory.paging.leaves
    stack = machine.calls.stack.start
    assert stack % page == 0
    assert memory.translate(stack - 1) is None
    assert memory.translate(stack + max(16 * KIB, page)) is None
    machine.check()


def test_a_module_lies_in_whole_pages(arch, machine, page):
    """Regions of one protection share no page with others, and the module says their size so."""
    versions = version_table({"module_layout": 1, "_printk": 5})
    magic = "6.9.1-mine " + debian(arch.machine).partition(" ")[2]
    image = made(arch.machine, magic=magic, uses=("_printk",), extra=[versions])
    loaded = machine.load(image)
    assert not [n for n in loaded.report.notices if n.code == "page-size"]
    prots = {}
    for kind, region in loaded.regions.items():
        prots.setdefault(region.address // page, set()).add(kind.final_prot)
    assert all(len(found) == 1 for found in prots.values())
    machine.check()
    loaded.unload()
    machine.check()


def test_page_services_count_in_pages(machine, page):
    """A run of order n has 2**n pages (get_free_pages), of which the guest may use every byte."""
    kernel = machine.kernel

    def call(name, *arguments):
        return machine.call(kernel.address(name), *arguments)

    for order in (0, 3):
        run = call("get_free_pages_noprof", 0xCC0, order)
        assert run % page == 0
        machine.write(run, b"x" * (page << order))
        assert call("ksize", run) == page << order
        with pytest.raises(Fault, match="no such run"):
            call("free_pages", run, order + 1)
        call("free_pages", run, order)
    # CONFIG_ARCH_FORCE_MAX_ORDER of arm64 is 11 with pages of 16 KiB and 13 with those of 64.
    most = {16 * KIB: 32 * MIB, 64 * KIB: 512 * MIB}[page]
    assert call("kmalloc_size_roundup", most - 1) == most
    assert call("kmalloc_size_roundup", most + 1) == most + 1
    assert call("get_free_pages_noprof", 0xCC0, 14) == 0
    # Caches go up to two pages (KMALLOC_SHIFT_HIGH), larger objects are runs.
    for size in (2 * page - 1, 2 * page + 1, 3 * page):
        assert call("kmalloc_size_roundup", size) == 1 << (size - 1).bit_length()
    assert kernel.heap.vmalloc(1) % page == 0


def test_struct_pages_are_those_of_larger_pages(arch, machine, page, monkeypatch):
    """What code computes with PAGE_OFFSET and VMEMMAP_START is what the kernel answers."""
    if arch.name == "mips64el":
        pytest.skip("without a vmemmap there are struct pages in an array")
    own = property(lambda _kernel: arch.loads.layouts)  # the image has no types
    monkeypatch.setattr(type(machine.kernel), "layouts", own)
    there = machine.memory.address_map
    if page == 16 * KIB:  # VA_BITS 48, since the image lies where such a kernel has it
        page_offset, end = -1 << 48, -1 << 47
    else:  # VA_BITS 52, VA_BITS_MIN 48
        page_offset, end = -1 << 52, -1 << 47
    start = -(1 << 30) - (end - page_offset) // page * 64  # asm/memory.h of Linux 6.9
    address = machine.memory.alloc_pages(1)
    for at in (address, address + page - 1, address + page):
        index = (at - page_offset) % (1 << 64) // page
        assert page_of(machine.kernel, at) == (start + index * 64) % (1 << 64)
        assert page_address(machine.kernel, page_of(machine.kernel, at)) == at // page * page
    # __pa() and __va(): memstart_addr makes up for the bits that CPUs here do not have.
    memstart = machine.kernel.word(machine.kernel.address("memstart_addr"))
    physical = address - there.direct_map
    assert (address - page_offset + memstart) % (1 << 64) == physical
    assert (physical - memstart) % (1 << 64) | page_offset % (1 << 64) == address


def test_a_translation_is_kept_for_a_whole_page(machine, page):
    """The emulator's page of 4 KiB is smaller; what a CPU looked up is stale all the same."""
    memory = machine.memory
    load = snippet(machine, "load")
    one = memory.vmalloc(page)
    frame = memory.translate(one).address
    for at in range(0, page, 4096):
        memory.physical.write(frame + at, (1000 + at).to_bytes(8, "little"))
    assert machine.call(load, one) == 1000
    (other,) = memory.physical.alloc_frames(1).tolist()
    memory.page_table.unmap(one, page)
    memory.page_table.map(one, other, Prot.RW, size=page)
    for at in range(0, page, 4096):  # these were never looked up before
        assert machine.call(load, one + at) == 1000 + at
    memory.flush_tlb(Interval(one, one + page))
    assert machine.call(load, one + page - 8) == 0
    with pytest.raises(Fault) as caught:
        machine.call(load, one + page)
    assert caught.value.kind is FaultKind.READ
    assert caught.value.address == one + page


def test_the_stack_ends_at_an_unmapped_page(machine):
    """A recursion without end is a stack overflow, whatever a page has."""
    recurse = snippet(machine, "recurse")
    with pytest.raises(Fault, match="stack overflow"):
        machine.call(recurse)


def multiplied(value: int, times: int) -> int:
    """Return value * 2**times in GF(2^8) with the polynomial of RAID-6 (H. P. Anvin, 2004)."""
    for _ in range(times):
        value = value << 1 ^ (0x11D if value & 0x80 else 0)
    return value


class Untouched:
    """Frames that are free, filled, and may not change as long as nobody takes them."""

    def __init__(self, physical, page, monkeypatch):
        self.frames = np.frombuffer(physical.view, np.uint8).reshape(-1, page)
        self.free = ~physical.used()
        self.frames[self.free] = 0xA7
        take = physical._take

        def note(start, stop):
            self.free[start:stop] = False
            take(start, stop)

        monkeypatch.setattr(physical, "_take", note)

    def check(self):
        """Assert that nothing was written to them."""
        assert self.free.any()
        assert (self.frames[self.free] == 0xA7).all()


def test_raid6_of_such_a_kernel(kernels, arch, monkeypatch):
    """It measures itself in eight pages (order 3) and writes no byte behind them; P and Q are right."""
    found = [
        (folder, image)
        for folder in kernels.values()
        for image in [next(folder.glob("boot/vmlinu*"), None)]
        if image is not None and (read_kernel(image).page_size or 0) > 4096
    ]
    if not found:
        pytest.skip("EXECMEM_KERNELS has no kernel of larger pages for this architecture")
    for folder, image in found:
        machine = Machine(kernel=image, modelled=True, root=folder, memory=256 * MIB)
        page = machine.memory.page_size
        untouched = Untouched(machine.memory.physical, page, monkeypatch)
        loaded = machine.load("raid6_pq")
        untouched.check()
        machine.check()
        gen_syndrome = machine.kernel.word(loaded.symbols["raid6_call"])
        disks = [machine.alloc(bytes((n + 3) * i % 251 for i in range(page))) for n in range(4)]
        p, q = machine.alloc(page), machine.alloc(page)
        table = machine.alloc(b"".join(at.to_bytes(8, "little") for at in (*disks, p, q)))
        machine.call(gen_syndrome, 6, page, table)
        contents = [machine.read(at, page) for at in disks]
        for at in (0, 1, 4095, 4096, page - 1):
            data = [content[at] for content in contents]
            xor, syndrome = 0, 0
            for number, value in enumerate(data):
                xor, syndrome = xor ^ value, syndrome ^ multiplied(value, number)
            assert machine.read(p + at, 1)[0] == xor
            assert machine.read(q + at, 1)[0] == syndrome
        loaded.unload()
        machine.check()


def test_modules_of_such_a_kernel_start_as_with_small_pages(kernels, arch):
    """A sample of its own modules initialises, and leaves memory whole."""
    for folder in kernels.values():
        image = next(folder.glob("boot/vmlinu*"), None)
        if image is None or (read_kernel(image).page_size or 0) <= 4096:
            continue
        machine = Machine(kernel=image, modelled=True, root=folder)
        for name in (
            "lz4_compress",
            "lz4",
            "chacha_generic",
            "xor",
            "loop",
            "zram",
            "dm-mod",
            "ext4",
        ):
            assert not machine.load(name).report.init_result, name
            machine.check()
        assert set(machine.execmem.report().large_share.values()) == {1.0}
        return
    pytest.skip("EXECMEM_KERNELS has no kernel of larger pages for this architecture")
