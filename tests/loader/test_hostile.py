# SPDX-License-Identifier: GPL-2.0-or-later
"""Files made to exhaust their reader: each is refused with a reason, in bounded time and memory."""

from __future__ import annotations

import lzma
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from allocator import Execmem, ExecmemError, KernelMemory, PhysicalMemory
from allocator.types import MIB
from archs.dialect import SYMBOL
from execmem.check import elfwriter as elf
from execmem.check.elfwriter import A, Rela, Sec, Sym, W, write
from loader import files
from loader.depends import find, modules_for, open_tree
from loader.elf import MAX_UNDEFINED, parse
from loader.elfview import MAX_LONG, MAX_NAME
from loader.errors import BadModule, LoadError, OutOfMemory
from loader.kallsyms import sizes_with_symbols
from loader.layout import plan
from loader.module import Loader
from loader.symbols import SymbolTable
from tests.archs.facts import facts
from tests.support.kernel import FakeKernel, FakePercpu
from tests.support.modules import exports, module


def this_module(arch) -> Sec:
    """Return struct module without pointers."""
    size = facts(arch).link.this_module_size
    return Sec(".gnu.linkonce.this_module", bytes(size), A | W, align=64)


@contextmanager
def bounded(mebibytes: int = 64, seconds: float = 20.0) -> Iterator[None]:
    """Assert that what is done inside takes no more than so much of the host."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        yield
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < mebibytes * MIB
    assert time.monotonic() - began < seconds


def loader(arch) -> Loader:
    """Return a loader over 16 MiB."""
    memory = KernelMemory(PhysicalMemory(16 * MIB), arch.loads.address_map())
    execmem = Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke)
    percpu = FakePercpu()
    kernel = FakeKernel("_printk", base=arch.loads.address_map().image.start)
    return Loader(arch, execmem, SymbolTable(kernel), percpu.alloc, percpu.free, percpu.write)


LONG = f"names of {MAX_NAME} bytes or more come to more than {MAX_LONG:#x}"

# Names ---------------------------------------------------------------------------------------


def test_section_names_that_overlap() -> None:
    """Sixty thousand names that share one long string are refused once they come to too much."""
    image = write(62, [Sec("n" * (1 << 20)), *(Sec("") for _ in range(60_000))])
    table = np.frombuffer(bytearray(image), np.uint8)
    headers = table[int.from_bytes(image[40:48], "little") :].view(np.uint32).reshape(-1, 16)
    headers[2:60_000, 0] = np.arange(2, 60_000)
    with bounded(), pytest.raises(BadModule, match=LONG):
        parse(table.tobytes())


def test_symbol_names_that_overlap() -> None:
    """Undefined names that share one long string are refused, and so is one that is used."""
    image = write(62, [], [Sym("n" * (1 << 20)), *(Sym("x") for _ in range(30_000))])
    table = np.frombuffer(bytearray(image), np.uint8)
    start = elf.field_of(image, ".symtab", "offset")
    rows = table[start : start + 24 * 30_001].view(SYMBOL)
    rows["name"][1:] = np.arange(1, 30_001)
    with bounded(), pytest.raises(BadModule, match=LONG):
        _ = parse(table.tobytes()).undefined
    view = parse(table.tobytes())
    with bounded(), pytest.raises(BadModule, match=LONG):
        _ = [view.symbol_name(number) for number in range(1, 30_000)]
    assert len(parse(image).symbol_name(1)) == 1 << 20
    again = parse(image)
    assert {len(again.symbol_name(1)) for _ in range(100)} == {1 << 20}


def test_more_undefined_symbols_than_any_kernel_has() -> None:
    """A symbol table of nothing but questions is refused before they are asked."""
    image = write(62, [], [Sym("x") for _ in range(MAX_UNDEFINED + 1)])
    with bounded(), pytest.raises(BadModule, match=f"the limit is {MAX_UNDEFINED}"):
        parse(image)


def test_exports_that_share_one_name(arch) -> None:
    """A table of exports that name overlapping parts of one long string is refused, not copied."""
    machine = arch.machine
    tables, symbols = exports(machine, ("f",))
    width = facts(machine).link.export_word
    kind = facts(machine).link.abs64 if width == 8 else facts(machine).link.prel32
    count = 3000
    relas = [Rela(3 * width * n + width, kind, "__kstrtab_f", n) for n in range(count)]
    table = Sec("__ksymtab", bytes(3 * width * count), A, align=width, relas=relas)
    strings = Sec("__ksymtab_strings", b"\0" + b"n" * MIB + b"\0", A)
    image = write(machine, [table, strings, this_module(arch), Sec("f")], [*symbols, Sym("f", "f")])
    world = loader(arch)
    free = world.execmem.memory.physical.free_bytes
    with bounded(), pytest.raises(BadModule, match=f"__ksymtab: {LONG}"):
        world.form(image, "many.ko")
    assert world.execmem.memory.physical.free_bytes == free
    assert tables[0].name == table.name


def test_exports_whose_names_are_not_loaded(arch) -> None:
    """Without its strings in memory a table of exports offers nothing."""
    tables, symbols = exports(arch.machine, ("f",))
    this = this_module(arch)
    plain = [tables[0], Sec("__ksymtab_strings", tables[1].data, 0), this, Sec("f", b"", A)]
    relocated = [Sec(s.name, s.data, s.flags, s.type, s.align) for s in plain]
    image = write(arch.machine, relocated, [*symbols, Sym("f", "f")])
    assert loader(arch).form(image, "mute.ko").exports == ()


def test_a_local_name_outside_the_strings() -> None:
    """The size of the kernel's symbol table is not computed from names that are none."""
    image = write(62, [Sec("d", bytes(8), A)], [Sym("x", "d", bind=elf.LOCAL)])
    view = parse(elf.symbol(image, 1, name=1 << 30))
    with pytest.raises(BadModule, match="a name is outside the string table"):
        sizes_with_symbols(view, plan(view))


def test_messages_do_not_repeat_control_characters(arch) -> None:
    """A name of a hostile file cannot clear a terminal or forge a line of output."""
    image = write(arch.machine, [Sec("\x1b[2J\nok: loaded", b"x", A)])
    with pytest.raises(BadModule) as caught:
        parse(elf.section(image, 1, align=3))
    assert str(caught.value).isprintable()
    assert r"\x1b[2J\nok: loaded" in str(caught.value)


# Numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [".rela.text", ".symtab"])
@pytest.mark.parametrize("count", [1 << 32, 1 << 40, (1 << 64) // 24])
def test_tables_of_billions(table: str, count: int) -> None:
    """2**32 relocations or symbols are refused by their size, whatever the file holds."""
    image = elf.section(module(62), table, size=24 * count)
    with bounded(), pytest.raises(BadModule, match="truncated: it ends at 0x"):
        parse(image)


@pytest.mark.parametrize(
    "fields",
    [
        {"align": 1 << 63},
        {"align": 1 << 22},
        {"size": (1 << 64) - 1, "type": elf.NOBITS},
        {"size": 1 << 31, "type": elf.NOBITS},
        {"offset": (1 << 64) - 1},
        {"offset": (1 << 64) - 8, "size": 16},
    ],
)
def test_absurd_sections(fields: dict[str, int]) -> None:
    """Alignments, sizes and offsets that nothing could hold are refused."""
    with bounded(), pytest.raises(BadModule, match="section"):
        parse(elf.section(module(62), ".data", **fields))


@pytest.mark.parametrize("kind", [elf.SYMTAB, elf.RELA, elf.REL])
def test_entry_zero_is_no_section(kind: int) -> None:
    """A null section that claims to be a table is refused, as kernels refuse it."""
    image = elf.section(module(62), 0, type=kind, offset=1 << 60, size=24 << 30, info=1, entsize=24)
    with pytest.raises(BadModule, match=f"section 0: is not empty: type {kind}"):
        parse(image)


def test_sections_that_overlap_in_the_file(arch) -> None:
    """A small file that shows one MiB a thousand times is refused for want of memory."""
    big = Sec("big", bytes(MIB), A | W)
    this = this_module(arch)
    image = write(arch.machine, [big, this, *(Sec("more", b"x", A | W) for _ in range(1000))])
    offset = elf.field_of(image, "big", "offset")
    damaged = bytearray(image)
    for number in range(3, 1003):
        at = elf.header_at(image, number)
        damaged[at + 24 : at + 40] = offset.to_bytes(8, "little") + MIB.to_bytes(8, "little")
    world = loader(arch)
    free = world.execmem.memory.physical.free_bytes
    with bounded(), pytest.raises(OutOfMemory):
        world.form(bytes(damaged), "big.ko")
    assert world.execmem.memory.physical.free_bytes == free


@pytest.mark.parametrize("name", [".symtab", ".shstrtab", ".text", ".rela.text"])
def test_string_tables_that_are_something_else(name: str) -> None:
    """A symbol table may name itself or anything as its strings: names stay within the file."""
    image = module(62)
    linked = elf.section(image, ".symtab", link=elf.index_of(image, name))
    try:
        view = parse(linked)
        names = [view.symbol_name(n) for n in range(view.symbols.size)]
    except LoadError as error:
        assert "symbol" in str(error)  # noqa: PT017 -- reading it is right as well
    else:
        assert sum(map(len, names)) < MAX_NAME * len(names)


# Files ---------------------------------------------------------------------------------------


def test_a_stream_that_wants_gigabytes_to_be_read() -> None:
    """A few bytes of xz may ask for a 4 GiB dictionary; it is not given."""
    packed = bytearray(lzma.compress(b"x" * 100))
    size = (packed[12] + 1) * 4
    block = packed[12 : 12 + size]
    at = block.index(b"\x21\x01") + 2  # LZMA2, one byte of properties: the dictionary
    block[at] = 40
    block[-4:] = zlib.crc32(block[:-4]).to_bytes(4, "little")
    packed[12 : 12 + size] = block
    with bounded(), pytest.raises(BadModule, match="Memory usage limit exceeded"):
        files.decompress(bytes(packed), "greedy.ko.xz")


def test_a_file_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device or a folder is refused; of a file no more is read than a module may have."""
    monkeypatch.setattr(files, "MAX_SIZE", MIB)
    with bounded(), pytest.raises(BadModule, match="zero: file: is a device, not a file"):
        files.read_module("/dev/zero")
    with pytest.raises(BadModule, match=r"^/: file: "):
        files.read_module("/")
    with (tmp_path / "long.ko").open("wb") as file:
        file.truncate(1 << 40)
    with bounded(), pytest.raises(BadModule, match="file: larger than 0x100000 bytes"):
        files.read_module(tmp_path / "long.ko")


@pytest.mark.parametrize("name", ["a\0b.ko", "n" * 5000, "n" * 300 + ".ko"])
def test_names_that_no_system_takes(name: str, tmp_path: Path) -> None:
    """A NUL in a name, or too many bytes, is a missing file and no traceback."""
    with pytest.raises(BadModule):
        files.read_module(tmp_path / name)
    (tmp_path / "modules.dep").write_text(f"{name}:\nkernel/x.ko: {name}\n")
    tree = open_tree(tmp_path)
    with pytest.raises(LoadError):
        find(tree, files.module_name(name))
    with pytest.raises(ExecmemError):
        open_tree(name)
    assert modules_for(tree, "crypto-x") == []
