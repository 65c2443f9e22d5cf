# SPDX-License-Identifier: GPL-2.0-or-later
"""The prebuilt sample modules are what their sources and the manifest say.

Looked at as files, with pyelftools: running them is the business of the machine's tests.
Layouts are those of a 6.12 kernel's BTF; formats are those of include/linux/module.h,
export.h and moduleparam.h.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.descriptions import describe_reloc_type
from elftools.elf.elffile import ELFFile
from elftools.elf.enums import ENUM_E_MACHINE

from allocator.errors import ExecmemError
from archs import ALL, Arch
from samples import modules
from samples.modules import build
from tests.archs.facts import cases, facts

ARCHS = tuple(sorted(arch.name for arch in ALL if arch.run is not None))
PACKAGE = Path(modules.__file__).parent
MANIFEST = json.loads((PACKAGE / "manifest.json").read_text())


def elf(arch: str, name: str) -> ELFFile:
    """Open a sample."""
    return ELFFile(BytesIO(modules.path(arch, name).read_bytes()))


def section(file: ELFFile, name: str) -> Any:
    """Return a section that must be there."""
    found = file.get_section_by_name(name)
    assert found is not None, name
    return found


def modinfo(file: ELFFile) -> list[tuple[str, str]]:
    """Return the (tag, value) pairs of `.modinfo`, in its order."""
    strings = section(file, ".modinfo").data().split(b"\0")
    pairs = [text.decode().partition("=") for text in strings if text]
    return [(tag, value) for tag, _, value in pairs]


def relocations(file: ELFFile, target: str) -> Iterator[tuple[int, str, str, int, int]]:
    """Yield (offset, type, symbol name, symbol value + addend, symbol's section)."""
    table = section(file, f".rela{target}")
    symbols: Any = file.get_section(table["sh_link"])
    for row in table.iter_relocations():
        symbol = symbols.get_symbol(row["r_info_sym"])
        number = row["r_info_type"]
        names = facts(ENUM_E_MACHINE[file["e_machine"]]).link.names
        kind = names.get(number) or describe_reloc_type(number, file)
        value = symbol["st_value"] + row["r_addend"]
        yield row["r_offset"], kind, symbol.name, value, symbol["st_shndx"]


def undefined(file: ELFFile) -> set[str]:
    """Return the names that a module takes from elsewhere."""
    symbols = section(file, ".symtab").iter_symbols()
    return {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF" and s.name}


def string_at(file: ELFFile, index: int, offset: int) -> str:
    """Return the NUL-terminated string at an offset of a section."""
    text: bytes = file.get_section(index).data()[offset:]
    return text.split(b"\0")[0].decode()


def exports(file: ELFFile, table: str) -> list[tuple[str, str]]:
    """Return (name, namespace) of each entry of an export table, in its order."""
    rows = list(relocations(file, table))
    found = []
    for value, name, namespace in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert string_at(file, name[4], name[3]) == value[2]
        found.append((value[2], string_at(file, namespace[4], namespace[3])))
    return found


each_module = pytest.mark.parametrize("name", modules.names())
each_arch = pytest.mark.parametrize("arch", ARCHS)


def test_all_are_there() -> None:
    """The modules of the build exist for each architecture and nothing else lies there."""
    assert modules.names() == tuple(sorted(build.MODULES))
    found = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.ko")}
    wanted = {
        str(modules.path(arch, name).relative_to(PACKAGE))
        for arch in ARCHS
        for name in modules.names()
    }
    assert found == wanted == set(MANIFEST["files"])


def test_manifest_matches_files() -> None:
    """The manifest's hash and size are those of the file beside it."""
    for name, entry in MANIFEST["files"].items():
        data = (PACKAGE / name).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry["sha256"], entry["size"])


def test_package_stays_small() -> None:
    """Everything that is shipped for the samples fits in 700 KiB."""
    shipped = [file for file in PACKAGE.rglob("*") if "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in shipped if file.is_file()) < 700 << 10


def test_unknown_names_are_refused() -> None:
    """A wrong architecture or module is refused with the names that exist."""
    with pytest.raises(ExecmemError, match=f"'vax'; there are some for {', '.join(ARCHS)}"):
        modules.root("vax")
    with pytest.raises(ExecmemError, match="'nothing'; there are branches, checksums"):
        modules.path("arm64", "nothing")


@each_arch
def test_modules_dep_agrees_with_modinfo(arch: str) -> None:
    """modules.dep lists each module once, with the modules that its modinfo depends on."""
    folder = modules.root(arch) / "lib" / "modules" / modules.RELEASE
    listed = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        file, _, needed = line.partition(":")
        listed[Path(file).stem] = [Path(other).stem for other in needed.split()]
        assert (folder / file).is_file()
    depends = {
        name: [part for part in dict(modinfo(elf(arch, name)))["depends"].split(",") if part]
        for name in modules.names()
    }
    assert listed == depends
    assert {name for name, needed in depends.items() if needed} == {"mathuser"}


@each_arch
@each_module
def test_modinfo(arch: str, name: str) -> None:
    """Each module says its name, licence and the kernel that it is built for."""
    fields = dict(modinfo(elf(arch, name)))
    assert fields["name"] == name
    assert fields["license"] == "GPL"
    assert fields["vermagic"] == facts(arch).link.vermagic
    assert fields["description"]


@each_arch
def test_parameters(arch: str) -> None:
    """Each parameter has an entry of 40 bytes whose name and kernel_param_ops fit its type."""
    file = elf(arch, "hello")
    types = dict(value.split(":") for tag, value in modinfo(file) if tag == "parmtype")
    assert types == {"who": "charp", "times": "int", "loud": "bool", "ids": "array of int"}
    rows = {row[0]: row[1:] for row in relocations(file, "__param")}
    operations = {}
    assert section(file, "__param")["sh_size"] == 4 * 40
    for entry in range(0, 4 * 40, 40):
        _, _, value, index = rows[entry]
        assert rows[entry + 8][1] == "__this_module"
        operations[string_at(file, index, value)] = rows[entry + 16][1]
        assert {rows[entry + at][0] for at in (0, 8, 16, 32)} == {facts(arch).link.abs64_name}
    assert operations == {
        "who": "param_ops_charp",
        "times": "param_ops_int",
        "loud": "param_ops_bool",
        "ids": "param_array_ops",
    }


@each_arch
@each_module
def test_struct_module(arch: str, name: str) -> None:
    """`.gnu.linkonce.this_module` has the kernel's size, name, and pointers to init and exit."""
    file = elf(arch, name)
    this_module = section(file, ".gnu.linkonce.this_module")
    known = facts(arch).link
    assert this_module["sh_size"] == known.this_module_size
    assert this_module["sh_addralign"] == 64
    assert this_module.data()[24:80] == name.encode().ljust(56, b"\0")
    found = [row[:3] for row in relocations(file, ".gnu.linkonce.this_module")]
    assert found == [
        (known.init_at, known.abs64_name, "init_module"),
        (known.exit_at, known.abs64_name, "cleanup_module"),
    ]


@each_arch
@each_module
def test_sections_are_never_writable_and_executable(arch: str, name: str) -> None:
    """No section is W and X, and the names say what a section is (module_enforce_rwx_sections)."""
    for header in elf(arch, name).iter_sections():
        flags = header["sh_flags"]
        assert not flags & SH_FLAGS.SHF_WRITE or not flags & SH_FLAGS.SHF_EXECINSTR
        if header.name in (".text", ".text.unlikely", ".init.text", ".exit.text"):
            assert flags == SH_FLAGS.SHF_ALLOC | SH_FLAGS.SHF_EXECINSTR
        if header.name in (".data", ".bss", ".init.data", ".data..ro_after_init"):
            assert flags == SH_FLAGS.SHF_ALLOC | SH_FLAGS.SHF_WRITE
        if header.name in (".rodata", ".init.rodata", ".modinfo", "__param", "__ksymtab"):
            assert flags == SH_FLAGS.SHF_ALLOC
        assert header.name not in (".eh_frame", ".comment", ".riscv.attributes")


@each_arch
def test_sealed_has_every_init_section(arch: str) -> None:
    """`sealed` has the sections that are freed or sealed after init, with something in them."""
    file = elf(arch, "sealed")
    for name in (
        ".data..ro_after_init",
        ".init.text",
        ".init.data",
        ".init.rodata",
        ".exit.text",
    ):
        assert section(file, name)["sh_size"] > 0, name


@each_module
def test_arm64_placeholders(name: str) -> None:
    """On arm64 each section that the loader sizes itself is one byte (module.lds.h)."""
    file = elf("arm64", name)
    for placeholder, executable in (
        (".plt", True),
        (".init.plt", False),
        (".text.ftrace_trampoline", True),
        (".init.text.ftrace_trampoline", False),
    ):
        header = section(file, placeholder)
        assert header["sh_size"] == 1
        assert bool(header["sh_flags"] & SH_FLAGS.SHF_EXECINSTR) is executable


@each_arch
def test_exports(arch: str) -> None:
    """`mathlib` exports plainly, GPL-only and in a namespace, each table sorted by name."""
    file = elf(arch, "mathlib")
    plain = exports(file, "__ksymtab")
    assert plain == [("mathlib_calls", "MATHLIB"), ("mathlib_gcd", "")]
    assert exports(file, "__ksymtab_gpl") == [("mathlib_powmod", "")]
    user = elf(arch, "mathuser")
    wanted = {name for name in undefined(user) if name.startswith("mathlib")}
    assert wanted == {"mathlib_calls", "mathlib_gcd", "mathlib_powmod"}
    assert ("import_ns", "MATHLIB") in modinfo(user)


@pytest.mark.parametrize(("arch", "key"), cases("link", "shown"))
def test_relocations_shown(arch: Arch, key: tuple[str, str]) -> None:
    """Each sample has the relocation types that it is there to show."""
    shown, (name, target) = facts(arch).link.shown, key
    found = {kind for _, kind, *_ in relocations(elf(arch.name, name), target)}
    assert shown[key] <= found


@each_arch
def test_every_branch_form_is_in_the_table(arch: str) -> None:
    """The table of forms points at each function named branch_*, once."""
    file = elf(arch, "branches")
    symbols = list(section(file, ".symtab").iter_symbols())
    forms = {(s["st_shndx"], s["st_value"]) for s in symbols if s.name.startswith("branch_")}
    rows = [row for row in relocations(file, ".rodata") if row[1] == facts(arch).link.abs64_name]
    (start,) = (s for s in symbols if s.name == "branches_forms")
    (end,) = (s for s in symbols if s.name == "branches_forms_end")
    rows = [row for row in rows if start["st_value"] <= row[0] < end["st_value"]]
    assert {(row[4], row[3]) for row in rows} == forms
    assert len(rows) == len(forms) == (end["st_value"] - start["st_value"]) // 8
    assert len(forms) >= 30


@each_arch
def test_crc_table(arch: str) -> None:
    """The 16 KiB of `tables` are the eight slices of CRC-64/XZ, worked out bit by bit here."""
    slices = []
    for zeros in range(8):
        for byte in range(256):
            state = byte
            for _ in range(8 * (zeros + 1)):
                state = state >> 1 ^ (0xC96C5795D7870F42 if state & 1 else 0)
            slices.append(state)
    table = struct.pack("<2048Q", *slices)
    assert table in section(elf(arch, "tables"), ".rodata").data()


@each_arch
def test_only_logbook_has_a_stack_protector(arch: str) -> None:
    """`__stack_chk_fail` is called by `logbook` and by no other sample."""
    users = {n for n in modules.names() if "__stack_chk_fail" in undefined(elf(arch, n))}
    assert users == {"logbook"}


@each_arch
@each_module
def test_no_trace_of_the_build(arch: str, name: str) -> None:
    """A file holds no build id, no compiler's name and no path of the machine that made it."""
    data = modules.path(arch, name).read_bytes()
    for trace in (b"GCC:", b".note.gnu.build-id", b"/tmp/", b"/home/", str(PACKAGE).encode()):
        assert trace not in data


def test_rebuild_gives_the_same_bytes(tmp_path: Path) -> None:
    """The compilers that the manifest names make the very files that are shipped."""
    try:
        versions = build.tool_versions()
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is not installed")
    if versions != MANIFEST["tools"]:
        pytest.skip("other compiler versions than those of the manifest are installed")
    build.build(tmp_path)
    for name in (*MANIFEST["files"], "manifest.json"):
        assert (tmp_path / name).read_bytes() == (PACKAGE / name).read_bytes(), name
    for arch in ARCHS:
        dep = f"{arch}/lib/modules/{modules.RELEASE}/modules.dep"
        assert (tmp_path / dep).read_text() == (PACKAGE / dep).read_text()
