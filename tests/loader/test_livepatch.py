# SPDX-License-Identifier: GPL-2.0-or-later
"""A livepatch's relocations: as an ordinary link makes them, later, all or nothing, and cleared."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

import archs
from allocator import DESIGNS
from allocator.types import GIB, MIB, MemType, Prot
from execmem.check.elfwriter import FUNC, LIVEPATCH, LOCAL, A, Rela, Sec, Sym, W, X, write
from loader.elf import parse
from loader.elfview import ElfView
from loader.errors import BadModule, LivepatchError, LoadError, UnresolvedSymbols
from loader.layout import Layout, plan
from loader.link import link, link_late, link_view
from loader.linked import Linked
from loader.loaded import LoadedModule
from tests.archs.facts import facts
from tests.loader.test_module import BROKEN, World, build, image
from tests.support.modules import calls, module

WORK = ".klp.sym.mini.mini_work,0"
TEXT, RODATA, DATA = ".text.fix", ".rodata.fix", ".data.fix"
NARROW = ("_X86_64_32", "_ABS32", "_RISCV_BRANCH")  # too narrow for any module's address


@pytest.fixture
def world(arch: archs.Arch) -> World:
    """Return a fresh world."""
    return build(arch)


def livepatch(
    machine: int,
    name: str = "fix",
    *,
    target: str = "mini",
    call: str = WORK,
    pointer: str = WORK,
    kinds: Sequence[str] = (TEXT, RODATA, DATA),
    info: str = "livepatch=Y",
    where: int = LIVEPATCH,
) -> bytes:
    """Return a livepatch with a call, and pointers in read-only and writable data."""
    code, relas = calls(machine, call)
    word = [Rela(8, facts(machine).link.abs64, pointer)]
    sections = {
        TEXT: Sec(TEXT, code, A | X, align=16, livepatch={target: relas}),
        RODATA: Sec(RODATA, bytes(16), A, align=8, livepatch={target: word}),
        DATA: Sec(DATA, bytes(16), A | W, align=8, livepatch={target: word}),
    }
    symbols = [Sym(n, where) for n in dict.fromkeys((call, pointer))]
    extra = [sections[kind] for kind in kinds]
    return module(machine, name, extra=extra, symbols=symbols, info=info)


def contents(world: World, loaded: LoadedModule) -> dict[str, bytes]:
    """Return the memory of every section of a module."""
    return {
        section.name: world.memory.read(section.address, section.size)
        for section in loaded.sections.values()
        if section.type in loaded.regions
    }


def pointers(world: World, loaded: LoadedModule) -> set[int]:
    """Return what the livepatch's pointers hold."""
    memory = contents(world, loaded)
    return {int.from_bytes(memory[name][8:], "little") for name in (RODATA, DATA)}


def form(world: World, image: bytes) -> LoadedModule:
    """Load a module up to the state COMING."""
    return world.loader.form(image, "some.ko")


@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
def test_late_is_as_an_ordinary_link(arch: archs.Arch, far: bool) -> None:
    """Relocations that are applied later give the bytes they would have given at once.

    Branches that do not reach get the PLT entries behind those that are used.
    """
    machine, late, base = arch.machine, ".klp.sym.mini.f,0", 0xFFFF_FFFF_A000_0000
    away = base - (3 * GIB if far and arch.plt is not None else 2 * MIB)
    symbols = {"near": base + MIB, "away": away, late: away + 0x4000}
    stubs = () if arch.plt is None else (arch.plt.section, arch.plt.got_section)
    names = [".text", TEXT, DATA, *(name for name in stubs if name)]
    places = {name: base + 0x1000 * number for number, name in enumerate(names)}

    def linked(*, ordinary: bool) -> tuple[ElfView, Layout, dict[int, int], Linked]:
        first, relas = calls(machine, "near", "away")
        code, then = calls(machine, late, late)
        word = [Rela(0, facts(machine).link.abs64, late, 5)]

        def section(name: str, data: bytes, flags: int, records: Sequence[Rela]) -> Sec:
            if ordinary:
                return Sec(name, data, flags, align=8, relas=records)
            return Sec(name, data, flags, align=8, livepatch={"mini": records})

        sections = [
            Sec(".text", first, A | X, align=16, relas=relas),
            section(TEXT, code, A | X, then),
            section(DATA, bytes(8), A | W, word),
            *(Sec(name, b"\0", A) for name in names[3:]),
        ]
        marks = [Sym(n, LIVEPATCH if n == late and not ordinary else 0) for n in symbols]
        view = parse(write(machine, sections, marks))
        layout = plan(view)
        addresses = {s.index: places[s.name] for s in view.sections if s.name in places}
        given = {name: symbols[name] for name in view.undefined}
        return view, layout, addresses, link_view(view, layout, addresses, given)

    *_, at_once = linked(ordinary=True)
    view, layout, addresses, before = linked(ordinary=False)
    kept = before.image.copy()
    after = link_late(view, layout, addresses, before, {late: symbols[late]}, objects=["mini"])
    assert (before.image == kept).all()
    for name in names:
        one, other = (v.section(name) for v in (at_once.work.view, view))
        assert one is not None
        assert other is not None
        start, size = before.offsets[other.index], len(before.sections[other.index])
        assert after[start : start + size].tobytes() == bytes(at_once.sections[one.index])
    used = {sum(use.used for use in linked.plt.values()) for linked in (before, at_once)}
    assert used == ({1, 2} if far and arch.plt is not None else {0})


@pytest.mark.parametrize("design", sorted(set(DESIGNS) - {BROKEN}))
@pytest.mark.parametrize("settled", [False, True])
def test_written_while_the_module_is_there(arch: archs.Arch, design: str, settled: bool) -> None:
    """Text, read-only and writable data hold what they should exactly while the target is there.

    Twice, because a place has to be as it was to be written again.
    """
    world = build(arch, design=design)
    patch = form(world, livepatch(arch.machine))
    if settled:
        world.loader.settle(patch)
    before = contents(world, patch)
    linked = {patch.sections[i].name: bytes(v) for i, v in patch.linked.sections.items()}
    assert before == {name: linked[name] for name in before}
    for size in (0, 5000):  # the second time at other addresses
        extra = [Sec(".text.more", bytes(size) + facts(arch).link.ret, A | X)]
        target = form(world, image(world, extra=extra))
        assert pointers(world, patch) == {target.symbols["mini_work"]}
        after = contents(world, patch)
        assert {name for name in after if after[name] != before[name]} == {TEXT, RODATA, DATA}
        assert world.prots(patch, MemType.TEXT) == {Prot.RX}
        world.loader.settle(target)
        world.loader.begin_unload(target)
        world.loader.discard(target)
        assert contents(world, patch) == before
        assert patch.livepatch is None
    world.execmem.check()


def test_the_target_may_be_there_first(world: World) -> None:
    """A livepatch for a module that is loaded is written when it is loaded itself."""
    target = form(world, image(world))
    patch = form(world, livepatch(world.arch.machine))
    assert pointers(world, patch) == {target.symbols["mini_work"]}
    world.loader.discard(target)
    assert pointers(world, patch) == {0}
    # No reference is held, as by the kernel: the target went first.
    world.loader.discard(patch)
    world.execmem.check()


def test_objects_come_and_go_apart(world: World) -> None:
    """What is written for one module stays when another of the same livepatch goes."""
    machine = world.arch.machine
    other = ".klp.sym.other.other_work,0"
    word = {
        "mini": [Rela(0, facts(machine).link.abs64, WORK)],
        "other": [Rela(8, facts(machine).link.abs64, other)],
    }
    extra = [Sec(RODATA, bytes(16), A, align=8, livepatch=word)]
    names = [Sym(name, LIVEPATCH) for name in (WORK, other)]
    both = module(machine, "fix", extra=extra, symbols=names, info="livepatch=Y")
    patch = form(world, both)

    def words() -> tuple[int, int]:
        found: tuple[int, int] = struct.unpack("<QQ", contents(world, patch)[RODATA])
        return found

    mini, second = form(world, image(world)), form(world, image(world, "other"))
    there = mini.symbols["mini_work"], second.symbols["other_work"]
    assert words() == there
    world.loader.discard(mini)
    assert words() == (0, there[1])
    again = form(world, image(world))
    assert words() == (again.symbols["mini_work"], there[1])
    world.loader.discard(second)
    assert words() == (again.symbols["mini_work"], 0)


def test_the_kernels_symbols_are_resolved_at_once(world: World) -> None:
    """`.klp.rela.vmlinux` sections are relocated with all others; unknown names are reported."""
    call, pointer = ".klp.sym.vmlinux._printk,0", ".klp.sym.vmlinux.hidden,1"
    data = livepatch(world.arch.machine, target="vmlinux", call=call, pointer=pointer, info="")
    patch = form(world, data)
    assert pointers(world, patch) == {world.loader.symbols.kernel.address("hidden")}
    assert patch.unknown == ("hidden",)
    assert patch.livepatch is None
    view = patch.view
    assert not view.late
    assert set(view.undefined) == {"_printk"}
    assert view.livepatch_symbols(view.tables).keys() == {call, pointer}
    places = {i: s.address for i, s in patch.sections.items()}
    known = {"_printk": world.loader.symbols.kernel.address("_printk")}
    with pytest.raises(UnresolvedSymbols, match="2 unresolved symbols"):
        link(data, places, known)
    both = {call: known["_printk"], pointer: world.loader.symbols.kernel.address("hidden")}
    assert link(data, places, {**known, **both}) == {
        index: bytes(section) for index, section in patch.linked.sections.items()
    }
    world.loader.symbols.refuse_unknown = True
    world.loader.discard(patch)
    before = world.state()
    with pytest.raises(LivepatchError, match="hidden,1: the kernel does not know it"):
        form(world, data)
    assert world.state() == before


BAD = {
    "section": ({"target": ""}, "livepatch's relocations are called .klp.rela.OBJECT.SECTION"),
    "symbol": ({"call": ".klp.sym.mini.mini_work"}, "not of the form .klp.sym.OBJECT.NAME"),
    "no livepatch symbol": ({"where": 0}, "is no livepatch symbol"),
    "vmlinux": ({"call": ".klp.sym.vmlinux.f,0"}, "belong into .klp.rela.vmlinux sections"),
    "modinfo": ({"info": ""}, "no livepatch=Y: .klp.rela.mini."),
    "position": (
        {"target": "vmlinux", "call": ".klp.sym.vmlinux.f,2"},
        "vmlinux has one symbol of that name at most",
    ),
    "not loaded": ({"target": "vmlinux"}, "module mini is not loaded"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_livepatch_is_refused(world: World, case: str) -> None:
    """What the kernel would not write is refused with the reason, and leaves no trace."""
    options, reason = BAD[case]
    before = world.state()
    with pytest.raises(LoadError) as caught:
        form(world, livepatch(world.arch.machine, **options))
    assert reason in str(caught.value)
    assert isinstance(caught.value, BadModule | LivepatchError)
    assert world.state() == before


TWINS = [Sym("twin", ".text", 4 * n, 4, FUNC, LOCAL) for n in range(3)]
LOOKUPS = {
    "0": "mini has 3 symbols 'twin': give the position, from 1",
    "1": 0,
    "3": 8,
    "4": "mini has 3 symbols 'twin'",
}


@pytest.mark.parametrize("position", LOOKUPS)
def test_positions_count_symbols_of_one_name(world: World, position: str) -> None:
    """From 1 in the order of the table; 0 asks that there be one; others refuse the target."""
    full = f".klp.sym.mini.twin,{position}"
    patch = form(world, livepatch(world.arch.machine, call=full, pointer=full))
    # The tail of a longer name is another symbol's name for the string table, not for this.
    more = [*TWINS, Sym("not_twin", ".text", 12, 4, FUNC, LOCAL)]
    wanted, before = LOOKUPS[position], (world.state(), contents(world, patch))
    if isinstance(wanted, int):
        target = form(world, image(world, symbols=more))
        assert pointers(world, patch) == {target.symbols["mini_work"] + wanted}
        return
    with pytest.raises(LivepatchError) as caught:
        form(world, image(world, symbols=more))
    assert str(caught.value) == f"mini: livepatch fix: {full}: {wanted}"
    assert (world.state(), contents(world, patch)) == before


def test_names_in_freed_memory_are_gone(world: World) -> None:
    """After init the symbols of init memory are not found, as in the kernel's table."""
    world.loader.settle(form(world, image(world)))
    gone = ".klp.sym.mini.init_module,0"
    before = world.state()
    with pytest.raises(LivepatchError, match="mini has no symbol 'init_module'"):
        form(world, livepatch(world.arch.machine, call=gone, pointer=gone))
    assert world.state() == before


def test_one_livepatch_that_fails_leaves_the_others_unwritten(world: World) -> None:
    """A place that holds something else refuses the target; nothing of any livepatch is written."""
    patches = [form(world, livepatch(world.arch.machine, name)) for name in ("first", "second")]
    site = next(s.address for s in patches[1].sections.values() if s.name == RODATA) + 8
    word = bytes.fromhex("1122334455667788")
    world.execmem.poke(site, word)
    before = world.state(), [contents(world, patch) for patch in patches]
    with pytest.raises(LivepatchError) as caught:
        form(world, image(world))
    error = caught.value
    assert (error.module, error.patch) == ("mini", "second")
    assert error.reason == f"found {word.hex()}, expected {bytes(8).hex()}"
    assert (world.state(), [contents(world, patch) for patch in patches]) == before
    world.execmem.poke(site, bytes(8), word)
    target = form(world, image(world))
    assert [pointers(world, patch) for patch in patches] == [{target.symbols["mini_work"]}] * 2
    # What holds something else when the target goes is left alone.
    world.execmem.poke(site, word)
    world.loader.discard(target)
    assert pointers(world, patches[0]) == {0}
    assert pointers(world, patches[1]) == {0, int.from_bytes(word, "little")}


def test_what_does_not_reach_refuses_the_target(world: World) -> None:
    """A late relocation out of range says which, and nothing is written."""
    narrow = next(r for r in world.arch.link.relocations.values() if r.name.endswith(NARROW))
    relas = {"mini": [Rela(0, narrow.number, WORK)]}
    extra = [Sec(DATA, bytes(8), A | W, align=8, livepatch=relas)]
    data = module(
        world.arch.machine, "fix", extra=extra, symbols=[Sym(WORK, LIVEPATCH)], info="livepatch=Y"
    )
    patch = form(world, data)
    before = world.state(), contents(world, patch)
    with pytest.raises(LivepatchError) as caught:
        form(world, image(world))
    assert str(caught.value).startswith("mini: livepatch fix: relocations: some.ko: .data.fix+0x0")
    assert f"{narrow.name} against '{WORK}' out of range" in str(caught.value)
    assert (world.state(), contents(world, patch)) == before


def test_without_text_poke_only_writable_data_can_be_written(world: World) -> None:
    """Finished text stays as it is where there is no text_poke: the target is refused."""
    world.execmem.text_poke = None
    patch = form(world, livepatch(world.arch.machine))
    before = world.state(), contents(world, patch)
    with pytest.raises(LivepatchError, match="no text_poke"):
        form(world, image(world))
    assert (world.state(), contents(world, patch)) == before
    world.loader.discard(patch)
    plain = form(world, livepatch(world.arch.machine, kinds=[DATA]))
    target = form(world, image(world))
    assert int.from_bytes(contents(world, plain)[DATA][8:], "little") == target.symbols["mini_work"]
    world.loader.discard(target)
    assert contents(world, plain)[DATA] == bytes(16)
