# SPDX-License-Identifier: GPL-2.0-or-later
"""PLT entries: a disassembler follows every call of a linked module to where it ends."""

from __future__ import annotations

import attrs
import capstone
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import archs
from allocator.types import MIB
from execmem.check.elfwriter import AARCH64, RISCV, A, Rela, Sec, Sym, X, write
from loader.elf import parse
from loader.elfview import ElfView
from loader.errors import BadModule, RelocationError
from loader.layout import Layout, PltPlan, plan, with_stub_sections
from loader.link import link, link_view
from loader.linked import Linked
from tests.archs.facts import facts, needs
from tests.support.addresses import place
from tests.support.modules import module
from tests.support.scalar import MASK64

BASE = 0xFFFF_8000_0400_0000
NEAR = BASE + 64 * MIB
# Farther than a branch gets (128 MiB), nearer than ADRP (4 GiB), above and below.
FAR = {"far": BASE + 256 * MIB, "away": BASE + 1024 * MIB + 0x123C, "below": BASE - 700 * MIB}
SYMBOLS = {"near": NEAR, **FAR}
TEXTS = (".text", ".text.two", ".init.text")
Target = tuple[str, int]
CS = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
CS.detail = True


@attrs.frozen
class Program:
    """A linked object whose texts are rows of calls."""

    view: ElfView
    layout: Layout
    addresses: dict[int, int]
    linked: Linked

    def address(self, name: str) -> int:
        """Return the address of a section."""
        return self.addresses[self.view.section(name).index]

    def contents(self, name: str) -> bytes:
        """Return the linked bytes of a section."""
        return bytes(self.linked.sections[self.view.section(name).index])

    def ends(self, name: str) -> list[tuple[int, str]]:
        """Return for each call of a section where it ends, and the PLT that it went through."""
        found = []
        for insn in CS.disasm(self.contents(name), self.address(name)):
            if insn.mnemonic != "bl":
                continue
            at, through = insn.operands[0].imm & MASK64, ""
            for plt in (".plt", ".init.plt"):
                offset = at - self.address(plt)
                if 0 <= offset < len(self.contents(plt)):
                    assert offset % 12 == 0
                    at, through = self.entry(plt, offset // 12), plt
            found.append((at, through))
        return found

    def entry(self, plt: str, number: int) -> int:
        """Return where an entry jumps to."""
        at = 12 * number
        adrp, add, branch = CS.disasm(self.contents(plt)[at : at + 12], self.address(plt) + at)
        assert [adrp.mnemonic, add.mnemonic, branch.mnemonic] == ["adrp", "add", "br"]
        return int(adrp.operands[1].imm + add.operands[2].imm) & MASK64


def build(*texts: list[Target], other: bool = True) -> bytes:
    """Return an object with these calls; `other` adds a record to each text that is no branch."""
    sections = []
    for name, targets in zip(TEXTS, texts, strict=False):
        relas = [Rela(4 * i, facts("arm64").link.call, t, a) for i, (t, a) in enumerate(targets)]
        code = facts("arm64").link.call_code[0] * len(targets) + bytes(8)
        if other:
            relas.append(Rela(4 * len(targets), 257, "near"))
        sections.append(Sec(name, code, A | X, align=4, relas=relas))
    sections += [Sec(".plt", b"\0", A | X), Sec(".init.plt", b"\0", A)]
    return write(AARCH64, sections, [Sym(name) for name in SYMBOLS])


def linked(image: bytes, *, base: int = BASE) -> Program:
    """Link an object at `base`."""
    view = parse(image, "calls.ko")
    layout = plan(view)
    addresses = place(layout, base)
    return Program(view, layout, addresses, link_view(view, layout, addresses, SYMBOLS))


def check(program: Program, *texts: list[Target]) -> None:
    """Assert that every call ends where it should, through its own text's PLT if it is far."""
    for name, targets in zip(TEXTS, texts, strict=False):
        plt = ".init.plt" if name.startswith(".init") else ".plt"
        assert program.ends(name) == [
            (SYMBOLS[target] + addend, "" if target == "near" else plt)
            for target, addend in targets
        ]
    for init, use in program.linked.plt.items():
        assert use.used <= use.reserved == program.layout.plt[init].slots


def words(program: Program, plt: str) -> list[int | None]:
    """Return what each entry of a PLT jumps to; None where there is none."""
    size = len(program.contents(plt)) // 12
    raw = [program.contents(plt)[12 * n : 12 * n + 12] for n in range(size)]
    return [program.entry(plt, n) if any(bits) else None for n, bits in enumerate(raw)]


TARGETS = st.tuples(st.sampled_from(sorted(SYMBOLS)), st.sampled_from((0, 0, 0, 4)))


@given(texts=st.lists(st.lists(TARGETS, max_size=7), min_size=3, max_size=3), other=st.booleans())
@example(texts=[[("far", 0)] * 2, [("away", 0)], []], other=True)
@example(texts=[[("far", 0)] * 2, [("far", 0)] * 2, []], other=False)
@settings(max_examples=50, deadline=None)
def test_every_call_ends_at_its_target(texts: list[list[Target]], other: bool) -> None:
    """Whatever mixture of near and far calls, in whatever sections, none goes astray."""
    check(linked(build(*texts, other=other)), *texts)


def test_calls_within_reach_use_no_entry() -> None:
    """A PLT that nobody needs stays empty."""
    program = linked(build([("near", 0)] * 3))
    assert words(program, ".plt") == [None, None]
    assert program.linked.plt[False].used == 0


def test_calls_of_one_symbol_share_an_entry() -> None:
    """Calls of the same target jump through one entry, in whatever order they stand."""
    calls = [("far", 0), ("away", 0), ("far", 0), ("away", 0)]
    program = linked(build(calls))
    check(program, calls)
    assert program.linked.plt[False].used == 2
    assert set(words(program, ".plt")[:2]) == {FAR["far"], FAR["away"]}


@pytest.mark.parametrize("pages", [-(1 << 20), (1 << 20) - 1])
def test_an_entry_leads_as_far_as_adrp(pages: int) -> None:
    """An entry leads to the pages of 4 GiB around its own, and a call beyond them is refused.

    ADRP holds 21 bits of pages (Arm ARM); a truncated one would lead to another page.
    """
    view = parse(build([("far", 0)]), "calls.ko")
    layout = plan(view)
    addresses = place(layout, BASE)
    entry = addresses[view.section(".plt").index]
    last = ((entry >> 12) + pages << 12) + (0 if pages < 0 else 0xFFC)
    program = Program(
        view, layout, addresses, link_view(view, layout, addresses, {**SYMBOLS, "far": last})
    )
    assert program.entry(".plt", 0) == last
    beyond = {**SYMBOLS, "far": last + (-4 if pages < 0 else 4)}
    with pytest.raises(RelocationError, match="R_AARCH64_CALL26 against 'far' out of range"):
        link_view(view, layout, addresses, beyond)
    code = archs.arch("arm64").plt.encode(entry, beyond["far"])
    assert next(CS.disasm(code, entry)).mnemonic == "brk"


def test_another_addend_is_another_target() -> None:
    """Targets are compared, not symbols."""
    calls = [("far", 0), ("far", 4)]
    program = linked(build(calls))
    check(program, calls)
    assert words(program, ".plt") == [FAR["far"], FAR["far"] + 4, None]


def test_sections_share_only_the_entry_emitted_last() -> None:
    """A duplicate is looked for in one place only: the entry before (module_emit_plt_entry)."""
    program = linked(build([("far", 0)], [("far", 0)]))
    assert program.linked.plt[False].used == 1
    program = linked(build([("away", 0), ("far", 0)], [("away", 0)]))
    # Sorted by symbol: near, far, away. The second section's `away` follows `away`.
    assert program.linked.plt[False].used == 2
    program = linked(build([("far", 0), ("below", 0)], [("far", 0)]))
    assert program.linked.plt[False].used == 3


def test_a_stale_copy_stands_behind_the_last_entry() -> None:
    """An entry is written before it is known to be a duplicate, and not taken back."""
    program = linked(build([("far", 0), ("far", 0)]))
    assert program.linked.plt[False].used == 1
    assert words(program, ".plt") == [FAR["far"], FAR["far"]]


def test_the_next_section_overwrites_a_stale_copy() -> None:
    """What was written and not used is where the next entry goes."""
    texts = [("far", 0), ("far", 0)], [("away", 0)]
    program = linked(build(*texts))
    check(program, *texts)
    assert words(program, ".plt") == [FAR["far"], FAR["away"], None]


def test_init_text_has_entries_of_its_own() -> None:
    """Init text is freed with its PLT, so it shares nothing with core text."""
    texts = [("far", 0)], [], [("far", 0)]
    program = linked(build(*texts))
    check(program, *texts)
    assert [program.linked.plt[init].used for init in (False, True)] == [1, 1]


@pytest.mark.parametrize(
    ("distance", "used"),
    [(-(128 * MIB), 0), (128 * MIB - 4, 0), (128 * MIB, 1), (-(128 * MIB) - 4, 1)],
)
def test_an_entry_is_used_only_where_the_branch_does_not_reach(distance: int, used: int) -> None:
    """The last word within reach is called directly, the first one beyond through an entry."""
    view = parse(build([("far", 0)]))
    layout = plan(view)
    addresses = place(layout, BASE)
    start = addresses[view.section(".text").index]
    symbols = SYMBOLS | {"far": start + distance}
    assert link_view(view, layout, addresses, symbols).plt[False].used == used


def test_branches_beyond_the_reserve_are_errors() -> None:
    """With fewer entries than calls need, those without one fail, and the hint says why."""
    view = parse(build([("far", 0), ("away", 0), ("near", 0)]), "calls.ko")
    layout = plan(view)
    few = {False: PltPlan(layout.plt[False].section, 1), True: layout.plt[True]}
    layout = attrs.evolve(layout, plt=few)
    with pytest.raises(RelocationError) as caught:
        link_view(view, layout, place(layout, BASE), SYMBOLS)
    (failure,) = caught.value.failures
    assert failure.symbol == "away"
    assert failure.value is not None
    assert failure.hint.startswith("no PLT entry left or near enough (1 reserved)")


def test_a_plt_that_is_itself_out_of_reach_is_an_error() -> None:
    """An entry must be within branch reach of the call; if not, the call is reported."""
    view = parse(build([("far", 0)]))
    layout = plan(view)
    addresses = place(layout, BASE)
    addresses[view.section(".plt").index] = BASE + 200 * MIB
    with pytest.raises(RelocationError, match="R_AARCH64_CALL26 against 'far' out of range"):
        link_view(view, layout, addresses, SYMBOLS)


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [(62, "kernel: text and data in the top 2 GiB"), (243, "no .plt section")],
)
def test_modules_without_a_plt_refuse_what_does_not_reach(machine: int, wanted: str) -> None:
    """Without entries a call out of reach is an error that says what would help."""
    view = parse(module(machine, undefined=("gone",)), "far.ko")
    layout = plan(view)
    with pytest.raises(RelocationError) as caught:
        link_view(view, layout, place(layout, 1 << 40), {"gone": 1 << 50})
    (failure,) = caught.value.failures
    assert (failure.symbol, failure.reason) == ("gone", "out of range")
    assert wanted in failure.hint


# riscv64: entries load their target from slots of .got.plt ---------------------------------------

RISCV_BASE = 0xFFFF_FFC6_0000_0000
REACH = 1 << 31  # of AUIPC and JALR, 2 KiB less upwards and more downwards
RISCV_SYMBOLS = {
    "near": RISCV_BASE + 0x1234_5670,
    "far": RISCV_BASE + 3 * REACH,
    "away": RISCV_BASE - 2 * REACH - 0x7FE,
    "beyond": 0xFFFF_FFFF_8012_3450,
}
RISCV_CS = capstone.Cs(capstone.CS_ARCH_RISCV, capstone.CS_MODE_RISCV64 | capstone.CS_MODE_RISCVC)
RISCV_CS.detail = True
STUB_SECTIONS = (".plt", ".init.plt", ".got.plt")


@attrs.frozen
class RiscvProgram(Program):
    """A linked object of riscv64."""

    def upper(self, insn: capstone.CsInsn) -> int:
        """Return what an AUIPC puts into its register."""
        assert insn.mnemonic == "auipc"
        high = insn.operands[1].imm << 12
        return int(insn.address + ((high ^ 1 << 31) - (1 << 31)))

    def ends(self, name: str) -> list[tuple[int, str]]:
        """Return for each call of a section where it ends, and the PLT that it went through."""
        found = []
        insns = list(RISCV_CS.disasm(self.contents(name), self.address(name)))
        for auipc, jalr in zip(insns[::2], insns[1::2], strict=False):
            if auipc.mnemonic != "auipc":
                break
            # Without a displacement the disassembler prints `jalr ra`.
            low = jalr.operands[-1].imm if len(jalr.operands) == 3 else 0
            at, through = self.upper(auipc) + low & MASK64, ""
            for plt in STUB_SECTIONS[:2]:
                if self.view.section(plt) is None:
                    continue
                offset = at - self.address(plt)
                if 0 <= offset < len(self.contents(plt)):
                    assert offset % 12 == 0
                    at, through = self.entry(plt, offset // 12), plt
            found.append((at, through))
        return found

    def entry(self, plt: str, number: int) -> int:
        """Return where an entry jumps to: what its slot of `.got.plt` holds."""
        at = 12 * number
        auipc, load, jump = RISCV_CS.disasm(
            self.contents(plt)[at : at + 12], self.address(plt) + at
        )
        assert [load.mnemonic, jump.mnemonic] == ["ld", "jr"]
        names = [i.reg_name(i.operands[0].reg) for i in (auipc, load, jump)]
        # t0 and t1 are what the psABI leaves to PLT entries; t1 is jumped through.
        assert names == ["t0", "t1", "t1"]
        base = load.operands[1].mem
        assert load.reg_name(base.base) == "t0"
        slot = self.upper(auipc) + base.disp - self.address(".got.plt")
        assert slot % 8 == 0
        table = self.contents(".got.plt")
        assert 0 <= slot < len(table)
        return int.from_bytes(table[slot : slot + 8], "little")


def riscv(
    *texts: list[Target], sections: tuple[str, ...] = STUB_SECTIONS, base: int = RISCV_BASE
) -> RiscvProgram:
    """Return a linked object of riscv64 with these calls and stub sections."""
    code = facts("riscv64").link.call_code[0]
    them = []
    for name, targets in zip(TEXTS, texts, strict=False):
        relas = [Rela(8 * i, facts("riscv64").link.call, t, a) for i, (t, a) in enumerate(targets)]
        them.append(Sec(name, code * len(targets) + bytes(2), A | X, align=2, relas=relas))
    them += [Sec(name, b"\0", A | X if "plt" in name else A) for name in sections]
    view = parse(write(RISCV, them, [Sym(name) for name in RISCV_SYMBOLS]), "calls.ko")
    layout = plan(view)
    addresses = place(layout, base)
    return RiscvProgram(view, layout, addresses, link_view(view, layout, addresses, RISCV_SYMBOLS))


@pytest.mark.parametrize(("distance", "step"), [(REACH - 0x800 - 8, 8), (-REACH - 0x800, -8)])
def test_a_slot_lies_where_auipc_and_ld_reach_it(distance: int, step: int) -> None:
    """An entry finds its slot at both ends of the pair's reach, and a call is refused beyond."""
    program = riscv([("far", 0)])
    entry = program.address(".plt")
    for beyond in (0, step):
        slots = {program.view.section(".got.plt").index: entry + distance + beyond}
        addresses = {**program.addresses, **slots}
        parts = program.view, program.layout, addresses
        if not beyond:
            found = RiscvProgram(*parts, link_view(*parts, RISCV_SYMBOLS))
            assert found.ends(".text") == [(RISCV_SYMBOLS["far"], ".plt")]
            continue
        with pytest.raises(RelocationError, match="R_RISCV_CALL_PLT against 'far' out of range"):
            link_view(*parts, RISCV_SYMBOLS)


RISCV_TARGETS = st.tuples(st.sampled_from(sorted(RISCV_SYMBOLS)), st.sampled_from((0, 0, 0, 6)))


@given(
    texts=st.lists(st.lists(RISCV_TARGETS, max_size=7), min_size=3, max_size=3), init=st.booleans()
)
@settings(max_examples=50, deadline=None)
def test_riscv_calls_end_at_their_targets(texts: list[list[Target]], init: bool) -> None:
    """Near calls stay direct; far ones load their target from a slot, init apart where it can."""
    program = riscv(*texts, sections=(".plt", ".got.plt", *([".init.plt"] if init else [])))
    far = {False: set[int](), True: set[int]()}
    for name, targets in zip(TEXTS, texts, strict=True):
        freed = init and name.startswith(".init")
        ends = [(RISCV_SYMBOLS[target] + addend, target) for target, addend in targets]
        far[freed] |= {end for end, target in ends if target != "near"}
        plt = ".init.plt" if freed else ".plt"
        assert program.ends(name) == [(end, "" if t == "near" else plt) for end, t in ends]
    # Every earlier entry is found again, in whatever section it was made.
    used = {freed: use.used for freed, use in program.linked.plt.items()}
    assert used == {freed: len(far[freed]) for freed in used}
    assert used.keys() == ({False, True} if init else {False})
    for use in program.linked.plt.values():
        assert use.used <= use.reserved
    slots = program.linked.stubs.targets
    assert slots is not None
    assert slots.used == sum(used.values()) <= slots.reserved
    assert 8 * slots.used <= len(program.contents(".got.plt"))


def test_riscv_calls_within_reach_are_untouched() -> None:
    """Stub sections change no byte of a text whose calls all reach."""
    calls = [("near", 0), ("near", 4)]
    with_stubs, without = riscv(calls), riscv(calls, sections=())
    assert with_stubs.contents(".text") == without.contents(".text")
    assert not any(with_stubs.contents(".plt") + with_stubs.contents(".got.plt"))
    assert with_stubs.linked.plt[False].used == 0
    assert dict(without.linked.plt) == {}


@pytest.mark.parametrize("sections", [(), (".plt",), (".got.plt",), (".init.plt", ".got.plt")])
def test_riscv_entries_need_both_sections(sections: tuple[str, ...]) -> None:
    """Without `.plt` and `.got.plt` a call out of reach is refused, whatever else there is."""
    with pytest.raises(RelocationError, match="R_RISCV_CALL_PLT against 'far' out of range") as e:
        riscv([("far", 0)], sections=sections)
    assert "the module has no .plt section" in e.value.failures[0].hint


@pytest.mark.parametrize(
    ("distance", "used"),
    [(REACH - 0x802, 0), (REACH - 0x800, 1), (-REACH - 0x800, 0), (-REACH - 0x802, 1)],
)
def test_a_riscv_entry_is_used_only_where_the_call_does_not_reach(distance: int, used: int) -> None:
    """The last displacement of AUIPC and JALR is called directly, the next through an entry."""
    program = riscv([("near", 0)])
    symbols = RISCV_SYMBOLS | {"near": program.address(".text") + distance}
    linked = link_view(program.view, program.layout, program.addresses, symbols)
    assert linked.plt[False].used == used
    again = attrs.evolve(program, linked=linked)
    assert again.ends(".text") == [(symbols["near"], ".plt" if used else "")]


def test_a_riscv_word_may_point_at_an_entry() -> None:
    """R_RISCV_PLT32 is the distance to the function, or to an entry that leads to it."""
    relas = [Rela(0, 59, "near"), Rela(4, 59, "far"), Rela(8, 59, "far")]
    sections = [Sec(".text", bytes(12), A | X, align=4, relas=relas)]
    sections += [Sec(name, b"", A | X) for name in STUB_SECTIONS]
    view = parse(write(RISCV, sections, [Sym(name) for name in RISCV_SYMBOLS]))
    layout = plan(view)
    addresses = place(layout, RISCV_BASE)
    program = RiscvProgram(
        view, layout, addresses, link_view(view, layout, addresses, RISCV_SYMBOLS)
    )
    near, far, again = (
        addresses[1]
        + 4 * n
        + int.from_bytes(program.contents(".text")[4 * n :][:4], "little", signed=True)
        for n in range(3)
    )
    assert near == RISCV_SYMBOLS["near"]
    assert far == again == program.address(".plt")
    assert program.entry(".plt", 0) == RISCV_SYMBOLS["far"]


def test_link_adds_stub_sections_on_request(arch: archs.Arch) -> None:
    """With stubs=True their indices follow the object's own, once, and the file's come first."""
    needs(arch, "load")
    image = module(arch.machine, plt=False)
    view = parse(image)
    names = set() if arch.got_section is None else {arch.got_section}
    if arch.plt is not None:
        names |= {arch.plt.section, arch.plt.init_section}
        names |= {arch.plt.got_section} if arch.plt.got_section else set()
    more = with_stub_sections(view)
    assert {s.name for s in more.sections[len(view.sections) :]} == names
    assert [s.index for s in more.sections] == list(range(len(more.sections)))
    assert with_stub_sections(more).sections == more.sections
    addresses = place(plan(more), facts(arch).link.base)
    symbols = {"_printk": facts(arch).link.base}
    assert link(image, addresses, symbols, stubs=True).keys() == addresses.keys()
    if not names:
        return
    with pytest.raises(BadModule, match="there is no section"):
        link(image, addresses, symbols)
