# SPDX-License-Identifier: GPL-2.0-or-later
"""Layout: which section goes where, and how many PLT entries are reserved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import archs
from allocator.types import CORE_AND_INIT, KIB, MemType, align_up
from execmem.check.elfwriter import AARCH64, LOCAL, NOBITS, A, Rela, Sec, Sym, W, X, write
from loader.elf import parse
from loader.elfview import ElfView
from loader.errors import BadModule
from loader.layout import Layout, plan
from tests.archs.facts import facts
from tests.support.modules import module
from tests.support.recordings import of_base, of_runs

JUMP26, CALL26, ABS64 = 282, 283, 257


def planned(*sections: Sec, machine: int = 62) -> tuple[ElfView, Layout]:
    """Return the layout of an object that has these sections."""
    view = parse(write(machine, sections), "some.ko")
    return view, plan(view)


@pytest.mark.parametrize(
    ("name", "flags", "kind"),
    [
        (".text", A | X, MemType.TEXT),
        (".exit.text", A | X, MemType.TEXT),
        (".text.unlikely", A | X, MemType.TEXT),
        (".init.text", A | X, MemType.INIT_TEXT),
        (".init.plt", A | X, MemType.INIT_TEXT),
        (".rodata", A, MemType.RODATA),
        ("__ksymtab", A, MemType.RODATA),
        (".init.rodata", A, MemType.INIT_RODATA),
        (".init.rodata", A | W, MemType.INIT_DATA),
        (".init_array", A | W, MemType.INIT_DATA),
        (".init.data", A | W, MemType.INIT_DATA),
        (".initx", A, MemType.INIT_RODATA),
        (".data", A | W, MemType.DATA),
        (".exit.data", A | W, MemType.DATA),
        (".gnu.linkonce.this_module", A | W, MemType.DATA),
        (".data..ro_after_init", A | W, MemType.RO_AFTER_INIT),
        ("__jump_table", A | W, MemType.RO_AFTER_INIT),
        # The pass for read-only data comes first, so the flag decides.
        ("__jump_table", A, MemType.RODATA),
        (".static_call_sites", A | W, MemType.DATA),
        (".modinfo", A, None),
        ("__versions", A, None),
        ("__version_ext_names", A, None),
        (".data..percpu", A | W, None),
        (".comment", 0, None),
        (".debug_info", X, None),
    ],
)
def test_flags_and_name_decide_the_memory_type(name: str, flags: int, kind: MemType | None) -> None:
    """The kernel's masks apply in order; `.init` is a prefix; some names are never loaded."""
    _, layout = planned(Sec(name, b"x", flags))
    got = {p.section.name: p.type for p in layout.placements.values()}
    assert got == ({} if kind is None else {name: kind})


def test_writable_and_executable_is_refused() -> None:
    """No section may be writable and executable (CONFIG_STRICT_MODULE_RWX)."""
    with pytest.raises(BadModule) as caught:
        planned(Sec(".evil", b"x", A | W | X))
    assert str(caught.value) == "some.ko: section 1 (.evil): is writable and executable"
    planned(Sec(".evil", b"x", W | X))  # not loaded, so nobody minds


def test_a_module_larger_than_any_window_is_refused() -> None:
    """A small file may declare much .bss; 2 GiB of it fit nowhere, in one section or in many."""
    half = (1 << 30) - 8
    most = [Sec(name, b"", A | W, NOBITS, size=half) for name in (".bss", ".bss.more")]
    _, layout = planned(*most)
    assert layout.sizes[MemType.DATA] == 2 * half
    with pytest.raises(BadModule, match="sections: need 0x80000000 bytes"):
        planned(*most, Sec(".data", bytes(16), A | W))


def test_sections_of_a_type_follow_each_other_in_header_order() -> None:
    """Offsets grow with the index and are rounded up to each section's alignment."""
    _, layout = planned(
        Sec(".b", bytes(5), A | W, align=4),
        Sec(".text", bytes(3), A | X, align=2),
        Sec(".a", bytes(7), A | W, align=16),
        Sec(".bss", b"", A | W, NOBITS, 32, size=100),
        Sec(".zero", b"", A | W, align=1),
    )
    data = {p.section.name: (p.offset, p.size) for p in layout.placements.values()}
    assert data == {
        ".b": (0, 5),
        ".text": (0, 3),
        ".a": (16, 7),
        ".bss": (32, 100),
        ".zero": (132, 0),
    }
    assert dict(layout.sizes) == {MemType.DATA: 132, MemType.TEXT: 3}
    assert dict(layout.aligns) == {MemType.DATA: 32, MemType.TEXT: 2}
    assert dict(layout.page_sizes()) == {MemType.DATA: 4096, MemType.TEXT: 4096}


def test_the_percpu_section_stands_apart() -> None:
    """A per-cpu section is allocated apart; an empty one is none."""
    view, layout = planned(Sec(".data..percpu", bytes(24), A | W, align=64))
    assert layout.percpu is view.section(".data..percpu")
    assert planned(Sec(".data..percpu", b"", A | W))[1].percpu is None
    assert planned(Sec(".data", b"", A | W))[1].percpu is None


def test_placeholders_become_executable() -> None:
    """arm64: `.plt` and its like get room, code alignment and X, whatever the file says."""
    view = parse(module(AARCH64, undefined=("one", "two")))
    layout = plan(view)
    placed = {p.section.name: (p.type, p.size, p.align) for p in layout.placements.values()}
    assert placed[".plt"] == (MemType.TEXT, (2 + 1) * 12, 64)
    assert placed[".init.plt"] == (MemType.INIT_TEXT, (1 + 1) * 12, 64)
    assert placed[".text.ftrace_trampoline"][:2] == (MemType.TEXT, 12)
    assert placed[".init.text.ftrace_trampoline"][:2] == (MemType.INIT_TEXT, 12)
    assert layout.size_of(view.section(".plt")) == 36
    assert layout.size_of(view.section(".data")) == view.section(".data").size


def test_a_module_without_plt_sections_has_no_slots(arch: archs.Arch) -> None:
    """Nothing is reserved where the module brings no `.plt` or the architecture has none."""
    layout = plan(parse(module(arch.machine, plt=False)))
    assert dict(layout.plt) == {}
    assert dict(layout.resized) == {}


def slots(*tables: list[Rela]) -> dict[bool, int]:
    """Return the entries reserved when executable sections carry these relocations."""
    names = [".text", ".text.two", ".init.text"]
    sections = [
        Sec(name, facts("arm64").link.call_code[0] * 8, A | X, align=4, relas=relas)
        for name, relas in zip(names, tables, strict=False)
    ]
    placeholders = [Sec(".plt", b"\0", A | X), Sec(".init.plt", b"\0", A)]
    symbols = [
        Sym("here", ".text", 8, bind=LOCAL),
        Sym("table", ".plt", bind=LOCAL),
        Sym("a"),
        Sym("b"),
    ]
    layout = plan(parse(write(AARCH64, [*sections, *placeholders], symbols)))
    return {init: p.slots for init, p in layout.plt.items()}


def calls(*targets: tuple[str, int] | str, kind: int = CALL26) -> list[Rela]:
    """Return branch records, one word apart."""
    pairs = [(t, 0) if isinstance(t, str) else t for t in targets]
    return [Rela(4 * i, kind, name, addend) for i, (name, addend) in enumerate(pairs)]


NO_BRANCH = [Rela(28, ABS64, "a")]


@pytest.mark.parametrize(
    ("records", "wanted"),
    [
        ([], 0),
        (NO_BRANCH, 0),
        (calls("a") + NO_BRANCH, 1),
        (calls("a", "b", "a", "b", "a") + NO_BRANCH, 2),
        (calls(("a", 4), ("a", 4)) + NO_BRANCH, 2),
        (calls("a", ("a", 4)) + NO_BRANCH, 2),
        (calls("here", "here") + NO_BRANCH, 0),
        (calls("table", "table") + NO_BRANCH, 1),
        (calls("a") + calls("a", kind=JUMP26) + NO_BRANCH, 2),
        # Nothing but branches: the partition stops one short, the last stays unsorted.
        (calls("a", "b", "a"), 3),
        (calls("b", "a", "b"), 2),
        (calls("a", "a"), 1),
        (calls("a"), 1),
    ],
)
def test_plt_entries_are_counted_as_the_kernel_counts(records: list[Rela], wanted: int) -> None:
    """Branches that leave the section count, duplicates once if their addend is 0."""
    assert slots(records) == {False: wanted, True: 0}


def test_duplicates_in_two_sections_count_twice() -> None:
    """Each relocation section is counted for itself; init text has a table of its own."""
    pair = calls("a", "a") + NO_BRANCH
    assert slots(pair, pair, pair) == {False: 2, True: 1}


def counted(relas: list[Rela]) -> int:
    """Return what module_frob_arch_sections counts, walked through record by record.

    partition_branch_plt_relas moves branches to the front with two indices that meet;
    the front is sorted; count_plts then compares each record with the one before it.
    """
    them = list(relas)

    def leaves(record: Rela) -> bool:
        return record.type in (CALL26, JUMP26) and record.symbol != "here"

    i, j = 0, len(them) - 1
    while i < j:
        if leaves(them[i]):
            i += 1
        elif leaves(them[j]):
            them[i], them[j] = them[j], them[i]
        else:
            j -= 1
    order = {"here": 1, "table": 2, "a": 3, "b": 4}
    key = [(r.type, order[str(r.symbol)], r.addend) for r in them]
    front = max(i, 0)
    arranged = sorted(zip(key[:front], them[:front], strict=True), key=lambda pair: pair[0])
    arranged += list(zip(key[front:], them[front:], strict=True))
    total = 0
    for at, (this, record) in enumerate(arranged):
        if leaves(record):
            duplicate = at > 0 and arranged[at - 1][0] == this
            total += record.addend != 0 or not duplicate
    return total


RECORDS = st.builds(
    Rela,
    st.sampled_from(range(0, 32, 4)),
    st.sampled_from((CALL26, JUMP26, ABS64)),
    st.sampled_from(("here", "table", "a", "b")),
    st.sampled_from((0, 0, 4)),
)


@given(relas=st.lists(RECORDS, max_size=9))
@example(relas=calls("a", "b", "a"))
@settings(max_examples=80, deadline=None)
def test_counting_equals_a_walk_through_the_records(relas: list[Rela]) -> None:
    """For any records the vectorised count is the kernel's."""
    assert slots(relas)[False] == counted(relas)


def test_layout_equals_the_kernels(oracle: Path, corpus: Path) -> None:
    """Type, offset, size and alignment of every section are those of a running kernel.

    Also where it works around an erratum, for which it aligns sections and reserves entries.
    """
    seen = 0
    for recorded in (*of_base(oracle, corpus), *of_runs(oracle, corpus)):
        recording = recorded.recording
        if recording.run != "base" and not recorded.errata:
            continue
        layout = plan(parse(recorded.image, recorded.name), errata=recorded.errata)
        want = {
            s.index: (s.address, s.size, s.align or 1)
            for s in recording.sections
            if s.index in recording.addresses
        }
        regions = recording.regions
        got = {
            i: (regions[p.type][0] + p.offset if p.type in regions else None, p.size, p.align)
            for i, p in layout.placements.items()
        }
        assert got == want, recorded.name
        for kind, (_, size) in regions.items():
            # The kernel puts its copies of the symbol table into these two.
            if kind not in (MemType.DATA, MemType.INIT_DATA):
                assert size == align_up(layout.sizes[kind], 4096), recorded.name
        seen += 1
    assert seen > 40


def test_two_areas_before_types(other_recordings: dict[str, Path]) -> None:
    """Where real kernels had core and init, each part begins and ends where theirs did."""
    seen = 0
    for release, folder in other_recordings.items():
        for recorded in (*of_base(folder, folder), *of_runs(folder, folder)):
            recording = recorded.recording
            layout = plan(parse(recorded.image, recorded.name), errata=recorded.errata)
            assert bool(layout.areas) == (release in ("5.10", "6.1")), recorded.name
            if not layout.areas or recording.run != "base":
                continue
            facts = json.loads((folder / "base" / f"{recording.name}.json").read_text("utf-8"))
            bases = {}
            for area, name in zip(layout.areas, ("CORE", "INIT"), strict=False):
                theirs = facts["layout"][name]
                core, starts = name == "CORE", area.starts
                kinds = CORE_AND_INIT[0 if core else 1]
                assert tuple(starts) == kinds
                ends = [starts[kind] for kind in kinds[1:]]
                wanted = ["text_size", "ro_size", "ro_after_init_size"][: len(ends)]
                assert ends == [theirs[key] for key in wanted], (recording.name, name)
                # Behind them are the kernel's copies of the symbol table.
                assert area.size <= theirs["size"]
                bases |= {kind: int(theirs["base"], 16) + starts[kind] for kind in kinds}
            ours = {i: bases[p.type] + p.offset for i, p in layout.placements.items()}
            assert ours == {i: a for i, a in recording.addresses.items() if i in ours}
            seen += 1
    assert seen > 40 or not {"5.10", "6.1"} & set(other_recordings)


@pytest.mark.parametrize(("magic", "together"), [("6.3.9 SMP ", True), ("6.4.0 SMP ", False)])
def test_the_modules_version_decides_on_areas(magic: str, together: bool) -> None:
    """Offsets in an area are aligned, not offsets in a region (kernel: module_get_offset)."""
    sections = (
        Sec(".text", bytes(5000), A | X),
        Sec(".rodata", bytes(100), A),
        Sec(".data", bytes(8), A | W),
        Sec(".data.wide", bytes(8), A | W, align=0x4000),
        Sec(".init.text", b"x", A | X),
        Sec(".init.data", b"x", A | W),
        Sec(".modinfo", f"vermagic={magic}\0".encode(), A),
    )
    _, layout = planned(*sections)
    at = {p.section.name: (p.type.name, p.offset) for p in layout.placements.values()}
    assert at[".data.wide"] == ("DATA", 0x1000 if together else 0x4000)
    if not together:
        assert layout.areas == ()
        return
    core, init = layout.areas
    names = {kind.name: start for kind, start in core.starts.items()}
    assert names == {"TEXT": 0, "RODATA": 0x2000, "RO_AFTER_INIT": 0x3000, "DATA": 0x3000}
    assert (core.size, core.align) == (0x5000, 0x4000)
    names = {kind.name: start for kind, start in init.starts.items()}
    assert names == {"INIT_TEXT": 0, "INIT_RODATA": 0x1000, "INIT_DATA": 0x1000}
    assert plan(parse(write(62, sections)), together=False).areas == ()
    # With larger pages each region begins one of those (strict_align of Linux 6.3).
    core, init = plan(parse(write(62, sections)), together=True, page=16 * KIB).areas
    assert list(core.starts.values()) == [0, 0x4000, 0x8000, 0x8000]
    assert (core.size, init.size) == (0x10000, 0x8000)
