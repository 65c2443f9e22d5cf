# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command line names when it asks for types: a kernel, or a module of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from allocator.types import Hex
from archs import Arch
from loader import declarations
from loader.btf import Btf
from loader.btf_records import Type
from loader.elf import parse
from loader.elfview import STT_FUNC, ElfView
from loader.errors import BadKernel
from loader.files import SUFFIXES, ModuleFile
from loader.kernel.find import read_kernel
from loader.kernel.image import KernelImage
from loader.layouts import types_over

INDENT = "    "


@attrs.frozen(kw_only=True)
class Source:
    """A kernel or a module, with its types.

    Parameters
    ----------
    name
        The kernel's release, or the module's file.
    kernel
        The kernel; of a module that whose types it goes on from, None where none is given.
    view
        The module; None: it is a kernel.
    types
        None where there are none.
    lacks
        What would make them known.
    """

    name: str
    arch: Arch
    kernel: KernelImage | None
    view: ElfView | None
    types: Btf | None
    lacks: str = ""

    def known(self) -> Btf:
        """Return the types; BadKernel where there are none, with what would make them known."""
        if self.types is None:
            raise BadKernel(self.name, "types", self.lacks)
        return self.types


def source(path: str, kernel: str | None) -> Source:
    """Return what a path names: a module by its suffix, else a kernel.

    Parameters
    ----------
    kernel
        Of a module: the kernel that its types go on from.

    Raises
    ------
    BadKernel, BadModule, BadBtf
        It cannot be read, or the module is another kernel's.
    """
    base = None if kernel is None else read_kernel(kernel)
    if not path.endswith(SUFFIXES):
        image = read_kernel(path)
        lacks = f"it has none; known with {image.unknown.get('types', 'CONFIG_DEBUG_INFO_BTF')}"
        return Source(
            name=image.release or image.name,
            arch=image.arch,
            kernel=image,
            view=None,
            types=image.btf,
            lacks=lacks,
        )
    file = ModuleFile.read(Path(path))
    view = parse(file.image(), file.name)
    types = None if base is None else types_over(view, base.btf, base.release)
    lacks = "a module's types go on from its kernel's: give that with --kernel"
    if base is not None:
        lacks = "it has none (.BTF), or its kernel has none"
    return Source(name=file.name, arch=view.arch, kernel=base, view=view, types=types, lacks=lacks)


def functions(of: Source, glob: str) -> Iterator[dict[str, Any]]:
    """Yield the functions that a shell pattern matches: name, place, size, prototype."""
    prototypes: Mapping[str, str] = {}
    if of.types is not None:
        prototypes = {d.name: d.prototype for d in declarations.functions(of.types, glob)}
    fits = declarations.matcher(glob)
    if of.view is None:
        assert of.kernel is not None  # it is one
        symbols = of.kernel.symbols
        listed = symbols.types if symbols.count else b""
        for number, name in enumerate(symbols.names):
            if fits(name) and (name in prototypes or listed[number : number + 1] in b"TtWw"):
                yield {
                    "name": name,
                    "address": Hex(symbols[name]),
                    "section": None,
                    "offset": None,
                    "size": None,
                    "prototype": prototypes.get(name),
                }
        return
    table = of.view.symbols
    for index in np.flatnonzero(table["info"] & 0xF == STT_FUNC).tolist():
        name, where = of.view.symbol_name(index), int(table["shndx"][index])
        if fits(name) and 0 < where < len(of.view.sections):
            yield {
                "name": name,
                "address": None,
                "section": of.view.sections[where].name,
                "offset": Hex(int(table["value"][index])),
                "size": int(table["size"][index]),
                "prototype": prototypes.get(name),
            }


def structure(of: Source, found: Type) -> dict[str, Any]:
    """Return a type with its members, as a document."""
    btf, pointer = of.known(), of.arch.link.dialect.word
    size = btf.size_of(found.number, pointer=pointer)
    return {
        "name": found.name,
        "kind": btf.resolved(found.number).kind.name.lower(),
        "size": size,
        "definition": btf.definition(found.number),
        "members": [
            {
                "depth": line.depth,
                "text": line.text,
                "offset": line.offset,
                "size": line.size,
                "bits": line.bits or None,
                "shift": line.shift if line.bits else None,
                "hole": line.hole,
            }
            for line in declarations.lines(btf, found.number, pointer=pointer)
        ],
    }


def as_c(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a structure's lines as pahole writes them: member, offset, size, holes."""
    if document["kind"] not in ("struct", "union", "enum", "enum64"):
        yield f"{document['definition']}  /* {document['size']} */"
        return
    first, _, _ = str(document["definition"]).partition("\n")
    if not first.endswith("{"):
        yield f"{document['definition']}  /* {document['size']} */"
        return
    yield first
    for member in document["members"]:
        pad = INDENT * (member["depth"] + 1)
        if member["hole"]:
            yield f"{pad}/* {member['hole']} bytes: a hole */"
        text = f"{pad}{member['text']}"
        if member["offset"] is not None:
            at = f"{member['offset']:#x}"
            if member["bits"]:
                at += f":{member['shift']}"
            text = f"{text:<48} /* {at:>8} {member['size']:#6x} */"
        yield text
    yield f"}}; /* size {document['size']:#x} */"
