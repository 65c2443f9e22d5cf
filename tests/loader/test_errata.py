# SPDX-License-Identifier: GPL-2.0-or-later
"""Erratum 843419: no ADRP stays where a Cortex-A53 could get it wrong, and none changes meaning.

An ADRP whose address ends in 0xff8 or 0xffc is forbidden (arch/arm64/kernel/module-plts.c
and module.c, reloc_insn_adrp). The loader aligns sections so that as few as possible get
there, rewrites the others to ADR where the page is within 1 MiB, and sends the rest through
a veneer. A disassembler follows every one of them to the page that it puts into its register.
"""

from __future__ import annotations

import attrs
import capstone
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import archs
from allocator.types import MIB, MemType
from execmem.check.elfwriter import AARCH64, A, Rela, Sec, Sym, X, write
from loader.elf import parse
from loader.elfview import ElfView
from loader.errors import RelocationError
from loader.layout import Layout, plan
from loader.link import link_view
from loader.linked import Linked
from tests.support.addresses import place
from tests.support.scalar import MASK64

ERRATUM = "843419"
ADRP, ADRP_NC, CALL26, ABS64 = 275, 276, 283, 257
NOP, BL = bytes.fromhex("1f2003d5"), bytes.fromhex("00000094")
BASE = 0xFFFF_8000_0400_0000
CS = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
CS.detail = True


def forbidden(address: int) -> bool:
    """Return whether an ADRP may not stand at an address."""
    return address & 0xFFF in (0xFF8, 0xFFC)


@pytest.mark.parametrize("alignment", [1 << n for n in range(3, 12)])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_an_aligned_section_keeps_its_adrp_off_forbidden_places(
    alignment: int, data: st.DataObject
) -> None:
    """At every multiple of the alignment that an offset asks for its ADRP is at a good address."""
    erratum = archs.arch("arm64").errata[ERRATUM]
    offsets = data.draw(st.lists(st.integers(0, 1 << 20).map(lambda n: 4 * n), min_size=1))
    needed = erratum.safe_align(np.array(offsets, np.uint64)).tolist()
    base = data.draw(st.integers(0, 1 << 40)) * alignment
    for offset, align in zip(offsets, needed, strict=True):
        assert align & (align - 1) == 0
        # An offset that ends in 0xff8 needs more than the page alignment that memory has.
        assert (align > 4096) == forbidden(offset)
        if align <= alignment:
            assert not forbidden(base + offset)


@given(offset=st.integers(0, 1 << 20).map(lambda n: 4 * n))
@settings(max_examples=50, deadline=None)
def test_no_smaller_alignment_would_do(offset: int) -> None:
    """At half the alignment there is a place of the section that makes the address forbidden."""
    erratum = archs.arch("arm64").errata[ERRATUM]
    (align,) = erratum.safe_align(np.array([offset], np.uint64)).tolist()
    half = align // 2
    starts = range(0, 4096, half) if half < 4096 else [0]
    assert any(forbidden(start + offset) for start in starts)


@attrs.frozen
class Use:
    """One instruction of a text: an ADRP of (symbol + addend), or a call of it."""

    offset: int
    symbol: str
    addend: int = 0
    type: int = ADRP
    register: int = 0


def build(*texts: list[Use], plt: bool = True, align: int = 4) -> bytes:
    """Return an object with these instructions among NOPs, in `.text` and `.init.text`."""
    sections = []
    for name, uses in zip((".text", ".init.text"), texts, strict=False):
        size = max((use.offset for use in uses), default=0) + 8
        code = bytearray(NOP * (size // 4))
        for use in uses:
            word = 0x9000_0000 | use.register
            code[use.offset : use.offset + 4] = (
                BL if use.type == CALL26 else word.to_bytes(4, "little")
            )
        relas = [Rela(use.offset, use.type, use.symbol, use.addend) for use in uses]
        sections.append(Sec(name, bytes(code), A | X, align=align, relas=relas))
    if plt:
        sections += [Sec(".plt", b"\0", A | X), Sec(".init.plt", b"\0", A)]
    names = dict.fromkeys(use.symbol for uses in texts for use in uses)
    return write(AARCH64, sections, [Sym(name) for name in names])


@attrs.frozen
class Program:
    """A linked object, read with a disassembler."""

    view: ElfView
    layout: Layout
    addresses: dict[int, int]
    linked: Linked

    def start(self, name: str) -> int:
        """Return the address of a section."""
        return self.addresses[self.view.section(name).index]

    def insns(self, name: str, at: int, count: int = 1) -> list[capstone.CsInsn]:
        """Return the instructions at an address of a section."""
        offset = at - self.start(name)
        code = bytes(self.linked.sections[self.view.section(name).index])
        return list(CS.disasm(code[offset : offset + 4 * count], at))

    def page(self, name: str, use: Use) -> tuple[int, str]:
        """Return what an ADRP's register holds behind its place, and how it got there."""
        at = self.start(name) + use.offset
        (insn,) = self.insns(name, at)
        how = insn.mnemonic
        if how == "b":
            plt = ".init.plt" if name.startswith(".init") else ".plt"
            entry = insn.operands[0].imm & MASK64
            adrp, add, back = self.insns(plt, entry, 3)
            assert [adrp.mnemonic, add.mnemonic, back.mnemonic] == ["adrp", "add", "b"]
            assert not forbidden(adrp.address)
            assert back.operands[0].imm & MASK64 == at + 4
            registers = {adrp.operands[0].reg, add.operands[0].reg, add.operands[1].reg}
            assert len(registers) == 1
            assert add.operands[2].imm == 0
            insn = adrp
        else:
            assert how == "adr" or (how == "adrp" and not forbidden(at))
        assert insn.reg_name(insn.operands[0].reg) == f"x{use.register}"
        return insn.operands[1].imm & MASK64, how


def linked(
    image: bytes, symbols: dict[str, int], *, base: int = BASE, errata: tuple[str, ...] = (ERRATUM,)
) -> Program:
    """Link an object, laid out and linked for parts with (or without) the erratum."""
    view = parse(image, "a53.ko")
    layout = plan(view, errata=errata)
    addresses = place(layout, base)
    return Program(
        view, layout, addresses, link_view(view, layout, addresses, symbols, errata=errata)
    )


@pytest.mark.parametrize("low", [0xFF8, 0xFFC])
@pytest.mark.parametrize("kind", [ADRP, ADRP_NC])
@pytest.mark.parametrize(
    ("pages", "how"),
    [(-256, "b"), (-255, "adr"), (0, "adr"), (256, "adr"), (257, "b"), (9999, "b"), (-9999, "b")],
)
def test_adr_within_a_mebibyte_and_a_veneer_beyond(
    low: int, kind: int, pages: int, how: str
) -> None:
    """The page's own distance decides, at the last page within reach and at the next one."""
    use = Use(low, "target", 0x123, type=kind, register=19)
    target = BASE + 4096 * pages + 0x321
    program = linked(build([use]), {"target": target})
    assert forbidden(program.start(".text") + low)
    assert program.page(".text", use) == (target & ~0xFFF, how)
    assert program.linked.stubs.veneers == (how == "b")
    assert program.linked.plt[False].used == (how == "b")


def test_other_parts_keep_their_adrp() -> None:
    """Without the erratum an ADRP stays what it is wherever it stands, and nothing is reserved."""
    use = Use(0xFF8, "target")
    program = linked(build([use]), {"target": BASE + 64 * MIB}, errata=())
    (insn,) = program.insns(".text", program.start(".text") + 0xFF8)
    assert (insn.mnemonic, insn.operands[1].imm & MASK64) == ("adrp", BASE + 64 * MIB)
    assert program.layout.plt[False].slots == 0


def test_a_section_is_aligned_as_its_adrp_need() -> None:
    """An ADRP that alignment keeps away from forbidden places costs no entry."""
    # 0x7f8 is bad at odd multiples of 0x800 only, 0x3f8 at those of 0x400.
    for offset, align in ((0x7F8, 0x1000), (0x3FC, 0x800), (0x10, 16), (0x14, 16), (0xFF0, 16)):
        view = parse(build([Use(offset, "target")]))
        layout = plan(view, errata=[ERRATUM])
        placed = layout.placements[view.section(".text").index]
        assert (placed.align, layout.plt[False].slots) == (align, 0), hex(offset)
    layout = plan(
        parse(build([Use(0x1FF8, "a"), Use(0x7FC, "a"), Use(0xFFC, "a")])), errata=[ERRATUM]
    )
    assert layout.plt[False].slots == 2 + 1  # and one of slack
    assert layout.aligns[MemType.TEXT] == 0x1000


ADDENDS = st.sampled_from((0, 0, 4, 0x1000, -0x2000))
NAMES = {
    "near": BASE + 0x5430,
    "far": BASE + 256 * MIB,
    "away": BASE - 700 * MIB + 0xABC,
    "edge": BASE + MIB - 0x1000,
}
OFFSETS = st.one_of(
    st.sampled_from([page + low for page in range(0, 0x4000, 0x1000) for low in (0xFF8, 0xFFC)]),
    st.integers(0, 0xFFF).map(lambda n: 4 * n),
)
USES = st.lists(
    st.builds(
        Use,
        OFFSETS,
        st.sampled_from(sorted(NAMES)),
        ADDENDS,
        st.sampled_from((ADRP, ADRP, ADRP_NC, CALL26)),
        st.integers(0, 30).filter(lambda n: n not in (29, 30)),
    ),
    max_size=10,
    unique_by=lambda use: use.offset,
)


@given(texts=st.tuples(USES, USES), base=st.integers(0, 64).map(lambda n: BASE + 0x40 * n))
@example(texts=([Use(0xFF8, "far"), Use(0xFFC, "far"), Use(0, "far", type=CALL26)], []), base=BASE)
@settings(max_examples=80, deadline=None)
def test_no_adrp_is_left_at_a_forbidden_place(
    texts: tuple[list[Use], list[Use]], base: int
) -> None:
    """Whatever stands where, each ADRP puts its page into its register, from a good place.

    Regions start anywhere that their alignment allows; calls use entries in between.
    """
    view = parse(build(*texts), "a53.ko")
    layout = plan(view, errata=[ERRATUM])
    starts = {}
    for kind in layout.aligns:
        align = layout.aligns[kind]
        starts[kind] = -(-base // align) * align + MIB * (kind is MemType.INIT_TEXT)
    addresses = {i: starts[p.type] + p.offset for i, p in layout.placements.items()}
    program = Program(
        view, layout, addresses, link_view(view, layout, addresses, NAMES, errata=[ERRATUM])
    )
    for name, them in zip((".text", ".init.text"), texts, strict=True):
        for use in them:
            target = NAMES[use.symbol] + use.addend
            if use.type == CALL26:
                (call,) = program.insns(name, program.start(name) + use.offset)
                end = call.operands[0].imm & MASK64
                if end != target:
                    plt = ".init.plt" if name.startswith(".init") else ".plt"
                    adrp, add, _ = program.insns(plt, end, 3)
                    assert not forbidden(end)
                    end = adrp.operands[1].imm + add.operands[2].imm & MASK64
                assert end == target
            else:
                assert program.page(name, use)[0] == target & ~0xFFF
    for init, entries in program.linked.plt.items():
        assert entries.used <= entries.reserved == program.layout.plt[init].slots


def test_entries_skip_forbidden_places() -> None:
    """With so many entries that some would stand at bad places, those are left out, and there is room."""
    uses = [Use(4 * n, f"f{n}", type=CALL26) for n in range(700)]
    symbols = {f"f{n}": BASE + 256 * MIB + 16 * n for n in range(700)}
    view = parse(build([*uses, Use(0x1FF8, "data")]), "a53.ko")
    layout = plan(view, errata=[ERRATUM])
    addresses = place(layout, BASE)
    addresses[view.section(".plt").index] = start = BASE + 16 * MIB
    symbols["data"] = BASE + 32 * MIB
    done = link_view(view, layout, addresses, symbols, errata=[ERRATUM])
    program = Program(view, layout, addresses, done)
    entries = []
    for use in uses:
        (call,) = program.insns(".text", BASE + use.offset)
        entries.append(call.operands[0].imm & MASK64)
        adrp, add, _ = program.insns(".plt", entries[-1], 3)
        assert adrp.operands[1].imm + add.operands[2].imm & MASK64 == symbols[use.symbol]
    assert not any(map(forbidden, entries))
    # Entry 341 would start at 0xffc of its page, entry 682 at 0xff8.
    assert sorted(set(entries)) == [start + 12 * n for n in range(702) if n not in (341, 682)]
    assert program.page(".text", Use(0x1FF8, "data")) == (symbols["data"], "b")
    assert done.plt[False].used == 703 <= layout.plt[False].slots
    assert done.stubs.veneers == 1


@pytest.mark.parametrize("plt", [None, BASE + 128 * MIB + 0x2000])
def test_a_veneer_without_a_place_is_an_error(plt: int | None) -> None:
    """Without a PLT, or with one too far away, the ADRP is reported; ADR still helps near ones."""
    uses = [Use(0xFF8, "near"), Use(0x1FFC, "far", 8)]
    view = parse(build(uses, plt=plt is not None), "a53.ko")
    layout = plan(view, errata=[ERRATUM])
    addresses = place(layout, BASE)
    if plt is not None:
        addresses[view.section(".plt").index] = plt
    with pytest.raises(RelocationError) as caught:
        link_view(view, layout, addresses, NAMES, errata=[ERRATUM])
    (failure,) = caught.value.failures
    assert (failure.section, failure.offset, failure.symbol) == (".text", 0x1FFC, "far")
    assert failure.reason == "no PLT entry left, or none near enough, for the veneer of an erratum"


def test_an_erratum_that_the_architecture_does_not_know_changes_nothing(arch: archs.Arch) -> None:
    """Numbers of other architectures' errata may be given to all."""
    image = write(arch.machine, [Sec(".text", bytes(16), A | X)])
    view = parse(image)
    layout = plan(view, errata=["845719", ERRATUM])
    assert layout.placements[1].align == 1
    addresses = place(layout, BASE)
    assert bytes(link_view(view, layout, addresses, {}, errata=["0"]).sections[1]) == bytes(16)
