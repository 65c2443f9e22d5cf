# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults and reports with lines of source: those of addr2line, and those that a debug file has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from archs import Arch
from emulator.faults import Fault
from loader import debugfile
from loader.debugfile import build_id
from loader.elf import parse
from loader.files import read_module
from machine.face import Machine
from machine.sources import Placed, Sources
from tests.support import booted
from tests.support.debugged import built, linked
from tests.support.tools import assemble, cross, run
from tests.support.tools import code as assembled

# Of a unit at `.text` whose shortest instructions are a line each, from 1001 on.
_DEBUG = """
    .file 1 "driver.c"
    .text
{code}
    .section .note.gnu.build-id, "a", %note
    .balign 4
    .4byte 4, {size}, 3
    .ascii "GNU\\0"
    .byte {id}
    .section .debug_line, "", %progbits
.Lline:
    .section .debug_abbrev, "", %progbits
    .byte 1, 0x11, 0, 0x10, 0x17, 0x11, 1, 0x12, 7, 0, 0, 0
    .section .debug_info, "", %progbits
    .4byte .Lend - .Lstart
.Lstart:
    .2byte 4
    .4byte 0
    .byte 8, 1
    .4byte .Lline
    .8byte .text
    .8byte {length}
.Lend:
"""


def test_a_fault_tells_its_line(arch: Arch, tmp_path: Path) -> None:
    """Of the modelled kernel: the line that addr2line has of the instruction that stopped."""
    if arch.run is None:
        pytest.skip(f"{arch.name} has no level run")
    path = built(arch, "sorting", tmp_path)
    machine = Machine(arch)
    module = machine.load(path)
    with pytest.raises(Fault) as caught:
        module.call("sorting_bsearch", 0x10, 100, 7)
    fault = caught.value
    text = module.loaded.sections[module.loaded.view.section(".text").index]
    where = fault.pc - text.address
    theirs = run(cross(arch.machine, "addr2line"), "-j", ".text", "-fi", "-e", path, hex(where))
    told = [line.rpartition("/")[2].partition(" ")[0] for line in theirs.splitlines()[1::2]]
    names = [line.partition(".")[0] for line in theirs.splitlines()[::2]]
    pairs = [f"{line} ({name})" for line, name in zip(told, names, strict=True)]
    assert fault.sources == (", inlined in ".join(pairs),)
    assert f", {fault.sources[0]}" in str(fault)


def test_places_are_told_by_name(arch: Arch, tmp_path: Path) -> None:
    """As kernels print them; what is not said for certain is not told."""
    path = built(arch, "mathlib", tmp_path)
    view = parse(path.read_bytes(), arch=arch)
    program, addresses = linked(arch, path)
    placed = Placed(view, addresses)
    sources = Sources(lambda name: placed if name == "mathlib" else None)
    symbols = {
        words[3]: (int(words[0], 16), int(words[1], 16))
        for line in run(cross(arch.machine, "nm"), "-S", program).splitlines()
        if len(words := line.split()) == 4
    }
    start, size = symbols["mathlib_gcd"]

    def line(offset: int) -> str:
        said = run(cross(arch.machine, "addr2line"), "-e", program, hex(start + offset))
        return said.rpartition("/")[2].split()[0]

    step = next(n for n in range(4, size, 2) if line(n) != line(n - 1))
    place = f"mathlib_gcd+{step:#x}/{size:#x} [mathlib]"
    frames = [place, "mathlib_gcd+0x4/0x8 [other]", "x", ""]
    here, again, *more = sources.told(place, frames)
    assert here.partition(" ")[0] == line(step)
    assert again == here  # some kernels begin with the place itself
    assert more == ["", "", ""]
    (_, caller) = sources.told("start_kernel+0x4/0x8", [place])
    assert caller.partition(" ")[0] == line(step - 1)
    assert sources.told(place.replace("[mathlib]", "[mathlib 0123abcd]")) == (here,)
    assert sources.told("nothing+0x4/0x8 [mathlib]", ["start_kernel+0x4/0x8"]) == ()
    assert sources.told("mathlib_gcd [mathlib]") == ()


KERNELS = booted.one_of_each()


@pytest.mark.parametrize("kernel", KERNELS, ids=[name for name, _, _ in KERNELS])
def test_reports_of_booted_kernels_tell_lines(
    kernel: tuple[str, Path, Arch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of a debug file that has the module's build id, wherever the kernel put the module."""
    _, folder, arch = kernel
    root = booted.tree(folder)
    found = None if root is None else next(root.rglob("crc16.ko*"), None)
    if root is None or found is None:
        pytest.skip("no crc16 with this kernel")
    view = parse(read_module(found))
    text = view.section(".text")
    name = build_id(view)
    raw = bytes.fromhex(name)
    unit = len(assembled(arch.machine, "    nop\n", tmp_path))
    code = "\n".join(f"    .loc 1 {1001 + n}\n    nop" for n in range(text.size // unit))
    source = _DEBUG.format(code=code, size=len(raw), id=", ".join(map(str, raw)), length=text.size)
    place = tmp_path / ".build-id" / name[:2] / f"{name[2:]}.debug"
    place.parent.mkdir(parents=True)
    place.write_bytes(assemble(arch.machine, source, tmp_path))
    monkeypatch.setattr(debugfile, "FOLDERS", (tmp_path,))
    with booted.fresh(folder, root) as machine:
        machine._sources._known.clear()  # other tests have looked for it, in vain
        module = machine.load("crc16")
        with pytest.raises(Fault) as caught:
            module.call("crc16", 0, 0x10, 100)
        start = next(s for s in module.sections.values() if s.name == ".text").address
        entry = module.symbols["crc16"]
    fault = caught.value
    offset = re.match(r"crc16\+0x([0-9a-f]+)/", fault.where)
    assert offset is not None
    line = 1001 + (entry + int(offset[1], 16) - start) // unit
    assert fault.sources[0] == f"driver.c:{line}"
    assert f", driver.c:{line}" in str(fault)
    assert all(
        told == fault.sources[0]
        for frame, told in zip(fault.backtrace, fault.sources[1:], strict=True)
        if frame == fault.where
    )
