# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables as text: equal to what the kernel's own ptdump writes, and to a bare walk.

Debian's kernels check their tables for W+X, so they have the functions that print them, and no file that
calls these: they are called here, with a seq_file of ours. Where a kernel has none (riscv64), entries are
read one by one in plain Python.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from allocator.pagetable import PageTable
from allocator.types import Prot
from archs import Arch
from archs.start_arm64 import dump_of
from execmem import Machine
from execmem.schema import complaints
from machine.booted.machine import BootedMachine
from machine.ptdump import Line, Marker, NotPrinted, differing, printed_of
from samples.modules import root
from tests.archs.facts import facts
from tests.support import booted

ROOM = 4 << 20
WALKERS = ("ptdump_walk_pgd_level_debugfs", "ptdump_walk")


def word(value: int) -> bytes:
    """Return a pointer's bytes."""
    return value.to_bytes(8, "little")


@pytest.fixture(params=booted.some(), ids=lambda found: found[0])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return the machine of every kernel that is at hand, as it was at first."""
    name, folder, arch = request.param
    del name, arch
    with booted.fresh(folder) as machine:
        yield machine


def memory_of_the_kernel(machine: BootedMachine) -> int:
    """Return the address of `init_mm`, or of one that has the same table, where it has no symbol."""
    symbols, types, board = (
        machine.kernel.symbols,
        machine.kernel.standing.types,
        machine.kernel.board,
    )
    if "init_mm" in symbols:
        return symbols["init_mm"]
    at = types.place(types.find("mm_struct").number, "pgd").bytes
    table = board.tables().root
    run = next(r for r in board.mapped() if r.physical <= table < r.physical + r.size)
    made = bytearray(4096)
    made[at : at + 8] = word(run.address + table - run.physical)
    return machine.alloc(bytes(made))


def theirs(machine: BootedMachine, start: int) -> list[str]:
    """Return what the kernel's own function writes; skip where there is none."""
    symbols, types = machine.kernel.symbols, machine.kernel.standing.types
    walker = next((name for name in WALKERS if name in symbols), None)
    if walker is None:
        pytest.skip(f"{machine.kernel.release} has no ptdump")
    kind = types.find("seq_file").number
    vmalloc = next(name for name in ("vmalloc_noprof", "vmalloc") if name in symbols)
    room = machine.call(symbols[vmalloc], ROOM)
    seq = machine.alloc(256)
    for name, value in (("buf", room), ("size", ROOM)):
        machine.write(seq + types.place(kind, name).bytes, word(value))
    mm = memory_of_the_kernel(machine)
    if walker == WALKERS[0]:
        machine.call(symbols[walker], seq, mm, 0)
    else:  # arm64: with markers that the caller brings
        name = machine.alloc(b"Kernel space\0")
        markers = machine.alloc(b"".join(map(word, (start, name, (1 << 64) - 1, 0))))
        machine.call(symbols[walker], seq, machine.alloc(b"".join(map(word, (mm, markers, start)))))
    size = int.from_bytes(machine.read(seq + types.place(kind, "count").bytes, 8), "little")
    assert 0 < size < ROOM
    return machine.read(room, size).decode().splitlines()


def test_a_dump_is_the_kernels_own(machine: BootedMachine) -> None:
    """Every line, every marker, and what is left out of the long parts of x86-64."""
    tables = machine.kernel.board.tables()
    start = (1 << 64) - (1 << tables.bits - int(tables.format.shared))
    kernels = theirs(machine, start)
    if tables.format.dump.lower:
        ours = list(machine.page_tables().lines())
    else:
        words = machine.kernel.board.ram.words
        ours = list(printed_of(tables, words, [Marker(start, "Kernel space")], ()).lines())
        assert machine.page_tables().notes
        if kernels[0].startswith(f"{0:#018x}-{start:#018x}"):  # 5.10 begins before the first marker
            kernels[0] = ours[0]
    assert ours == kernels
    assert len(ours) > 100


def entries(
    machine: BootedMachine, table: int, shift: int, start: int
) -> Iterator[tuple[int, int, int]]:
    """Yield address, bytes and entry of every leaf of Sv39 to Sv57, one word after the other."""
    for index in range(512):
        at = start + (index << shift)
        entry = int.from_bytes(machine.kernel.board.ram.read(table + 8 * index, 8), "little")
        if not entry & 1:
            continue
        if entry & 0xE:
            yield at, 1 << shift, entry
        else:
            yield from entries(machine, (entry >> 10 & (1 << 44) - 1) << 12, shift - 9, at)


def test_riscv64_lines_are_its_entries(machine: BootedMachine) -> None:
    """Linux's printer is a configuration option that Debian does not set: so entry by entry."""
    if machine.arch.name != "riscv64":
        pytest.skip("the kernel's own printer is asked")
    board, symbols = machine.kernel.board, machine.kernel.symbols
    tables = board.tables()
    table = board.translate(symbols["swapper_pg_dir"])
    start = (1 << 64) - (1 << tables.bits)
    found = {
        at: (size, entry)
        for at, size, entry in entries(machine, table, tables.bits - 9, start)
        if at >= start + (1 << tables.bits - 1)
    }
    lines = [each for each in machine.page_tables() if isinstance(each, Line)]
    covered = 0
    for line in lines:
        at = line.start
        while at != line.end:
            size, entry = found[at]
            assert size == line.page
            shown = [letter if entry >> bit & 1 else "." for bit, letter in enumerate("VRWXUGAD")]
            assert line.flags.split()[-8:] == shown[::-1]
            at, covered = at + size & (1 << 64) - 1, covered + 1
        assert line.physical == found[line.start][1] >> 10 << 12
    assert covered == len(found) > 1000


def test_a_models_dump_has_its_leaves(arch: Arch) -> None:
    """Every leaf of the model is in exactly one line, which says its protection and its size."""
    machine = Machine(arch, root=root(arch.name))
    if arch.boot is None:
        with pytest.raises(NotPrinted, match=arch.name):
            machine.page_tables()
        return
    machine.load("mathuser")
    lines = [
        line
        for line in machine.page_tables()
        if isinstance(line, Line) and line.physical is not None
    ]
    leaves = {leaf.va: leaf for leaf in machine.memory.page_table.leaves()}
    runs = facts(arch).load.runs.get(4, (0, 0))
    for line in lines:
        at = line.start
        while at < line.end:
            leaf = leaves.pop(at)
            words = line.flags.split()
            in_run = "CON" in words or "N" in words
            assert leaf.size == line.page * (runs[line.page > 4 << 10] if in_run else 1)
            assert ("RW" in words or "W" in words) == ("W" in str(leaf.prot))
            assert ("x" in words or "X" in words) == ("X" in str(leaf.prot))
            at += leaf.size
    assert not leaves


def test_runs_of_a_kernel_are_those_of_the_model(machine: BootedMachine) -> None:
    """What a kernel maps of itself with runs: the model maps it with the same leaves, one by one."""
    paging = machine.arch.loads.paging(1 << machine.kernel.board.tables().granule)
    lines = [line for line in machine.page_tables() if isinstance(line, Line) and line.physical]
    alike: list[list[Line]] = []
    for line in lines:
        rights = set(line.flags.split()) - {"CON", "BLK"}
        last = alike[-1][-1] if alike else line
        if (
            alike
            and last.end == line.start
            and (last.physical or 0) + last.end - last.start == line.physical
            and rights == set(last.flags.split()) - {"CON", "BLK"}
        ):
            alike[-1].append(line)
        else:
            alike.append([line])
    with_runs = [
        each for each in alike if any({"CON", "N"} & set(line.flags.split()) for line in each)
    ]
    if not with_runs:
        assert not machine.arch.loads.address_map(None).live_splits
        pytest.skip(f"{machine.kernel.release} maps nothing with runs")
    run_of = {paging.page: paging.run, paging.large: paging.large_run}
    for lines in with_runs:
        table = PageTable(paging=paging, live_splits=True)
        start, physical = lines[0].start, lines[0].physical or 0
        table.map_contiguous(start, physical, Prot.R, size=lines[-1].end - start)
        expected = [
            (at, size)
            for line in lines
            for size in [run_of[line.page] if "CON" in line.flags.split() else line.page]
            for at in range(line.start, line.end, size)
        ]
        assert [(leaf.va, leaf.size) for leaf in table.leaves()] == expected


def test_two_dumps_differ_in_what_a_load_changed(machine: BootedMachine) -> None:
    """What was there and is gone, and what came; nothing else."""
    before = list(machine.page_tables().lines())
    assert not list(differing(before, machine.page_tables().lines()))
    vmalloc = next(n for n in ("vmalloc_noprof", "vmalloc") if n in machine.kernel.symbols)
    size = 64 << 12
    at = machine.call(machine.kernel.symbols[vmalloc], size)
    told = list(differing(before, machine.page_tables().lines()))
    gone = [line for line in told if line.startswith("-")]
    came = [line for line in told if line.startswith("+")]
    assert gone or machine.kernel.board.tables().format.dump.empty is None  # holes are no lines
    assert any(f"{at:#018x}-" in line for line in came)
    assert {line[2:] for line in gone} <= set(before)
    assert {line[2:] for line in came}.isdisjoint(before)


def test_the_command_line(capfd: Any, tmp_path: Path) -> None:
    """A dump that was written is what the next one differs in nothing from."""
    from execmem.cli import main

    found = booted.releases()
    if not found:
        pytest.skip("EXECMEM_KERNELS names no kernel")
    dump = tmp_path / "dump"
    for words, expected in (([], ""), (["--since", str(dump)], "")):
        with pytest.raises(SystemExit) as ended:
            main(["kernel", str(found[0][1]), "--ptdump", *words])
        assert not ended.value.code
        out = capfd.readouterr().out
        if words:
            assert out == expected
        else:
            assert out.startswith("---[ ")
            dump.write_text(out)
    with pytest.raises(SystemExit):
        main(["kernel", str(found[0][1]), "--ptdump", "--json"])
    document = json.loads(capfd.readouterr().out)
    assert not list(complaints("kernel --ptdump", document))
    runs = [(int(run["address"], 16), run) for run in document["runs"]]
    told_of = 0
    for line in document["lines"]:
        start = int(line["start"], 16)
        for at, run in runs:  # another walk of the same tables
            if line["physical"] is not None and at <= start < at + run["size"]:
                assert int(line["physical"], 16) == int(run["physical"], 16) + start - at
                told_of += 1
    assert told_of > len(document["lines"]) // 4
    for words, told in (
        (["--ptdump", "--since", str(found[0][1] / "nothing")], "No such file"),
        (["--ptdump", "--since", __file__], "no line of page tables"),
        (["--since", str(dump)], "go with --ptdump"),
        (["--ptdump", "--type", "list_head"], "nothing else"),
    ):
        with pytest.raises(SystemExit):
            main(["kernel", str(found[0][1]), *words])
        assert told in capfd.readouterr().err


def test_memory_types_of_arm64_are_what_the_kernel_set_them_to() -> None:
    """By asm/memory.h of 5.4, 5.10 and 6.1: which number each name has there."""
    device = {"DEVICE/nGnRnE": 0x00, "DEVICE/nGnRE": 0x04, "DEVICE/GRE": 0x0C}
    normal = {"MEM/NORMAL": 0xFF, "MEM/NORMAL-TAGGED": 0xFF, "MEM/NORMAL-NC": 0x44, "": 0xBB}
    for names in (
        [*device, "MEM/NORMAL-NC", "MEM/NORMAL", ""],
        ["MEM/NORMAL", "MEM/NORMAL-TAGGED", "MEM/NORMAL-NC", "", *device],
        ["MEM/NORMAL", "MEM/NORMAL-TAGGED", "MEM/NORMAL-NC", *list(device)[:2]],
    ):
        attributes = [(device | normal)[name] for name in names]
        dump = dump_of(int.from_bytes(bytes(attributes), "little"))
        for number, name in enumerate(names):
            assert dump.text(1 << 10 | 3 | number << 2, 0).split()[3:] == [name] * bool(name)
    tagged = dump_of(0xF0FF)  # with MTE
    assert tagged.text(1 << 2 | 1, 0).endswith(" MEM/NORMAL-TAGGED")
