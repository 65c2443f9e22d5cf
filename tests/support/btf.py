# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel says of its own types: the BTF in its image, as bpftool reads it.

Nothing of the project is used but the decompressors, so that it can be an oracle for it.
"""

from __future__ import annotations

import functools
import json
import lzma
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from loader.files import decompress
from tests.support.tools import run, tool

Type: TypeAlias = "dict[str, Any]"
HEADER = bytes.fromhex("9feb010018000000")  # magic, version, flags, header's size
LEAST = 1 << 20  # what a whole kernel's types have at the least
QUALIFIERS = frozenset({"TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG"})
VOID: Type = {"kind": "VOID"}


class Types:
    """The types of one kernel."""

    def __init__(self, dump: list[Type]) -> None:
        self._all: dict[int, Type] = {t["id"]: t for t in dump}
        self._named: dict[tuple[str, str], Type] = {}
        for found in self._all.values():
            self._named.setdefault((found["kind"], found.get("name", "")), found)

    def with_more(self, dump: list[Type]) -> Types:
        """Return these types and those that go on from them."""
        return Types([*self._all.values(), *dump])

    def structure(self, name: str) -> Type | None:
        """Return a struct or union by its tag or by a name given with typedef."""
        for kind in ("STRUCT", "UNION"):
            if (kind, name) in self._named:
                return self._named[kind, name]
        named = self._named.get(("TYPEDEF", name))
        return None if named is None else self.plain(named["type_id"])

    def function(self, name: str) -> Type | None:
        """Return the prototype of a function."""
        found = self._named.get(("FUNC", name))
        return None if found is None else self._all[found["type_id"]]

    def plain(self, number: int) -> Type:
        """Return a type without qualifiers and names given with typedef."""
        while number and self._all[number]["kind"] in QUALIFIERS:
            number = self._all[number]["type_id"]
        return self._all[number] if number else VOID

    def size(self, found: Type) -> int:
        """Return the bytes of a type."""
        if found["kind"] == "PTR":
            return 8
        if found["kind"] == "ARRAY":
            return int(found["nr_elems"]) * self.size(self.plain(found["type_id"]))
        return int(found.get("size", 0))

    def members(self, found: Type) -> Iterator[tuple[str, int, Type]]:
        """Yield name, offset and type of each member, those of anonymous members among them."""
        for member in found.get("members", ()):
            at, kind = member["bits_offset"] // 8, self.plain(member["type_id"])
            if member["name"] in ("", "(anon)"):
                for name, inner, what in self.members(kind):
                    yield name, at + inner, what
            else:
                yield member["name"], at, kind

    def member(self, found: Type, path: str) -> tuple[int, Type] | None:
        """Return offset and type of a member, or of a member's by a dotted name."""
        start = 0
        for part in path.split("."):
            named = {name: (at, kind) for name, at, kind in self.members(found)}
            if part not in named:
                return None
            start, found = start + named[part][0], named[part][1]
        return start, found


def types(folder: Path) -> Types:
    """Return the types of the kernel whose image lies in `folder`/boot, or skip."""
    return _types(folder, tool("bpftool"))


def types_of_module(folder: Path, section: bytes) -> tuple[Types, frozenset[str]]:
    """Return a module's types with those of its kernel in front, and which structures are its own.

    Parameters
    ----------
    folder
        Holds its kernel's image, in `boot`.
    section
        Its `.BTF`.
    """
    bpftool = tool("bpftool")
    with tempfile.NamedTemporaryFile() as base, tempfile.NamedTemporaryFile() as own:
        base.write(_kernel(folder))
        own.write(section)
        base.flush()
        own.flush()
        dump = run(bpftool, "-j", "-B", base.name, "btf", "dump", "file", own.name)
    found = types(folder).with_more(json.loads(dump)["types"])
    return found, frozenset(
        t["name"] for t in json.loads(dump)["types"] if t["kind"] in ("STRUCT", "UNION")
    )


@functools.cache
def _kernel(folder: Path) -> bytes:
    image = next((p for p in sorted((folder / "boot").glob("vmlinu*"))), None)
    if image is None:
        pytest.skip(f"{folder} holds no kernel image")
    return _blob(_unpacked(image))


@functools.cache
def _types(folder: Path, bpftool: str) -> Types:
    with tempfile.NamedTemporaryFile(suffix=".btf") as blob:
        blob.write(_kernel(folder))
        blob.flush()
        return Types(json.loads(run(bpftool, "-j", "btf", "dump", "file", blob.name))["types"])


def _unpacked(path: Path) -> bytes:
    """Return what a kernel image boots: an x86 bzImage's payload, an EFI zboot's, or itself."""
    raw = decompress(path.read_bytes(), path.name)
    if raw[0x202:0x206] == b"HdrS":  # Documentation/arch/x86/boot.rst
        setup = (raw[0x1F1] or 4) + 1
        start, size = struct.unpack_from("<II", raw, 0x248)
        return _payload(raw[512 * setup + start :][:size])
    if raw[:2] == b"MZ" and raw[4:8] == b"zimg":  # drivers/firmware/efi/libstub/zboot-header.S
        start, size = struct.unpack_from("<II", raw, 8)
        return _payload(raw[start : start + size])
    return raw


def _payload(data: bytes) -> bytes:
    """Decompress a payload, behind which its size may stand."""
    if data[:2] == b"\x1f\x8b":
        return zlib.decompressobj(31).decompress(data)
    if data[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(data)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        zstandard = pytest.importorskip("zstandard")
        return bytes(zstandard.ZstdDecompressor().decompressobj().decompress(data))
    return decompress(data, "payload")


def _blob(image: bytes) -> bytes:
    """Return the types that lie somewhere in an image (include/uapi/linux/btf.h)."""
    at = image.find(HEADER)
    while at >= 0:
        header = struct.unpack_from("<HBBIIIII", image, at)
        size = header[3] + max(header[4] + header[5], header[6] + header[7])
        if LEAST <= size <= len(image) - at:
            return image[at : at + size]
        at = image.find(HEADER, at + 1)
    pytest.skip("the kernel image holds no BTF")
