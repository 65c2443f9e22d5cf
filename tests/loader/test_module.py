# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a module in real (modelled) memory, and that a failed load leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs
import pytest

import archs
from allocator import DESIGNS, Execmem, KernelMemory, PhysicalMemory
from allocator.errors import AllocationError, ExecmemError
from allocator.types import MIB, MemType, Prot
from archs import Checks
from archs.dialect import SYMBOL
from execmem.check import elfwriter as elf
from execmem.check.elfwriter import A, Rela, Sec, Sym, W, write
from loader.elf import parse
from loader.elfview import SHT_SYMTAB
from loader.errors import (
    BadModule,
    MissingDependency,
    ModuleInUse,
    ModuleStateError,
    OutOfMemory,
    RelocationError,
    SymbolClash,
    UnresolvedSymbols,
)
from loader.loaded import LoadedModule, State
from loader.module import Loader
from loader.symbols import SymbolTable
from tests.archs.facts import facts
from tests.support.kernel import FakeKernel, FakePercpu
from tests.support.modules import module

KINDS = set(MemType)


@attrs.frozen
class World:
    """A loader and everything under it."""

    arch: archs.Arch
    physical: PhysicalMemory
    memory: KernelMemory
    execmem: Execmem
    percpu: FakePercpu
    loader: Loader

    def state(self) -> tuple[Any, ...]:
        """Return what a failed load may not change."""
        return (
            tuple(self.execmem.allocations()),
            self.physical.free_bytes,
            dict(self.loader.symbols.exports),
            dict(self.percpu.live),
            {name: (m.state, set(m.users)) for name, m in self.loader.modules.items()},
        )

    def prots(self, loaded: LoadedModule, kind: MemType) -> set[Prot]:
        """Return the protections of a region's pages."""
        region = loaded.regions[kind]
        spans = self.memory.page_table.spans(region.address, region.size)
        return {span.prot for span in spans}


def build(arch: archs.Arch, **design: str) -> World:
    """Return a fresh world."""
    there = arch.loads.address_map()
    physical = PhysicalMemory(64 * MIB)
    memory = KernelMemory(physical, there)
    execmem = Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke, **design)
    percpu = FakePercpu()
    kernel = FakeKernel("_printk", base=there.image.start)
    loader = Loader(arch, execmem, SymbolTable(kernel), percpu.alloc, percpu.free, percpu.write)
    return World(arch, physical, memory, execmem, percpu, loader)


@pytest.fixture
def world(arch: archs.Arch) -> Iterator[World]:
    """Give a world with the default design; its invariants hold when the test ends."""
    found = build(arch)
    yield found
    found.execmem.check()


# Made to fail where the vmalloc range is out of reach of the kernel: see below.
BROKEN = "vmalloc_else"


@pytest.fixture(params=sorted(set(DESIGNS) - {BROKEN}))
def any_world(request: pytest.FixtureRequest, arch: archs.Arch) -> Iterator[World]:
    """Give a world with each design in turn."""
    found = build(arch, design=request.param)
    yield found
    found.execmem.check()


def image(world: World, name: str = "mini", **options: Any) -> bytes:
    """Return a module of the world's architecture."""
    return module(world.arch.machine, name, **options)


def full(world: World) -> bytes:
    """Return a module with memory of all seven types, exports and a per-cpu section."""
    return image(world, exported=("mini_f", "mini_g"), percpu=64)


def test_memory_holds_the_linked_bytes(any_world: World) -> None:
    """Every section lies in memory as it was linked, at the address that symbols have."""
    loaded = any_world.loader.form(full(any_world), "mini.ko")
    assert loaded.state is State.COMING
    assert set(loaded.regions) == KINDS
    for index, placement in loaded.layout.placements.items():
        section = loaded.sections[index]
        region = loaded.regions[placement.type]
        assert section.address == region.address + placement.offset
        assert section.address % placement.align == 0
        want = bytes(loaded.linked.sections[index])
        assert any_world.memory.read(section.address, section.size) == want
    this = loaded.symbols["__this_module"] + facts(any_world.arch).link.init_at
    init = int.from_bytes(any_world.memory.read(this, 8), "little")
    assert init == loaded.symbols["init_module"]
    assert init in loaded.regions[MemType.INIT_TEXT].interval


def test_protections_before_and_after_init(any_world: World) -> None:
    """Text is never writable, data never executable; ro_after_init is sealed by settle."""
    loaded = any_world.loader.form(full(any_world), "mini.ko")
    before = {kind: any_world.prots(loaded, kind) for kind in loaded.regions}
    assert before == {
        MemType.TEXT: {Prot.RX},
        MemType.DATA: {Prot.RW},
        MemType.RODATA: {Prot.R},
        MemType.RO_AFTER_INIT: {Prot.RW},
        MemType.INIT_TEXT: {Prot.RX},
        MemType.INIT_DATA: {Prot.RW},
        MemType.INIT_RODATA: {Prot.R},
    }
    any_world.loader.settle(loaded)
    after = {kind: any_world.prots(loaded, kind) for kind in loaded.regions}
    assert after == {
        MemType.TEXT: {Prot.RX},
        MemType.DATA: {Prot.RW},
        MemType.RODATA: {Prot.R},
        MemType.RO_AFTER_INIT: {Prot.R},
    }


def test_text_out_of_reach_is_refused_and_leaves_no_trace(arch: archs.Arch) -> None:
    """With text in the vmalloc range nothing reaches on x86-64 and riscv64; on arm64 a PLT does."""
    world = build(arch, design=BROKEN)
    before = world.state()
    there = arch.loads.address_map()
    if abs(there.vmalloc.start - there.image.start) < 1 << 32:
        loaded = world.loader.form(full(world), "mini.ko")
        assert loaded.regions[MemType.TEXT].address in there.vmalloc
        world.execmem.check()
        return
    with pytest.raises(RelocationError, match="out of range"):
        world.loader.form(full(world), "mini.ko")
    assert world.state() == before
    assert not facts(arch).link.plt_beyond


def test_init_memory_is_freed_when_init_is_done(world: World) -> None:
    """After settle the three init types are gone and the others untouched."""
    loaded = world.loader.form(full(world), "mini.ko")
    regions = dict(loaded.regions)
    world.loader.settle(loaded)
    assert loaded.state is State.LIVE
    for kind, region in regions.items():
        assert (world.execmem.find(region.address) is None) == kind.is_init
        assert (kind in loaded.regions) == (not kind.is_init)


def test_a_module_that_goes_leaves_nothing(any_world: World) -> None:
    """Loading, settling and discarding returns every frame, name and per-cpu byte."""
    before = any_world.state()
    loaded = any_world.loader.form(full(any_world), "mini.ko")
    assert any_world.state() != before
    any_world.loader.settle(loaded)
    any_world.loader.begin_unload(loaded)
    assert loaded.state is State.GOING
    any_world.loader.discard(loaded)
    assert loaded.state is State.UNLOADED
    assert loaded.regions == {}
    assert any_world.state() == before


def test_a_module_whose_init_failed_is_discarded(world: World) -> None:
    """From COMING a module can be taken out at once, init memory and all."""
    before = world.state()
    world.loader.discard(world.loader.form(full(world), "mini.ko"))
    assert world.state() == before


def test_data_is_freed_last(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """DATA holds struct module, which the kernel uses until the very end."""
    loaded = world.loader.form(full(world), "mini.ko")
    data, freed = loaded.regions[MemType.DATA].address, []
    free = world.execmem.free_many

    def free_many(addresses: Iterable[int]) -> None:
        freed.extend(addresses)
        free(freed)

    monkeypatch.setattr(world.execmem, "free_many", free_many)
    world.loader.discard(loaded)
    assert freed[-1] == data
    assert len(freed) == len(KINDS)


def test_operations_out_of_order_are_refused(world: World) -> None:
    """Each operation has states that it needs; elsewhere it changes nothing and says so."""
    loader = world.loader
    loaded = loader.form(full(world), "mini.ko")
    steps: dict[str, Callable[[LoadedModule], None]] = {
        "settle": loader.settle,
        "unload": loader.begin_unload,
        "discard": loader.discard,
    }

    def refused(*names: str) -> None:
        before = world.state()
        for name in names:
            with pytest.raises(ModuleStateError) as caught:
                steps[name](loaded)
            assert caught.value.state == loaded.state.value
            assert str(caught.value) == f"mini: cannot {name}: the module is {loaded.state.value}"
        assert world.state() == before

    refused("unload")
    loader.settle(loaded)
    refused("settle", "discard")
    loader.begin_unload(loaded)
    refused("settle", "unload")
    loader.discard(loaded)
    refused("settle", "unload", "discard")


def test_a_module_is_loaded_once(world: World) -> None:
    """A second module of a name is refused, whatever its file is called; later it may come."""
    loaded = world.loader.form(image(world), "mini.ko")
    before = world.state()
    with pytest.raises(ModuleStateError, match="cannot load it twice: the module is coming"):
        world.loader.form(image(world), "other-name.ko.xz")
    assert world.state() == before
    world.loader.discard(loaded)
    world.loader.form(image(world), "mini.ko")


def test_names_of_local_symbols_are_checked(world: World) -> None:
    """A local symbol whose name is outside the string table is refused before anything is done."""
    before = world.state()
    damaged = bytearray(image(world))
    view = parse(bytes(damaged))
    table = next(section for section in view.sections if section.type == SHT_SYMTAB)
    assert view.first_global > 1
    at = table.offset + SYMBOL.itemsize
    damaged[at : at + 4] = view.symbol_names.size.to_bytes(4, "little")
    with pytest.raises(BadModule, match="symbol 1: name is outside the string table"):
        world.loader.form(bytes(damaged), "mini.ko")
    assert world.state() == before


def test_names_come_from_modinfo_else_from_the_file(world: World) -> None:
    """`name=` of .modinfo decides; without it the file's name does, spelt as the kernel spells."""
    assert world.loader.form(image(world), "whatever.ko").name == "mini"
    plain = [
        Sec(".gnu.linkonce.this_module", bytes(world.arch.loads.layouts.size_of("module")), A | W)
    ]
    loaded = world.loader.form(write(world.arch.machine, plain), "dir/odd-one.ko.xz")
    assert loaded.name == "odd_one"
    assert set(loaded.regions) == {MemType.DATA}


def user_of_mini(world: World) -> bytes:
    """Return a module that calls what `mini` exports."""
    return image(world, "user", depends="mini", undefined=("_printk", "mini_f"))


def test_a_user_holds_its_provider(world: World) -> None:
    """While a module uses another, that one cannot go; calls reach the provider's text."""
    provider = world.loader.form(full(world), "mini.ko")
    world.loader.settle(provider)
    user = world.loader.form(user_of_mini(world), "user.ko")
    assert user.providers == {"mini"}
    assert provider.users == {"user"}
    index = user.view.undefined["mini_f"]
    assert int(user.linked.symbols[index]) == provider.symbols["mini_f"]
    before = world.state()
    with pytest.raises(ModuleInUse) as caught:
        world.loader.begin_unload(provider)
    assert str(caught.value) == "mini: in use by user"
    assert world.state() == before
    world.loader.discard(user)
    assert provider.users == set()
    world.loader.begin_unload(provider)


def test_a_dependency_is_held_even_if_unused(world: World) -> None:
    """What `depends=` names holds a reference, as modprobe would load it for that."""
    provider = world.loader.form(full(world), "mini.ko")
    user = world.loader.form(image(world, "user", depends="mini"), "user.ko")
    assert user.providers == {"mini"}
    assert provider.users == {"user"}


def test_unknown_names_are_reported_on_the_module(world: World) -> None:
    """A name that nobody implements does not stop a load; the module says which."""
    loaded = world.loader.form(image(world, undefined=("_printk", "odd")), "mini.ko")
    assert loaded.unknown == ("odd",)


def test_percpu_contents_are_written_once(world: World) -> None:
    """The per-cpu section gets memory of its own, its contents, and symbols that count from it."""
    loaded = world.loader.form(full(world), "mini.ko")
    assert world.percpu.written == {loaded.percpu: b"\xa5" * 64}
    assert loaded.percpu % 64 == 0
    assert loaded.symbols["mini_percpu"] == loaded.percpu + 8
    section = loaded.sections[loaded.view.section(".data..percpu").index]
    assert (section.type, section.address, section.size) == (None, loaded.percpu, 64)


def test_addresses_are_found_again(world: World) -> None:
    """Functions and regions are found by an address inside, and by nothing else."""
    loaded = world.loader.form(full(world), "mini.ko")
    work = loaded.symbols["mini_work"]
    size = int(loaded.view.symbols["size"][1])
    assert loaded.symbol_at(work) == ("mini_work", 0, size)
    assert loaded.symbol_at(work + size - 1) == ("mini_work", size - 1, size)
    assert loaded.symbol_at(work + size) != ("mini_work", size, size)
    assert loaded.symbol_at(0) is None
    for kind, region in loaded.regions.items():
        assert loaded.region_at(region.address).type is kind
        assert loaded.region_at(region.address + region.size - 1).type is kind
    assert loaded.region_at(0x1000) is None
    assert loaded.arch is world.arch


def test_empty_sections_have_an_address(world: World) -> None:
    """A symbol of a type without bytes still has a place: the module's own memory."""
    sections = [
        Sec(".gnu.linkonce.this_module", bytes(world.arch.loads.layouts.size_of("module")), A | W),
        Sec(".text", b"", A | elf.X),
        Sec(".init.data", b"", A | W),
    ]
    symbols = [Sym("nothing", ".text"), Sym("none", ".init.data", type=elf.OBJECT)]
    loaded = world.loader.form(write(world.arch.machine, sections, symbols), "empty.ko")
    assert set(loaded.regions) == {MemType.DATA}
    assert loaded.region_at(loaded.symbols["nothing"]) is not None
    assert loaded.region_at(loaded.symbols["none"]) is not None


def test_exports_come_and_go(world: World) -> None:
    """What a module exports is visible while it is loaded."""
    loaded = world.loader.form(full(world), "mini.ko")
    table = world.loader.symbols.exports
    assert {name: e.address for name, e in table.items()} == {
        name: loaded.symbols[name] for name in ("mini_f", "mini_g")
    }
    assert [e.name for e in loaded.exports] == ["mini_f", "mini_g"]
    world.loader.discard(loaded)
    assert table == {}


def raises_after(count: int, method: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return `method` that raises instead of its call number `count` (from 0)."""
    calls = iter(range(1 << 30))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            raise error
        return method(*args, **kwargs)

    return wrapped


NO_ROOM = AllocationError("memory", 1, (), "none left")


@pytest.mark.parametrize("step", ["alloc", "write", "finish"])
def test_a_failure_at_any_region_leaves_no_trace(
    any_world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whichever region's allocation, write or protection fails, nothing stays behind."""
    loader, design = any_world.loader, any_world.execmem.design
    loader.settle(loader.form(image(any_world, "first"), "first.ko"))
    before = any_world.state()
    # A design of ours does all regions at once.
    step, at_once = (
        (f"{step}_many", True) if f"{step}_many" in vars(type(design)) else (step, False)
    )
    for count in range(1 if at_once else len(KINDS)):
        with monkeypatch.context() as patch:
            patch.setattr(design, step, raises_after(count, getattr(design, step), NO_ROOM))
            with pytest.raises(OutOfMemory) as caught:
                loader.form(full(any_world), "mini.ko")
        assert caught.value.module == "mini.ko"
        assert caught.value.cause is NO_ROOM
        assert str(caught.value) == f"mini.ko: {NO_ROOM}"
        assert any_world.state() == before
    loader.form(full(any_world), "mini.ko")  # and the next attempt succeeds


def test_no_percpu_memory_leaves_no_trace(world: World) -> None:
    """A module whose per-cpu section finds no room is refused as out of memory."""
    before = world.state()
    world.percpu.full = True
    with pytest.raises(OutOfMemory, match="per-cpu memory"):
        world.loader.form(full(world), "mini.ko")
    assert world.state() == before


def test_a_failed_percpu_write_leaves_no_trace(world: World) -> None:
    """An error after the exports were published takes them back."""
    before = world.state()
    world.loader.percpu_write = raises_after(0, world.percpu.write, ExecmemError("broken"))
    with pytest.raises(ExecmemError, match="broken"):
        world.loader.form(full(world), "mini.ko")
    assert world.state() == before


def word32(world: World) -> int:
    """Return the number of a relocation of a word of 32 bits."""
    known = facts(world.arch).link
    return known.word32 if known.prel32 is None else known.prel32


def bad_relocation(world: World) -> bytes:
    """Return a module with a word that no address fits in."""
    far = Sec(".far", bytes(8), A | W, relas=[Rela(0, word32(world), "mini_work", 1 << 40)])
    return image(world, exported=("mini_f",), percpu=64, extra=[far])


REFUSED: list[tuple[str, Callable[[World], bytes], type[ExecmemError]]] = [
    ("no ELF", lambda _: b"nothing", BadModule),
    ("no module", lambda w: write(w.arch.machine, [Sec(".data", b"x", A | W)]), BadModule),
    ("W+X", lambda w: image(w, extra=[Sec(".wx", b"x", A | W | elf.X)]), BadModule),
    ("missing module", lambda w: image(w, depends="gone"), MissingDependency),
    ("relocation", bad_relocation, RelocationError),
    ("clash", lambda w: image(w, exported=("first_f", "mini_f"), percpu=64), SymbolClash),
]


@pytest.mark.parametrize(("make", "error"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_refused_module_leaves_no_trace(
    world: World, make: Callable[[World], bytes], error: type[ExecmemError]
) -> None:
    """Memory, allocations, per-cpu memory, exports and references are as before."""
    world.loader.form(image(world, "first", exported=("first_f",)), "first.ko")
    before = world.state()
    with pytest.raises(error) as caught:
        world.loader.form(make(world), "mini.ko")
    assert str(caught.value).startswith("mini")
    assert world.state() == before


def test_a_damaged_module_leaves_no_trace(world: World) -> None:
    """Random damage is refused by the error family, or loads; either way nothing stays behind."""
    original, before = full(world), world.state()
    headers = int.from_bytes(original[40:48], "little")
    chance = random.Random(world.arch.machine)
    loads = 0
    for _ in range(60):
        damaged = bytearray(original)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(chance.choice((0, 0, headers)), len(damaged))
            damaged[at] = chance.choice((0, 0xFF, chance.randrange(256)))
        try:
            loaded = world.loader.form(bytes(damaged), "fuzz.ko")
        except ExecmemError:
            pass
        else:
            loads += 1
            world.loader.settle(loaded)
            world.loader.begin_unload(loaded)
            world.loader.discard(loaded)
        assert world.state() == before
    assert 0 < loads < 60


def test_unknown_names_can_be_refused_by_policy(world: World) -> None:
    """With the policy `refuse` an unknown name stops the load before memory is touched."""
    world.loader.symbols.refuse_unknown = True
    before = world.state()
    with pytest.raises(UnresolvedSymbols) as caught:
        world.loader.form(image(world, undefined=("_printk", "odd")), "mini.ko")
    assert caught.value.names == ("odd",)
    assert world.state() == before


def test_another_architectures_module_is_refused(world: World) -> None:
    """A loader takes modules of its own architecture only."""
    other = next(a for a in archs.ALL if a is not world.arch)
    with pytest.raises(BadModule, match=f"built for {other.name}, not for {world.arch.name}"):
        world.loader.form(module(other.machine), "mini.ko")


def test_the_loaders_checks_are_those_of_the_link(world: World) -> None:
    """A loader told to check as the kernel does lets through what the kernel lets through."""
    row = world.arch.link.relocations[word32(world)]
    world.loader.checks = Checks.KERNEL
    if row.kernel_reach is None:
        world.loader.form(bad_relocation(world), "mini.ko")
    else:
        with pytest.raises(RelocationError):
            world.loader.form(bad_relocation(world), "mini.ko")


def test_many_modules_share_memory_and_leave_it(any_world: World) -> None:
    """Twelve modules, unloaded in another order than loaded, never mix up their bytes."""
    before = any_world.state()
    loaded = [any_world.loader.form(image(any_world, f"m{n}"), f"m{n}.ko") for n in range(12)]
    for one in loaded[::2]:
        any_world.loader.settle(one)
    for one in loaded:
        for index, section in one.sections.items():
            if section.type in one.regions:
                want = bytes(one.linked.sections[index])
                assert any_world.memory.read(section.address, section.size) == want
    for one in loaded[1::2] + loaded[::2]:
        if one.state is State.LIVE:
            any_world.loader.begin_unload(one)
        any_world.loader.discard(one)
    assert any_world.state() == before


def test_calls_of_a_module_reach_the_kernel(world: World) -> None:
    """The one call in its text was relocated against the kernel's address."""
    loaded = world.loader.form(image(world), "mini.ko")
    table = next(t for t in loaded.view.tables if t.target.name == ".text")
    known = facts(world.arch).link
    kinds = [known.call, *(kind for _, kind in known.more_of_call)]
    assert table.records["type"].tolist() == kinds
    index = loaded.view.undefined["_printk"]
    assert int(loaded.linked.symbols[index]) == world.loader.symbols.kernel.address("_printk")
    pointer = loaded.sections[loaded.view.section(".data").index].address
    number = next(t for t in loaded.view.tables if t.target.name == ".data").records["type"][0]
    assert int(number) == facts(world.arch).link.abs64
    stored = int.from_bytes(world.memory.read(pointer, 8), "little")
    assert stored == loaded.symbols["mini_work"]
