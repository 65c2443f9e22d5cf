# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps of kernels as machines: round trips, dumps that lack pages, files that are no dumps.

Needs EXECMEM_KERNELS. What a call must return the machine says that was dumped, or an algorithm.
"""

from __future__ import annotations

import binascii
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.faults import BadCall, Fault, FaultKind
from emulator.paging import Run
from loader import vmcore
from loader.errors import BadCore
from loader.vmcore import Extent, Note
from machine.arguments import Out
from machine.booted.dumped import DumpedMachine
from machine.face import Machine
from tests.machine.test_cores import some_module
from tests.support import booted
from tests.support.tools import tool

KERNELS = booted.some()
PAGE = 4096
DATA = b"123456789"
# Instructions that no emulated CPU has: VADDPS (AVX), one not allocated, XPERM8 (Zbkx).
_NONE = {
    "x86_64": bytes.fromhex("c5f458c1"),
    "arm64": bytes.fromhex("00000002"),
    "riscv64": bytes.fromhex("33c5b528"),
}


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS] or None, scope="module")
def dumped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Any, Path, dict[str, Any]]]:
    """Return a machine with a module in it, the same out of its dump, the dump, what was so before."""
    _, folder, _ = request.param
    root = booted.tree(folder)
    if root is None:
        pytest.skip("no modules of this kernel are at hand")
    path = tmp_path_factory.mktemp("dump") / "core"
    with booted.fresh(folder, root) as machine:
        module = some_module(machine)
        name = next(iter(module.functions))
        before = {
            "module": module.name,
            "function": name,
            "bytes": machine.read(module.address_of(name), 16),
            "symbols": dict(module.symbols),
            "regions": dict(module.regions),
            "sections": {
                each.name: each.address
                for each in module.sections.values()
                if each.type is not None and not each.type.is_init and each.size
            },
            "types": sorted(machine.btf),
            "prototype": str(module.functions[name]),
            "log": [line.text for line in machine.log],
            "standing": machine.kernel.guest.standing(
                (
                    machine.arch.runs.calling.program_counter,
                    machine.arch.runs.calling.stack_pointer,
                )
            ),
        }
        machine.core(path)
        yield machine, Machine(core=path, kernel=machine.image), path, before


def physical(source: Path, target: Path, leave_out: frozenset[int] = frozenset()) -> None:
    """Write a dump as QEMU does, by physical addresses alone, without some of its pages."""
    core = vmcore.read(source)
    extents, pieces, at = [], [], 0
    for each in core.physical():
        edges = sorted({p for p in leave_out if each.physical <= p < each.physical + each.size})
        start = each.physical
        for edge in [*edges, each.physical + each.size]:
            if edge > start:
                size = edge - start
                extents.append(Extent(start, start, at, size))
                offset = each.offset + start - each.physical
                step = 1 << 24
                pieces += [(at + n, offset + n, min(step, size - n)) for n in range(0, size, step)]
                at += size
            start = edge + PAGE
    notes = [note for note in core.notes if note.owner != vmcore.VMCOREINFO]
    begin = vmcore.head(core.machine, 0, core.order, notes, extents)
    with target.open("wb") as file:
        vmcore.store(file, begin, at, ((to, core.data[o : o + n]) for to, o, n in pieces))


def test_a_round_trip(dumped: tuple[Any, Any, Path, dict[str, Any]]) -> None:
    """Modules with symbols and types, tasks, the log: as the machine had them when it was dumped."""
    machine, dump, _, before = dumped
    assert isinstance(dump, DumpedMachine)
    assert dump.arch is machine.arch
    (cpu,) = dump.cpus
    calling = dump.arch.runs.calling
    assert cpu[calling.program_counter] == before["standing"][0]
    assert cpu[calling.stack_pointer] == before["standing"][1]
    log = [line.text for line in dump.log]
    assert before["log"][-1] in log
    assert any(machine.kernel.release in line for line in log)
    task = machine.kernel.symbols.get("init_task") or machine.image.exports["init_task"].address
    assert bytes(dump.view("struct task_struct", task).comm).startswith(b"swapper")
    if "modules" not in machine.kernel.symbols:  # its symbols are functions only
        (lack,) = dump.lacks
        assert "CONFIG_KALLSYMS_ALL" in lack
        return
    assert dump.lacks == ()
    module = dump.modules[before["module"]]
    assert list(dump.modules) == [before["module"]]
    at = module.address_of(before["function"])
    assert dump.read(at, 16) == before["bytes"]
    assert module.symbols.items() <= before["symbols"].items()
    assert before["function"] in module.symbols
    assert dict(module.regions) == before["regions"]
    sections = {each.name: each.address for each in module.sections.values()}
    assert sections
    assert sections.items() <= before["sections"].items()
    assert dump.symbolize(at + 1).startswith(f"{before['function']}+0x1/")
    assert sorted(dump.btf) == before["types"]
    assert str(module.functions[before["function"]]) == before["prototype"]


def test_calls(dumped: tuple[Any, Any, Path, dict[str, Any]]) -> None:
    """Functions of kernel and module return what they did; nothing of the dump is written."""
    machine, dump, path, before = dumped
    where = machine.kernel.symbols
    kept = path.stat().st_mtime_ns
    assert dump.call(where["strlen"], "a dump") == 6
    crc = next(n for n in ("crc32_le", "crc32_le_base") if n in where)
    expected = binascii.crc32(DATA) ^ 0xFFFF_FFFF
    assert dump.call(where[crc], 0xFFFF_FFFF, DATA, len(DATA), returns="u32") == expected
    assert dump.functions["simple_strtoul"]("42 and more", 0, 10) == 42
    out = Out(64)
    size = dump.call(where["snprintf"], out, len(out), "%s %d", "page", -7)
    assert bytes(out)[:size] == b"page -7"
    if before["module"] in dump.modules and before["function"] == "crc16":
        assert dump.modules["crc16"].call("crc16", 0, DATA, len(DATA)) == 0xBB3D
    snapshot = dump.snapshot()
    at = dump.alloc(b"kept")
    dump.restore(snapshot)
    assert dump.alloc(b"new") == at
    dump.free(at)
    with pytest.raises(BadCall, match="nothing that was allocated"):
        dump.free(at)
    assert path.stat().st_mtime_ns == kept


def test_what_cannot_be(dumped: tuple[Any, Any, Path, dict[str, Any]]) -> None:
    """No time, no process, no bad pointer: each said by name, and the next call goes on."""
    machine, dump, path, _ = dumped
    where = machine.kernel.symbols
    with dump.fork(), pytest.raises(Fault, match="waits for something, and in a dump nothing"):
        dump.call(where["msleep"], 1)
    with dump.fork(), pytest.raises(Fault, match="found something wrong: exception") as caught:
        dump.call(where["strlen"], 0x10)
    assert "strlen" in caught.value.where
    assert ", of 0x10 at " in str(caught.value)
    with dump.fork():
        dump.write(where["strlen"], _NONE[dump.arch.name])
        with pytest.raises(
            Fault, match=r"invalid instruction.*for the CPU that it ran on"
        ) as caught:
            dump.call(where["strlen"], "")
        assert caught.value.kind is FaultKind.INSTRUCTION
        assert caught.value.pc == where["strlen"]
    assert dump.call(where["strlen"], "still") == 5
    for what, words in (
        ("load", ("crc16",)),
        ("user", (b"",)),
        ("sleep", (1,)),
        ("save", (path.with_name("saved"),)),
    ):
        with pytest.raises(BadCall, match=f"{what}: .*dump of Linux"):
            getattr(dump, what)(*words)
    with pytest.raises(BadCall, match="nothing is mapped at 0x10"):
        dump.read(0x10, 1)
    with pytest.raises(BadCall, match="no such parameter"):
        Machine(core=path, kernel=machine.image, memory=1 << 20)
    with pytest.raises(BadCall, match="name the image of its kernel"):
        Machine(core=path)


def test_pages_that_are_left_out(
    dumped: tuple[Any, Any, Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A dump by physical addresses, some left out: those fault by name, and are never zeros."""
    machine, _, path, before = dumped
    board, where = machine.kernel.board, machine.kernel.symbols
    text, data = where["strlen"], machine.alloc(PAGE)
    runs: list[Run] = board.mapped()
    gone = {board.translate(data) & -PAGE}
    if before["module"] in machine.modules:
        module = machine.modules[before["module"]]
        gone.add(board.translate(module.address_of(before["function"])) & -PAGE)
    target = tmp_path / "filtered"
    physical(path, target, frozenset(gone))
    dump = Machine(core=target, kernel=machine.image)
    assert dump.call(text, "whole") == 5  # VMCOREINFO was found in the memory
    assert dump.log
    with pytest.raises(BadCall, match=f"the page at {data & -PAGE:#x} .* is not in the dump"):
        dump.read(data, 8)
    with pytest.raises(Fault, match=f"page at {data & -PAGE:#x} .* is not in the dump") as caught:
        dump.call(text, data)
    assert caught.value.kind is FaultKind.LACKING
    if before["module"] in dump.modules:
        with pytest.raises(Fault, match="is not in the dump"):
            dump.modules[before["module"]].call(before["function"], 0, 0, 0)
    assert dump.call(text, "whole") == 5
    # Every address that leads to such a page lacks it, and no other does.
    for run in runs:
        for page in gone:
            if run.physical <= page < run.physical + run.size:
                at = run.address + page - run.physical
                with pytest.raises(BadCall, match="is not in the dump"):
                    dump.read(at, 1)
                for near in (at - PAGE, at + PAGE):
                    if (
                        run.address <= near < run.end
                        and near - run.address + run.physical not in gone
                    ):
                        assert len(dump.read(near, 16)) == 16
    again = tmp_path / "again"
    dump.core(again)
    have = vmcore.read(again).physical()
    assert not any(e.physical <= page < e.physical + e.size for e in have for page in gone)


def test_what_makedumpfile_leaves(
    dumped: tuple[Any, Any, Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A dump that makedumpfile has filtered: the kernel is whole, and pages of nobody are missing."""
    machine, _, path, _ = dumped
    target = tmp_path / "filtered"
    words = [tool("makedumpfile"), "-E", "-d", "31", str(path), str(target)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"makedumpfile does not know this kernel: {done.stdout[-80:]}")
    dump = Machine(core=target, kernel=machine.image)
    assert sum(end - start for start, end in dump.dump.ranges) < machine.kernel.board.ram.size // 2
    assert dump.call(machine.kernel.symbols["strlen"], "filtered") == 8
    assert list(dump.modules) == (list(machine.modules) if "modules" in dump.kernel.symbols else [])
    assert dump.log


def test_what_is_no_dump(dumped: tuple[Any, Any, Path, dict[str, Any]], tmp_path: Path) -> None:
    """Of another kernel, packed, cut off, of nothing: one line each, with what would help."""
    machine, _, path, _ = dumped
    image = machine.image
    for begin, what in (
        (b"KDUMP   ", "compressed dump.*makedumpfile -E"),
        (b"makedumpfile\0\0\0\0", "flattened dump.*makedumpfile -E"),
        (b"\x7fELF", "is no ELF file"),
        (b"", "is no ELF file"),
    ):
        (tmp_path / "bad").write_bytes(begin)
        with pytest.raises(BadCore, match=what):
            Machine(core=tmp_path / "bad", kernel=image)
    with pytest.raises(BadCore, match="No such file"):
        Machine(core=tmp_path / "missing", kernel=image)
    core = vmcore.read(path)
    begin = vmcore.head(core.machine, 0, core.order, (), [Extent(0, 0, 0, PAGE)])
    (tmp_path / "cut").write_bytes(begin)
    with pytest.raises(BadCore, match="is cut off"):
        Machine(core=tmp_path / "cut", kernel=image)
    (tmp_path / "zeros").write_bytes(begin + bytes(PAGE))
    with pytest.raises(BadCore, match="a dump of another kernel"):
        Machine(core=tmp_path / "zeros", kernel=image)
    begin = vmcore.head(
        core.machine,
        0,
        core.order,
        [Note(b"VMCOREINFO", 0, b"OSRELEASE=1.2\n")],
        [Extent(0, 0, 0, PAGE)],
    )
    (tmp_path / "other").write_bytes(begin + bytes(PAGE))
    with pytest.raises(BadCore, match=r"is Linux 1\.2, and .* "):
        Machine(core=tmp_path / "other", kernel=image)
    begin = vmcore.head(8, 0, core.order, (), [Extent(0, 0, 0, PAGE)])
    (tmp_path / "mips").write_bytes(begin + bytes(PAGE))
    with pytest.raises(BadCore, match="e_machine 8"):
        Machine(core=tmp_path / "mips", kernel=image)


_SMALL = vmcore.head(
    62,
    0,
    "little",
    [vmcore.prstatus([0] * 27, 1, "little"), Note(b"VMCOREINFO", 0, b"OSRELEASE=6\nSYMBOL(x)=1\n")],
    [Extent(0xFFFF_8880_0000_0000, 0, 0, PAGE), Extent(1 << 63, 0, 0, PAGE)],
) + bytes(PAGE)


@settings(deadline=None, max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=9)), max_size=6),
    st.integers(0, len(_SMALL)),
)
def test_any_bytes_are_read_or_refused(changes: list[tuple[int, bytes]], size: int) -> None:
    """Whatever is in a file: it is a core, or BadCore says where it is none."""
    data = bytearray(_SMALL)
    for at, new in changes:
        data[at : at + len(new)] = new
    for whole in (bytes(data), bytes(data[:size])):
        try:
            found = vmcore.parse(whole, "fuzzed")
            list(found.physical())
            found.registers(27)
            vmcore.facts(found.info)
            found.told("6")
        except BadCore as error:
            assert "\n" not in str(error)  # noqa: PT017 -- any other way out fails


def test_a_core_read_back() -> None:
    """Segments, notes and registers are what was written, by an arrangement of our own, too."""
    core = vmcore.parse(_SMALL, "small")
    assert [(e.address, e.physical, e.size) for e in core.extents] == [
        (0xFFFF_8880_0000_0000, 0, PAGE),
        (1 << 63, 0, PAGE),
    ]
    assert core.registers(27) == [(0,) * 27]
    assert vmcore.facts(core.info) == {"OSRELEASE": "6", "SYMBOL(x)": "1"}
    told = {
        "SYMBOL(prb)": "ffffffff82a64660",
        "SYMBOL(mem_section)": "1",
        "LENGTH(mem_section)": "9",
    }
    assert vmcore.symbols_told(told) == {"prb": 0xFFFF_FFFF_82A6_4660}  # of an array no variable
    (only,) = core.physical()
    assert (only.physical, only.size) == (0, PAGE)
    many = [Extent(n * PAGE, n * PAGE, 0, PAGE) for n in range(70_000)]
    found = vmcore.parse(vmcore.head(62, 0, "little", (), many) + bytes(PAGE), "many")
    assert [e.address for e in found.extents] == [e.address for e in many]
    assert struct.unpack_from("<H", vmcore.head(62, 0, "little", (), many), 56) == (0xFFFF,)
    assert np.frombuffer(bytes(found.data[-PAGE:]), np.uint8).any() == np.False_


def test_the_command(
    dumped: tuple[Any, Any, Path, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """`execmem run --core` calls a function in a dump."""
    from execmem.cli import main

    machine, _, path, before = dumped
    _, folder, _ = next(k for k in KERNELS if k[2] is machine.arch)
    for words, code, shown in (
        (["vmlinux", "strlen", "str:abcde"], 0, "strlen = 0x5 (5)"),
        (["vmlinux", "no_such_function"], 1, "has no such symbol"),
        (["vmlinux"], 2, "name a FUNCTION"),
        ([before["module"], before["function"], "--param", "a=1"], 2, "--param: nothing is loaded"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["run", *words, "--core", str(path), "--kernel", str(folder)])
        out = capsys.readouterr()
        assert (caught.value.code or 0) == code, out
        assert shown in out.out + out.err
