# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images: wrappers, symbol tables in every order, exports, types, configuration."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shutil
import struct
import subprocess
from collections.abc import Callable

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from loader.errors import BadKernel
from loader.kernel.config import parse_config
from loader.kernel.image import KernelImage
from loader.kernel.symbols import Encoding
from loader.kernel.unpack import unwrap
from tests.archs.facts import facts
from tests.support.btfwriter import blob
from tests.support.imagewriter import (
    Symbol,
    bzimage,
    elf,
    export_table,
    flat,
    kallsyms,
    symbols,
    zboot,
)

LAYOUTS = ("6.1", "6.2", "6.12", "7.0")
BANNER = b"Linux version 6.9.1-test (me@here) (gcc 14) #1 SMP now\n\0"
PAYLOAD = bytes(range(256)) * 300


def lz4_legacy(data: bytes) -> bytes:
    """Return what `lz4 -l` makes of data, with the size that a kernel's build appends."""
    blocks = [data[at : at + (8 << 20)] for at in range(0, len(data), 8 << 20)]
    packed = [lz4.block.compress(block, store_size=False) for block in blocks]
    stream = b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(p)) + p for p in packed)
    return stream + struct.pack("<I", len(data))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "lz4": lz4_legacy,
}


@pytest.mark.parametrize("kind", PACKERS)
def test_packed_payloads_are_unpacked(kind: str) -> None:
    """Whatever packs, alone, in a bzImage or a zboot image, with bytes behind it, comes off."""
    packed = PACKERS[kind](PAYLOAD)
    assert unwrap(packed, "x").data == PAYLOAD
    behind = packed if kind == "lzma" else packed + struct.pack("<I", len(PAYLOAD))
    assert unwrap(bzimage(behind), "x") == unwrap(bzimage(packed), "x")
    assert unwrap(bzimage(packed), "x").wrappers == ("bzImage", kind)
    both = unwrap(gzip.compress(zboot(packed, kind.encode())), "x")
    assert (both.data, both.wrappers) == (PAYLOAD, ("gzip", "EFI zboot", kind))


@pytest.mark.parametrize(
    "program", ["gzip -9", "xz", "lzma", "bzip2", "zstd -19", "lz4 -l", "lzop"]
)
def test_payloads_of_the_programs_are_unpacked(program: str) -> None:
    """What the programs write that a kernel's build calls is unpacked."""
    command = program.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    if command[0] == "lzop":
        pytest.importorskip("lzallright", reason="lzallright is not installed")
    data = PAYLOAD * (150 if command[0] == "lz4" else 10)  # more than a block
    packed = subprocess.run([*command, "-c"], input=data, capture_output=True, check=True).stdout
    assert unwrap(packed, "x").data == data


@pytest.mark.parametrize("kind", PACKERS)
def test_cut_payloads_are_refused(kind: str) -> None:
    """A stream that ends early is refused by name, wherever it ends."""
    packed = PACKERS[kind](PAYLOAD)[: -4 if kind == "lz4" else None]
    for size in {len(packed) - 1, len(packed) // 2, 30}:
        with pytest.raises(BadKernel, match=f"(xz|{kind}) data: (is cut off|damaged)"):
            unwrap(packed[:size], "x")


def test_bad_wrappers_are_refused() -> None:
    """Headers that lie about the payload, and wrappers without end, are refused."""
    packed = gzip.compress(PAYLOAD)
    whole = bzimage(packed)
    for bad, reason in (
        (whole[:0x210], "setup header: is cut off"),
        (whole[: len(whole) // 2], "is not in the file"),
        (whole[:0x206] + b"\7\2" + whole[0x208:], "boot protocol 2.07 does not say"),
        (zboot(packed, b"gzip")[:300], "EFI zboot header: payload"),
        (b"MZ\0\0zimg", "EFI zboot header: payload"),
    ):
        with pytest.raises(BadKernel, match=re.escape(reason)):
            unwrap(bad, "x")
    nested = PAYLOAD
    for _ in range(6):
        nested = gzip.compress(nested)
    with pytest.raises(BadKernel, match="more than 4 wrappers: gzip, gzip"):
        unwrap(nested, "x")


def body_of(
    machine: int, listed: list[Symbol], layout: str, more: bytes = b"", head: int = 0
) -> bytes:
    """Return an image's bytes: some text, the symbol tables, then `more`."""
    base = facts(machine).load.image_base
    text = BANNER + bytes(-len(BANNER) % 8) + b"\x13\0\0\0" * 400
    tables = kallsyms(listed, head + len(text), base, layout)
    return text + tables + bytes(-len(tables) % 8) + more


def image_of(arch: archs.Arch, listed: list[Symbol], layout: str, more: bytes = b"") -> bytes:
    """Return a kernel image in the architecture's own format."""
    machine = arch.machine
    if facts(machine).load.image_marks is None:
        body = body_of(machine, listed, layout, more)
        return bzimage(gzip.compress(elf(machine, body, facts(machine).load.image_base, 1 << 20)))
    return flat(machine, body_of(machine, listed, layout, more, 64), 1 << 20)


def pointers(listed: list[Symbol]) -> bytes:
    """Return pointers to the symbols, as data of a kernel has them."""
    return b"".join(struct.pack("<Q", symbol.address) for symbol in listed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_symbols_are_found_in_every_order(arch: archs.Arch, layout: str) -> None:
    """Addresses, types and names come back in order, wherever the tables lie."""
    listed = symbols(facts(arch).load.image_base)
    kernel = KernelImage.parse(image_of(arch, listed, layout, pointers(listed)))
    found = zip(
        kernel.symbols.addresses.tolist(),
        map(chr, kernel.symbols.types),
        kernel.symbols.names,
        strict=True,
    )
    assert [Symbol(*each) for each in found] == listed
    assert kernel.symbols.encoding is (Encoding.PLACE if layout == "7.0" else Encoding.BASE)
    assert kernel.symbols["twice"] == facts(arch).load.image_base
    assert len(kernel.symbols) == len(listed) - 1
    assert kernel.arch is arch
    assert (kernel.release, kernel.version) == ("6.9.1-test", (6, 9, 1))
    assert kernel.banner == "Linux version 6.9.1-test (me@here) (gcc 14) #1 SMP now"


def test_absolute_percpu_symbols() -> None:
    """Where per-cpu symbols count from 0, they are absolute and the others go backwards."""
    base = facts("x86_64").load.image_base
    listed = [Symbol(8 * n, "A", f"percpu_{n}") for n in range(50)] + symbols(base)
    kernel = KernelImage.parse(elf(62, body_of(62, listed, "percpu"), base, 1 << 20))
    assert kernel.symbols.addresses.tolist() == [symbol.address for symbol in listed]
    assert kernel.symbols.encoding is Encoding.ABSOLUTE_PERCPU


def test_a_base_that_the_kernel_relocates_is_found() -> None:
    """Where the table's base is 0 in the file, the relocation that fills it says what it is."""
    base = 0xFFFF_8000_0800_0000
    listed = [attrs_moved(symbol, base) for symbol in symbols(facts("arm64").load.image_base)]
    text = b"\x13\0\0\0" * 400
    tables = kallsyms(listed, 64 + len(text), base, "relocated")
    image = flat(183, text + tables, 1 << 20)
    (at,) = [m.start() - 8 for m in re.finditer(struct.pack("<I", len(listed)) + bytes(4), image)]
    rela = struct.pack("<QQQ", base + at, 0x403, base) + struct.pack("<QQQ", base + 8, 0x403, base)
    image += bytes(-len(image) % 8)
    kernel = KernelImage.parse(image + rela)
    assert kernel.symbols.addresses.tolist() == [symbol.address for symbol in listed]
    with pytest.raises(BadKernel, match="its address is not known"):
        KernelImage.parse(image)


def test_a_base_is_told_from_another_that_relocations_fit() -> None:
    """Another place of the same offset in its 2 MiB is filled, too, with what is no base."""
    base, step = 0xFFFF_8000_0800_0000, 2 << 20
    listed = [attrs_moved(symbol, base) for symbol in symbols(facts("arm64").load.image_base)]
    text = bytes(step + (step >> 1))
    tables = kallsyms(listed, 64 + len(text), base, "relocated")
    image = flat(183, text + tables + bytes(2 * step), 8 << 20)
    (at,) = [m.start() - 8 for m in re.finditer(struct.pack("<I", len(listed)) + bytes(4), image)]
    own = struct.pack("<QQQ", base + at, 0x403, base)
    other = struct.pack("<QQQ", base + at + step, 0x403, base + at)
    for symbol in listed[:9]:
        other += struct.pack("<QQQ", base + step, 0x403, symbol.address)
    for rela in (own + other, other + own):
        kernel = KernelImage.parse(image + bytes(-len(image) % 8) + rela)
        assert kernel.symbols.addresses.tolist() == [symbol.address for symbol in listed]


def attrs_moved(symbol: Symbol, base: int) -> Symbol:
    """Return a symbol of an image that lies elsewhere."""
    return Symbol(symbol.address - facts("arm64").load.image_base + base, symbol.type, symbol.name)


def test_exports_have_marks_checksums_and_namespaces(arch: archs.Arch) -> None:
    """Both tables give name, address, GPL mark, checksum and namespace; the new one its flags."""
    base = facts(arch).load.image_base
    if not arch.loads.prel32:
        pytest.skip(f"{arch.name} has pointers in its tables")
    names = [("alpha", "", 0), ("beta", "CRYPTO", 1), ("gamma", "", 0)]
    head = 0 if facts(arch).load.image_marks is None else 64
    start = head + len(BANNER) + -len(BANNER) % 8 + 1600
    listed = symbols(base)
    for flags in (False, True):
        # Symbols at the ends of the tables: their addresses follow from where the tables will be.
        more = 8 * 3000 + (1 << 17)
        place = start + more - start % 8
        entries = [(name, base + 64 * n, space) for n, (name, space, _) in enumerate(names)]
        table, strings = export_table(entries, place, base, place + 64)
        ends = {"__ksymtab": (0, 36), "__kcrctab": (200, 212)}
        if flags:
            ends["__kflagstab"] = (220, 223)
        marks = [
            Symbol(base + place + at, "D", f"__{which}_{name}")
            for name, pair in ends.items()
            for which, at in zip(("start", "stop"), pair, strict=True)
        ]
        ordered = sorted([*listed, *marks], key=lambda s: s.address)
        tail = bytearray(400)
        tail[: len(table)], tail[64 : 64 + len(strings)] = table, strings
        tail[200:212] = struct.pack("<3I", 11, 22, 33)
        tail[220:223] = bytes(gpl for *_, gpl in names)
        raw = body_of(arch.machine, ordered, "6.12", b"", head)
        raw = raw.ljust(place - head, b"\0") + bytes(tail)
        wrapped = (
            flat(arch.machine, raw, 1 << 20) if head else elf(arch.machine, raw, base, 1 << 20)
        )
        found = KernelImage.parse(wrapped).exports
        assert [(e.name, e.address, e.namespace, e.crc) for e in found.values()] == [
            (name, base + 64 * n, space, 11 * (n + 1)) for n, (name, space, _) in enumerate(names)
        ]
        assert [e.gpl for e in found.values()] == [bool(gpl) and flags for *_, gpl in names]


def test_types_and_configuration_are_found(arch: archs.Arch) -> None:
    """BTF and IKCONFIG are found by their magic; what is not there is named with its cure."""
    listed = symbols(facts(arch).load.image_base)
    text = b'CONFIG_SMP=y\n# CONFIG_LTO is not set\nCONFIG_LOCALVERSION="-a\\"b"\nCONFIG_HZ=250\n'
    more = b"IKCFG_ST" + gzip.compress(text) + b"IKCFG_ED" + bytes(5) + blob().blob()
    kernel = KernelImage.parse(image_of(arch, listed, "6.12", more))
    assert kernel.config == {
        "CONFIG_SMP": "y",
        "CONFIG_LTO": "n",
        "CONFIG_LOCALVERSION": '-a"b',
        "CONFIG_HZ": "250",
    }
    assert kernel.btf is not None
    assert kernel.btf.find("node").size == 32
    bare = KernelImage.parse(image_of(arch, listed, "6.12"))
    assert (bare.btf, bare.config, dict(bare.exports)) == (None, None, {})
    assert set(bare.unknown) >= {"configuration", "types", "exports", "per-cpu section"}
    given = parse_config(text.decode())
    assert KernelImage.parse(image_of(arch, listed, "6.12"), config=given).config == given


def test_bytes_at_addresses(arch: archs.Arch) -> None:
    """Bytes are read where they lie, zeros behind what is stored, and nothing outside."""
    base = facts(arch).load.image_base
    kernel = KernelImage.parse(image_of(arch, symbols(base), "6.12"))
    head = 0 if facts(arch).load.image_marks is None else 64
    assert kernel.string(base + head) == BANNER.rstrip(b"\0").decode()
    assert kernel.read(base + (1 << 20) - 4, 4) == bytes(4)
    for address, size in ((base - 1, 1), (base + (1 << 20) - 1, 2), (0, 1)):
        with pytest.raises(BadKernel, match="are not in the image"):
            kernel.read(address, size)
    assert kernel.string(0) == ""


def test_other_files_are_refused() -> None:
    """A module, a text, nothing at all: each is refused in one line."""
    module = (
        elf(62, b"", facts("x86_64").load.image_base, 0)[:16]
        + struct.pack("<H", 1)
        + elf(62, b"", facts("x86_64").load.image_base, 0)[18:]
    )
    for raw, reason in (
        (b"", "neither bzImage"),
        (b"#!/bin/sh\n", "neither bzImage"),
        (b"\x7fELF", "ELF file: cannot be read"),
        (module, "no kernel, but maybe a module"),
        (elf(2, b"", 0, 0), "ELF64 little-endian EM_SPARC: known are x86_64 "),
        (elf(62, bytes(4096), facts("x86_64").load.image_base, 4096), "no table of tokens"),
    ):
        with pytest.raises(BadKernel, match=reason):
            KernelImage.parse(raw)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_damage_never_escapes(data: st.DataObject) -> None:
    """Whatever bytes of an image change, it is read or refused."""
    machine = data.draw(st.sampled_from([a.machine for a in archs.ALL if a.load is not None]))
    listed = symbols(facts(machine).load.image_base, 600)
    if facts(machine).load.image_marks is None:
        base = facts(machine).load.image_base
        raw = bytearray(elf(machine, body_of(machine, listed, "6.12"), base, 1 << 20))
    else:
        body = body_of(machine, listed, "6.12", blob().blob(), 64)
        raw = bytearray(flat(machine, body, 1 << 20))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        kernel = KernelImage.parse(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
        assert len(kernel.symbols.names) == kernel.symbols.count
        assert isinstance(dict(kernel.unknown), dict)
    except BadKernel:
        pass
