# SPDX-License-Identifier: GPL-2.0-or-later
"""The two call sequences of the thread, side by side."""

from __future__ import annotations

import pytest

from allocator.designs import DESIGNS
from allocator.errors import LifecycleError, PokeError
from allocator.execmem import Execmem
from allocator.faces import ModuleAlloc
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory
from allocator.types import MIB, Consumer, MemType, Prot

SIZE = 48
# Offsets of the rel32 of two calls out of the text, and of one inside it.
OUTSIDE, INSIDE = (1, 21), 11
CALLEE = 0xFFFFFFFF81234560


@pytest.fixture
def build(x86_map, x86_poke):
    """Return a function that makes the faces of a design."""

    def make(design, poke=x86_poke):
        memory = KernelMemory(PhysicalMemory(32 * MIB), x86_map)
        return ModuleAlloc(Execmem(memory, trap=b"\xcc", text_poke=poke, design=design))

    return make


def rel32(value):
    """Return a 32-bit displacement; it may be meaningless until it is adjusted."""
    return (value & 0xFFFFFFFF).to_bytes(4, "little")


def assemble(address):
    """Return text for `address`: two calls to the kernel and one to its own start."""
    text = bytearray(b"\x90" * SIZE)
    for at in OUTSIDE:
        text[at - 1 : at + 4] = b"\xe8" + rel32(CALLEE - (address + at + 4))
    text[INSIDE - 1 : INSIDE + 4] = b"\xe8" + rel32(-(INSIDE + 4))
    return text


def adjust_rela_calls(text, built_for, runs_at):
    """Move the calls that leave the text; what stays inside moves along by itself."""
    for at in OUTSIDE:
        old = int.from_bytes(text[at : at + 4], "little")
        text[at : at + 4] = rel32(old + built_for - runs_at)


@pytest.mark.parametrize("design", DESIGNS)
def test_both_sequences_make_the_same_text(build, design):
    """Bytes, protection and address are the same, whichever way the text was made."""
    old, new = build(design), build(design)
    text = old.module_alloc(SIZE)
    old.set_vm_flush_reset_perms(text)
    old.write(text, bytes(assemble(text)))
    old.set_memory_ro(text, 1)
    old.set_memory_x(text, 1)

    again = new.module_alloc_type(SIZE, MemType.TEXT)
    buffer = new.vmalloc(SIZE)
    draft = assemble(buffer)
    adjust_rela_calls(draft, buffer, again)
    new.execmem.memory.write(buffer, bytes(draft))
    assert new.text_poke_copy(again, buffer, SIZE).size == SIZE
    new.vfree(buffer)

    assert text == again
    for faces in (old, new):
        assert faces.execmem.memory.read(text, SIZE) == assemble(text)
        assert faces.execmem.memory.translate(text).prot is Prot.RX
        faces.execmem.check()
    old.module_memfree(text)
    new.module_free_type(again)
    for faces in (old, new):
        assert faces.execmem.allocations() == []
        faces.execmem.check()


def test_without_text_poke_only_the_old_sequence_works(build):
    """Text that is final at birth can be written by nothing but a poke."""
    faces = build("vmalloc", None)
    text = faces.module_alloc_type(SIZE, MemType.TEXT)
    with pytest.raises(PokeError, match="no text_poke"):
        faces.text_poke_copy(text, faces.vmalloc(SIZE), SIZE)
    old = faces.module_alloc(SIZE, consumer=Consumer.BPF)
    faces.write(old, b"\x90", offset=3)
    faces.set_memory_ro(old, 1)
    faces.set_memory_x(old, 1)
    assert faces.execmem.memory.read(old, 4) == b"\0\0\0\x90"


def test_the_old_sequence_has_an_order(build):
    """Executable while writable, half of the pages, or written too late: refused."""
    faces = build("vmalloc")
    text = faces.module_alloc(5000)
    with pytest.raises(LifecycleError, match="set_memory_ro"):
        faces.set_memory_x(text, 2)
    with pytest.raises(LifecycleError, match="1 pages given, there are 2"):
        faces.set_memory_ro(text, 1)
    faces.set_memory_ro(text, 2)
    with pytest.raises(LifecycleError, match="read-only"):
        faces.write(text, b"x")
    with pytest.raises(LifecycleError, match="not the address"):
        faces.set_vm_flush_reset_perms(text + 16)
    faces.module_memfree(text)
    with pytest.raises(LifecycleError, match="no allocation"):
        faces.module_memfree(text)
    assert faces.module_alloc(10) == text


def test_every_type_can_be_taken_by_its_name(build):
    """module_alloc_type() gives text, data and rodata with their protections; free needs no type."""
    faces = build("strata")
    for mem_type in (MemType.TEXT, MemType.DATA, MemType.RODATA):
        address = faces.module_alloc_type(100, mem_type)
        assert faces.execmem.memory.translate(address).prot is mem_type.final_prot
        faces.module_free_type(address)
    assert faces.execmem.allocations() == []
