# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules come, run and go; whatever fails leaves everything as it was.

What a module computes is known from its source and Python; what the machine holds is
compared before and after, piece by piece.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import zlib

import attrs
import pytest

import archs
from allocator import DESIGNS, Prot
from allocator.errors import ExecmemError
from allocator.types import PAGE_SIZE, MemType
from emulator.faults import Fault, FaultKind
from loader.elf import arch_of
from loader.errors import (
    BadModule,
    BadParameter,
    InitFailed,
    LoadError,
    MissingDependency,
    ModuleInUse,
    ModuleStateError,
    SymbolClash,
    UnresolvedSymbols,
)
from loader.layout import THIS_MODULE
from loader.loaded import State
from machine.face import Machine
from samples import modules
from tests.machine.snippets import snippet
from tests.support.modules import module as mini_module

WAYS = [(design, poke) for design in sorted(DESIGNS) for poke in (None, False)]


@pytest.fixture
def machine(arch):
    """Return a machine of each architecture that knows the samples by name."""
    return Machine(arch, root=modules.root(arch.name))


def held(machine):
    """Return everything that loading a module may change."""
    kernel, memory = machine.kernel, machine.memory
    kernel.heap.mark()  # empty slabs are no difference
    return {
        "allocations": machine.execmem.allocations(),
        "free bytes": memory.physical.free_bytes,
        "free space": list(memory.free_space),
        "free text": list(machine.execmem.design.free_intervals()),
        "exports": dict(machine.loader.symbols.exports),
        "loaded": {name: set(m.users) for name, m in machine.loader.modules.items()},
        "modules": set(machine.modules),
        "objects": kernel.heap.live(),
        "kernel symbols": dict(kernel.symbols),
        "slots": kernel.symtab.mark().stubs,
        "variables": kernel.symtab.mark().variables,
        "per-cpu variables": kernel.percpu.mark(),
        "per-cpu": list(kernel.percpu._free),
    }


def image(arch, **keywords):
    """Return a handmade module."""
    return mini_module(arch.machine, **keywords)


# Where modules come from ---------------------------------------------------------------------


def test_by_path_by_name_and_by_bytes(arch, machine):
    """A path, a name under the root and the file's bytes give the same module."""
    path = modules.path(arch.name, "tables")
    for source in (path, str(path), "tables", path.read_bytes()):
        module = machine.load(source)
        assert module.name == "tables"
        assert machine.modules == {"tables": module}
        assert module.call("tables_crc64", b"123456789", 9) == 0x995DC9BBDF1939FA
        module.unload()
    assert machine.modules == {}


@pytest.mark.parametrize("suffix", [".ko.gz", ".ko.xz"])
def test_compressed_files(arch, tmp_path, suffix):
    """A compressed module is a module, by path and by bytes."""
    pack = {".ko.gz": gzip.compress, ".ko.xz": lzma.compress}[suffix]
    data = pack(modules.path(arch.name, "hello").read_bytes())
    path = tmp_path / f"hello{suffix}"
    path.write_bytes(data)
    for source in (path, data):
        machine = Machine(arch)
        assert machine.load(source).call("hello_greet", 5) == 6


def test_dependencies_under_the_root(machine):
    """A module brings what modules.dep says it needs, before itself, and only once."""
    mathuser = machine.load("mathuser")
    assert list(machine.modules) == ["mathlib", "mathuser"]
    assert mathuser.call("mathuser_lcm", 21, 6) == 42
    assert mathuser.call("mathuser_is_probable_prime", 4294967291) == 1
    calls = mathuser.call("mathuser_calls")
    assert machine.modules["mathlib"].call("mathlib_gcd", 4, 6) == 2
    assert mathuser.call("mathuser_calls") == calls + 1
    mathuser.unload()
    machine.load("mathuser")
    assert list(machine.modules) == ["mathlib", "mathuser"]


def test_dependencies_around_a_path(arch):
    """A module's own tree is found around its file where no root is given."""
    machine = Machine(arch)
    machine.load(modules.path(arch.name, "mathuser"))
    assert list(machine.modules) == ["mathlib", "mathuser"]


def test_dependencies_of_bytes(arch, machine):
    """Bytes have no place, but the module's own `depends` is looked up under the root."""
    machine.load(modules.path(arch.name, "mathuser").read_bytes())
    assert list(machine.modules) == ["mathlib", "mathuser"]


def test_a_missing_dependency(arch, tmp_path):
    """A module without what it needs is refused, naming it, and nothing happened."""
    alone = shutil.copy(modules.path(arch.name, "mathuser"), tmp_path)
    machine = Machine(arch)
    before = held(machine)
    with pytest.raises(MissingDependency) as caught:
        machine.load(alone)
    assert caught.value.missing == ("mathlib",)
    assert "mathlib_gcd" in caught.value.symbols
    assert held(machine) == before


@pytest.mark.parametrize("source", ["nothing_like_it", "./no/such/file.ko", b"", b"\x7fELF"])
def test_what_is_no_module(machine, source):
    """A name, path or bytes that are no module are refused, and nothing happened."""
    before = held(machine)
    with pytest.raises(LoadError):
        machine.load(source)
    assert held(machine) == before


def test_another_architecture(arch, machine):
    """A module of another architecture is refused, and its header says which one it is of."""
    for other in archs.ALL:
        data = modules.path(other.name, "hello").read_bytes()
        assert arch_of(data) is other
        if other is not arch:
            with pytest.raises(BadModule):
                machine.load(data)
    with pytest.raises(BadModule):
        arch_of(b"MZ")


# Parameters ----------------------------------------------------------------------------------


def test_parameters(arch, machine):
    """Parameters of every kind reach the module before its init runs."""
    module = machine.load("hello", who="there", times=2, loud=True, ids=[7, -8, 0x10])
    assert [(line.level, line.text) for line in module.report.log] == [
        (4, "hello: HELLO, there!"),
        (4, "hello: HELLO, there!"),
        (6, "hello: id 7"),
        (6, "hello: id -8"),
        (6, "hello: id 16"),
    ]
    assert {p.name for p in machine.parameters_of(module.loaded)} == {"who", "times", "loud", "ids"}


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"times": "many"}, ["'many'", "EINVAL", "int"]),
        ({"times": 1 << 40}, ["ERANGE"]),
        ({"ids": [1, 2, 3, 4, 5]}, ["EINVAL"]),
        ({"loud": "perhaps"}, ["EINVAL"]),
        ({"volume": 11}, ["unknown", "ids, loud, times, who"]),
        ({"who": "x", "times": "many"}, ["EINVAL"]),
    ],
)
def test_bad_parameters(machine, params, words):
    """A value or name that the module does not take is refused, and nothing happened."""
    before = held(machine)
    with pytest.raises(BadParameter) as caught:
        machine.load("hello", **params)
    assert all(word in str(caught.value) for word in words)
    assert held(machine) == before


def test_parameters_belong_to_the_module(machine):
    """What a string parameter was copied into is freed with the module."""
    machine.load("hello").unload()
    before = held(machine)
    machine.load("hello", who="a guest").unload()
    assert held(machine) == before


# What fails ----------------------------------------------------------------------------------


def test_a_failing_init(machine):
    """An init that returns an error gives that error, its log, and leaves nothing."""
    before = held(machine)
    with pytest.raises(InitFailed) as caught:
        machine.load("failing", error=19)
    assert (caught.value.errno, caught.value.name) == (19, "ENODEV")
    assert machine.log[-1].text == "failing: giving up with error 19"
    assert held(machine) == before
    assert machine.load("failing", error=0).state is State.LIVE
    machine.check()


@pytest.mark.parametrize("reason", ["error", "parameter", "fault", "file"])
def test_a_failure_takes_dependencies_along(arch, tmp_path, reason):
    """Modules that were brought for a module that failed go with it; what was there stays."""
    folder = shutil.copytree(modules.root(arch.name), tmp_path, dirs_exist_ok=True)
    folder = folder / "lib" / "modules" / modules.RELEASE
    (folder / "modules.dep").write_text(
        "kernel/failing.ko: kernel/mathuser.ko kernel/mathlib.ko\n"
        "kernel/mathuser.ko: kernel/mathlib.ko\n"
        "kernel/mathlib.ko:\nkernel/hello.ko:\n"
    )
    machine = Machine(arch, root=tmp_path)
    kept = machine.load("hello")
    read = snippet(machine, "load")
    if reason == "fault":
        # printk is what init calls last, and exit of the dependencies calls it too
        machine.stub("_printk", lambda: machine.call(read, 8))
    elif reason == "file":
        (folder / "kernel" / "failing.ko").write_bytes(b"\x7fELF damaged")
    before = held(machine)
    expected = {
        "error": InitFailed,
        "parameter": BadParameter,
        "fault": Fault,
        "file": BadModule,
    }[reason]
    with pytest.raises(expected):
        machine.load("failing", **({"volume": 1} if reason == "parameter" else {}))
    assert list(machine.modules) == ["hello"]
    assert held(machine) == before
    machine.check()
    if reason != "fault":
        assert kept.call("hello_greet", 1) == 2


@pytest.mark.parametrize("design", sorted(DESIGNS))
@pytest.mark.parametrize("text_poke", [None, False])
def test_an_init_that_faults(arch, design, text_poke):
    """An init that faults leaves nothing behind, in any design."""
    machine = Machine(arch, design=design, text_poke=text_poke)
    machine.load(modules.path(arch.name, "hello"))
    read = snippet(machine, "load")
    machine.stub("__kmalloc_noprof", lambda _size, _flags: machine.call(read, 8))
    before = held(machine)
    with pytest.raises(Fault) as caught:
        machine.load(modules.path(arch.name, "checksums"))
    assert caught.value.kind is FaultKind.READ
    assert held(machine) == before
    machine.check()


def test_init_out_of_its_limits(machine):
    """An init that does not end is stopped, and the module is gone."""
    before = held(machine)
    machine.instructions = 50
    with pytest.raises(Fault) as caught:
        machine.load("tables")
    assert caught.value.kind is FaultKind.INSTRUCTION_LIMIT
    assert held(machine) == before


def test_per_cpu_memory_of_a_failed_module(arch, machine):
    """A module that fails after its per-cpu section was placed gives that back too."""
    machine.load(image(arch, name="first", exported=["shared"], undefined=["strlen"]), init=False)
    machine.kernel.address("strlen")
    before = held(machine)
    with pytest.raises(SymbolClash) as caught:
        machine.load(
            image(arch, name="second", exported=["shared"], undefined=["strlen"], percpu=256)
        )
    assert (caught.value.names, caught.value.owners) == (("shared",), ("first",))
    assert held(machine) == before
    machine.check()


def test_loading_twice(machine):
    """A module that is there already is refused, and stays."""
    hello = machine.load("hello")
    before = held(machine)
    with pytest.raises(ModuleStateError):
        machine.load("hello")
    assert held(machine) == before
    assert hello.call("hello_greet", 1) == 2


def test_unknown_symbols_refused(arch):
    """With unknown="refuse" a symbol that nobody has refuses the module, naming every one."""
    machine = Machine(arch, unknown="refuse")
    before = held(machine)
    with pytest.raises(UnresolvedSymbols) as caught:
        machine.load(image(arch, undefined=["nobody_a", "strlen", "nobody_b"]))
    assert caught.value.names == ("nobody_a", "nobody_b")
    assert held(machine) == before
    machine.stub("nobody_a")
    machine.stub("nobody_b")
    assert (
        machine.load(image(arch, undefined=["nobody_a", "nobody_b"]), init=False).report.unknown
        == ()
    )


def test_init_that_ends_at_an_unknown_symbol(arch, machine):
    """Where only the kernel lacks something the module stays, not initialised, and can go."""
    before = held(machine)
    assert before["slots"] == 0
    module = machine.load(image(arch, undefined=["nobody_has_this"]))
    assert module.state is State.COMING
    assert module.report.init_fault.kind is FaultKind.UNKNOWN_SYMBOL
    module.unload()
    assert held(machine) | {"kernel symbols": before["kernel symbols"], "slots": 0} == before


# Unloading -----------------------------------------------------------------------------------


def test_unloading_runs_exit(machine):
    """Unloading runs the module's exit, once, and its memory is free afterwards."""
    machine.load("checksums").unload()  # once, so that the kernel's symbols are there
    before = held(machine)
    module = machine.load("checksums")
    assert machine.kernel.heap.live() != before["objects"]  # its table
    module.unload()
    assert held(machine) == before
    module = machine.load("hello")
    module.call("hello_greet", 9)
    module.unload()
    assert machine.log[-1].text == "hello: goodbye after 1 greetings"
    assert module.state is State.UNLOADED
    machine.check()


def test_a_module_in_use_stays(machine):
    """A module that another one uses is not unloaded until that one is."""
    mathuser = machine.load("mathuser")
    mathlib = machine.modules["mathlib"]
    with pytest.raises(ModuleInUse) as caught:
        mathlib.unload()
    assert caught.value.users == ("mathuser",)
    assert mathuser.call("mathuser_lcm", 4, 10) == 20
    mathuser.unload()
    mathlib.unload()
    assert machine.modules == {}


def test_uninitialised_modules_in_use_stay(machine):
    """Modules that were not initialised go as they came, users first."""
    mathuser = machine.load("mathuser", init=False)
    mathlib = machine.modules["mathlib"]
    assert mathlib.state is mathuser.state is State.COMING
    with pytest.raises(LoadError):
        mathlib.unload()
    mathuser.unload()
    mathlib.unload()
    assert machine.execmem.allocations() == []


def test_loading_again(machine):
    """A module loaded again starts anew: its data is the file's, not what was left."""
    for _ in range(3):
        hello = machine.load("hello")
        for n in range(3):
            assert hello.call("hello_greet", n) == n + 1
        hello.unload()
        assert machine.log[-1].text == "hello: goodbye after 3 greetings"
    machine.check()


def test_an_exit_that_faults(machine):
    """A module whose exit faults is gone all the same, and the fault is told."""
    machine.load("sealed").unload()
    module = machine.load("sealed")
    at = snippet(machine, "load")
    before = {a.address for a in machine.execmem.allocations()}
    machine.stub("_printk", lambda: machine.call(at, 0))
    with pytest.raises(Fault):
        module.unload()
    assert machine.modules == {}
    assert {a.address for a in machine.execmem.allocations()} < before
    assert module.state is State.UNLOADED
    machine.check()


def test_two_modules_with_one_symbol(arch, machine):
    """The second module that exports a name is refused, until the first is gone."""
    first = machine.load(
        image(arch, name="first", exported=["shared"], undefined=["strlen"]), init=False
    )
    with pytest.raises(SymbolClash):
        machine.load(
            image(arch, name="second", exported=["shared"], undefined=["strlen"]), init=False
        )
    assert machine.loader.symbols.exports["shared"].owner == "first"
    first.unload()
    second = machine.load(
        image(arch, name="second", exported=["shared"], undefined=["strlen"]), init=False
    )
    assert machine.loader.symbols.exports["shared"].address == second.symbols["shared"]


# Memory of a module --------------------------------------------------------------------------


@pytest.mark.parametrize(("design", "text_poke"), WAYS)
def test_protections_through_a_life(arch, design, text_poke):
    """Before init ro_after_init is writable, afterwards it is not; init memory is gone."""
    machine = Machine(arch, design=design, text_poke=text_poke)
    path = modules.path(arch.name, "sealed")

    def protections(regions):
        return {kind: machine.memory.translate(r.address).prot for kind, r in regions.items()}

    coming = machine.load(path, init=False)
    final = {kind: kind.final_prot for kind in coming.regions}
    assert MemType.RO_AFTER_INIT in final
    assert protections(coming.regions) == final | {MemType.RO_AFTER_INIT: Prot.RW}
    coming.unload()
    module = machine.load(path)
    assert module.regions.keys() == {kind for kind in final if not kind.is_init}
    assert protections(module.regions) == {kind: final[kind] for kind in module.regions}
    init = module.report.regions[MemType.INIT_TEXT].address
    assert machine.execmem.find(init) is None
    with pytest.raises(Fault) as caught:
        machine.call(module.symbols["sealed_init"])
    assert caught.value.kind in (FaultKind.TRAP, FaultKind.FETCH)
    machine.check()


@pytest.mark.parametrize("name", ["branches", "sorting", "tables", "sealed"])
def test_every_design_links_alike(arch, name):
    """Designs differ in where, not in what: moved back, the bytes of every section agree."""
    images = []
    for design, text_poke in WAYS:
        machine = Machine(arch, design=design, text_poke=text_poke)
        module = machine.load(modules.path(arch.name, name), init=False)
        again = Machine(arch, design=design, text_poke=text_poke).load(
            modules.path(arch.name, name), init=False
        )
        for index, section in module.sections.items():
            assert again.sections[index] == section  # the same way gives the same place
            if section.name == THIS_MODULE:  # the kernel fills it in
                continue
            found = machine.read(section.address, section.size) if section.size else b""
            assert found == bytes(module.loaded.linked.sections[index])
        images.append((module, machine))
    shapes = {
        tuple((s.name, s.type, s.size) for s in module.sections.values()) for module, _ in images
    }
    counts = {tuple(module.report.relocations.items()) for module, _ in images}
    assert len(shapes) == len(counts) == 1
    # Sections that hold no address are the same bytes wherever they lie.
    for index, section in images[0][0].sections.items():
        if section.name in (".modinfo", ".rodata.str1.8", ".rodata.str1.1", ".init.data"):
            bytes_of = {
                machine.read(module.sections[index].address, section.size)
                for module, machine in images
            }
            assert len(bytes_of) == 1


@pytest.mark.parametrize(("design", "text_poke"), WAYS)
def test_every_sample_works_in_every_design(arch, design, text_poke):
    """All samples load, initialise and leave, in each design, with and without text_poke."""
    machine = Machine(arch, design=design, text_poke=text_poke, root=modules.root(arch.name))
    loaded = [
        machine.load(name, **({"error": 0} if name == "failing" else {}))
        for name in modules.names()
        if name not in machine.modules
    ]
    module = machine.modules["branches"]
    x = ~20 & (1 << 64) - 1
    for _ in range(20):
        x = x >> 1 ^ (0xC96C5795D7870F42 if x & 1 else 0)
    assert module.call("branches_all", 20) == x
    machine.check()
    for module in reversed(loaded):
        module.unload()
    for module in list(machine.modules.values()):
        module.unload()
    assert machine.execmem.allocations() == []
    machine.check()


def test_text_poke_that_is_not_there(arch, monkeypatch):
    """text_poke cannot be asked for where the architecture has none; else it is a choice."""
    without = attrs.evolve(arch, patch=None)
    with pytest.raises(ValueError, match="no text_poke"):
        Machine(without, text_poke=True)
    monkeypatch.setattr(archs, "ALL", (without,))
    machine = Machine(without)
    assert machine.execmem.text_poke is None
    assert machine.load(modules.path(arch.name, "hello")).call("hello_greet", 1) == 2


def test_unknown_choices(arch):
    """A design, a policy or an architecture that there is not is refused by name."""
    with pytest.raises(ExecmemError, match="no design 'best'"):
        Machine(arch, design="best")
    with pytest.raises(ValueError, match="unknown='ignore'"):
        Machine(arch, unknown="ignore")
    with pytest.raises(ValueError, match="z80"):
        Machine("z80")


# KASLR ---------------------------------------------------------------------------------------


def test_kaslr(arch):
    """Seeds move modules and change no result; one seed is one boot; far calls use the PLT."""
    places, results = {}, set()
    for seed in (None, 1, 2, 3, 1):
        machine = Machine(arch, kaslr=seed, root=modules.root(arch.name))
        mathuser = machine.load("mathuser")
        place = mathuser.symbols["mathuser_lcm"]
        where = place, machine.kernel.image.start
        assert places.setdefault(seed, where) == where
        results.add((mathuser.call("mathuser_lcm", 6, 4), mathuser.call("mathuser_calls")))
        assert machine.load("checksums").call("checksums_crc32", b"abc", 3, 0, returns="u32") == (
            zlib.crc32(b"abc")
        )
        report = mathuser.report
        assert report.plt_slots <= report.plt_reserved
        reaches = [branch.reach.hi for branch in arch.link.branches if branch.what == "call"]
        distance = abs(place - machine.kernel.address("_printk"))
        far = bool(reaches) and distance > 2 * min(reaches)  # else through registers
        assert (report.plt_slots > 0) == (far and arch.plt is not None)
        assert not (far and arch.plt is None)
        machine.check()
    assert len(set(places.values())) == len(places) == 4
    assert len(results) == 1


# A new architecture --------------------------------------------------------------------------


def test_a_new_architecture_is_a_record(arch, monkeypatch):
    """A record under a name of its own, with a line in the registry, loads and runs modules."""
    toy = attrs.evolve(arch, name="toy", aliases=("plaything",), title="Toy")
    monkeypatch.setattr(archs, "ALL", (toy,))
    machine = Machine("plaything")
    assert machine.arch is toy
    module = machine.load(modules.path(arch.name, "sorting"))
    assert module.report.arch == "toy"
    data = b"".join(n.to_bytes(4, "little") for n in (5, 3, 9, 1))
    buffer = machine.alloc(data)
    module.call("sorting_sort", buffer, 4)
    ordered = machine.read(buffer, 16)
    assert [ordered[at] for at in range(0, 16, 4)] == [1, 3, 5, 9]
    machine.free(buffer)
    machine.check()


# Memory for callers --------------------------------------------------------------------------


def test_memory_for_callers(machine):
    """Guest memory can be had by size or contents, read, written and given back once."""
    empty, full = machine.alloc(3 * PAGE_SIZE), machine.alloc(b"contents")
    assert machine.read(empty, 3 * PAGE_SIZE) == bytes(3 * PAGE_SIZE)
    assert machine.read(full, 8) == b"contents"
    machine.write(empty + 5, b"xyz")
    assert machine.read(empty + 4, 5) == b"\0xyz\0"
    machine.free(empty)
    machine.free(full)
    with pytest.raises(ExecmemError, match="not an allocation"):
        machine.free(full)
    with pytest.raises(ExecmemError, match="no 0x"):
        machine.alloc(1 << 40)


def test_symbolize(machine):
    """Addresses get the name, offset, size and module of the function around them."""
    module = machine.load("tables")
    start = module.symbols["tables_crc64"]
    text = machine.symbolize(start + 4)
    assert text.startswith("tables_crc64+0x4/0x")
    assert text.endswith(" [tables]")
    assert machine.symbolize(machine.kernel.address("strlen")) == "strlen"
    assert machine.symbolize(0x1000) is None
