# SPDX-License-Identifier: GPL-2.0-or-later
"""Linking: the same bytes as GNU ld and as a running kernel, and errors that say everything."""

from __future__ import annotations

import hashlib
from pathlib import Path

import attrs
import numpy as np
import pytest

import archs
from archs.op import Op
from archs.reloc import Checks, Reach
from execmem.check import elfwriter as elf
from execmem.check.elfwriter import FUNC, LOCAL, NOBITS, WEAK, A, Rela, Sec, Sym, W, X, write
from loader import errors
from loader.elf import parse
from loader.errors import BadModule, RelocationError, UnresolvedSymbols
from loader.layout import plan, with_stub_sections
from loader.link import MATERIALISED, extents, link, link_view
from tests.archs.facts import facts, needs
from tests.support import ld, scalar
from tests.support.addresses import place, resolve
from tests.support.ld import GLOBAL_OFFSET_TABLE
from tests.support.modules import module
from tests.support.psabi import World, check, slots_of
from tests.support.recordings import Recorded, of_base, of_runs
from tests.support.tools import assemble


def same_as_ld(image: bytes, symbols: dict[str, int], folder: Path, linker: str = "ld") -> int:
    """Assert that a linker gives the same bytes; return how many sections were compared."""
    view = parse(image)
    layout = plan(view)
    addresses = place(layout, facts(view.arch).link.base)
    ours = link(image, addresses, symbols)
    compared = {i: a for i, a in addresses.items() if i not in layout.resized}
    theirs = ld.link(image, compared, symbols, folder, linker=linker).sections
    own = facts(view.arch).link.rewritten
    theirs = {i: data for i, data in theirs.items() if view.sections[i].name not in own}
    for index, contents in theirs.items():
        assert ours[index].hex() == contents.hex(), view.sections[index].name
    return len(theirs)


def given(machine: int) -> dict[str, int]:
    """Return the values of the names that the assembly uses."""
    near = facts(machine).link.base + 0x40
    return {"far": facts(machine).link.kernel, "near": near, "small": 0x12345678, "tiny": 0x42}


@pytest.mark.parametrize("linker", ld.LINKERS)
def test_assembled_code_links_as_others_link_it(
    arch: archs.Arch, tmp_path: Path, linker: str
) -> None:
    """Every relocation that an assembler can be made to write gives the bytes of ld and of lld.

    lld starts narrow sums from what stands at the place, as ld does, so there it is zero.
    """
    image = assemble(arch.machine, facts(arch).link.source, tmp_path)
    assert same_as_ld(image, given(arch.machine), tmp_path, linker) == 3


def beyond_gas(machine: int) -> bytes:
    """Return an object with the records that the assembler cannot write."""
    code, relas = b"", []
    known = facts(machine).link
    for number, before, symbol in known.beyond_gas:
        alone = number not in known.uleb128 or number not in known.subtracted
        if alone:  # and no partner of the ULEB128 before it
            code += bytes(-len(code) % 4)
            at, code = len(code), code + bytes.fromhex(before)
        relas.append(Rela(at, number, symbol, 0x1234 * (alone and number in known.uleb128)))
    section = Sec(".text", code, A | X, align=4, relas=relas)
    symbols = [Sym("function", ".text", bind=LOCAL), *map(Sym, ("near", "far", "tiny"))]
    return write(machine, [section], symbols)


def test_the_assembly_holds_every_supported_row(arch: archs.Arch, tmp_path: Path) -> None:
    """No row of the table is left out of the comparison with other linkers."""
    known = facts(arch).link
    images = [assemble(arch.machine, s, tmp_path) for s in (known.source, known.got_source)]
    images.append(beyond_gas(arch.machine))
    used = {int(n) for image in images for t in parse(image).tables for n in t.records["type"]}
    supported = {
        n for n, r in arch.link.relocations.items() if not r.unsupported and r.op is not Op.NONE
    }
    assert supported <= used


def without(image: bytes, numbers: set[int]) -> bytes:
    """Return the object with relocations of these types turned into R_*_NONE."""
    for table in parse(image).tables:
        for index in np.flatnonzero(np.isin(table.records["type"], list(numbers))).tolist():
            image = elf.relocation(image, table.section.name, index, type=0)
    return image


@pytest.mark.parametrize("linker", [*ld.LINKERS, "ours"])
@pytest.mark.parametrize("source", ["assembled", "beyond gas"])
def test_got_code_links_as_others_link_it(
    arch: archs.Arch, tmp_path: Path, linker: str, source: str
) -> None:
    """Code that goes through a GOT reaches the same values in every linker's own table.

    Each table has its own place and order, so the bytes differ; what is compared is the
    psABI's formula with the table's address and the slots read from the output.
    """
    needs(arch, "load")
    machine = arch.machine
    if arch.got_section is None:
        pytest.skip(f"{arch.name} has no global offset table")
    if source == "assembled":
        image = assemble(machine, facts(machine).link.got_source, tmp_path)
    elif not facts(machine).link.beyond_gas:
        pytest.skip("the assembler can write everything")
    elif linker == "ld":
        pytest.skip("binutils 2.40 does not know these types")
    else:
        image = beyond_gas(machine)
    late = ld.too_late_for_lld(machine) if linker == "ld.lld" else set()
    if late and source == "beyond gas":
        pytest.skip(f"lld knows relocations {sorted(late)} from version {ld.COMPLETE_LLD} on")
    if linker == "ld.lld":
        image = without(image, {*facts(machine).link.never_in_lld, *late})
    view = with_stub_sections(parse(image))
    layout = plan(view)
    addresses = place(layout, facts(machine).link.base)
    (got,) = (addresses[s.index] for s in view.sections if s.name == ".got")
    symbols = given(machine)
    if linker == "ours":
        linked = link(image, addresses, symbols | {GLOBAL_OFFSET_TABLE: 0}, stubs=True)
        table = slots_of(got, linked[view.section(".got").index])
    else:
        own = {s.index: addresses[s.index] for s in parse(image).sections if s.allocated and s.size}
        result = ld.link(image, own, symbols, tmp_path, linker=linker, got=got)
        linked, table = dict(result.sections), result.got
    assert check(World(view, addresses, symbols), linked, table) > 3
    assert symbols["near"] in table.slots or late


def test_a_module_links_as_gnu_ld_links_it(arch: archs.Arch, tmp_path: Path) -> None:
    """A whole module, exports and weak names and all, gives ld's bytes."""
    needs(arch, "load")
    image = module(arch.machine, exported=("mini_a", "mini_b"), weak=("maybe",))
    symbols = {"_printk": facts(arch).link.kernel, "maybe": 0}
    assert same_as_ld(image, symbols, tmp_path) > 8


def test_samples_link_as_gnu_ld_links_them(arch: archs.Arch, tmp_path: Path) -> None:
    """What compilers make of the sample modules gives ld's bytes."""
    needs(arch, "load")
    samples = pytest.importorskip("samples.modules")
    for name in samples.names():
        image = samples.path(arch.name, name).read_bytes()
        symbols = resolve(parse(image), facts(arch).link.kernel)
        assert same_as_ld(image, symbols, tmp_path) >= 4, name


def digests(recorded: Recorded) -> dict[str, tuple[str, str]]:
    """Return name -> (ours, the kernel's) of sections whose contents differ."""
    recording = recorded.recording
    linked = link(
        recorded.image,
        recording.addresses,
        recording.symbols,
        percpu=recording.percpu,
        errata=recorded.errata,
    )
    pairs = {
        s.name: (hashlib.sha256(linked[s.index]).hexdigest(), s.relocated)
        for s in recording.compared
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def test_bytes_equal_a_running_kernels(oracle: Path, corpus: Path) -> None:
    """After relocation every section is byte for byte what the kernel had in memory."""
    seen = 0
    for recorded in of_base(oracle, corpus):
        assert digests(recorded) == {}, recorded.name
        seen += 1
    assert seen > 40


def test_bytes_equal_the_kernels_of_other_boots(oracle: Path, corpus: Path) -> None:
    """The same with other CPUs, mitigations and KASLR, where arm64 needs entries and veneers."""
    seen = 0
    for recorded in of_runs(oracle, corpus):
        assert digests(recorded) == {}, recorded.name
        seen += 1
    assert seen > 40


def test_entries_and_veneers_are_as_many_as_the_kernels(oracle: Path, corpus: Path) -> None:
    """Where the kernel filled PLT entries or made veneers, as many are made here."""
    most = [0, 0]
    for recorded in of_runs(oracle, corpus):
        recording = recorded.recording
        wanted = [recording.plt_used, recording.veneers]
        if not any(wanted):
            continue
        view = parse(recorded.image)
        layout = plan(view, errata=recorded.errata)
        linked = link_view(
            view,
            layout,
            recording.addresses,
            recording.symbols,
            percpu=recording.percpu,
            errata=recorded.errata,
        )
        used = sum(use.used for use in linked.plt.values())
        assert [used - linked.stubs.veneers, linked.stubs.veneers] == wanted, recorded.name
        most = [max(pair) for pair in zip(most, wanted, strict=True)]
    if not any(most):
        pytest.skip("no recorded module used a PLT entry")
    assert all(most)


def test_every_unresolved_name_is_listed(arch: archs.Arch) -> None:
    """All missing names come in one error; weak ones are not missing."""
    image = module(arch.machine, undefined=("one", "two", "three", "one"), weak=("maybe",))
    with pytest.raises(UnresolvedSymbols) as caught:
        link(image, place(plan(parse(image)), facts(arch).link.base), {"two": 0})
    assert set(caught.value.names) == {"one", "three"}
    assert "2 unresolved symbols: " in str(caught.value)


def test_a_long_list_of_names_is_cut_in_the_text_only(arch: archs.Arch) -> None:
    """The fields hold every name; the line holds fifty and says how many more."""
    names = tuple(f"missing_{n}" for n in range(60))
    image = module(arch.machine, undefined=names)
    with pytest.raises(UnresolvedSymbols) as caught:
        link(image, place(plan(parse(image)), facts(arch).link.base), {})
    assert len(caught.value.names) == 60
    assert "and 10 more" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weak_name_that_nobody_has_is_zero(arch: archs.Arch) -> None:
    """A pointer to an undefined weak symbol is NULL."""
    image = module(arch.machine, undefined=(), weak=("maybe",))
    view = parse(image)
    addresses = place(plan(view), facts(arch).link.base)
    index = view.section(".data").index
    assert link(image, addresses, {})[index][8:16] == bytes(8)
    there = link(image, addresses, {"maybe": 0x1234})[index][8:16]
    assert there == (0x1234).to_bytes(8, "little")


def test_percpu_symbols_count_from_the_address_given(arch: archs.Arch) -> None:
    """A symbol of `.data..percpu` is the per-cpu address plus its offset in the section."""
    uses = Sec(".data", bytes(8), A | W, relas=[Rela(0, facts(arch).link.abs64, "mini_percpu", 1)])
    image = module(arch.machine, undefined=(), percpu=64, extra=(attrs.evolve(uses, name=".mine"),))
    view = parse(image)
    addresses = place(plan(view), facts(arch).link.base)
    linked = link(image, addresses, {}, percpu=0x21000)
    want = (0x21000 + 8 + 1).to_bytes(8, "little")
    assert linked[view.section(".mine").index] == want
    with pytest.raises(RelocationError, match="not loaded"):
        link(image, addresses, {})


def test_bss_is_zero_and_has_its_size(arch: archs.Arch) -> None:
    """NOBITS sections come out as zeros."""
    image = write(arch.machine, [Sec(".bss", b"", A | W, NOBITS, size=40)])
    assert link(image, {1: 0x1000}, {}) == {1: bytes(40)}


def test_an_address_for_no_section_is_refused(arch: archs.Arch) -> None:
    """Addresses are keyed by section index; another key is an error."""
    image = write(arch.machine, [Sec(".data", b"x", A | W)])
    with pytest.raises(BadModule, match="there is no section 99"):
        link(image, {99: 0x1000}, {})


def test_only_sections_with_an_address_come_out(arch: archs.Arch) -> None:
    """A section without an address is left out, and so are its relocations."""
    bad = [Rela(0, 250, "x")]
    image = write(
        arch.machine, [Sec(".data", b"data", A | W), Sec(".debug", bytes(8), relas=bad)], [Sym("x")]
    )
    assert link(image, {1: 0x1000}, {"x": 0}) == {1: b"data"}


HELLO = 0xFFFF_8000_0800_0000


def hello(name: str = ".text") -> bytes:
    """Return an arm64 object whose function calls two names; there is no `.plt`."""
    code = bytes(16) + facts("arm64").link.call_code[0] * 4
    relas = [Rela(0x14, 283, "printk"), Rela(0x18, 283, "near")]
    symbols = [Sym("hello_init", name, 0, 32, FUNC, LOCAL), Sym("printk"), Sym("near")]
    return write(183, [Sec(name, code, A | X, align=4, relas=relas)], symbols)


def test_an_error_says_everything_in_two_lines() -> None:
    """Section, function, type, symbol, value and interval; then place, target and what helps."""
    symbols = {"printk": HELLO + 0x1000_0014, "near": HELLO}
    view = parse(hello(), "hello.ko")
    with pytest.raises(RelocationError) as caught:
        link_view(view, plan(view), {1: HELLO}, symbols)
    first, second = str(caught.value).splitlines()
    assert first == (
        "hello.ko: .text+0x14 (in hello_init+0x14): R_AARCH64_CALL26 against 'printk' "
        "out of range: +0x10000000 is not in [-0x8000000, 0x8000000)"
    )
    assert second.startswith("  place 0xffff800008000014, target 0xffff800018000014; hint: ")
    (failure,) = caught.value.failures
    assert attrs.asdict(failure, recurse=False) | {"hint": ""} == {
        "section": ".text",
        "offset": 0x14,
        "reloc": "R_AARCH64_CALL26",
        "symbol": "printk",
        "containing": "hello_init+0x14",
        "reason": "out of range",
        "place": HELLO + 0x14,
        "target": HELLO + 0x1000_0014,
        "value": 0x1000_0000,
        "reach": Reach(-0x800_0000, 0x800_0000, 4),
        "hint": "",
    }
    assert "no .plt section" in failure.hint
    assert caught.value.total == 1


def test_a_negative_value_is_printed_with_its_sign() -> None:
    """Backward displacements read as negative numbers, not as 64-bit patterns."""
    view = parse(hello(), "hello.ko")
    symbols = {"printk": HELLO - 0x1000_0000 + 0x14, "near": HELLO}
    with pytest.raises(RelocationError, match=r"out of range: -0x10000000 is not in"):
        link_view(view, plan(view), {1: HELLO}, symbols)


def test_a_misaligned_target_names_the_unit() -> None:
    """A branch to an odd address says of what the displacement must be a multiple."""
    view = parse(hello(), "hello.ko")
    symbols = {"printk": HELLO + 2, "near": HELLO}
    with pytest.raises(RelocationError, match="is no multiple of 4"):
        link_view(view, plan(view), {1: HELLO}, symbols)


def pointers(machine: int, count: int, number: int, symbol: str = "x") -> bytes:
    """Return an object with `count` words of one relocation type."""
    relas = [Rela(8 * i, number, symbol) for i in range(count)]
    return write(machine, [Sec(".data", bytes(8 * count), A | W, relas=relas)], [Sym("x")])


def test_the_text_is_capped_and_the_total_is_not() -> None:
    """Twenty failures are printed, a thousand kept as objects, and all of them counted."""
    count = MATERIALISED + 7
    with pytest.raises(RelocationError) as caught:
        link(pointers(62, count, 2), {1: 0x1000}, {"x": 1 << 40})
    assert caught.value.total == count
    assert len(caught.value.failures) == MATERIALISED
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 * errors.SHOWN + 1
    assert lines[-1].endswith(f"and {count - errors.SHOWN} more relocations")


def test_failures_of_all_kinds_come_together_in_order_of_place() -> None:
    """Unknown, unsupported and out-of-range records of a module are reported at once."""
    relas = [
        Rela(24, 2, "x"),
        Rela(0, 65000, "x"),
        Rela(8, 9, "x"),
        Rela(16, 11, "x"),
        Rela(32, 1, "x"),
        Rela(40, 9, "x", -4),
        Rela(44, 22, "x"),
    ]
    image = write(62, [Sec(".data", bytes(48), A | W, relas=relas)], [Sym("x")])
    with pytest.raises(RelocationError) as caught:
        link(image, {1: 0x1000}, {"x": 1 << 40})
    assert caught.value.total == 6
    assert [(f.offset, f.reloc) for f in caught.value.failures] == [
        (0, "type 65000"),
        (8, "R_X86_64_GOTPCREL"),
        (16, "R_X86_64_32S"),
        (24, "R_X86_64_PC32"),
        (40, "R_X86_64_GOTPCREL"),
        (44, "R_X86_64_GOTTPOFF"),
    ]
    unknown, no_got, *_, tls = (f.reason for f in caught.value.failures)
    assert unknown == "unknown relocation type"
    assert no_got.startswith("needs a slot of the global offset table, and the module has no .got")
    assert tls == "relocation type is not supported (the kernel has no thread-local storage)"


def test_a_place_outside_its_section_is_refused(arch: archs.Arch) -> None:
    """A relocation must have all its bytes inside its section, whatever its offset."""
    number = facts(arch).link.abs64
    for offset, fits in ((0, True), (8, True), (9, False), (16, False), ((1 << 64) - 1, False)):
        section = Sec(".data", bytes(16), A | W, relas=[Rela(offset, number, "x")])
        image = write(arch.machine, [section], [Sym("x")])
        if fits:
            assert link(image, {1: 0x1000}, {"x": 7})[1].count(7) == 1
        else:
            with pytest.raises(RelocationError, match="lies outside its section") as caught:
                link(image, {1: 0x1000}, {"x": 7})
            assert caught.value.failures[0].offset == offset


def test_a_symbol_of_an_unloaded_section_has_no_address(arch: archs.Arch) -> None:
    """A loaded place may not point into a section that is not loaded."""
    sections = [
        Sec(".data", bytes(8), A | W, relas=[Rela(0, facts(arch).link.abs64, "x")]),
        Sec(".comment", b"text"),
    ]
    image = write(arch.machine, sections, [Sym("x", ".comment")])
    with pytest.raises(RelocationError, match="lies in a section that is not loaded"):
        link(image, {1: 0x1000}, {})


def test_records_without_a_word_may_name_anything(arch: archs.Arch) -> None:
    """R_*_NONE touches nothing, so neither its symbol nor its place matters."""
    relas = [Rela(0, 0, "x"), Rela(4, 0, 0)]
    sections = [Sec(".data", b"data", A | W, relas=relas), Sec(".comment", b"")]
    image = write(arch.machine, sections, [Sym("x", ".comment")])
    assert link(image, {1: 0x1000}, {}) == {1: b"data"}


def test_a_place_that_is_not_zero_is_refused_on_x86_only(arch: archs.Arch) -> None:
    """x86's loader insists that nothing stood at the place; the others overwrite it."""
    section = Sec(".data", bytes(range(1, 9)), A | W, relas=[Rela(0, facts(arch).link.abs64, "x")])
    image = write(arch.machine, [section], [Sym("x")])
    if arch.link.clean_target:
        with pytest.raises(RelocationError, match="is not zero before relocation"):
            link(image, {1: 0x1000}, {"x": 7})
    else:
        assert link(image, {1: 0x1000}, {"x": 7}) == {1: (7).to_bytes(8, "little")}
    assert arch.link.clean_target == facts(arch).link.clean_target


def test_the_kernels_checks_let_pc32_wrap() -> None:
    """x86's kernel writes a truncated displacement where the hardware's checks refuse."""
    image = pointers(62, 1, facts("x86_64").link.prel32)
    far = {"x": 0x1_2345_6789}
    with pytest.raises(RelocationError):
        link(image, {1: 0x1000}, far)
    wrapped = link(image, {1: 0x1000}, far, checks="kernel")[1]
    assert wrapped[:4] == (0x2345_6789 - 0x1000).to_bytes(4, "little")
    with pytest.raises(ValueError, match="lenient"):
        link(image, {1: 0x1000}, far, checks="lenient")


def test_the_kernels_checks_still_check() -> None:
    """What the kernel does check it refuses too: R_X86_64_32S."""
    view = parse(pointers(62, 1, 11))
    with pytest.raises(RelocationError):
        link_view(view, plan(view), {1: 0x1000}, {"x": 1 << 40}, checks=Checks.KERNEL)


def test_counts_name_each_type_most_frequent_first(arch: archs.Arch) -> None:
    """The result says how many relocations of each type were applied."""
    image = module(arch.machine, undefined=("one", "two", "three"))
    view = parse(image)
    layout = plan(view)
    symbols = resolve(view, facts(arch).link.kernel)
    linked = link_view(view, layout, place(layout, facts(arch).link.base), symbols)
    known = facts(arch).link
    calls = (known.call, *(number for _, number in known.more_of_call))
    *calls, pointer = (arch.link.relocations[n].name for n in (*calls, known.abs64))
    wanted = [*((call, 4) for call in calls), (pointer, 3)]
    assert list(linked.counts.items())[: len(wanted)] == wanted
    assert sum(linked.counts.values()) == sum(t.records.size for t in view.tables)
    # Symbol values: those of sections moved, the undefined ones as given.
    index = view.undefined["two"]
    assert int(linked.symbols[index]) == symbols["two"]


def test_extents_are_the_least_and_greatest_x(arch: archs.Arch, tmp_path: Path) -> None:
    """For each type that computes X, count and extremes are those of the records one by one."""
    image = assemble(arch.machine, facts(arch).link.source, tmp_path)
    symbols = given(arch.machine)
    view = parse(image)
    layout = plan(view)
    addresses = place(layout, facts(arch).link.base)
    linked = link_view(view, layout, addresses, symbols)
    seen: dict[int, list[int]] = {}
    for table in view.tables:
        for offset, number, symbol, addend in table.records.tolist():
            if number in facts(arch).link.rules and not (
                scalar.is_pair(arch.machine, number)
                or scalar.accumulates(arch.machine, number)
                or number in facts(arch).link.sized
            ):
                place_ = addresses[table.target.index] + offset
                record = scalar.Record(
                    0, place_, int(linked.symbols[symbol]), scalar.signed(addend), number
                )
                seen.setdefault(number, []).append(scalar.value_of(arch.machine, record))
    found = extents(arch, linked.records)
    assert {e.row.number: (e.count, e.lo, e.hi) for e in found} == {
        number: (len(xs), min(xs), max(xs)) for number, xs in seen.items()
    }
    counts = [extent.count for extent in found]
    assert counts == sorted(counts, reverse=True)
    assert all(0 <= extent.share <= 1 for extent in found)
    assert any(extent.share > 0 for extent in found)


def test_a_module_without_relocations_links(arch: archs.Arch) -> None:
    """Nothing to do is no error."""
    image = write(arch.machine, [Sec(".data", b"data", A | W)], [Sym("x", ".data", bind=WEAK)])
    assert link(image, {1: 0x1000}, {}) == {1: b"data"}


def test_addresses_wrap_as_64_bit_numbers(arch: archs.Arch) -> None:
    """Addends and addresses near the top of the address space wrap, as they do in C."""
    section = Sec(".data", bytes(8), A | W, relas=[Rela(0, facts(arch).link.abs64, "x", -1)])
    image = write(arch.machine, [section], [Sym("x", elf.UNDEF)])
    assert link(image, {1: (1 << 64) - 4096}, {"x": 0})[1] == b"\xff" * 8


def test_the_architecture_can_be_demanded(arch: archs.Arch) -> None:
    """`arch=` refuses the modules of the others."""
    image = write(arch.machine, [Sec(".data", b"data", A | W)])
    assert link(image, {1: 0}, {}, arch=arch)
    other = next(a for a in archs.ALL if a is not arch)
    with pytest.raises(BadModule, match=f"built for {arch.name}, not for {other.name}"):
        link(image, {1: 0}, {}, arch=other)


def test_an_object_without_relocations_links_in_every_way(arch: archs.Arch) -> None:
    """Nothing to relocate is no special case: checks, errata and PLT sections change nothing."""
    code = bytes(range(64))
    image = write(arch.machine, [Sec(".text", code, flags=A | X), Sec(".plt", b"\0", flags=A | X)])
    address = arch.loads.address_map().image.start
    for checks in ("hardware", "kernel"):
        for errata in ((), tuple(arch.errata)):
            linked = link(image, {1: address}, {}, checks=checks, errata=errata)
            assert linked[1] == code
