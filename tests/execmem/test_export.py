# SPDX-License-Identifier: GPL-2.0-or-later
"""Exported modules, as GNU readelf, objdump and gdb read them."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from archs import Arch
from emulator.disassembly import Disassembler
from execmem import export
from execmem.cli import main
from execmem.commands.common import loaded_to_read
from loader.listing import Listing
from loader.loaded import LoadedModule
from tests.execmem.test_disasm import OPTIONS
from tests.support.tools import cross, tool

SAMPLES = ("mathuser", "logbook", "tables")


def loaded(arch: Arch, name: str) -> LoadedModule:
    """Return a sample module in memory, or skip."""
    if arch.run is None:
        pytest.skip(f"{arch.name} has no level run")
    module, _ = loaded_to_read(name, {**OPTIONS, "arch": arch.name})
    return module


@pytest.fixture(params=SAMPLES)
def file(request: pytest.FixtureRequest, arch: Arch, tmp_path: Path) -> tuple[LoadedModule, Path]:
    """Return a sample module in memory, and the file that it is exported to."""
    module = loaded(arch, request.param)
    path = tmp_path / "out.elf"
    path.write_bytes(export.elf(module))
    return module, path


def said(*command: str | Path) -> str:
    """Run a program that must succeed and complain of nothing, and return what it prints."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    assert "arning" not in done.stdout
    return done.stdout


def test_sections_and_symbols_are_where_they_lie(file: tuple[LoadedModule, Path]) -> None:
    """Pyelftools finds every section with its bytes, and every symbol, at the module's addresses."""
    module, path = file
    with path.open("rb") as stream:
        found = ELFFile(stream)
        assert found["e_type"] == "ET_EXEC"
        assert found["e_machine"] == ELFFile(_stream(module)).header["e_machine"]
        by_address = {(s.name, s["sh_addr"]): s for s in found.iter_sections()}
        for index, section in module.sections.items():
            theirs = by_address[section.name, section.address]
            assert theirs["sh_size"] == section.size
            if theirs["sh_type"] != "SHT_NOBITS" and index in module.linked.sections:
                assert theirs.data() == bytes(module.linked.sections[index])
        table = found.get_section_by_name(".symtab")
        values = {
            s.name: s["st_value"]
            for s in table.iter_symbols()
            if s["st_info"]["bind"] != "STB_LOCAL"
        }
        for name, address in module.symbols.items():
            assert values.get(name, address) == address
        assert {*module.view.undefined} <= set(values)
        for segment in found.iter_segments():
            for section in found.iter_sections():
                if section["sh_flags"] & 2 and section["sh_type"] == "SHT_PROGBITS":
                    start = section["sh_addr"] - segment["p_vaddr"]
                    if 0 <= start < segment["p_filesz"]:
                        assert segment.data()[start : start + section["sh_size"]] == section.data()


def _stream(module: LoadedModule) -> object:
    import io

    return io.BytesIO(bytes(module.view.data))


def test_readelf_has_nothing_to_say_against_it(file: tuple[LoadedModule, Path]) -> None:
    """Headers, segments, symbols, notes: no warning."""
    _, path = file
    out = said(tool("readelf"), "-hlSsnW", path)
    assert "EXEC (Executable file)" in out


def test_objdump_disassembles_what_we_do(arch: Arch, file: tuple[LoadedModule, Path]) -> None:
    """At random places in text, the bytes and where the next instruction begins are the same."""
    module, path = file
    out = said(cross(arch.machine, "objdump"), "-d", "--insn-width=16", path)
    pattern = r"^\s*([0-9a-f]+):\t((?:[0-9a-f]{2,8} )+)"
    lines = [(int(m[1], 16), m[2]) for m in re.finditer(pattern, out, re.MULTILINE)]
    assert lines
    chance = random.Random(7)  # places, not secrets
    ours = Disassembler(arch)
    for at, raw in chance.sample(lines, min(200, len(lines))):
        section = next(
            (i, s) for i, s in module.sections.items() if s.address <= at < s.address + s.size
        )
        start = at - section[1].address
        code = bytes(module.linked.sections[section[0]][start : start + 16])
        found = ours.all(code, at)
        size = sum(len(word) for word in raw.split()) // 2
        if found:
            assert found[0][1] == size, (hex(at), raw, found[0])


def test_gdb_opens_it(arch: Arch, file: tuple[LoadedModule, Path]) -> None:
    """Gdb knows the architecture by itself, and symbols by name."""
    module, path = file
    program = shutil.which("gdb-multiarch")
    if program is None:
        pytest.skip("gdb-multiarch is not installed")
    functions = {
        name: address
        for name, address in module.symbols.items()
        if (found := module.symbol_at(address)) is not None and found[:2] == (name, 0)
    }
    name, address = next(iter(functions.items()))
    done = subprocess.run(
        [program, "-nx", "-batch", "-ex", f"info address {name}", "-ex", f"x/2i {name}", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{address:#x}" in done.stdout
    assert "Cannot access memory" not in done.stdout + done.stderr


def test_the_note_has_every_relocation(file: tuple[LoadedModule, Path]) -> None:
    """A line for each, with what it was."""
    module, path = file
    with path.open("rb") as stream:
        notes = list(ELFFile(stream).get_section_by_name(export.RELOCATIONS).iter_notes())
    (note,) = notes
    assert note["n_name"] == "execmem"
    text = note["n_desc"] if isinstance(note["n_desc"], str) else note["n_descdata"].decode()
    rows = [json.loads(line) for line in text.split("\n")]
    expected = list(Listing.of(module).select())
    assert len(rows) == len(expected)
    assert [int(r["place"], 16) for r in rows] == [e.place for e in expected]
    assert [r["type"] for r in rows] == [e.type for e in expected]


def test_the_flat_image_and_its_map(arch: Arch) -> None:
    """Each section stands where the map says."""
    module = loaded(arch, "mathuser")
    data, listing = export.flat(module)
    sections = listing.split("# address symbol")[0].splitlines()[1:]
    for line in sections:
        offset, address, size, name = line.split(" ", 3)
        index = next(
            i for i, s in module.sections.items() if (s.address, s.name) == (int(address, 16), name)
        )
        at = int(offset, 16)
        held = module.linked.sections.get(index)
        if held is not None:
            assert data[at : at + int(size, 16)] == bytes(held)
    assert f"{module.symbols['mathuser_lcm']:#x} mathuser_lcm" in listing


def test_the_command(arch: Arch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files are written; without a name, or where none can be, a line says so."""
    if arch.run is None:
        pytest.skip(f"{arch.name} has no level run")

    def status(*words: str) -> int:
        with pytest.raises(SystemExit) as caught:
            main(["export", "mathuser", "--arch", arch.name, *words])
        return int(caught.value.code or 0)

    out = tmp_path / "m.elf"
    assert status("--elf", str(out), "--bin", str(tmp_path / "m.bin"), "--json") == 0
    rows = json.loads(capsys.readouterr().out)["files"]
    assert [row["format"] for row in rows] == ["elf", "bin", "map"]
    assert out.read_bytes()[:4] == b"\x7fELF"
    assert status() == 2
    assert status("--elf", str(tmp_path / "no" / "m.elf")) == 1
