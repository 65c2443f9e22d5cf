# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines as cores, as GNU readelf, gdb and pyelftools read them. Needs EXECMEM_KERNELS for booted ones."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

import archs
from archs import Arch
from emulator.faults import BadCall
from execmem import export_booted
from loader.depends import find, open_tree
from loader.files import ModuleFile
from loader.loaded import State
from machine.booted.machine import BootedMachine
from machine.face import Machine
from machine.machine import ModelledMachine
from samples import modules as samples
from tests.support import booted
from tests.support.tools import tool

KERNELS = booted.some()
PAGE = 4096


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS] or None)
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return a machine of each architecture, with a module in it."""
    _, folder, _ = request.param
    root = booted.tree(folder)
    if root is None:
        pytest.skip("no modules of this kernel are at hand")
    with booted.fresh(folder, root) as found:
        yield found


def some_module(machine: BootedMachine) -> Any:
    """Return a module that needs no other, loaded."""
    tree = open_tree(booted.tree(machine_folder(machine)) or Path())
    for name in ("crc16", "libarc4", "crc7", "llc", "lz4_compress", "xor", "michael_mic", "veth"):
        if name in tree.files:
            return machine.load(ModuleFile.read(find(tree, name)))
    pytest.skip("none of the modules that are looked for")


def machine_folder(machine: BootedMachine) -> Path:
    """Return the folder of its kernel."""
    release = machine.kernel.release
    for _, folder, arch in KERNELS:
        if arch is machine.arch and any(release in str(path) for path in folder.rglob("*")):
            return folder
    raise AssertionError(release)


def contents(path: Path) -> str:
    """Return a digest of a file's bytes, holes as the zeros that they are."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        end, size = 0, os.fstat(file.fileno()).st_size
        found.update(size.to_bytes(8, "little"))
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            for at in range(start, end, PAGE):
                page = os.pread(file.fileno(), PAGE, at)
                if any(page):
                    found.update(at.to_bytes(8, "little") + page)
    return found.hexdigest()


def test_a_core_has_the_memory(machine: BootedMachine, tmp_path: Path) -> None:
    """Every page lies at both addresses; registers are the process'; the kernel's own note is there."""
    module, path = some_module(machine), tmp_path / "core"
    found = machine.core(path)
    assert (found.path, found.lacks) == (str(path), ())
    assert found.size == path.stat().st_size
    assert path.stat().st_blocks * 512 < found.size // 3  # pages of zeros take no room
    board = machine.kernel.board
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert (elf["e_type"], elf["e_machine"]) == ("ET_CORE", _name_of(machine.arch))
        loads = list(elf.iter_segments("PT_LOAD"))
        assert len(loads) == found.segments
        notes = {note["n_name"]: note for note in next(elf.iter_segments("PT_NOTE")).iter_notes()}
        info = notes["VMCOREINFO"]["n_descdata"].decode()
        assert f"OSRELEASE={machine.kernel.release}\n" in info
        first = info.partition("SYMBOL(_stext)=")[2].partition("\n")[0]
        assert int(first, 16) == machine.kernel.symbols["_stext"]
        assert notes["CORE"]["n_type"] == "NT_PRSTATUS"
        rng = random.Random(0)
        places = [s.address for s in module.sections.values() if s.size]
        places += [
            load["p_vaddr"] + PAGE * rng.randrange(load["p_memsz"] // PAGE) for load in loads
        ]
        for at in places:
            inside = [x for x in loads if x["p_vaddr"] <= at < x["p_vaddr"] + x["p_memsz"]]
            assert inside, hex(at)
            (load,) = inside
            offset = at - load["p_vaddr"]
            file.seek(load["p_offset"] + offset)
            physical = load["p_paddr"] + offset
            assert board.translate(at) in (physical, None)  # a direct map has holes
            assert file.read(64) == board.ram.read(physical, 64)
    again = tmp_path / "again"
    machine.core(again)
    assert contents(again) == contents(path)


def _name_of(arch: Arch) -> str:
    return {62: "EM_X86_64", 183: "EM_AARCH64", 243: "EM_RISCV", 8: "EM_MIPS"}[arch.machine]


def said(*words: str | Path) -> str:
    """Run a program that must succeed and warn of nothing, and return what it prints."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "arning: " not in done.stdout + done.stderr
    return done.stdout + done.stderr


def test_gdb_and_readelf_read_a_core(machine: BootedMachine, tmp_path: Path) -> None:
    """Gdb shows registers, a backtrace through the system call, module code and kernel data."""
    module, core, elf = some_module(machine), tmp_path / "core", tmp_path / "elf"
    elf.write_bytes(export_booted.elf(machine, module))
    machine.core(core)  # after it: gdb takes a newer program for another
    assert "Core file" in said(tool("readelf"), "-h", "-l", "-n", core)
    said(tool("readelf"), "-h", "-l", "-S", "-s", "-W", elf)
    gdb = shutil.which("gdb-multiarch")
    if gdb is None:
        pytest.skip("gdb-multiarch is not installed")
    name = next(iter(module.functions))
    at = module.address_of(name)
    banner = machine.kernel.symbols.get("linux_banner")
    commands = ["bt", "info registers", f"info symbol {at:#x}", f"x/8xb {at:#x}"]
    if banner is not None:
        commands.append(f"x/s {banner:#x}")
    words = [word for command in commands for word in ("-ex", command)]
    shown = said(gdb, "-nx", "-batch", elf, "-ex", f"core-file {core}", *words)
    assert re.search(r"#0 .* in __\w+_sys_getppid \(\)", shown)
    assert re.search(r"#1 .* in (invoke_syscall|do_syscall_64|do_trap_ecall_u|__\w+)", shown)
    assert f"{name} in section .text" in shown
    names = machine.arch.runs.gregset
    registers = dict(re.findall(r"^(\w+) +(0x[0-9a-f]+)", shown, re.MULTILINE))
    known = zip(names, machine.kernel.guest.standing(names), strict=True)
    both = {name: (int(registers[name], 16), value) for name, value in known if name in registers}
    assert len(both) > 15
    assert [name for name, (theirs, ours) in both.items() if theirs != ours] == []
    bytes_shown = re.findall(rf"{at:#x}\b.*?:\s+(.*)", shown)[-1].split()
    assert bytes(int(word, 16) for word in bytes_shown) == machine.read(at, 8)
    if banner is not None:
        assert f'"Linux version {machine.kernel.release} ' in shown


def test_a_core_is_refused_inside_of_a_call(machine: BootedMachine, tmp_path: Path) -> None:
    """A handler cannot write one: the machine is between two states."""
    name = next(n for n in ("crc32_le", "crc32_le_base", "strlen") if n in machine.kernel.symbols)
    tried: list[str] = []

    def handler(_hit: object) -> None:
        with pytest.raises(BadCall, match="a call is under way") as caught:
            machine.core(tmp_path / "core")
        tried.append(str(caught.value))

    with machine.probe(name, handler):
        machine.call(machine.function(name), 0 if name != "strlen" else "a", b"a", 1)
    assert tried
    assert not (tmp_path / "core").exists()


MODELLED = [arch for arch in archs.ALL if arch.run is not None]


@pytest.mark.parametrize("given", MODELLED, ids=[arch.name for arch in MODELLED])
def test_a_modelled_machine_as_a_core(given: Arch, tmp_path: Path) -> None:
    """Memory and registers are there, and what is not is said."""
    machine = Machine(given, root=samples.root(given.name), cpus=2)
    assert isinstance(machine, ModelledMachine)
    module = machine.load("mathuser")
    assert module.state is State.LIVE
    path = tmp_path / "core"
    found = machine.core(path)
    (lack,) = found.lacks
    assert "VMCOREINFO" in lack
    assert "CORE" in said(tool("readelf"), "-h", "-l", "-n", path)
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_machine"] == _name_of(given)
        loads = list(elf.iter_segments("PT_LOAD"))
        statuses = [
            n
            for n in next(elf.iter_segments("PT_NOTE")).iter_notes()
            if n["n_type"] == "NT_PRSTATUS"
        ]
        assert len(statuses) == 2  # CPUs
        for section in module.sections.values():
            if not section.size:
                continue
            load = next(
                x
                for x in loads
                if x["p_vaddr"] <= section.address < x["p_vaddr"] + x["p_memsz"]
                and x["p_vaddr"] + x["p_memsz"] - section.address >= min(section.size, PAGE)
            )
            file.seek(load["p_offset"] + section.address - load["p_vaddr"])
            size = min(section.size, 16)
            assert file.read(size) == machine.read(section.address, size)
