# SPDX-License-Identifier: GPL-2.0-or-later
"""PLT entries: a disassembler follows every call of a linked module to where it ends."""

from __future__ import annotations

import attrs
import capstone
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from allocator.types import MIB
from loader.elf import ElfView, parse
from loader.errors import RelocationError
from loader.layout import Layout, PltPlan, plan
from loader.link import Linked, link_view
from tests.support.addresses import place
from tests.support.elfwriter import AARCH64, A, Rela, Sec, Sym, X, write
from tests.support.modules import CALL, CALL_CODE, module
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
        relas = [Rela(4 * i, CALL[AARCH64], t, a) for i, (t, a) in enumerate(targets)]
        code = CALL_CODE[AARCH64][0] * len(targets) + bytes(8)
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


@pytest.mark.parametrize("machine", [62, 243])
def test_architectures_without_a_plt_refuse_what_does_not_reach(machine: int) -> None:
    """Without entries a call out of reach is an error that says what would help."""
    view = parse(module(machine, undefined=("gone",)), "far.ko")
    layout = plan(view)
    with pytest.raises(RelocationError) as caught:
        link_view(view, layout, place(layout, 1 << 40), {"gone": 1 << 50})
    (failure,) = caught.value.failures
    assert (failure.symbol, failure.reason) == ("gone", "out of range")
    assert view.arch.code_model in failure.hint
