# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols of an ELF vmlinux, where kallsyms has none or not all, held to what nm says."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

import archs
from loader.errors import BadKernel
from loader.kernel.elfsymbols import has_symbols, symbols_of
from loader.kernel.image import KernelImage
from loader.kernel.segments import Segment
from loader.kernel.symbols import Encoding, ImageSymbols
from tests.support.imagewriter import kallsyms, symbols

BASE = 0xFFFF_FFFF_8100_0000
_ABSOLUTE = 0xFFF1


def vmlinux(body: bytes, names: list[tuple[str, int, int, int]]) -> bytes:
    """Return an ELF file with a text section and a symbol table: name, info, section, value."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in names)
    table, at = bytes(24), 1
    for name, info, section, value in names:
        table += struct.pack("<IBBHQQ", at, info, 0, section, value, 0)
        at += len(name) + 1
    titles = b"\0.text\0.symtab\0.strtab\0.data\0"
    start = 0x1000
    parts = [body, table, strings, titles]
    places = []
    data = bytearray(start)
    for part in parts:
        places.append(len(data))
        data += part + bytes(-len(part) % 8)
    headers = [
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (1, 1, 6, BASE, places[0], len(body), 0, 0, 16, 0),
        (7, 2, 0, 0, places[1], len(table), 3, 1, 8, 24),
        (15, 3, 0, 0, places[2], len(strings), 0, 0, 1, 0),
        (23, 1, 3, BASE, places[0], len(body), 0, 0, 16, 0),
    ]
    at = len(data)
    for header in headers:
        data += struct.pack("<IIQQQQIIQQ", *header)
    data[:64] = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\2\1\1".ljust(16, b"\0"), 2, 62, 1, BASE, 64, at, 0),
        *(64, 56, 1, 64, len(headers), 3),
    )
    data[64:120] = struct.pack("<IIQQQQQQ", 1, 5, start, BASE, 0x100_0000, *[len(body)] * 2, 16)
    return bytes(data)


NAMES = [
    ("_text", 0x10, 1, BASE),
    ("local", 0x02, 1, BASE + 0x40),
    ("counter", 0x01, 4, BASE + 0x80),
    ("$x", 0x00, 1, BASE + 0x44),
    ("__crc_one", 0x10, _ABSOLUTE, 5),
    ("file.c", 0x04, _ABSOLUTE, 0),
    ("gone", 0x10, 0, 0),
]


def test_the_table_is_what_kallsyms_would_have() -> None:
    """Names, addresses and letters as kallsyms has them; what it leaves out is left out."""
    data = vmlinux(bytes(0x100), NAMES)
    assert has_symbols(data)
    found = symbols_of(data, "vmlinux")
    assert found is not None
    table = ImageSymbols(*found)
    assert dict(table) == {"_text": BASE, "local": BASE + 0x40, "counter": BASE + 0x80}
    assert table.types == b"Ttd"
    assert table.encoding is Encoding.ELF
    assert table.has_data
    assert table.around(BASE + 0x42) == ("local", 2)


def test_a_kernel_without_kallsyms_has_the_symbols_of_its_file() -> None:
    """A kernel without kallsyms has the symbols of its file; one that is stripped is refused."""
    data = vmlinux(bytes(0x100), NAMES)
    assert KernelImage.parse(data).symbols["counter"] == BASE + 0x80
    stripped = bytearray(data)
    stripped[40:48] = bytes(8)
    with pytest.raises(BadKernel, match="CONFIG_KALLSYMS"):
        KernelImage.parse(bytes(stripped))


def test_kallsyms_without_variables_is_completed() -> None:
    """Kallsyms without variables is completed by the file's own table; with them it is enough."""
    listed = symbols(BASE)
    text = [each for each in listed if each.type in "tT"]
    for known, completed in ((listed, False), (text, True)):
        body = kallsyms(known, BASE, BASE, "6.12")
        found = KernelImage.parse(vmlinux(body, NAMES)).symbols
        assert ("counter" in found) is completed
        assert (found.encoding is Encoding.ELF) is completed


@pytest.mark.parametrize("cut", [100, 0x1180, 0x1200])
def test_a_damaged_table_is_refused_or_none(cut: int) -> None:
    """A damaged table is refused by name, or there is none."""
    data = bytearray(vmlinux(bytes(0x100), NAMES))
    at = int.from_bytes(data[40:48], "little")
    data[at + 2 * 64 + 24 : at + 2 * 64 + 32] = (len(data) - cut % 24).to_bytes(8, "little")
    with pytest.raises(BadKernel, match="ELF symbols: are cut off"):
        symbols_of(bytes(data), "vmlinux")


def _built() -> list[Path]:
    folders = filter(None, os.environ.get("EXECMEM_OWN_KERNELS", "").split(os.pathsep))
    return sorted(path for each in folders for path in Path(each).glob("*/vmlinux"))


def test_real_files_have_what_nm_and_kallsyms_say() -> None:
    """Real files have what nm says, and all that their kallsyms has."""
    found = _built()
    if not found or shutil.which("nm") is None:
        pytest.skip("EXECMEM_OWN_KERNELS names no folder with trees that kernels were built in")
    for path in found:
        data = path.read_bytes()
        table = symbols_of(data, path.name)
        assert table is not None
        ours = ImageSymbols(*table)
        listed = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        theirs = {
            (words[2], int(words[0], 16))
            for words in (line.split(maxsplit=2) for line in listed.splitlines())
            if len(words) == 3
        }
        assert set(zip(ours.names, ours.addresses.tolist(), strict=True)) <= theirs
        for image in (
            *path.parent.glob("arch/*/boot/bzImage"),
            *path.parent.glob("arch/*/boot/Image"),
        ):
            assert set(KernelImage.parse(image.read_bytes()).symbols) <= set(ours)


def test_what_lies_between_two_segments_is_read_as_zeros() -> None:
    """Bytes are read across two segments, not across what is far apart or behind the last."""
    data = bytes(range(1, 17))
    near = Segment(BASE, 8, 0, 6), Segment(BASE + 0x10, 8, 8, 8)
    far = Segment(BASE + 0x100_0000, 8, 0, 8)
    table = symbols_of(vmlinux(bytes(0x100), NAMES), "vmlinux")
    assert table is not None
    image = KernelImage(
        "vmlinux", archs.arch("x86_64"), data, (), (*near, far), ImageSymbols(*table)
    )
    assert image.read(BASE + 4, 0x10) == data[4:6] + bytes(10) + data[8:12]
    assert image.read(BASE, 0x10) == data[:6] + bytes(10)
    assert image.read(BASE + 0x10, 8) == data[8:16]
    for address, size in ((BASE, 0x19), (BASE + 0x10, 0x100_0000), (BASE + 8, 4), (BASE, 1 << 60)):
        with pytest.raises(BadKernel, match="are not in the image"):
            image.read(address, size)
