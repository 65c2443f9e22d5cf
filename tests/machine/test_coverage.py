# SPDX-License-Identifier: GPL-2.0-or-later
"""Coverage, beside a hook on every instruction, objdump, and files read by what their format says."""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from unicorn import unicorn_const as uc_const

from archs import Arch
from emulator.faults import BadCall, Fault
from execmem import export
from machine.booted.machine import BootedMachine
from machine.covered import Findings, NotCovered
from machine.machine import ModelledMachine
from samples.modules import path, root
from tests.support import booted
from tests.support.debugged import built
from tests.support.tools import cross, run

KERNELS = booted.some()
VALUES = [(each * 37) % 101 for each in range(40)]
# What ends a block, by objdump: a direct branch or call shows its target, the rest has these names.
ENDS = re.compile(
    r"^(j\w*|b(?!ic|f|t|s)[\w.]*|cb\w+|tb\w+|call\w*|ret\w*|loop\w*|ecall|syscall|svc|int3?|iret\w*)$"
)


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def real(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return a booted kernel."""
    _, folder, _ = request.param
    with booted.fresh(Path(folder), booted.tree(Path(folder))) as machine:
        yield machine


def sort(machine: ModelledMachine) -> None:
    """Load a module, and let it sort, and search."""
    module = machine.load("sorting")
    order = machine.arch.link.dialect.order
    at = machine.alloc(b"".join(value.to_bytes(4, order) for value in VALUES))
    assert module.call("sorting_sort", at, len(VALUES)) > 0
    assert module.call("sorting_bsearch", at, len(VALUES), VALUES[0], returns="long") >= 0


def modelled(arch: Arch) -> ModelledMachine:
    """Return a machine with our own modules."""
    return ModelledMachine(arch, root=root(arch.name))


def instructions(text: str) -> dict[int, tuple[int, str]]:
    """Return address -> size and mnemonic of what objdump -d prints."""
    found: dict[int, tuple[int, str]] = {}
    for line in text.splitlines():
        row = re.match(r"\s*([0-9a-f]+):\t((?:[0-9a-f]+ )+)\s*\t?(\S*)", line)
        if row is None:
            continue
        size = len(row[2].replace(" ", "")) // 2
        if row[3]:
            found[int(row[1], 16)] = size, row[3]
        else:  # the rest of a long one
            last = max(found)
            found[last] = found[last][0] + size, found[last][1]
    return found


def parsed(data: bytes) -> tuple[list[list[str]], list[tuple[int, int, int]]]:
    """Return the module table and the blocks of a drcov file, version 2, as DynamoRIO describes it."""
    head, mark, rest = data.partition(b"BB Table: ")
    assert mark
    lines = head.decode().splitlines()
    assert lines[:2] == ["DRCOV VERSION: 2", "DRCOV FLAVOR: drcov"]
    count = re.fullmatch(r"Module Table: version 2, count (\d+)", lines[2])
    assert count is not None
    assert lines[3] == "Columns: id, base, end, entry, checksum, timestamp, path"
    modules = [[cell.strip() for cell in line.split(",", 6)] for line in lines[4:]]
    assert len(modules) == int(count[1])
    number, _, table = rest.partition(b" bbs\n")
    assert len(table) == 8 * int(number)
    return modules, [struct.unpack_from("<IHH", table, at) for at in range(0, len(table), 8)]


def test_every_instruction_as_often_as_a_hook_on_each_is_called(arch: Arch) -> None:
    """Addresses and numbers, init among them, of a second machine that does the same."""
    machine = modelled(arch)
    with machine.coverage() as coverage:
        sort(machine)
    (covered,) = coverage.covered.values()
    other, seen, sizes = modelled(arch), Counter[int](), {}

    def each(_uc: object, address: int, size: int, _data: object) -> None:
        seen[address] += 1
        sizes[address] = size

    other.cpu.uc.hook_add(uc_const.UC_HOOK_CODE, each)
    sort(other)
    sections = other.modules["sorting"].sections
    mine = {covered.address(at): count for at, (_, count) in covered.executed.items()}
    theirs = {
        address: count
        for address, count in seen.items()
        if any(s.address <= address < s.address + s.size for s in sections.values())
    }
    assert len(theirs) > 50
    assert set(mine) == set(theirs)
    if arch.runs.emulation.delay_slots is None:
        assert mine == theirs
    else:  # a branch whose delay slot needs a page that was not looked up yet is begun again
        assert all(theirs[at] - 2 <= count <= theirs[at] for at, count in mine.items())
    assert {covered.address(at): size for at, (size, _) in covered.executed.items()} == {
        address: sizes[address] for address in theirs
    }
    assert {section.name for _, section in covered.code} >= {".text", ".init.text"}


def test_blocks_are_what_objdump_and_the_way_taken_say(arch: Arch, tmp_path: Path) -> None:
    """Blocks begin where the way jumps to or behind a branch, and the drcov file has just these."""
    machine = modelled(arch)
    way: list[int] = []
    with machine.coverage() as coverage:
        end = machine.cpu.each_instruction(way.append)
        sort(machine)
        end()
    module = machine.modules["sorting"]
    exported, file = tmp_path / "sorting.elf", tmp_path / "run.drcov"
    exported.write_bytes(export.elf(module.loaded))
    every = instructions(run(cross(arch.machine, "objdump"), "-d", exported))
    delay = arch.runs.emulation.delay_slots is not None
    inside = [address for address in way if address in every]
    jumps = {
        after
        for before, after in itertools.pairwise(way)
        if after in every
        and (before not in every or after != before + every[before][0])
        and not (delay and before - 4 <= after <= before)  # begun again, see above
    }
    behind = {
        address + size + (4 if delay else 0)
        for address, (size, name) in every.items()
        if ENDS.match(name)
    }
    begins = {at for at in inside if at in jumps or at in behind}
    begins |= {at for at in inside if not any(e + every[e][0] == at for e in set(inside))}
    coverage.drcov(file)
    modules, blocks = parsed(file.read_bytes())
    assert len(modules) == 1
    base = int(modules[0][1], 16)
    with exported.open("rb") as stream:
        elf = ELFFile(stream)
        lowest = min(s["p_vaddr"] for s in elf.iter_segments() if s["p_type"] == "PT_LOAD")
    assert base == lowest
    assert int(modules[0][2], 16) > base
    assert modules[0][6] == "sorting.ko"
    assert {number for _, _, number in blocks} == {0}
    assert {base + start for start, _, _ in blocks} == begins
    executed = set()
    for start, size, _ in blocks:
        at = base + start
        while at < base + start + size:
            executed.add(at)
            at += every[at][0]
        assert at == base + start + size
    assert executed == set(inside)
    with_edges = {
        (before, after)
        for before, after in itertools.pairwise(way)
        if before in every and after in begins
    }
    found = {
        (coverage.covered[a].address(at), coverage.covered[b].address(to))
        for a, at, b, to in coverage.found.edges
    }
    slot = 4 if delay else 0
    assert {(at + slot, to) for at, to in found} <= with_edges
    outside = {module.symbols[name] for name in ("sorting_sort", "sorting_bsearch")}
    gone_to = {to for at, to in with_edges if to != at + every[at][0]}
    assert {to for _, to in found} >= gone_to - outside


def test_runs_add_up_wherever_the_module_lay(arch: Arch, tmp_path: Path) -> None:
    """Two runs at other places: counts are sums; another file of the name is refused."""
    findings = Findings()
    single = None
    for kaslr in (3, 4):
        machine = ModelledMachine(arch, root=root(arch.name), kaslr=kaslr)
        with machine.coverage() as coverage:
            sort(machine)
        findings.merge(coverage.found)
        single = coverage.covered["sorting"].executed
    assert single is not None
    doubled = {at: (size, 2 * count) for at, (size, count) in single.items()}
    assert findings.covered["sorting"].executed == doubled
    findings.json(tmp_path / "all.json")
    document = json.loads((tmp_path / "all.json").read_text())
    assert sum(block["instructions"] for block in document["modules"][0]["blocks"]) == len(single)
    other = ModelledMachine(arch, root=root(arch.name))
    with other.coverage() as coverage:
        other.load(path(arch.name, "tables").read_bytes())
    coverage.covered["tables"].name = "sorting"
    changed = Findings({"sorting": coverage.covered["tables"]})
    with pytest.raises(NotCovered, match="two different files"):
        findings.merge(changed)
    assert findings.covered["sorting"].executed == doubled


def test_lines_of_source(arch: Arch, tmp_path: Path) -> None:
    """A loop's line counts its rounds, a function its calls, what was not called nothing."""
    module = built(arch, "checksums", tmp_path)
    machine = modelled(arch)
    data = bytes(range(100))
    with machine.coverage() as coverage:
        loaded = machine.load(module)
        loaded.call("checksums_crc16", data, len(data), 0)
        loaded.call("checksums_crc16", data, len(data), 1)
    assert coverage.lcov(tmp_path / "run.info").without == {}
    text = (tmp_path / "run.info").read_text()
    source = next(s for s in text.split("end_of_record\n") if "checksums.c\n" in s)
    lines = (module.parent / "checksums.c").read_text().splitlines()
    counts = {int(a): int(b) for a, b in re.findall(r"^DA:(\d+),(\d+)$", source, re.MULTILINE)}
    numbers = {text.strip(): number for number, text in enumerate(lines, 1)}
    assert counts[numbers["crc = crc16_table[(u8)(crc >> 8) ^ *data++] ^ (u16)(crc << 8);"]] == 200
    assert counts[numbers["low = (low + *data++) % 65521;"]] == 0
    assert counts[numbers["crc16_table[i] = high;"]] == 256
    calls = dict(re.findall(r"^FNDA:(\d+),(\w+)$", source, re.MULTILINE))
    named = {name: int(times) for times, name in re.findall(r"FNDA:(\d+),(\w+)", source)}
    assert calls
    assert named["checksums_crc16"] == 2
    assert named["checksums_adler32"] == 0
    assert f"LF:{len(counts)}\n" in source
    assert f"LH:{sum(bool(count) for count in counts.values())}\n" in source


def test_what_has_no_lines_is_said(arch: Arch, tmp_path: Path) -> None:
    """No file without anything in it."""
    machine = modelled(arch)
    with machine.coverage() as coverage:
        sort(machine)
    with pytest.raises(NotCovered, match="no debugging information"):
        coverage.lcov(tmp_path / "run.info")
    assert not (tmp_path / "run.info").exists()
    with pytest.raises(NotCovered, match="no addresses"):
        coverage.drcov(tmp_path / "run.drcov", like=path(arch.name, "sorting"))


def kernels_own(machine: BootedMachine) -> None:
    """Let a kernel parse, wait for its timer, and fall over a bad pointer."""
    result = machine.new("int")
    machine.functions.kstrtoint("4711", 10, result)
    machine.call(machine.function("msleep"), 5)
    with pytest.raises(Fault):
        machine.call(machine.function("strlen"), 0x10)


def test_a_kernel_with_interrupts_and_faults(real: BootedMachine) -> None:
    """The bytes of all instructions that came to their end, as a hook on each sees them."""
    snapshot = real.snapshot()
    kernels_own(real)  # what is translated and mapped is so for both
    real.restore(snapshot)
    with real.coverage(kernel=True) as coverage:
        kernels_own(real)
    real.restore(snapshot)
    board, seen = real.kernel.board, {}

    def each(_uc: object, address: int, size: int, _data: object) -> None:
        seen[address] = size

    hook = board.uc.hook_add(uc_const.UC_HOOK_CODE, each)
    board.forget_code()
    try:
        kernels_own(real)
    finally:
        board.uc.hook_del(hook)
        board.forget_code()
    covered = coverage.covered["vmlinux"]
    text = covered.sections[0]
    mine = {covered.address(at): size for at, (size, _) in covered.executed.items()}
    theirs = {at: n for at, n in seen.items() if text.address <= at < text.address + text.size}
    assert len(theirs) > 5000
    bad = real.function("strlen")
    extra = {at for at in theirs if at not in mine}
    assert all(bad <= at < bad + 64 for at in extra), extra  # the load that failed did not end
    assert len(extra) <= 1
    assert {at: theirs[at] for at in mine} == mine
    assert coverage.found.edges


def test_a_module_of_a_booted_kernel(real: BootedMachine, tmp_path: Path) -> None:
    """Its init counts, its kernel does not unless it is asked for; and it goes, and comes again."""
    if real.tree is None or "crc16" not in real.tree.files:
        pytest.skip("no modules of this kernel")
    with real.coverage() as coverage:
        module = real.load("libarc4")
        crc = real.load("crc16")
        crc.call("crc16", 0, b"123456789", 9)
        crc.unload()
        real.load("crc16").call("crc16", 0, b"123456789", 9)
    assert module.name in coverage.covered
    assert "vmlinux" not in coverage.covered
    covered = coverage.covered["crc16"]
    entry = next(place for place in covered.executed if covered.named(place).startswith(".text+"))
    assert covered.executed[entry][1] >= 2
    assert coverage.drcov(tmp_path / "run.drcov") == len(covered.blocks) + sum(
        len(each.blocks) for name, each in coverage.covered.items() if name != "crc16"
    )


def test_it_does_not_begin_in_the_middle(arch: Arch) -> None:
    """From a function that the guest calls: code under way would not tell."""
    machine = modelled(arch)
    caught: list[BadCall] = []

    def begin() -> int:
        with pytest.raises(BadCall, match="before the call") as error:
            machine.coverage()
        caught.append(error.value)
        return 0

    machine.stub("printk", begin)
    machine.stub("_printk", begin)
    machine.load("hello")
    assert caught
