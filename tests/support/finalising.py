# SPDX-License-Identifier: GPL-2.0-or-later
"""Small x86-64 modules of hand-written code, finalised, and read with a disassembler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import capstone

from archs.environment import Environment
from execmem.check.elfwriter import LOCAL, UNDEF, X86_64, A, Rela, Sec, Sym, X, write
from loader.elf import parse
from loader.elfview import ElfView
from loader.finalize import Edits, finalise
from loader.layout import plan
from loader.link import link_view
from tests.support.addresses import place

BASE = 0xFFFF_FFFF_C020_0000
PC32 = 2
MASK = (1 << 64) - 1
TEXT = "text"  # the symbol at the start of .text


@attrs.frozen
class Result:
    """A finalised module."""

    view: ElfView
    addresses: Mapping[int, int]
    before: Mapping[int, bytes]
    after: Mapping[int, bytes]
    edits: Mapping[str, Edits]
    notes: tuple[str, ...] = ()

    def index(self, name: str) -> int:
        """Return a section's number."""
        section = self.view.section(name)
        assert section is not None
        return section.index

    def bytes(self, name: str = ".text") -> bytes:
        """Return a section's bytes now."""
        return self.after[self.index(name)]

    def address(self, name: str = ".text") -> int:
        """Return a section's address."""
        return self.addresses[self.index(name)]

    def code(self, offset: int, size: int, name: str = ".text") -> list[tuple[str, str, bytes]]:
        """Return the instructions at an offset: mnemonic, operands and bytes."""
        engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        at = self.address(name) + offset
        found = engine.disasm(self.bytes(name)[offset : offset + size], at)
        return [(i.mnemonic, i.op_str, bytes(i.bytes)) for i in found]


def sites(name: str, offsets: Sequence[int], flags: int = A) -> Sec:
    """Return a table of self-relative words that point into .text."""
    relas = [Rela(4 * n, PC32, TEXT, offset) for n, offset in enumerate(offsets)]
    return Sec(name, bytes(4 * len(offsets)), flags, align=4, relas=relas)


def finalised(
    text: bytes,
    tables: Sequence[Sec],
    environment: Environment,
    symbols: Mapping[str, int] | None = None,
    *,
    relas: Sequence[Rela] = (),
    extra: Sequence[Sym] = (),
    without: Sequence[str] = (),
) -> Result:
    """Return a module of code and tables after finalisation.

    Parameters
    ----------
    symbols
        Undefined name -> address; every one becomes a symbol of the module.
    relas
        Relocations of the code.
    extra
        Further symbols.
    """
    symbols = symbols or {}
    names = [Sym(name, UNDEF) for name in symbols]
    sections = [Sec(".text", text, A | X, align=16, relas=relas), *tables]
    image = write(X86_64, sections, [Sym(TEXT, ".text", bind=LOCAL), *extra, *names])
    view = parse(image)
    layout = plan(view)
    addresses = place(layout, BASE)
    linked = link_view(view, layout, addresses, symbols)
    before = {index: bytes(contents) for index, contents in linked.sections.items()}
    found = finalise(view, layout, addresses, linked, environment, without=without)
    after = {index: bytes(contents) for index, contents in linked.sections.items()}
    return Result(view, addresses, before, after, found.edits, found.notes)
