# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of a machine find planted mistakes, each by its kind, and nothing where there is none.

What is expected of each input follows from the source of the sample module `parser`, which says
where its mistakes are; `parserclean` is the same without. On booted kernels both are built for the
kernel, so these need EXECMEM_KERNELS and gcc.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from archs import Arch
from emulator.faults import BadCall, Fault, FaultKind
from kernels.findings import FindingKind
from kernels.guarding import RED_ZONE
from machine.face import Machine
from machine.sanitizing import CHECKS
from samples.modules import root
from tests.machine.snippets import snippet
from tests.support import booted
from tests.support.sampled import built_for

GFP_KERNEL, GFP_ZERO = 0xCC0, 0x100
MOST = 200_000  # instructions of a call


def record(tag: str, contents: bytes) -> bytes:
    """Return a record of the parser's files."""
    return tag.encode() + bytes((len(contents),)) + contents


SESSION = record("s", b"abcdefgh")
# Name -> input behind the head, what is wrong, whether the guest stops there.
MISTAKES: Mapping[str, tuple[bytes, FindingKind, bool]] = {
    "write by one": (record("n", b"#1234567"), FindingKind.OUT_OF_BOUNDS, True),
    "write by one, of an odd size": (record("n", b"#12"), FindingKind.OVERWRITTEN, True),
    "read by one": (record("c", b"!123456789abcdef"), FindingKind.OUT_OF_BOUNDS, True),
    "use after free": (
        SESSION + record("e", b"~") + record("u", b"x"),
        FindingKind.USE_AFTER_FREE,
        True,
    ),
    "double free": (
        SESSION + record("e", b"~") + record("e", b"~"),
        FindingKind.DOUBLE_FREE,
        True,
    ),
    "short allocation": (record("a", b"[\x02\x40"), FindingKind.OUT_OF_BOUNDS, True),
    "lock that is kept": (record("m", b"?"), FindingKind.LOCK, False),
    "leak": (record("k", b"+12"), FindingKind.LEAK, False),
}
LOOP = record("l", b"/\0\x05")


def parse(module: Any, contents: bytes) -> int:
    """Let a module parse a file."""
    data = b"PRS\x01" + contents
    found: int = module.call("parser_parse", data, len(data), returns="int", instructions=MOST)
    return found


def check_mistake(machine: Any, module: Any, name: str) -> None:
    """Expect a mistake to be found, as what it is and where it is, and no other."""
    contents, kind, stops = MISTAKES[name]
    checks = machine.sanitizer
    if stops:
        with pytest.raises(Fault) as caught:
            parse(module, contents)
        assert caught.value.kind is kind.fault
    else:
        parse(module, contents)
        if kind is FindingKind.LEAK:
            module.unload()
    assert [found.kind for found in checks.findings] == [kind]
    (found,) = checks.findings
    assert "parser_parse+0x" in found.where
    assert "[parser]" in found.where
    assert (found.fault is not None) is stops
    if kind is FindingKind.LOCK:
        assert "parser_parse+0x" in found.reason
        return
    assert found.object is not None
    assert "parser_parse+0x" in found.object.allocated[0]
    freed = kind in (FindingKind.USE_AFTER_FREE, FindingKind.DOUBLE_FREE)
    assert bool(found.object.freed) is freed
    if freed:
        assert "parser_parse+0x" in found.object.freed[0]
    sizes = {"use after free": 8, "double free": 8, "short allocation": 8, "leak": 3}
    if name in sizes:
        assert found.object.size == sizes[name]
    if kind is FindingKind.OUT_OF_BOUNDS:
        assert found.address == found.object.address + found.object.size


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_in_the_modelled_kernel(arch: Arch, name: str) -> None:
    """On every architecture."""
    machine = Machine(arch, root=root(arch.name))
    machine.sanitize()
    check_mistake(machine, machine.load("parser"), name)


def test_a_clean_module_stays_without_a_finding(arch: Arch) -> None:
    """Nothing is found where nothing is wrong, however often; the pool is used again and again."""
    machine: Any = Machine(arch, root=root(arch.name))
    checks = machine.sanitize()
    module = machine.load("parserclean")
    times = 40
    for _ in range(times):
        for contents, _, _ in MISTAKES.values():
            assert parse(module, contents) >= 0
        assert parse(module, LOOP) == 0
    for name in ("checksums", "sorting", "tables", "hello", "logbook", "workers"):
        machine.load(name)
    for other in [*machine.modules.values()][::-1]:
        other.unload()
    checks.look()
    assert checks.findings == []
    assert checks.unguarded == times  # the array is 8 bytes larger than the largest slot
    machine.check()


def test_without_checks_nothing_is_found(arch: Arch) -> None:
    """What a check finds comes of the check: without it the same input runs through."""
    machine: Any = Machine(arch, root=root(arch.name))
    with machine.sanitize("locks"):
        assert parse(machine.load("parser"), MISTAKES["write by one"][0]) == 1
    with pytest.raises(Fault) as caught:
        parse(machine.modules["parser"], LOOP)
    assert caught.value.kind is FaultKind.INSTRUCTION_LIMIT
    assert machine.sanitizer is None


@pytest.mark.parametrize("kasan", [False, True])
def test_kernel_functions_are_checked_as_well(arch: Arch, kasan: bool) -> None:
    """A memcpy behind an object is found, and who called it is told."""
    if kasan and arch.runs.emulation.delay_slots is not None:
        pytest.skip(f"accesses in delay slots of {arch.name} cannot be checked")
    machine: Any = Machine(arch, root=root(arch.name), kasan=kasan)
    checks = machine.sanitize()
    target, source = machine.alloc(16), machine.alloc(64)
    memcpy = machine.kernel.address("memcpy")
    machine.call(memcpy, target, source, 16)
    assert not checks.findings
    with pytest.raises(Fault) as caught:
        machine.call(memcpy, target, source, 17)
    assert caught.value.kind is FaultKind.OUT_OF_BOUNDS
    assert caught.value.address == target + 16
    assert "in memcpy()" in caught.value.reason
    assert [found.kind for found in checks.findings] == [FindingKind.OUT_OF_BOUNDS]
    assert bool(checks.lacks) >= kasan


def test_reads_of_what_nobody_wrote(arch: Arch) -> None:
    """A load of bytes that none was stored to is found once, with the object; after a store none is."""
    if arch.runs.emulation.delay_slots is not None:
        assert any("uninit" in each for each in Machine(arch).sanitize("uninit").lacks)
        pytest.skip(f"accesses in delay slots of {arch.name} cannot be checked")
    machine: Any = Machine(arch, root=root(arch.name), kasan=True)
    checks = machine.sanitize("uninit")
    kmalloc, memcpy = map(machine.kernel.address, ("__kmalloc_noprof", "memcpy"))
    load, store = snippet(machine, "load"), snippet(machine, "store")
    at, other = (machine.call(kmalloc, 64, GFP_KERNEL) for _ in range(2))
    machine.call(store, at, 5)
    machine.call(memcpy, other, at, 64)  # passes on
    assert machine.call(load, at) == 5
    zeroed = machine.call(kmalloc, 64, GFP_KERNEL | GFP_ZERO)
    assert machine.call(load, zeroed) == 0
    assert checks.findings == []
    for _ in range(2):
        machine.call(load, at + 16)
    (found,) = checks.findings
    assert found.kind is FindingKind.UNINITIALISED
    assert found.address == at + 16
    assert found.object is not None
    assert (found.object.address, found.object.size) == (at, 64)
    machine.load("checksums").unload()
    assert checks.of(FindingKind.UNINITIALISED) == [found]


def test_no_such_check(arch: Arch) -> None:
    """A check that is none is refused with those that there are."""
    machine = Machine(arch)
    with pytest.raises(BadCall, match=r"'gard' is no check.*guard, leaks, uninit, locks, wx"):
        machine.sanitize("gard")
    checks = machine.sanitize("guard,wx", "locks")
    assert checks.checks == {"guard", "wx", "locks"} < set(CHECKS)


# Booted ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], bytes]:
    """Return sample modules by kernel and name, as far as they were built."""
    del tmp_path_factory
    return {}


@pytest.fixture(params=booted.some(), ids=lambda each: each[0])
def machine(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return a machine that has booted a kernel, of each architecture."""
    with booted.fresh(request.param[1]) as machine:
        yield machine


def own(machine: Any, files: dict[tuple[str, str], bytes], name: str, folder: Path) -> bytes:
    """Return a sample module for a kernel."""
    key = machine.kernel.release, name
    if key not in files:
        files[key] = built_for(machine, name, folder)
    return files[key]


def test_mistakes_are_found_in_a_booted_kernel(
    machine: Any, files: dict[tuple[str, str], bytes], tmp_path: Path
) -> None:
    """Each of them, one after the other from the same snapshot; afterwards none is there."""
    data = own(machine, files, "parser", tmp_path)
    checks = machine.sanitize()
    machine.load(data)
    first = machine.snapshot()
    for name in MISTAKES:
        check_mistake(machine, machine.modules["parser"], name)
        checks.findings.clear()
        machine.restore(first)
    assert parse(machine.modules["parser"], record("n", b"x")) == 0
    assert not checks.findings
    assert not [report.text for report in machine.reports]


def test_a_clean_module_of_a_booted_kernel(
    machine: Any, files: dict[tuple[str, str], bytes], tmp_path: Path
) -> None:
    """Nothing is found where nothing is wrong; objects come and go without the kernel's heap."""
    checks = machine.sanitize()
    module = machine.load(own(machine, files, "parserclean", tmp_path))
    for _ in range(15):
        for contents, _, _ in MISTAKES.values():
            assert parse(module, contents) >= 0
    module.unload()
    checks.look()
    assert checks.findings == []
    assert not [report.text for report in machine.reports]


def test_the_kernel_finds_its_way_with_guarded_objects(machine: Any) -> None:
    """Functions of the kernel that ask what an object is get what they would of its heap."""
    checks = machine.sanitize("guard")
    text = b"an object of the pool"
    at = machine.alloc(text)
    ksize, kfree = machine.function("ksize"), machine.function("kfree")
    assert machine.call(ksize, at) == len(text)
    if "krealloc_node_align_noprof" in machine.kernel.symbols:
        grown = machine.call(
            machine.function("krealloc_node_align_noprof"), at, 100, 1, GFP_KERNEL, -1
        )
    else:
        name = next(n for n in ("krealloc_noprof", "krealloc") if n in machine.kernel.symbols)
        grown = machine.call(machine.function(name), at, 100, GFP_KERNEL)
    assert grown != at
    assert machine.read(grown, len(text)) == text
    with pytest.raises(Fault) as caught:  # krealloc has freed it
        machine.call(kfree, at)
    assert caught.value.kind is FaultKind.DOUBLE_FREE
    inside = machine.alloc(64)
    with pytest.raises(Fault) as caught:
        machine.call(kfree, inside + 8)
    assert "8 bytes into" in caught.value.reason
    assert checks.findings[-1].kind is FindingKind.BAD_FREE
    machine.call(machine.function("kfree_sensitive"), grown)
    page = machine.alloc(8192)  # powers of two are aligned to themselves
    assert page % 8192 == 0
    memset = machine.function("memset")
    machine.call(memset, page, 1, 8192)
    for start, size in ((page, 8193), (page - 1 + 8192, 2)):
        with pytest.raises(Fault) as caught:
            machine.call(memset, start, 1, size)
        assert caught.value.address == page + 8192
    before = machine.alloc(40)
    machine.call(memset, before - RED_ZONE, 2, RED_ZONE)
    with pytest.raises(Fault, match="64 bytes before the 40-byte object"):
        machine.call(kfree, before)


def test_an_access_that_reaches_into_a_guard(machine: Any) -> None:
    """One that begins inside of an object and ends behind it is found, read or written."""
    machine.sanitize("guard")
    at, other = machine.alloc(32), machine.alloc(32)
    memcpy = machine.function("memcpy")
    assert machine.call(memcpy, other, at + 24, 8) == other
    for target, source in ((other, at + 27), (at + 27, other)):
        with pytest.raises(Fault) as caught:
            machine.call(memcpy, target, source, 8)
        assert caught.value.kind is FaultKind.OUT_OF_BOUNDS
        assert caught.value.address == at + 32


@pytest.mark.parametrize("size", [1, 5, 7, 12, 23])
def test_arguments_end_at_the_byte(arch: Arch, size: int) -> None:
    """A function that reads one byte more than it is given is found, whatever the size."""
    machine: Any = Machine(arch, root=root(arch.name))
    machine.sanitize("guard")
    module, data = machine.load("checksums"), b"123456789abcdefghijklmn"[:size]
    assert module.call("checksums_adler32", data, size) == zlib.adler32(data)
    with pytest.raises(Fault) as caught:
        module.call("checksums_adler32", data, size + 1)
    assert caught.value.kind is FaultKind.OUT_OF_BOUNDS
    assert f"0 bytes behind the {size}-byte object" in caught.value.reason


def test_going_back(machine: Any) -> None:
    """Objects are those of the snapshot; a snapshot of before the checks ends them."""
    before = machine.snapshot()
    checks = machine.sanitize("guard")
    kept, memset = machine.alloc(24), machine.function("memset")
    then = machine.snapshot()
    machine.free(kept)
    with pytest.raises(Fault) as caught:
        machine.call(memset, kept, 0, 24)
    assert caught.value.kind is FaultKind.USE_AFTER_FREE
    machine.restore(then)
    machine.call(memset, kept, 0, 24)
    machine.free(kept)
    with pytest.raises(Fault):
        machine.call(memset, kept, 0, 24)
    start = checks.heap.pool.start
    machine.restore(before)
    assert machine.sanitizer is None
    machine.call(memset, start, 0, 4096)  # memory as any other


def test_no_file_holds_guarded_objects(machine: Any, tmp_path: Path) -> None:
    """A machine is saved once they are freed."""
    machine.sanitize("guard")
    at, path = machine.alloc(24), tmp_path / "saved"
    with pytest.raises(BadCall, match="1 objects of the heap are guarded"):
        machine.save(path)
    machine.free(at)
    machine.save(path)
    assert path.is_file()


def test_writable_and_executable_memory(machine: Any) -> None:
    """The page tables of the kernel's text say that it is not; memory of both kinds is told."""
    tables, words = machine.kernel.board.tables(), machine.kernel.board.ram.words
    text = machine.kernel.symbols["kfree"]
    found = tables.entry(words, text)
    assert found is not None
    entry = found
    shape = tables.format
    assert tables.is_open(words, text) is False
    assert entry & shape.executed[0] == shape.executed[1]  # text is executed
    data = tables.entry(words, machine.alloc(8))
    assert data & shape.written[0] == shape.written[1]  # and the heap written
    assert data & shape.executed[0] != shape.executed[1]
